//! Live guests that wait for an interrupt, an NMI or a processor that they start.

use iced_x86::code_asm::*;

use crate::code::{Built, Code, NMI, STARTED_AT, TRAMPOLINE, VECTOR, apic, word};
use crate::guest::{Guest, Truth, at};

const LIVE: Truth = Truth::Live;
/// Interrupt commands (SDM 3A 12.6.1): INIT, and a SIPI for the page of the trampoline.
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600 | (TRAMPOLINE >> 12) as u32;

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = timers();
    guests.extend(nmis());
    guests.extend(vectors());
    guests.extend(processors());
    guests
}

/// Has the vector store 1 at a word.
fn with_handler(c: &mut Code) -> Built {
    c.handler_that_stores(VECTOR, word(2))?;
    c.enable_apic()
}

/// Halts until a word is set, and ends. STI takes effect after HLT has begun (SDM 2B, STI).
fn halt_until_set(c: &mut Code) -> Built {
    let again = c.here()?;
    c.cli()?;
    let mut set = c.create_label();
    c.cmp(dword_ptr(word(2)), 0)?;
    c.jne(set)?;
    c.sti()?;
    c.hlt()?;
    c.jmp(again)?;
    c.place(&mut set)?;
    c.pass()
}

/// Waits for the timer, halted or not.
fn timer(name: &'static str, milliseconds: u32, halts: bool) -> Guest {
    let why = "the timer is armed, and its handler stores what is waited for";
    Guest::new(name, 1, LIVE, why, move |c| {
        with_handler(c)?;
        c.start_timer(milliseconds, 0)?;
        if halts {
            return halt_until_set(c);
        }
        c.sti()?;
        c.wait_for(word(2))?;
        c.pass()
    })
}

fn timers() -> Vec<Guest> {
    vec![
        timer("timer-halt", 100, true),
        timer("timer-spin", 100, false),
        timer("timer-halt-two-seconds", 2000, true).long(),
        timer("timer-spin-two-seconds", 2000, false).long(),
        Guest::new("timer-periodic", 1, LIVE, "the handler counts five ticks", |c| {
            c.handler(VECTOR, |c| {
                c.inc(dword_ptr(word(2)))?;
                c.end_of_interrupt()
            })?;
            c.enable_apic()?;
            c.start_timer(20, apic::PERIODIC)?;
            let again = c.here()?;
            c.sti()?;
            c.hlt()?;
            c.cmp(dword_ptr(word(2)), 5)?;
            c.jb(again)?;
            c.pass()
        }),
        Guest::new("timer-polled", 1, LIVE, "it reads the timer's count until it is 0, interrupts off", |c| {
            c.enable_apic()?;
            c.start_timer(50, apic::MASKED)?;
            let again = c.here()?;
            c.cmp(dword_ptr(r14 + apic::TIMER_COUNT), 0)?;
            c.jne(again)?;
            c.pass()
        }),
        Guest::new(
            "timer-of-another",
            2,
            LIVE,
            "vCPU 1 halts for its timer, and stores then what vCPU 0 waits for",
            |c| {
                with_handler(c)?;
                c.on(0, |c| {
                    c.wait_for(word(3))?;
                    c.pass()
                })?;
                c.start_timer(150, 0)?;
                let again = c.here()?;
                c.sti()?;
                c.hlt()?;
                c.cmp(dword_ptr(word(2)), 0)?;
                c.je(again)?;
                c.mov(dword_ptr(word(3)), 1)?;
                c.die()
            },
        ),
        Guest::new("timer-ends-in-handler", 4, LIVE, "the handler ends the run; all others spin", |c| {
            c.handler(VECTOR, |c| c.pass())?;
            c.on(3, |c| {
                c.enable_apic()?;
                c.start_timer(120, 0)?;
                c.sti()
            })?;
            c.wait_in_vain()
        }),
        Guest::new("time-stamp-wait", 1, LIVE, "it waits until the time stamp counter has gone on", |c| {
            c.rdtsc()?;
            c.shl(rdx, 32)?;
            c.or(rax, rdx)?;
            c.mov(rbx, rax)?;
            c.add(rbx, 0x1000_0000)?;
            let again = c.here()?;
            c.rdtsc()?;
            c.shl(rdx, 32)?;
            c.or(rax, rdx)?;
            c.cmp(rax, rbx)?;
            c.jb(again)?;
            c.pass()
        }),
    ]
}

