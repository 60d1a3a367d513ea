//! Live guests with a counter that a look at the general registers alone, or at branches alone, does not find: loops that are
//! the same each turn but for what is hidden.

use iced_x86::code_asm::*;

use crate::code::{BUFFER, Built, Code, word};
use crate::guest::{Guest, Truth};

const LIVE: Truth = Truth::Live;

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = in_flow();
    guests.extend(in_registers());
    guests.extend(in_memory());
    guests.extend(in_what_is_kept());
    guests.extend(in_addresses());
    guests
}

/// A loop with these instructions, which leave it by jumping to the label.
fn until(c: &mut Code, turn: impl FnOnce(&mut Code, CodeLabel) -> Built) -> Built {
    let mut out = c.create_label();
    let again = c.here()?;
    turn(c, out)?;
    c.jmp(again)?;
    c.place(&mut out)?;
    c.pass()
}

fn in_flow() -> Vec<Guest> {
    vec![
        Guest::new("counter-through-memory", 1, LIVE, "the counter decides by way of a copy in memory", |c| {
            until(c, |c, out| {
                c.inc(rcx)?;
                c.mov(qword_ptr(word(3)), rcx)?;
                c.mov(rdx, qword_ptr(word(3)))?;
                c.shr(rdx, 12)?;
                c.jnz(out)
            })
        }),
        Guest::new("counter-through-stack", 1, LIVE, "the counter decides by way of the stack", |c| {
            until(c, |c, out| {
                c.inc(rcx)?;
                c.push(rcx)?;
                c.pop(rdx)?;
                c.bt(rdx, 12)?;
                c.jc(out)
            })
        }),
        Guest::new(
            "counter-through-carry",
            1,
            LIVE,
            "the counter decides by its carry, which another counter takes",
            |c| {
                until(c, |c, out| {
                    c.add(eax, 0x10_0000)?;
                    c.adc(edx, 0)?;
                    c.cmp(edx, 3)?;
                    c.je(out)
                })
            },
        ),
        Guest::new("counter-through-flags", 1, LIVE, "the counter decides by a flag that a register keeps", |c| {
            until(c, |c, out| {
                c.add(eax, 0x8_0000)?;
                c.setc(bl)?;
                c.cmp(dword_ptr(word(3)), 0)?;
                c.jne(out)?;
                c.test(bl, bl)?;
                c.jnz(out)
            })
        }),
        Guest::new("counter-through-address", 1, LIVE, "the counter decides which byte is read", |c| {
            c.mov(byte_ptr(BUFFER + 5000), 1)?;
            until(c, |c, out| {
                c.inc(ecx)?;
                c.cmp(byte_ptr(BUFFER + rcx), 0)?;
                c.jne(out)
            })
        }),
        Guest::new("counter-through-jump", 1, LIVE, "the counter decides where a jump leads to", |c| {
            let (mut again, mut out) = (c.create_label(), c.create_label());
            c.lea(rbx, ptr(out))?;
            c.lea(rbp, ptr(again))?;
            c.set_label(&mut again)?;
            c.inc(ecx)?;
            c.mov(rax, rbp)?;
            c.bt(ecx, 12)?;
            c.cmovc(rax, rbx)?;
            c.jmp(rax)?;
            c.place(&mut out)?;
            c.pass()
        }),
        Guest::new("counter-through-return", 1, LIVE, "the counter decides where a function returns to", |c| {
            let (mut again, mut out) = (c.create_label(), c.create_label());
            c.lea(rbx, ptr(out))?;
            c.lea(rbp, ptr(again))?;
            c.set_label(&mut again)?;
            c.inc(ecx)?;
            c.mov(rax, rbp)?;
            c.bt(ecx, 12)?;
            c.cmovc(rax, rbx)?;
            c.push(rax)?;
            c.ret()?;
            c.place(&mut out)?;
            c.pass()
        }),
        Guest::new(
            "counter-through-rep",
            1,
            LIVE,
            "the counter decides how much REP STOS writes: at last, to the word",
            |c| {
                let target = BUFFER + 300;
                until(c, |c, out| {
                    c.inc(ebx)?;
                    c.mov(ecx, ebx)?;
                    c.mov(edi, BUFFER as i32)?;
                    c.mov(eax, 1)?;
                    c.rep().stosb()?;
                    c.cmp(byte_ptr(target), 0)?;
                    c.jne(out)
                })
            },
        ),
        Guest::new(
            "counter-through-rep-stos",
            1,
            LIVE,
            "REP STOS stores the counter's high bits to what is compared",
            |c| {
                until(c, |c, out| {
                    c.inc(ebx)?;
                    c.mov(eax, ebx)?;
                    c.shr(eax, 12)?;
                    c.mov(edi, BUFFER as i32)?;
                    c.mov(ecx, 4)?;
                    c.rep().stosd()?;
                    c.cmp(dword_ptr(BUFFER + 8), 0)?;
                    c.jne(out)
                })
            },
        ),
        Guest::new("counter-through-rep-movs", 1, LIVE, "REP MOVS copies the counter to where it is compared", |c| {
            until(c, |c, out| {
                c.inc(dword_ptr(word(3)))?;
                c.mov(esi, word(3) as i32)?;
                c.mov(edi, BUFFER as i32)?;
                c.mov(ecx, 4)?;
                c.rep().movsb()?;
                c.cmp(byte_ptr(BUFFER + 1), 16)?;
                c.je(out)
            })
        }),
        Guest::new("ring-that-ends", 1, LIVE, "a trace ring whose index decides once it has a high bit", |c| {
            until(c, |c, out| {
                c.mov(eax, dword_ptr(word(3)))?;
                c.inc(dword_ptr(word(3)))?;
                c.mov(edx, eax)?;
                c.and(eax, 0xff)?;
                c.mov(dword_ptr(BUFFER + 4 * rax), edx)?;
                c.cmp(dword_ptr(BUFFER), 0x1000)?;
                c.je(out)
            })
        }),
        Guest::new(
            "ring-that-overflows",
            1,
            LIVE,
            "a trace ring that is not masked, and reaches the word at last",
            |c| {
                let target = BUFFER + 4 * 3000;
                until(c, |c, out| {
                    c.mov(dword_ptr(BUFFER + 4 * rcx), 1)?;
                    c.inc(ecx)?;
                    c.cmp(dword_ptr(target), 0)?;
                    c.jne(out)
                })
            },
        ),
    ]
}

