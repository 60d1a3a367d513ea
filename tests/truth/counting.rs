//! Dead guests that count, or keep a trace, while they spin: what changes decides nothing.

use iced_x86::code_asm::*;

use crate::code::{BUFFER, Built, Code, word};
use crate::guest::{Guest, Truth, at};

const DEAD: Truth = Truth::Dead(None);

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = registers();
    guests.extend(memory());
    guests.extend(rings());
    guests
}

/// Spins on a word, and does something else each turn.
fn spin(c: &mut Code, each_turn: impl Fn(&mut Code) -> Built) -> Built {
    let again = c.here()?;
    each_turn(c)?;
    c.cmp(dword_ptr(word(2)), 0)?;
    c.je(again)?;
    c.pass()
}

fn registers() -> Vec<Guest> {
    let why = "the counter is in no branch, address or store";
    let mut guests = at(&[1, 2, 4], "count-register", DEAD, why, |c| spin(c, |c| c.inc(rcx)));
    guests.extend([
        Guest::new("count-by-seven", 1, DEAD, why, |c| spin(c, |c| c.add(r9, 7))),
        Guest::new("count-two-registers", 2, DEAD, "the second is the first's sum", |c| {
            spin(c, |c| {
                c.inc(rcx)?;
                c.add(rdx, rcx)
            })
        }),
        Guest::new("count-byte-register", 1, DEAD, why, |c| spin(c, |c| c.inc(cl))),
        Guest::new("hash-register", 1, DEAD, "the hash is in no branch, address or store", |c| {
            c.mov(ebx, 1)?;
            spin(c, |c| {
                c.mov(rax, rbx)?;
                c.shl(rax, 13)?;
                c.xor(rbx, rax)?;
                c.mov(rax, rbx)?;
                c.shr(rax, 7)?;
                c.xor(rbx, rax)
            })
        }),
        Guest::new("count-and-multiply", 1, DEAD, "the product is in no branch, address or store", |c| {
            c.mov(ebx, 1)?;
            spin(c, |c| {
                c.imul_3(rbx, rbx, 0x19660d)?;
                c.add(rbx, 0x3c6ef35f)
            })
        }),
        Guest::new("count-masked-by-nothing", 1, DEAD, "what is compared is the counter AND 0: nothing of it", |c| {
            let again = c.here()?;
            c.inc(rcx)?;
            c.mov(rax, rcx)?;
            c.and(eax, 0)?;
            c.or(eax, dword_ptr(word(2)))?;
            c.jz(again)?;
            c.pass()
        }),
        Guest::new(
            "count-then-cleared",
            1,
            DEAD,
            "the copy of the counter is cleared before anything is compared",
            |c| {
                let again = c.here()?;
                c.inc(rcx)?;
                c.mov(rax, rcx)?;
                c.mov(qword_ptr(word(5)), rax)?;
                c.xor(eax, eax)?;
                c.or(eax, dword_ptr(word(2)))?;
                c.jz(again)?;
                c.pass()
            },
        ),
        Guest::new("count-pushed", 1, DEAD, "the counter goes to the stack and back", |c| {
            spin(c, |c| {
                c.push(rcx)?;
                c.pop(rdx)?;
                c.inc(rcx)
            })
        }),
    ]);
    guests
}

fn memory() -> Vec<Guest> {
    let why = "the word is the vCPU's own, and nothing but itself depends on it";
    let mut guests = at(&[1, 2, 4], "count-private-word", DEAD, why, |c| {
        c.private(r15)?;
        spin(c, |c| c.inc(qword_ptr(r15)))
    });
    guests.extend([
        Guest::new("count-private-byte", 1, DEAD, why, |c| spin(c, |c| c.count_byte(word(5)))),
        Guest::new("count-modulo-eight", 2, DEAD, "the vCPU's own word goes through eight values", |c| {
            c.private(r15)?;
            spin(c, |c| {
                c.mov(eax, dword_ptr(r15))?;
                c.inc(eax)?;
                c.and(eax, 7)?;
                c.mov(dword_ptr(r15), eax)
            })
        }),
        Guest::new("count-modulo-eight-branch", 1, DEAD, "eight values, and it branches on them", |c| {
            spin(c, |c| {
                let mut below = c.create_label();
                c.inc(dword_ptr(word(5)))?;
                c.cmp(dword_ptr(word(5)), 8)?;
                c.jb(below)?;
                c.mov(dword_ptr(word(5)), 0)?;
                c.place(&mut below)
            })
        }),
        Guest::new(
            "count-register-to-memory",
            2,
            DEAD,
            "nobody reads the words that the counters are stored to",
            |c| {
                c.private(r15)?;
                spin(c, |c| {
                    c.inc(rcx)?;
                    c.mov(qword_ptr(r15 + 8), rcx)
                })
            },
        ),
        Guest::new("count-shared-word", 2, DEAD, "both add to one word, which decides nothing", |c| {
            spin(c, |c| c.lock().inc(qword_ptr(word(5))))
        }),
        Guest::new("count-in-ghost-memory", 2, DEAD, "the word that both add to is ghost memory", |c| {
            spin(c, |c| c.lock().inc(qword_ptr(word(5))))
        })
        .flag("--ghost=0x200140+8"),
    ]);
    guests
}

fn rings() -> Vec<Guest> {
    let why = "the place in the ring is the counter's low bits, so within the ring; nobody reads it";
    vec![
        Guest::new("ring-index-in-register", 1, DEAD, why, |c| {
            spin(c, |c| {
                c.mov(eax, ecx)?;
                c.and(eax, 0xff)?;
                c.mov(dword_ptr(BUFFER + 4 * rax), edi)?;
                c.inc(ecx)
            })
        }),
        Guest::new("ring-of-counts", 1, DEAD, why, |c| {
            spin(c, |c| {
                c.mov(eax, ecx)?;
                c.and(eax, 0x3f)?;
                c.mov(qword_ptr(BUFFER + 8 * rax), rcx)?;
                c.inc(rcx)
            })
        }),
        ring_in_memory(1),
        ring_in_memory(2),
        Guest::new("ring-of-bytes", 1, DEAD, "the index is a byte, so within the ring", |c| {
            spin(c, |c| {
                c.movzx(eax, cl)?;
                c.mov(byte_ptr(BUFFER + rax), cl)?;
                c.inc(ecx)
            })
        }),
        Guest::new("ring-in-ghost-memory", 1, DEAD, "ring and index are ghost memory", |c| {
            spin(c, |c| {
                c.mov(eax, dword_ptr(BUFFER + 0x1000))?;
                c.inc(dword_ptr(BUFFER + 0x1000))?;
                c.and(eax, 0xff)?;
                c.mov(dword_ptr(BUFFER + 4 * rax), eax)
            })
        })
        .flag("--ghost=0x240000+8192"),
    ]
}

fn ring_in_memory(vcpus: u32) -> Guest {
    let why = "each vCPU has a ring with an index of its own, of which the low bits are taken";
    Guest::new("ring-index-in-memory", vcpus, DEAD, why, |c| {
        c.private(r15)?;
        spin(c, |c| {
            c.mov(eax, dword_ptr(r15))?;
            c.inc(dword_ptr(r15))?;
            c.and(eax, 0x7f)?;
            c.mov(qword_ptr(r15 + 8 * rax + 0x40), rsi)
        })
    })
}
