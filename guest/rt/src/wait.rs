//! Wait sites: the only way in which a payload waits.
//!
//! A wait is published by plain stores before its spin and taken back behind it. The spin itself is a few instructions whose
//! addresses are in the image's table and whose registers hold what is published (see [`stallbench_abi::image::SiteRange`]):
//! the host believes the machine, not the publication.

use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::event::EventKind;
use stallbench_abi::image::{Site, SiteKind};
use stallbench_abi::knob;
use stallbench_abi::port;
use stallbench_abi::vcpu::{Need, Until};

use crate::arena::{Held, Shared};
use crate::mask::{Mask, SharedMask};
use crate::{boot, event, this};

/// What a wait looks at, and whom it waits for.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    address: u64,
    mask: u32,
    value: u32,
    need: Need,
    awaits: Mask,
    awaits_at: u64,
    record: u64,
    record_call: u64,
    generation: u32,
}

impl Condition {
    /// A comparison of the whole word with `value`. It waits for any of nobody until one of the other methods says for whom.
    pub fn of(word: &AtomicU32, value: u32) -> Self {
        Self {
            address: core::ptr::from_ref(word) as u64,
            mask: !0,
            value,
            need: Need::ANY,
            awaits: Mask::default(),
            awaits_at: 0,
            record: 0,
            record_call: 0,
            generation: 0,
        }
    }

    /// Compares only the bits of `mask`.
    pub fn bits(self, mask: u32) -> Self {
        Self { mask, ..self }
    }

    /// Any of these can end it.
    pub fn any(self, awaits: Mask) -> Self {
        Self { need: Need::ANY, awaits, ..self }
    }

    /// The word counts down to zero, and each of these takes one off it.
    pub fn count(self, awaits: Mask) -> Self {
        Self { need: Need::COUNT, awaits, ..self }
    }

    /// The members of this set have still to act; each takes itself out of it.
    pub fn remaining(self, awaits: &SharedMask) -> Self {
        Self { need: Need::ALL, awaits_at: awaits.address(), ..self }
    }

    /// The word holds the number of a vCPU, plus one, that holds a lock.
    pub fn holder(self) -> Self {
        Self { need: Need::HOLDER, ..self }
    }

    /// The word belongs to a record, which belongs to a call.
    pub fn record(self, record: u64, call: u64) -> Self {
        Self { record, record_call: call, ..self }
    }

    /// The word belongs to an object that the waiter holds: a host can tell whether it still lives.
    pub fn held<T: Shared>(self, object: &Held<T>) -> Self {
        Self { record: object.address(), generation: object.generation(), ..self }
    }

    fn holds(&self, until: Until) -> bool {
        // SAFETY: the word outlives the wait: it is static, or lies in a record whose owner waits, and it is an atomic everywhere.
        // Acquire, as the spin is: what follows the wait reads what came before the store that ends it.
        let word = unsafe { AtomicU32::from_ptr(self.address as *mut u32) }.load(Ordering::Acquire);
        (word & self.mask == self.value) == (until == Until::EQUAL)
    }
}

/// Operands of a spin, and whether it came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    /// RDI.
    pub address: u64,
    /// ESI.
    pub mask: u32,
    /// R8D.
    pub value: u32,
    /// ECX: the port of a yielding turn, 0 for PAUSE.
    pub port: u32,
}

/// Publishes the wait, spins, takes it back. Use [`wait_until!`](crate::wait_until).
#[inline(always)]
pub fn run(site: &'static Site, condition: Condition, until: Until, spin: impl FnOnce(Spin)) {
    let site_address = core::ptr::from_ref(site) as u64;
    let waited = !condition.holds(until);
    let quiet = !event::records_wait(site.kind, waited);
    if !quiet {
        event::record(EventKind::WAIT, 0, site_address, condition.record_call);
    }
    if waited {
        publish(site_address, &condition, until, false);
        spin(operands(&condition));
        take_back();
    }
    if !quiet {
        event::record(EventKind::WAIT_END, u32::from(waited), site_address, condition.record_call);
    }
}

/// Like [`run`], for a wait that gives up: whether its condition came to hold.
#[inline(always)]
pub fn run_bounded(
    site: &'static Site,
    condition: Condition,
    until: Until,
    turns: u64,
    spin: impl FnOnce(Spin, u64) -> u64,
) -> bool {
    let site_address = core::ptr::from_ref(site) as u64;
    event::record(EventKind::WAIT, 0, site_address, condition.record_call);
    publish(site_address, &condition, until, true);
    let left = spin(operands(&condition), turns);
    take_back();
    event::record(EventKind::WAIT_END, 1, site_address, condition.record_call);
    left != 0
}

fn operands(condition: &Condition) -> Spin {
    let port = if boot::word(&knob::SPIN) == knob::spin::PAUSE { 0 } else { u32::from(port::YIELD) };
    Spin { address: condition.address, mask: condition.mask, value: condition.value, port }
}