fn in_registers() -> Vec<Guest> {
    vec![
        Guest::new("counter-in-rsp", 1, LIVE, "the stack grows by a word each turn", |c| {
            c.lea(rbx, qword_ptr(rsp - 8 * 1500))?;
            until(c, |c, out| {
                c.push(0)?;
                c.cmp(rsp, rbx)?;
                c.jb(out)
            })
        }),
        Guest::new("counter-in-ch", 1, LIVE, "a byte of a register that counts the wraps of another", |c| {
            until(c, |c, out| {
                c.add(cl, 8)?;
                c.adc(ch, 0)?;
                c.bt(ecx, 15)?;
                c.jc(out)
            })
        }),
        Guest::new("counter-in-upper-half", 1, LIVE, "the upper half of a register", |c| {
            c.mov(rbx, 1u64 << 44)?;
            until(c, |c, out| {
                c.add(rcx, rbx)?;
                c.jc(out)?;
                c.test(ecx, ecx)?;
                c.jnz(out)
            })
        }),
        Guest::new("counter-in-cr2", 1, LIVE, "CR2, which no list of general registers has", |c| {
            until(c, |c, out| {
                c.mov(rax, cr2)?;
                c.inc(rax)?;
                c.mov(cr2, rax)?;
                c.shr(rax, 10)?;
                c.mov(eax, 0)?;
                c.jnz(out)
            })
        }),
        Guest::new("counter-in-debug-register", 1, LIVE, "DR0, with no breakpoint enabled", |c| {
            until(c, |c, out| {
                c.mov(rax, dr0)?;
                c.inc(rax)?;
                c.mov(dr0, rax)?;
                c.shr(rax, 10)?;
                c.mov(eax, 0)?;
                c.jnz(out)
            })
        }),
        Guest::new("counter-in-msr", 1, LIVE, "IA32_KERNEL_GS_BASE", |c| {
            until(c, |c, out| {
                c.mov(ecx, 0xc000_0102u32)?;
                c.rdmsr()?;
                c.inc(eax)?;
                c.wrmsr()?;
                c.shr(eax, 10)?;
                c.mov(eax, 0)?;
                c.mov(edx, 0)?;
                c.jnz(out)
            })
        }),
        Guest::new(
            "counter-in-gs-base",
            1,
            LIVE,
            "the base of GS goes up, until what is read through it is set",
            |c| {
                c.mov(dword_ptr(BUFFER + 8 * 1000), 1)?;
                c.mov(ecx, 0xc000_0101u32)?;
                until(c, |c, out| {
                    c.rdmsr()?;
                    c.add(eax, 8)?;
                    c.wrmsr()?;
                    c.xor(eax, eax)?;
                    c.cmp(dword_ptr(BUFFER).gs(), 0)?;
                    c.jne(out)
                })
            },
        ),
        Guest::new("counter-in-tpr", 1, LIVE, "CR8 goes up to 15", |c| {
            until(c, |c, out| {
                c.mov(rax, cr8)?;
                c.cmp(eax, 15)?;
                c.je(out)?;
                c.inc(eax)?;
                c.mov(cr8, rax)
            })
        }),
    ]
}

