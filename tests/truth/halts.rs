//! Dead guests that halt, or wait for an interrupt that is never taken.

use iced_x86::code_asm::*;

use crate::code::{Built, Code, NMI, VECTOR, apic, word};
use crate::guest::{Guest, Truth, at};

const DEAD: Truth = Truth::Dead(None);

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = halted();
    guests.extend(not_taken());
    guests.extend(too_late());
    guests.extend(not_yet_all());
    guests
}

fn halted() -> Vec<Guest> {
    let mut guests = at(&[1, 2, 4], "halt-interrupts-off", DEAD, "cli; hlt is not how this guest ends", |c| c.die());
    guests
        .extend(at(&[1, 2, 4], "halt-nothing-to-come", DEAD, "sti; hlt, and nobody sends an interrupt", |c| c.idle()));
    guests.extend([
        Guest::new("halt-and-spin", 2, DEAD, "one halts with interrupts on, the other spins", |c| {
            c.on(0, |c| c.idle())?;
            c.wait_in_vain()
        }),
        Guest::new("halted-but-one-spins", 3, DEAD, "all but one have ended as they should", |c| {
            c.on(1, |c| c.wait_in_vain())?;
            c.die()
        })
        .flag("--end=halted"),
        Guest::new(
            "halted-but-one-idles",
            2,
            DEAD,
            "one waits for an interrupt, which is not how this guest ends",
            |c| {
                c.on(1, |c| c.idle())?;
                c.die()
            },
        )
        .flag("--end=halted"),
    ]);
    guests
}

/// Halts in a loop until a word is set.
fn halt_until(c: &mut Code, word: u64) -> Built {
    let again = c.here()?;
    c.sti()?;
    c.hlt()?;
    c.cmp(dword_ptr(word), 0)?;
    c.je(again)?;
    c.pass()
}

/// A guest whose handler would set the word that it waits for.
fn with_handler(c: &mut Code) -> Built {
    c.handler_that_stores(VECTOR, word(2))?;
    c.enable_apic()
}