fn nmis() -> Vec<Guest> {
    let spin = |c: &mut Code| {
        c.handler_that_stores(NMI, word(2))?;
        c.wait_for(word(2))?;
        c.pass()
    };
    let why = "the host sends an NMI, whose handler stores what is waited for";
    vec![
        Guest::new("nmi-spin", 1, LIVE, why, spin).flag("--nmi=0@400"),
        Guest::new("nmi-spin-of-two", 2, LIVE, why, spin).flag("--nmi=1@400"),
        Guest::new("nmi-spin-two-seconds", 1, LIVE, why, spin).flag("--nmi=0@2000").long(),
        Guest::new("nmi-second", 1, LIVE, "the host sends two NMIs, the second of which it waits for", |c| {
            c.handler(NMI, |c| {
                c.inc(dword_ptr(word(2)))?;
                c.iretq()
            })?;
            c.wait_for_value(word(2), 2)?;
            c.pass()
        })
        .flag("--nmi=0@400")
        .flag("--nmi=0@700"),
        Guest::new("nmi-halt", 1, LIVE, "cli; hlt, and the host sends an NMI", |c| {
            c.handler_that_stores(NMI, word(2))?;
            let again = c.here()?;
            c.cli()?;
            c.hlt()?;
            c.cmp(dword_ptr(word(2)), 0)?;
            c.je(again)?;
            c.pass()
        })
        .flag("--nmi=0@400"),
    ]
}

fn vectors() -> Vec<Guest> {
    let mut guests =
        at(&[2, 4], "call-idle", LIVE, "the others halt with interrupts on, and one of them is sent one", |c| {
            with_handler(c)?;
            c.on(0, |c| {
                c.wait_for(word(1))?;
                c.count_down(1 << 12)?;
                c.send_vector(1)?;
                c.wait_for(word(2))?;
                c.pass()
            })?;
            c.on(1, |c| c.mov(dword_ptr(word(1)), 1))?;
            c.idle()
        });
    guests.extend([
        Guest::new("call-spinning", 2, LIVE, "vCPU 1 spins with interrupts on, and takes one", |c| {
            with_handler(c)?;
            c.on(0, |c| {
                c.wait_for(word(1))?;
                c.count_down(1 << 14)?;
                c.send_vector(1)?;
                c.wait_for(word(2))?;
                c.pass()
            })?;
            c.mov(dword_ptr(word(1)), 1)?;
            c.sti()?;
            c.stay()
        }),
        Guest::new("call-taken-late", 2, LIVE, "vCPU 1 lets interrupts in after a countdown", |c| {
            with_handler(c)?;
            c.on(1, |c| {
                c.mov(dword_ptr(word(1)), 1)?;
                c.count_down(1 << 15)?;
                c.sti()?;
                c.stay()
            })?;
            c.wait_for(word(1))?;
            c.send_vector(1)?;
            c.wait_for(word(2))?;
            c.pass()
        }),
        Guest::new(
            "task-priority-lowered",
            1,
            LIVE,
            "the vector is held back until CR8 is lowered, after a countdown",
            |c| {
                with_handler(c)?;
                c.mov(eax, 5)?;
                c.mov(cr8, rax)?;
                c.send_to_self()?;
                c.sti()?;
                c.count_down(1 << 14)?;
                c.xor(eax, eax)?;
                c.mov(cr8, rax)?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new("calls-in-a-row", 2, LIVE, "vCPU 1 is sent an interrupt 50 times, and answers each", |c| {
            with_handler(c)?;
            c.on(1, |c| {
                c.mov(dword_ptr(word(1)), 1)?;
                c.idle()
            })?;
            c.wait_for(word(1))?;
            c.mov(ebp, 50)?;
            let again = c.here()?;
            c.mov(dword_ptr(word(2)), 0)?;
            c.send_vector(1)?;
            c.wait_for(word(2))?;
            c.dec(ebp)?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new("counted-in-handlers", 1, LIVE, "it sends itself 200 interrupts; the handler counts", |c| {
            c.handler(VECTOR, |c| {
                c.inc(dword_ptr(word(2)))?;
                c.end_of_interrupt()
            })?;
            c.enable_apic()?;
            c.sti()?;
            let again = c.here()?;
            c.send_to_self()?;
            c.cmp(dword_ptr(word(2)), 200)?;
            c.jb(again)?;
            c.pass()
        }),
    ]);
    guests
}

/// Starts vCPU 1, which goes on at `there`.
fn start(c: &mut Code, there: CodeLabel) -> Built {
    c.lea(rax, ptr(there))?;
    c.mov(qword_ptr(STARTED_AT), rax)?;
    c.send(1, INIT)?;
    c.send(1, STARTUP)
}

fn processors() -> Vec<Guest> {
    let started = |c: &mut Code, before: u32, after: u32| {
        let mut there = c.create_label();
        c.enable_apic()?;
        c.count_down(before)?;
        start(c, there)?;
        c.wait_for(word(2))?;
        c.pass()?;
        c.set_label(&mut there)?;
        c.count_down(after)?;
        c.mov(dword_ptr(word(2)), 1)?;
        c.die()
    };
    vec![
        Guest::new("starts-a-processor", 2, LIVE, "vCPU 1, once started, stores what vCPU 0 waits for", move |c| {
            started(c, 1, 1)
        })
        .parked(),
        Guest::new("starts-a-processor-late", 2, LIVE, "it starts vCPU 1 after a countdown", move |c| {
            started(c, 1 << 15, 1)
        })
        .parked(),
        Guest::new(
            "starts-a-slow-processor",
            4,
            LIVE,
            "vCPU 1 counts down once it is started; two are never",
            move |c| started(c, 1, 1 << 15),
        )
        .parked(),
    ]
}
