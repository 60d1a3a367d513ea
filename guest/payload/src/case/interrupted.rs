//! Subject `litmus`: what an interrupt finds of what it interrupts, in memory that no other vCPU accesses.
//!
//! vCPU 1 raises a flag of its own and lowers it again; vCPU 0 sends it an interrupt, whose handler says what it has found. Each test has
//! the flag up between two accesses to what vCPUs share, where nothing but the arrival of the interrupt tells whether it is found.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{FLAG, flag};
use stallbench_abi::layout::vector;
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{apic, boot, bring_up, this, wait_until, words};

use super::case;
use crate::root::root;

case!(
    INTERRUPTED,
    "interrupted",
    "an interrupt comes to a vCPU that raises a flag of its own for a while, and says whether it found it raised",
    [FLAG],
    run
);

/// Who raises its flag.
const PEER: usize = 1;
/// The interrupt found the flag down.
const DOWN: u32 = 1;

/// What the case shares.
#[repr(C)]
pub(crate) struct Words {
    /// [`DOWN`], or one more where the flag was up; 0 until the interrupt has come.
    found: AtomicU32,
    /// What PEER looks at on its way.
    looked_at: AtomicU32,
}

fn run() {
    let shared = &root().interrupted;
    let test = boot::word(&FLAG);
    match this::vcpu() {
        0 => {
            words::name("found", &shared.found);
            match test {
                flag::FIRST | flag::STORED => apic::send_nmi(PEER),
                flag::AGAIN => {
                    apic::send(PEER, vector::PING);
                    apic::send(PEER, vector::PING);
                }
                flag::ANSWERED => {
                    let raised = Condition::of(&shared.looked_at, 1).any(Mask::one(PEER));
                    wait_until!("interrupt", "", "flag", GATE, raised, equal);
                    apic::send(PEER, vector::PING);
                }
                _ => apic::send(PEER, vector::PING),
            }
        }
        // Its NMIs are counted as ever.
        PEER if test == flag::STORED => stored(),
        PEER => {
            this::set_handler(vector::NMI, interrupt);
            this::set_handler(vector::PING, interrupt);
            match test {
                flag::FIRST => first(),
                flag::HELD => held(),
                flag::ANSWERED => answered(),
                flag::AGAIN => again(),
                _ => left_up(),
            }
        }
        _ => {}
    }
}

/// The handler.
fn interrupt() {
    // SAFETY: the word is this vCPU's own.
    let up = unsafe { this::flag().read_volatile() };
    root().interrupted.found.store(DOWN + up, Ordering::Relaxed);
}

/// The handler, which does nothing that others see unless the flag is up.
fn interrupt_in_secret() {
    // SAFETY: the word is this vCPU's own.
    if unsafe { this::flag().read_volatile() } != 0 {
        interrupt();
    }
}

/// The flag is up behind a HLT, on the way from the interrupt that wakes its vCPU to the next access.
fn again() {
    this::set_handler(vector::PING, interrupt_in_secret);
    // SAFETY: as in `left_up`.
    unsafe {
        asm!(
            "mov {read:e}, dword ptr [{word}]",
            "sti",
            "hlt",
            "mov dword ptr [{flag}], 1",
            "nop",
            "mov dword ptr [{flag}], 0",
            "mov {read:e}, dword ptr [{word}]",
            word = in(reg) root().interrupted.looked_at.as_ptr(),
            flag = in(reg) this::flag(),
            read = out(reg) _,
        );
    }
}

/// The flag goes up in front of CLI, and down behind an access with interrupts off.
fn left_up() {
    bring_up::take_part();
    let looked_at = root().interrupted.looked_at.as_ptr();
    // SAFETY: reads a word that nobody writes, and writes one of this vCPU's own; interrupts are on behind it, as before.
    unsafe {
        asm!(
            "mov {read:e}, dword ptr [{word}]",
            "mov dword ptr [{flag}], 1",
            "cli",
            "mov {read:e}, dword ptr [{word}]",
            "mov dword ptr [{flag}], 0",
            "sti",
            "nop",
            "mov {read:e}, dword ptr [{word}]",
            word = in(reg) looked_at,
            flag = in(reg) this::flag(),
            read = out(reg) _,
        );
    }
}

/// The flag is written with interrupts off alone, and is up with interrupts on.
fn held() {
    bring_up::take_part();
    let looked_at = root().interrupted.looked_at.as_ptr();
    // SAFETY: as above.
    unsafe {
        asm!(
            "mov {read:e}, dword ptr [{word}]",
            "cli",
            "mov dword ptr [{flag}], 1",
            "sti",
            "nop",
            "nop",
            "cli",
            "mov dword ptr [{flag}], 0",
            "sti",
            "nop",
            "mov {read:e}, dword ptr [{word}]",
            word = in(reg) looked_at,
            flag = in(reg) this::flag(),
            read = out(reg) _,
        );
    }
}

/// The flag is up and down before the first access behind the start line, with interrupts off. So an NMI alone finds it.
fn first() {
    // SAFETY: as above, and interrupts stay off.
    unsafe {
        asm!(
            "mov dword ptr [{flag}], 1",
            "nop",
            "mov dword ptr [{flag}], 0",
            "mov {read:e}, dword ptr [{word}]",
            word = in(reg) root().interrupted.looked_at.as_ptr(),
            flag = in(reg) this::flag(),
            read = out(reg) _,
        );
    }
}

/// The flag is up behind an access, with interrupts on; the interrupt is sent by who has seen that.
fn answered() {
    bring_up::take_part();
    let looked_at = root().interrupted.looked_at.as_ptr();
    // SAFETY: as above; the word is said to be looked at.
    unsafe {
        asm!(
            "xchg {read:e}, dword ptr [{word}]",
            "mov dword ptr [{flag}], 1",
            "nop",
            "mov dword ptr [{flag}], 0",
            "mov {read:e}, dword ptr [{word}]",
            word = in(reg) looked_at,
            flag = in(reg) this::flag(),
            read = inout(reg) 1 => _,
        );
    }
}

/// Looks twice whether an NMI has counted itself: with interrupts off, and in the shadow of STI. 1: neither time, 3: the second, 4: both.
fn stored() {
    let [first, second]: [u32; 2];
    // SAFETY: reads a word of this vCPU's; interrupts are off in front of it.
    unsafe {
        asm!(
            "mov {first:e}, dword ptr [{word}]",
            "nop",
            "sti",
            "mov {second:e}, dword ptr [{word}]",
            word = in(reg) root().case.nmis.get(PEER).as_ptr(),
            first = out(reg) first,
            second = out(reg) second,
        );
    }
    root().interrupted.found.store(DOWN + first + 2 * second, Ordering::Relaxed);
}