fn in_memory() -> Vec<Guest> {
    vec![
        Guest::new("counter-in-page-table", 1, LIVE, "each turn maps another page where the word is read", |c| {
            // The word of physical address 0x1000100, the ninth large page, is set.
            c.mov(dword_ptr(0x100_0100u64), 1)?;
            c.mov(rbx, 0x4000_0000u64)?;
            c.mov(eax, 0xe3)?;
            until(c, |c, out| {
                c.add(rax, 0x20_0000)?;
                c.mov(qword_ptr(0x4000), rax)?;
                c.invlpg(ptr(rbx))?;
                c.cmp(dword_ptr(rbx + 0x100), 0)?;
                c.jne(out)
            })
        }),
        Guest::new("counter-by-alias", 1, LIVE, "it counts at one linear address and reads at another", |c| {
            c.mov(qword_ptr(0x4000), 0x2000e3)?;
            c.mov(rbx, 0x4000_0000u64 + (word(3) - 0x20_0000))?;
            c.invlpg(ptr(rbx))?;
            until(c, |c, out| {
                c.inc(dword_ptr(word(3)))?;
                c.cmp(dword_ptr(rbx), 4096)?;
                c.je(out)
            })
        }),
        Guest::new("counter-in-bytes", 1, LIVE, "a counter of four bytes that carry by hand", |c| {
            until(c, |c, out| {
                let mut done = c.create_label();
                c.inc(byte_ptr(word(3)))?;
                c.jnz(done)?;
                c.inc(byte_ptr(word(3) + 1))?;
                c.cmp(byte_ptr(word(3) + 1), 12)?;
                c.je(out)?;
                c.place(&mut done)
            })
        }),
        Guest::new("rep-over-a-mebibyte", 1, LIVE, "one instruction that takes long, twice", |c| {
            c.mov(ebx, 2)?;
            until(c, |c, out| {
                c.mov(edi, 0x80_0000)?;
                c.mov(ecx, 1 << 17)?;
                c.xor(eax, eax)?;
                c.rep().stosq()?;
                c.dec(ebx)?;
                c.jz(out)
            })
        }),
    ]
}

/// Each turn `through` is done with a copy of the counter's high bits in RDX, which decides at last.
fn kept(name: &'static str, why: &'static str, through: impl Fn(&mut Code) -> Built + Send + Sync + 'static) -> Guest {
    Guest::new(name, 1, LIVE, why, move |c| {
        until(c, |c, out| {
            c.inc(rbx)?;
            c.mov(rdx, rbx)?;
            c.shr(rdx, 12)?;
            through(c)?;
            c.test(edx, edx)?;
            c.jnz(out)
        })
    })
}

/// Counters that survive an instruction which seems to overwrite them.
fn in_what_is_kept() -> Vec<Guest> {
    vec![
        kept("counter-kept-by-cmov", "a conditional move that is not made leaves the counter where it is", |c| {
            c.xor(ebp, ebp)?;
            c.cmovnz(rdx, rbp)
        }),
        kept("counter-kept-by-bsf", "a bit scan of zero leaves the counter where it is", |c| {
            c.xor(ebp, ebp)?;
            c.bsf(rdx, rbp)
        }),
        kept("counter-kept-by-rep-lods", "REP LODS of nothing leaves the counter where it is", |c| {
            c.mov(eax, edx)?;
            c.xor(ecx, ecx)?;
            c.mov(esi, BUFFER as i32)?;
            c.rep().lodsd()?;
            c.mov(edx, eax)
        }),
        kept("counter-kept-by-cmpxchg", "a compare and exchange that succeeds leaves the counter where it is", |c| {
            c.mov(rax, rdx)?;
            c.mov(qword_ptr(word(3)), rdx)?;
            c.xor(ebp, ebp)?;
            c.lock().cmpxchg(qword_ptr(word(3)), rbp)?;
            c.mov(rdx, rax)
        }),
        kept("counter-kept-in-part", "the low half of the low half is cleared, the rest of the register is not", |c| {
            c.shl(rdx, 32)?;
            c.mov(dl, 0)?;
            c.mov(dx, 0)?;
            c.shr(rdx, 32)
        }),
        kept("counter-kept-behind-xor", "the low byte is cleared by XOR, the rest of the register is not", |c| {
            c.shl(rdx, 8)?;
            c.xor(dl, dl)?;
            c.shr(rdx, 8)
        }),
        Guest::new("counter-kept-in-flags", 1, LIVE, "a shift by nothing leaves the flags of the comparison", |c| {
            until(c, |c, out| {
                c.inc(rbx)?;
                c.cmp(rbx, 4096)?;
                c.mov(cl, 0)?;
                c.shl(ebp, cl)?;
                c.je(out)
            })
        }),
        Guest::new("counter-kept-in-carry", 1, LIVE, "INC and DEC leave the carry of the addition", |c| {
            until(c, |c, out| {
                c.add(eax, 0x10_0000)?;
                c.inc(edx)?;
                c.dec(edx)?;
                c.jc(out)
            })
        }),
        Guest::new(
            "counter-ends-by-divide-error",
            1,
            LIVE,
            "the divisor becomes 0; the handler of the exception ends the run",
            |c| {
                c.handler(0, |c| c.pass())?;
                c.mov(ecx, 5000)?;
                let again = c.here()?;
                c.dec(ecx)?;
                c.mov(eax, 7)?;
                c.xor(edx, edx)?;
                c.div(ecx)?;
                c.jmp(again)
            },
        ),
    ]
}