/// Publishes a wait of this context.
#[inline(never)]
pub fn publish(site: u64, condition: &Condition, until: Until, bounded: bool) {
    let call = this::current_call();
    let wait = this::wait();
    // SAFETY: the wait is part of this vCPU's own page; plain stores, the one that makes it count last.
    unsafe {
        addr_of_mut!((*wait).until).write_volatile(until);
        addr_of_mut!((*wait).site).write_volatile(site);
        addr_of_mut!((*wait).address).write_volatile(condition.address);
        addr_of_mut!((*wait).mask).write_volatile(condition.mask);
        addr_of_mut!((*wait).value).write_volatile(condition.value);
        addr_of_mut!((*wait).need).write_volatile(condition.need);
        addr_of_mut!((*wait).asynchronous).write_volatile(call.asynchronous as u32);
        addr_of_mut!((*wait).record).write_volatile(condition.record);
        addr_of_mut!((*wait).record_call).write_volatile(condition.record_call);
        addr_of_mut!((*wait).call).write_volatile(call.number);
        addr_of_mut!((*wait).awaits_at).write_volatile(condition.awaits_at);
        addr_of_mut!((*wait).awaits).write_volatile(condition.awaits.0);
        addr_of_mut!((*wait).bounded).write_volatile(u32::from(bounded));
        addr_of_mut!((*wait).generation).write_volatile(condition.generation);
        addr_of_mut!((*wait).active).write_volatile(1);
    }
}

/// Takes back the wait of this context.
pub fn take_back() {
    // SAFETY: as in `publish`.
    unsafe { addr_of_mut!((*this::wait()).active).write_volatile(0) };
    this::progress();
}

/// The descriptor of a wait site.
pub const fn site(function: &str, step: &str, word: &str, kind: SiteKind) -> Site {
    Site {
        function: stallbench_abi::text::field(function),
        step: stallbench_abi::text::field(step),
        word: stallbench_abi::text::field(word),
        kind,
        reserved: 0,
    }
}

/// Declares the descriptor of a wait site, where the image keeps them.
#[macro_export]
macro_rules! declare_site {
    ($name:ident, $function:literal, $step:literal, $word:literal, $kind:ident) => {
        #[used]
        #[unsafe(link_section = ".stallbench.sites")]
        static $name: $crate::abi::image::Site =
            $crate::wait::site($function, $step, $word, $crate::abi::image::SiteKind::$kind);
    };
}

/// The spin of a wait site, and its entry in the image's table. `$leave` is the jump out of the loop.
#[doc(hidden)]
#[macro_export]
macro_rules! spin {
    ($spin:expr, $site:ident, $leave:literal) => {{
        let spin: $crate::wait::Spin = $spin;
        // SAFETY: reads one aligned word of the guest's memory until it is as it should be; writes nothing but a port.
        unsafe {
            core::arch::asm!(
                "2:",
                "mov eax, dword ptr [rdi]",
                "and eax, esi",
                "cmp eax, r8d",
                $leave,
                "test ecx, ecx",
                "jnz 3f",
                "pause",
                "jmp 2b",
                "3:",
                "mov edx, ecx",
                "out dx, eax",
                "jmp 2b",
                ".pushsection .stallbench.ranges, \"a\", @progbits",
                ".quad 2b, 4f, {site}",
                ".popsection",
                "4:",
                site = sym $site,
                in("rdi") spin.address,
                in("esi") spin.mask,
                in("r8d") spin.value,
                in("ecx") spin.port,
                out("eax") _,
                out("edx") _,
                options(nostack),
            );
        }
    }};
}

/// Waits at a site: `wait_until!(FUNCTION, STEP, WORD, KIND, condition, equal | different)`.
///
/// The first four name the site: the function of the protocol, its step (may be empty), what the word is, and a
/// [`SiteKind`]. The wait ends when the word's bits equal the condition's value, or differ
/// from it. A site that has a name of its own ([`declare_site!`](crate::declare_site)) comes as
/// `wait_until!(SITE, condition, equal)`.
#[macro_export]
macro_rules! wait_until {
    ($site:ident, $condition:expr, equal) => {
        $crate::wait::run(&$site, $condition, $crate::abi::vcpu::Until::EQUAL, |spin| $crate::spin!(spin, $site, "je 4f"))
    };
    ($function:literal, $step:literal, $word:literal, $kind:ident, $condition:expr, equal) => {
        $crate::wait_until!(@ $function, $step, $word, $kind, $condition, EQUAL, "je 4f")
    };
    ($function:literal, $step:literal, $word:literal, $kind:ident, $condition:expr, different) => {
        $crate::wait_until!(@ $function, $step, $word, $kind, $condition, DIFFERENT, "jne 4f")
    };
    (@ $function:literal, $step:literal, $word:literal, $kind:ident, $condition:expr, $until:ident, $leave:literal) => {{
        $crate::declare_site!(SITE, $function, $step, $word, $kind);
        $crate::wait::run(&SITE, $condition, $crate::abi::vcpu::Until::$until, |spin| $crate::spin!(spin, SITE, $leave))
    }};
}

/// Waits at a site for `turns` turns at most: whether the condition came to hold. Ends when the bits equal the value.
#[macro_export]
macro_rules! wait_bounded {
    ($function:literal, $step:literal, $word:literal, $kind:ident, $condition:expr, $turns:expr) => {{
        $crate::declare_site!(SITE, $function, $step, $word, $kind);
        $crate::wait::run_bounded(&SITE, $condition, $crate::abi::vcpu::Until::EQUAL, $turns, |spin, turns| {
            let mut left: u64 = turns;
            // SAFETY: as in `spin!`; each turn counts one down.
            unsafe {
                core::arch::asm!(
                    "2:",
                    "mov eax, dword ptr [rdi]",
                    "and eax, esi",
                    "cmp eax, r8d",
                    "je 4f",
                    "pause",
                    "sub r9, 1",
                    "jnz 2b",
                    ".pushsection .stallbench.ranges, \"a\", @progbits",
                    ".quad 2b, 4f, {site}",
                    ".popsection",
                    "4:",
                    site = sym SITE,
                    in("rdi") spin.address,
                    in("esi") spin.mask,
                    in("r8d") spin.value,
                    inout("r9") left,
                    out("eax") _,
                    options(nostack),
                );
            }
            left
        })
    }};
}
