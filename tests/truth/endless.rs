//! Guests that no budget sees the end of: something still changes, or what they read is no part of the machine's state.

use iced_x86::code_asm::*;

use crate::code::{Built, Code, NMI, VECTOR, apic, word};
use crate::guest::{Guest, Truth, at};

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = changing();
    guests.extend(changing_together());
    guests.extend(devices());
    guests.extend(still_to_come());
    guests
}

/// A loop without an end but by `turn`.
fn each_turn(c: &mut Code, turn: impl FnOnce(&mut Code) -> Built) -> Built {
    let again = c.here()?;
    turn(c)?;
    c.jmp(again)
}

fn changing() -> Vec<Guest> {
    vec![
        Guest::new("countdown-2-32", 1, Truth::Changing(&["rcx"]), "2^32 turns, and it ends", |c| {
            c.count_down(0)?;
            c.pass()
        }),
        Guest::new("countdown-2-40", 1, Truth::Changing(&["rdx"]), "2^40 turns, and it ends", |c| {
            c.mov(rdx, 1u64 << 40)?;
            let again = c.here()?;
            c.dec(rdx)?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new("count-up-to-a-bit", 1, Truth::Changing(&["rbx", "r10"]), "it ends once bit 40 is set", |c| {
            let again = c.here()?;
            c.inc(rbx)?;
            c.mov(r10, rbx)?;
            c.bt(r10, 40)?;
            c.jnc(again)?;
            c.pass()
        }),
        Guest::new("countdown-2-32-in-memory", 1, Truth::Changing(&["0x200140"]), "2^32 turns, and it ends", |c| {
            let again = c.here()?;
            c.dec(dword_ptr(word(5)))?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new(
            "countdown-through-copies",
            1,
            Truth::Changing(&["rcx", "0x200140"]),
            "the copy in memory decides",
            |c| {
                let again = c.here()?;
                c.inc(rcx)?;
                c.mov(qword_ptr(word(5)), rcx)?;
                c.mov(rdx, qword_ptr(word(5)))?;
                c.shr(rdx, 40)?;
                c.jz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "hash-without-end",
            1,
            Truth::Changing(&["rbx"]),
            "a xorshift generator of 64 bits is never 0",
            |c| {
                c.mov(ebx, 1)?;
                let again = c.here()?;
                for (left, by) in [(true, 13), (false, 7), (true, 17)] {
                    c.mov(rax, rbx)?;
                    if left {
                        c.shl(rax, by)?;
                    } else {
                        c.shr(rax, by)?;
                    }
                    c.xor(rbx, rax)?;
                }
                c.test(rbx, rbx)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "search-of-a-number",
            1,
            Truth::Changing(&["rbx"]),
            "a generator modulo 2^64 until its high half is 0",
            |c| {
                c.mov(ebx, 1)?;
                c.mov(rbp, 6364136223846793005u64)?;
                let again = c.here()?;
                c.imul_2(rbx, rbp)?;
                c.inc(rbx)?;
                c.mov(rax, rbx)?;
                c.shr(rax, 16)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "code-counts-without-end",
            1,
            Truth::Changing(&["0x1000"]),
            "the operand of an instruction counts to 2^32",
            |c| {
                let mut operand = c.create_label();
                let again = c.here()?;
                c.inc(dword_ptr(operand))?;
                // MOV EAX, and its operand, which needs a label of its own.
                c.db(&[0xb8])?;
                c.set_label(&mut operand)?;
                c.db(&[1, 0, 0, 0])?;
                c.test(eax, eax)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
    ]
}

fn changing_together() -> Vec<Guest> {
    let why = "vCPU 1 counts down from 2^32, the others wait";
    let mut guests = at(&[2, 4], "wait-for-a-countdown", Truth::Changing(&["rcx"]), why, |c| {
        c.on(1, |c| {
            c.count_down(0)?;
            c.mov(dword_ptr(word(2)), 1)?;
            c.die()
        })?;
        c.wait_for(word(2))?;
        c.pass()
    });
    guests.extend([
        Guest::new(
            "count-for-another",
            2,
            Truth::Changing(&["0x200140"]),
            "vCPU 1 counts in the word that vCPU 0 compares",
            |c| {
                c.on(1, |c| each_turn(c, |c| c.lock().inc(dword_ptr(word(5)))))?;
                c.wait_for_value(word(5), u32::MAX)?;
                c.pass()
            },
        ),
        Guest::new(
            "publish-a-count",
            2,
            Truth::Changing(&["rcx", "0x200140"]),
            "vCPU 1 stores its count, which vCPU 0 compares",
            |c| {
                c.on(1, |c| {
                    each_turn(c, |c| {
                        c.inc(rcx)?;
                        c.mov(qword_ptr(word(5)), rcx)
                    })
                })?;
                let again = c.here()?;
                c.mov(rax, qword_ptr(word(5)))?;
                c.shr(rax, 40)?;
                c.jz(again)?;
                c.pass()
            },
        ),
        Guest::new("token-with-a-count", 2, Truth::Changing(&["rcx"]), "a token goes to and fro 2^32 times", |c| {
            let again = c.here()?;
            c.cmp(dword_ptr(word(1)), edi)?;
            c.jne(again)?;
            c.mov(eax, 1)?;
            c.sub(eax, edi)?;
            c.mov(dword_ptr(word(1)), eax)?;
            c.dec(ecx)?;
            c.jnz(again)?;
            c.pass()
        }),
    ]);
    guests
}

fn devices() -> Vec<Guest> {
    vec![
        Guest::new(
            "poll-time-stamp",
            1,
            Truth::Undecidable(&["tsc"]),
            "the time stamp counter is read; it never is 0",
            |c| {
                let again = c.here()?;
                c.rdtsc()?;
                c.or(eax, edx)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-time-stamp-of-another",
            2,
            Truth::Undecidable(&["tsc"]),
            "one spins, the other reads the TSC",
            |c| {
                c.on(0, |c| c.wait_in_vain())?;
                let again = c.here()?;
                c.rdtsc()?;
                c.or(eax, edx)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-timer-count",
            1,
            Truth::Undecidable(&["apic", "device", "timer"]),
            "the timer's count is a device's register",
            |c| {
                c.mov(r14, crate::code::APIC)?;
                let again = c.here()?;
                c.cmp(dword_ptr(r14 + apic::TIMER_COUNT), 0)?;
                c.je(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-apic-id",
            1,
            Truth::Undecidable(&["apic", "device"]),
            "the local APIC's id is a device's register",
            |c| {
                c.mov(r14, crate::code::APIC)?;
                let again = c.here()?;
                c.cmp(dword_ptr(r14 + apic::ID), 0x5a)?;
                c.jne(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-port",
            1,
            Truth::Undecidable(&["port", "device"]),
            "the serial port's status is a device's",
            |c| {
                c.mov(edx, 0x3fd)?;
                let again = c.here()?;
                c.in_(al, dx)?;
                c.test(al, 0x80u32 as i32)?;
                c.jz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-unknown-port",
            1,
            Truth::Undecidable(&["port", "device"]),
            "nobody knows what answers there",
            |c| {
                let again = c.here()?;
                c.in_(al, 0x61)?;
                c.cmp(al, 0x5a)?;
                c.jne(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "poll-unbacked",
            1,
            Truth::Undecidable(&["0xe0000000", "device"]),
            "no memory is there: a device may be",
            |c| {
                c.mov(rbx, 0xe000_0000u64)?;
                let again = c.here()?;
                c.cmp(dword_ptr(rbx), 0x5a)?;
                c.jne(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "print-without-end",
            1,
            Truth::Undecidable(&["port", "device"]),
            "it writes to the serial port for ever",
            |c| {
                let again = c.here()?;
                c.print(b'.')?;
                c.jmp(again)
            },
        ),
    ]
}

fn still_to_come() -> Vec<Guest> {
    vec![
        Guest::new(
            "nmi-next-week",
            1,
            Truth::Undecidable(&["nmi"]),
            "the host will send an NMI, after the budget",
            |c| {
                c.handler_that_stores(NMI, word(2))?;
                c.wait_for(word(2))?;
                c.pass()
            },
        )
        .flag("--nmi=0@600000"),
        Guest::new(
            "nmi-next-week-to-another",
            2,
            Truth::Undecidable(&["nmi"]),
            "the host will send vCPU 1 an NMI",
            |c| c.die(),
        )
        .flag("--nmi=1@600000"),
        Guest::new(
            "timer-next-week",
            1,
            Truth::Undecidable(&["timer"]),
            "the timer is armed, and fires after the budget",
            |c| {
                c.handler_that_stores(VECTOR, word(2))?;
                c.enable_apic()?;
                c.start_timer(4000, 0)?;
                c.sti()?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new(
            "timer-ticks",
            1,
            Truth::Undecidable(&["timer"]),
            "a periodic timer, whose handler does nothing",
            |c| {
                c.handler(VECTOR, |c| c.end_of_interrupt())?;
                c.enable_apic()?;
                c.start_timer(10, apic::PERIODIC)?;
                c.idle()
            },
        ),
        Guest::new(
            "ghost-decides",
            1,
            Truth::Undecidable(&["ghost"]),
            "it spins on ghost memory, which may hold anything",
            |c| {
                c.wait_for(word(2))?;
                c.pass()
            },
        )
        .flag("--ghost=0x200080+4"),
        Guest::new(
            "interrupts-itself",
            1,
            Truth::Undecidable(&["interrupt", "apic", "device", "vector"]),
            "it sends itself interrupts for ever",
            |c| {
                c.handler(VECTOR, |c| c.end_of_interrupt())?;
                c.enable_apic()?;
                c.sti()?;
                each_turn(c, |c| c.send_to_self())
            },
        ),
    ]
}