fn not_taken() -> Vec<Guest> {
    vec![
        Guest::new("timer-masked", 1, DEAD, "it halts for the timer, whose interrupt is masked", |c| {
            with_handler(c)?;
            c.mov(dword_ptr(r14 + apic::LVT_TIMER), (VECTOR | apic::MASKED) as i32)?;
            halt_until(c, word(2))
        }),
        Guest::new("task-priority-too-high", 1, DEAD, "the vector is pending, of a class that CR8 holds back", |c| {
            with_handler(c)?;
            c.mov(eax, 5)?;
            c.mov(cr8, rax)?;
            c.send_to_self()?;
            halt_until(c, word(2))
        }),
        Guest::new(
            "task-priority-register-too-high",
            2,
            DEAD,
            "the vector is pending, of a class that the TPR holds back",
            |c| {
                with_handler(c)?;
                c.on(1, |c| c.idle())?;
                c.mov(dword_ptr(r14 + apic::TPR), 0x4f)?;
                c.send_to_self()?;
                c.sti()?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new(
            "interrupts-off-vector-pending",
            1,
            DEAD,
            "it spins with interrupts off for what the handler stores",
            |c| {
                with_handler(c)?;
                c.send_to_self()?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new("interrupts-off-vector-pending-halt", 1, DEAD, "cli; hlt with a vector pending", |c| {
            with_handler(c)?;
            c.send_to_self()?;
            c.die()
        }),
        call_with_interrupts_off(2),
        call_with_interrupts_off(4),
        Guest::new("calls-crossed", 2, DEAD, "each sends the other an interrupt and waits, with interrupts off", |c| {
            with_handler(c)?;
            c.meet(word(1))?;
            c.on(0, |c| c.send_vector(1))?;
            c.on(1, |c| c.send_vector(0))?;
            c.wait_for(word(2))?;
            c.pass()
        }),
        Guest::new(
            "apic-disabled",
            2,
            DEAD,
            "the interrupt is sent to a vCPU whose local APIC is off: it is lost",
            |c| {
                c.on(1, |c| {
                    c.mov(dword_ptr(word(1)), 1)?;
                    halt_until(c, word(2))
                })?;
                with_handler(c)?;
                c.wait_for(word(1))?;
                c.send_vector(1)?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new("spin-in-handler", 2, DEAD, "the handler waits for what the interrupted code would store", |c| {
            let (mut handler, mut start) = (c.create_label(), c.create_label());
            c.jmp(start)?;
            c.place(&mut handler)?;
            c.wait_for(word(2))?;
            c.end_of_interrupt()?;
            c.place(&mut start)?;
            c.gate(VECTOR, handler)?;
            c.enable_apic()?;
            c.on(1, |c| c.idle())?;
            c.sti()?;
            c.send_to_self()?;
            c.nop()?;
            c.wait_in_vain()
        }),
    ]
}

fn call_with_interrupts_off(vcpus: u32) -> Guest {
    let why = "the others spin with interrupts off, so that the interrupt to vCPU 1 stays pending";
    Guest::new("call-interrupts-off", vcpus, DEAD, why, |c| {
        with_handler(c)?;
        c.on(0, |c| {
            c.wait_for(word(1))?;
            c.send_vector(1)?;
            c.wait_for(word(2))?;
            c.pass()
        })?;
        c.on(1, |c| c.mov(dword_ptr(word(1)), 1))?;
        c.wait_in_vain()
    })
}

/// What comes, comes too late or to no avail: dead after that.
fn too_late() -> Vec<Guest> {
    vec![
        Guest::new(
            "timer-fired-to-no-avail",
            1,
            DEAD,
            "the timer fires once and is masked by its handler; the wait is for more",
            |c| {
                c.handler(VECTOR, |c| {
                    c.mov(dword_ptr(r14 + apic::LVT_TIMER), (VECTOR | apic::MASKED) as i32)?;
                    c.inc(dword_ptr(word(2)))?;
                    c.end_of_interrupt()
                })?;
                c.enable_apic()?;
                c.start_timer(40, 0)?;
                c.sti()?;
                c.wait_for_value(word(2), 2)?;
                c.pass()
            },
        ),
        Guest::new(
            "timer-fired-then-idle",
            2,
            DEAD,
            "the timer fires once and is masked by its handler; all halt",
            |c| {
                c.handler(VECTOR, |c| {
                    c.mov(dword_ptr(r14 + apic::LVT_TIMER), (VECTOR | apic::MASKED) as i32)?;
                    c.end_of_interrupt()
                })?;
                c.enable_apic()?;
                c.start_timer(40, 0)?;
                c.idle()
            },
        ),
        Guest::new("nmi-to-no-avail", 1, DEAD, "after the host's only NMI the wait is for more", |c| {
            c.handler(NMI, |c| {
                c.inc(dword_ptr(word(2)))?;
                c.iretq()
            })?;
            c.wait_for_value(word(2), 2)?;
            c.pass()
        })
        .flag("--nmi=0@400"),
        Guest::new(
            "nmi-held-back-by-nmi",
            1,
            DEAD,
            "the handler of an NMI spins; the next NMI is held back until it returns",
            |c| {
                c.handler(NMI, |c| {
                    c.inc(dword_ptr(word(2)))?;
                    c.wait_for_value(word(2), 2)?;
                    c.pass()
                })?;
                c.stay()
            },
        )
        .flag("--nmi=0@400")
        .flag("--nmi=0@600"),
        Guest::new("dead-after-a-while", 2, DEAD, "vCPU 1 counts down, and spins then as vCPU 0 does", |c| {
            c.on(1, |c| c.count_down(1 << 15))?;
            c.wait_in_vain()
        }),
        Guest::new("dead-after-printing", 1, DEAD, "it prints, and spins then", |c| {
            for byte in *b"waiting\n" {
                c.print(byte)?;
            }
            c.wait_in_vain()
        }),
    ]
}

/// Dead although something that looks alive goes on beside it.
fn not_yet_all() -> Vec<Guest> {
    vec![Guest::new(
        "interrupts-on-nothing-to-come",
        4,
        DEAD,
        "all spin with interrupts on, and nobody sends any",
        |c| {
            c.sti()?;
            c.wait_in_vain()
        },
    )]
}