/// A ring whose index comes from the counter in ECX by `index`, into RAX: not quite within the ring, so that in the end it writes
/// to where `target` says, in words from the ring's beginning.
fn ring(
    name: &'static str,
    why: &'static str,
    target: i64,
    index: impl Fn(&mut Code) -> Built + Send + Sync + 'static,
) -> Guest {
    const RING: u64 = BUFFER + 0x1000;
    Guest::new(name, 1, LIVE, why, move |c| {
        until(c, |c, out| {
            c.inc(ecx)?;
            index(c)?;
            c.mov(dword_ptr(RING + 4 * rax), 1)?;
            c.cmp(dword_ptr(RING.wrapping_add_signed(4 * target)), 0)?;
            c.jne(out)
        })
    })
}

/// Counters in addresses that seem to be bounded, and are not, or elsewhere.
fn in_addresses() -> Vec<Guest> {
    vec![
        ring("ring-index-with-a-sign", "the index is a byte with a sign: half of them lie below the ring", -100, |c| {
            c.mov(edx, ecx)?;
            c.shr(edx, 5)?;
            c.movsx(rax, dl)
        }),
        ring("ring-index-below-its-base", "the index is masked, and becomes less than 0 behind that", -16, |c| {
            c.mov(eax, ecx)?;
            c.shr(eax, 5)?;
            c.and(eax, 0xff)?;
            c.sub(rax, 0x80)
        }),
        ring("ring-index-plus-carry", "the index is masked, and one more behind that, now and then", 256, |c| {
            c.mov(eax, ecx)?;
            c.shr(eax, 4)?;
            c.and(eax, 0xff)?;
            c.bt(ecx, 13)?;
            c.adc(eax, 0)
        }),
        ring("ring-index-with-a-high-byte", "the index is masked, and its second byte is not", 0x8000, |c| {
            c.mov(ebx, ecx)?;
            c.shr(ebx, 4)?;
            c.mov(eax, ecx)?;
            c.and(eax, 0x3f)?;
            c.mov(ah, bl)
        }),
        ring("ring-index-masked-in-part", "only the low byte of the index is masked", 3 * 256, |c| {
            c.mov(eax, ecx)?;
            c.and(al, 0)
        }),
        ring("ring-index-shifted-by-33", "a shift by 33 of half a register is one by 1", 3000, |c| {
            c.mov(eax, ecx)?;
            c.shr(eax, 33)
        }),
        ring("ring-index-times-three", "the index is masked, and multiplied behind that", 3 * 200, |c| {
            c.mov(eax, ecx)?;
            c.shr(eax, 5)?;
            c.and(eax, 0xff)?;
            c.imul_3(eax, eax, 3)
        }),
        Guest::new(
            "bit-set-by-a-counter",
            1,
            LIVE,
            "the counter selects a bit, of the word or of one behind it",
            |c| {
                until(c, |c, out| {
                    c.inc(ecx)?;
                    c.bts(dword_ptr(BUFFER), ecx)?;
                    c.cmp(dword_ptr(BUFFER + 0x400), 0)?;
                    c.jne(out)
                })
            },
        ),
        Guest::new(
            "bit-far-away",
            2,
            LIVE,
            "vCPU 1 toggles a bit of another word than its operand, the one that is read",
            |c| {
                c.on(1, |c| {
                    c.mov(edx, 0x2003)?;
                    let again = c.here()?;
                    c.count_down(1000)?;
                    c.lock().btc(dword_ptr(BUFFER), edx)?;
                    c.lock().btc(dword_ptr(BUFFER), edx)?;
                    c.jmp(again)
                })?;
                // Where the two meet is left to chance: it takes a fraction of a second.
                let again = c.here()?;
                c.count_down(50)?;
                c.test(dword_ptr(BUFFER + 0x400), 8)?;
                c.jz(again)?;
                c.pass()
            },
        ),
    ]
}
