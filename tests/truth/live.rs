//! Live guests of one or more vCPUs, no interrupts: they end by themselves, however much they look as if they would not.

use iced_x86::code_asm::*;

use crate::code::{BUFFER, Code, word};
use crate::guest::{Guest, Truth, at};

const LIVE: Truth = Truth::Live;

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = countdowns();
    guests.extend(hashes());
    guests.extend(patches());
    guests.extend(partners());
    guests.extend(contended());
    guests
}

fn countdowns() -> Vec<Guest> {
    let mut guests = at(&[1, 4], "end-at-once", LIVE, "it ends the run", |c| c.pass());
    guests.extend([
        countdown("countdown-2-10", 1 << 10),
        countdown("countdown-2-16", 1 << 16),
        countdown("countdown-2-20", 1 << 20).long(),
        countdown("countdown-2-21", 1 << 21).long(),
        Guest::new("countdown-in-memory", 1, LIVE, "the word becomes 0", |c| {
            c.mov(dword_ptr(word(1)), 1 << 14)?;
            let again = c.here()?;
            c.dec(dword_ptr(word(1)))?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new("countdown-in-ghost-memory", 1, LIVE, "the word becomes 0, and the guest branches on it", |c| {
            c.mov(dword_ptr(word(1)), 1 << 14)?;
            let again = c.here()?;
            c.dec(dword_ptr(word(1)))?;
            c.jnz(again)?;
            c.pass()
        })
        .flag("--ghost=0x200040+4"),
        Guest::new(
            "countdown-nested",
            1,
            LIVE,
            "the inner loop is the same 400 times, but for the outer counter",
            |c| {
                c.mov(ebx, 400)?;
                let outer = c.here()?;
                c.count_down(64)?;
                c.dec(ebx)?;
                c.jnz(outer)?;
                c.pass()
            },
        ),
        Guest::new("end-by-shutdown", 1, LIVE, "it counts down and shuts down, which is how it ends", |c| {
            c.count_down(1 << 14)?;
            c.ud2()
        })
        .flag("--end=shutdown"),
        Guest::new(
            "end-halted",
            4,
            LIVE,
            "all end in cli; hlt, which is how it ends, one later than the others",
            |c| {
                c.on(3, |c| c.count_down(1 << 14))?;
                c.die()
            },
        )
        .flag("--end=halted"),
        Guest::new("print-and-end", 1, LIVE, "it prints a line and ends", |c| {
            for byte in *b"done\n" {
                c.print(byte)?;
            }
            c.pass()
        }),
    ]);
    guests
}

fn countdown(name: &'static str, turns: u32) -> Guest {
    Guest::new(name, 1, LIVE, "the counter becomes 0", move |c| {
        c.count_down(turns)?;
        c.pass()
    })
}

/// Turns of an xorshift generator (32 bits, shifts 13, 17, 5) from 1 until its low bits are zero.
pub(crate) fn xorshift_turns(bits: u32) -> u32 {
    let (mut x, mut turns) = (1u32, 0);
    loop {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        turns += 1;
        if x & ((1 << bits) - 1) == 0 {
            return turns;
        }
    }
}

fn hashes() -> Vec<Guest> {
    vec![
        Guest::new("hash-xorshift", 1, LIVE, "the generator comes to a number with 13 zeros at its end", |c| {
            c.mov(ebx, 1)?;
            let again = c.here()?;
            for (left, by) in [(true, 13), (false, 17), (true, 5)] {
                c.mov(eax, ebx)?;
                if left {
                    c.shl(eax, by)?;
                } else {
                    c.shr(eax, by)?;
                }
                c.xor(ebx, eax)?;
            }
            c.test(ebx, (1 << 13) - 1)?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new(
            "hash-lcg",
            1,
            LIVE,
            "a generator modulo 2^32 with full period comes to where its high bits are zero",
            |c| {
                c.mov(ebx, 1)?;
                let again = c.here()?;
                c.imul_3(ebx, ebx, 0x19660d)?;
                c.add(ebx, 0x3c6ef35f)?;
                c.mov(eax, ebx)?;
                c.shr(eax, 20)?;
                c.jnz(again)?;
                c.pass()
            },
        ),
        Guest::new("hash-of-a-buffer", 1, LIVE, "a checksum over 8 KiB, 8 times", |c| {
            c.mov(ebx, 8)?;
            let outer = c.here()?;
            c.xor(ecx, ecx)?;
            let again = c.here()?;
            c.rol(eax, 5)?;
            c.xor(eax, dword_ptr(BUFFER + 4 * rcx))?;
            c.inc(ecx)?;
            c.cmp(ecx, 2048)?;
            c.jb(again)?;
            c.dec(ebx)?;
            c.jnz(outer)?;
            c.pass()
        }),
    ]
}

fn patches() -> Vec<Guest> {
    vec![
        Guest::new("code-counts-in-itself", 1, LIVE, "the operand of an instruction is one more each turn", |c| {
            let mut operand = c.create_label();
            let again = c.here()?;
            c.inc(byte_ptr(operand))?;
            // MOV AL, and its operand, which needs a label of its own.
            c.db(&[0xb0])?;
            c.set_label(&mut operand)?;
            c.db(&[0])?;
            c.cmp(al, 200u32 as i32)?;
            c.jne(again)?;
            c.pass()
        }),
        Guest::new(
            "code-patches-its-way-out",
            1,
            LIVE,
            "after a countdown it patches the jump that keeps it in",
            |c| {
                let mut patched = c.create_label();
                c.mov(ecx, 5000)?;
                let again = c.here()?;
                let mut not_yet = c.create_label();
                c.dec(ecx)?;
                c.jnz(not_yet)?;
                // A short jump becomes two bytes that do nothing.
                c.mov(word_ptr(patched), 0x9090u32 as i32)?;
                c.place(&mut not_yet)?;
                c.set_label(&mut patched)?;
                c.jmp(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "code-patched-by-another",
            2,
            LIVE,
            "vCPU 1 patches the jump to itself of vCPU 0, after a countdown",
            |c| {
                let mut patched = c.create_label();
                c.on(1, |c| {
                    c.count_down(1 << 15)?;
                    c.mov(word_ptr(patched), 0x9090u32 as i32)?;
                    c.die()
                })?;
                c.set_label(&mut patched)?;
                c.jmp(patched)?;
                c.pass()
            },
        ),
    ]
}

/// Guests whose vCPU 1 is slow, for which the others wait.
fn partners() -> Vec<Guest> {
    let slow = |c: &mut Code| {
        c.on(1, |c| {
            c.count_down(1 << 16)?;
            c.mov(dword_ptr(word(2)), 1)?;
            c.die()
        })?;
        c.wait_for(word(2))?;
        c.pass()
    };
    let mut guests = at(&[2, 4], "slow-partner", LIVE, "vCPU 1 counts down before it stores what they wait for", slow);
    guests.extend([
        Guest::new("very-slow-partner", 2, LIVE, "vCPU 1 counts down before it stores what the other waits for", |c| {
            c.on(1, |c| {
                c.count_down(1 << 20)?;
                c.mov(dword_ptr(word(2)), 1)?;
                c.die()
            })?;
            c.wait_for(word(2))?;
            c.pass()
        })
        .long(),
        Guest::new(
            "slow-partner-by-alias",
            2,
            LIVE,
            "vCPU 1 stores what is waited for by another linear address",
            |c| {
                c.mov(qword_ptr(0x4000), 0x2000e3)?;
                c.mov(rbx, 0x4000_0000u64 + (word(2) - 0x20_0000))?;
                c.invlpg(ptr(rbx))?;
                c.on(1, |c| {
                    c.count_down(1 << 14)?;
                    c.mov(dword_ptr(rbx), 1)?;
                    c.die()
                })?;
                c.wait_for(word(2))?;
                c.pass()
            },
        ),
        Guest::new("slow-partner-counts-up", 2, LIVE, "vCPU 1 counts in the word that the other compares", |c| {
            c.on(1, |c| {
                let again = c.here()?;
                c.inc(dword_ptr(word(2)))?;
                c.cmp(dword_ptr(word(2)), 20_000)?;
                c.jne(again)?;
                c.die()
            })?;
            c.wait_for_value(word(2), 20_000)?;
            c.pass()
        }),
        Guest::new(
            "counts-for-another",
            2,
            LIVE,
            "vCPU 1 counts without an end, vCPU 0 waits for a bit of the count",
            |c| {
                c.on(1, |c| {
                    let again = c.here()?;
                    c.inc(dword_ptr(word(2)))?;
                    c.jmp(again)
                })?;
                let again = c.here()?;
                c.bt(dword_ptr(word(2)), 14)?;
                c.jnc(again)?;
                c.pass()
            },
        ),
        Guest::new("count-by-way-of-another", 2, LIVE, "vCPU 0 copies vCPU 1's count to where vCPU 1 reads it", |c| {
            c.on(0, |c| {
                let again = c.here()?;
                c.mov(eax, dword_ptr(word(2)))?;
                c.mov(dword_ptr(word(3)), eax)?;
                c.jmp(again)
            })?;
            let again = c.here()?;
            c.inc(dword_ptr(word(2)))?;
            c.bt(dword_ptr(word(3)), 13)?;
            c.jnc(again)?;
            c.pass()
        }),
        Guest::new(
            "count-handed-on",
            3,
            LIVE,
            "vCPU 0 counts, vCPU 1 copies the count, vCPU 2 waits for a bit of the copy",
            |c| {
                c.on(0, |c| {
                    let again = c.here()?;
                    c.inc(dword_ptr(word(2)))?;
                    c.jmp(again)
                })?;
                c.on(1, |c| {
                    let again = c.here()?;
                    c.mov(eax, dword_ptr(word(2)))?;
                    c.mov(dword_ptr(word(3)), eax)?;
                    c.jmp(again)
                })?;
                let again = c.here()?;
                c.bt(dword_ptr(word(3)), 13)?;
                c.jnc(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "ring-reaches-another",
            2,
            LIVE,
            "the last entry of vCPU 1's trace ring is the word that vCPU 0 reads",
            |c| {
                c.on(1, |c| {
                    let again = c.here()?;
                    c.inc(ecx)?;
                    c.mov(eax, ecx)?;
                    c.shr(eax, 5)?;
                    c.and(eax, 0xff)?;
                    c.mov(dword_ptr(BUFFER + 4 * rax), 1)?;
                    c.jmp(again)
                })?;
                c.wait_for(BUFFER + 4 * 0xff)?;
                c.pass()
            },
        ),
        Guest::new("slow-partner-hashes", 2, LIVE, "vCPU 1 searches before it stores what the other waits for", |c| {
            c.on(1, |c| {
                c.mov(ebx, 1)?;
                let again = c.here()?;
                c.imul_3(ebx, ebx, 0x19660d)?;
                c.add(ebx, 0x3c6ef35f)?;
                c.mov(eax, ebx)?;
                c.shr(eax, 20)?;
                c.jnz(again)?;
                c.mov(dword_ptr(word(2)), 1)?;
                c.die()
            })?;
            c.wait_for(word(2))?;
            c.pass()
        }),
        Guest::new(
            "slow-partner-patches-page-table",
            2,
            LIVE,
            "vCPU 1 maps another page where the other one reads, itself",
            |c| {
                c.mov(rbx, 0x4000_0000u64)?;
                c.on(0, |c| {
                    c.mov(qword_ptr(0x4000), 0x2000e3)?;
                    c.mov(dword_ptr(word(3)), 1)
                })?;
                c.on(1, |c| {
                    c.wait_for(word(3))?;
                    c.count_down(1 << 14)?;
                    c.mov(dword_ptr(0x100_0100u64), 1)?;
                    c.mov(qword_ptr(0x4000), 0x100_00e3)?;
                    c.die()
                })?;
                let again = c.here()?;
                c.invlpg(ptr(rbx))?;
                c.cmp(dword_ptr(rbx + 0x100), 0)?;
                c.je(again)?;
                c.pass()
            },
        ),
        Guest::new("hand-over-and-over", 2, LIVE, "a token goes to and fro 500 times", |c| {
            c.mov(ecx, 500)?;
            let again = c.here()?;
            c.nop()?;
            let wait = c.here()?;
            c.pause()?;
            c.cmp(dword_ptr(word(1)), edi)?;
            c.jne(wait)?;
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

fn contended() -> Vec<Guest> {
    let tickets = |c: &mut Code| {
        c.mov(ebp, 100)?;
        let again = c.here()?;
        c.mov(eax, 1)?;
        c.lock().xadd(dword_ptr(word(1)), eax)?;
        let wait = c.here()?;
        c.pause()?;
        c.cmp(dword_ptr(word(2)), eax)?;
        c.jne(wait)?;
        c.inc(dword_ptr(word(3)))?;
        c.inc(dword_ptr(word(2)))?;
        c.dec(ebp)?;
        c.jnz(again)?;
        c.meet(word(4))?;
        c.pass()
    };
    let mut guests = at(&[2, 4], "ticket-lock", LIVE, "each takes and gives the lock a hundred times", tickets);
    guests.extend([
        Guest::new("barrier-of-all", 4, LIVE, "the last one comes to the barrier late", |c| {
            c.on(2, |c| c.count_down(1 << 15))?;
            c.meet(word(1))?;
            c.pass()
        }),
        Guest::new(
            "try-lock-contended",
            2,
            LIVE,
            "two take two locks in turn and back off: in some order one gets both",
            |c| {
                let (first, second) = (word(1), word(2));
                c.meet(word(3))?;
                // vCPU 1 takes them the other way round.
                c.mov(rbx, first)?;
                c.mov(rbp, second)?;
                c.on(1, |c| c.xchg(rbx, rbp))?;
                let again = c.here()?;
                let mut both = c.create_label();
                c.lock().bts(dword_ptr(rbx), 0)?;
                c.jc(again)?;
                c.lock().bts(dword_ptr(rbp), 0)?;
                c.jnc(both)?;
                c.lock().btr(dword_ptr(rbx), 0)?;
                c.jmp(again)?;
                c.place(&mut both)?;
                c.pass()
            },
        ),
    ]);
    guests
}
