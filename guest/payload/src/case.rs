//! The cases, one file a subject, and how a vCPU gets to its part.
//!
//! A case is a function that every vCPU calls once all are up. Those that have no part in it return at once, and serve
//! interrupts while they idle.

mod acceptance;
mod call;
mod crash;
mod interrupted;
mod litmus;
mod mtrr;
mod mtrr_layout;
mod mtrr_rounds;
mod nmi_watchdog;
mod records;
pub(crate) mod rendezvous;
mod rounds;
mod slow;

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::image::Case;
use stallbench_abi::knob::Knob;
use stallbench_abi::layout::vector;
use stallbench_rt::arena::SharedArray;
use stallbench_rt::{boot, this};

pub(crate) use acceptance::Words as AcceptanceWords;
pub(crate) use call::hold_pool;
pub(crate) use interrupted::Words as InterruptedWords;
pub(crate) use litmus::Words as LitmusWords;
pub(crate) use records::Words as RecordsWords;
pub(crate) use rounds::Words as RoundsWords;

#[cfg(guest_image)]
unsafe extern "C" {
    /// First byte of the section of cases; the linker makes it.
    static __stallbench_cases: [Case; 0];
}

/// Words that cases share between vCPUs.
#[repr(C)]
pub struct Words {
    /// The word that a callback waits for.
    pub(crate) go: AtomicU32,
    /// Callbacks that have still to end.
    pub(crate) left: AtomicU32,
    /// Callbacks of the calls before that have still to end.
    pub(crate) left_before: AtomicU32,
    /// `endflag` of check_nmi_watchdog().
    pub(crate) endflag: AtomicU32,
    /// NMIs that each vCPU has counted.
    pub(crate) nmis: SharedArray<AtomicU32>,
}

impl Words {
    pub(crate) fn place(&self) {
        self.nmis.place(boot::vcpus());
    }
}

/// A case as the image's section holds it: [`Case`] with a function for its address.
#[repr(C)]
pub(crate) struct Declared {
    name: [u8; 40],
    summary: [u8; 176],
    entry: fn(),
    knobs: u64,
    reserved: [u64; 3],
}

const _: () = assert!(size_of::<Declared>() == size_of::<Case>());

impl Declared {
    /// A case of that name that takes these knobs.
    pub(crate) const fn new(name: &str, summary: &str, knobs: &[&Knob], entry: fn()) -> Self {
        let mut mask = 0;
        let mut i = 0;
        while i < knobs.len() {
            mask |= 1 << knobs[i].number;
            i += 1;
        }
        Self {
            name: stallbench_abi::text::field(name),
            summary: stallbench_abi::text::field(summary),
            entry,
            knobs: mask,
            reserved: [0; 3],
        }
    }
}

/// Declares a case: `case!(STATIC, "name", "what happens", [KNOB, …], function)`.
macro_rules! case {
    ($static:ident, $name:literal, $summary:literal, [$($knob:ident),* $(,)?], $entry:path) => {
        #[used]
        #[cfg_attr(guest_image, unsafe(link_section = ".stallbench.cases"))]
        static $static: $crate::case::Declared =
            $crate::case::Declared::new($name, $summary, &[$(&stallbench_abi::knob::$knob),*], $entry);
    };
}
pub(crate) use case;

/// Sets this vCPU's handlers.
pub(crate) fn set_handlers() {
    this::set_handler(vector::NMI, nmi_watchdog::count_nmi);
    rendezvous::set_handlers();
}

/// Calls the case that the boot block names.
pub(crate) fn run() {
    (current().entry)();
}

fn current() -> &'static Declared {
    let number = boot::block().case as usize;
    // SAFETY: the host refuses a number that the section does not have; the section is made of `Declared` alone.
    unsafe { &*first().add(number) }
}

#[cfg(guest_image)]
fn first() -> *const Declared {
    (&raw const __stallbench_cases).cast()
}

/// A program of the host, as a test is, has no such section, and runs no case.
#[cfg(not(guest_image))]
fn first() -> *const Declared {
    unreachable!("only the image has cases")
}

/// Whether the case takes a knob.
pub(crate) fn takes(knob: &Knob) -> bool {
    current().knobs & 1 << knob.number != 0
}

/// Takes one off a count that its owner waits for.
pub(crate) fn count_down(word: &AtomicU32) {
    word.fetch_sub(1, Ordering::SeqCst);
}
