//! Dead guests that spin on memory which nobody will change any more, in all the ways in which code spins.

use iced_x86::code_asm::*;

use crate::code::{BUFFER, CODE, Code, word};
use crate::guest::{Guest, Truth, at};

const DEAD: Truth = Truth::Dead(None);
const EACH: &[u32] = &[1, 2, 4];

/// A bit, a byte, or more of memory that is held for ever.
const HELD: u64 = word(1);

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = reads();
    guests.extend(exchanges());
    guests.extend(inner_loops());
    guests.extend(constant_stores());
    guests.extend(calls());
    guests
}

fn reads() -> Vec<Guest> {
    let mut guests = at(EACH, "spin-word", DEAD, "nobody stores to the word", |c| c.wait_in_vain());
    guests.extend(at(&[1, 4], "spin-two-words", DEAD, "nobody stores to either word", |c| {
        let again = c.here()?;
        c.mov(eax, dword_ptr(word(2)))?;
        c.or(eax, dword_ptr(word(3)))?;
        c.jz(again)?;
        c.pass()
    }));
    guests.extend([
        Guest::new("spin-jump-to-itself", 1, DEAD, "the instruction jumps to itself", |c| c.stay()),
        Guest::new("spin-bit-test", 2, DEAD, "nobody stores to the word", |c| {
            let again = c.here()?;
            c.bt(dword_ptr(word(2)), 17)?;
            c.jnc(again)?;
            c.pass()
        }),
        Guest::new(
            "spin-far-bit-test",
            1,
            DEAD,
            "nobody stores to the word that the register's high bits select",
            |c| {
                c.mov(ecx, 0x1_0003)?;
                let again = c.here()?;
                c.bt(dword_ptr(BUFFER), ecx)?;
                c.jnc(again)?;
                c.pass()
            },
        ),
        Guest::new("spin-indirect-jump", 1, DEAD, "the pointer that it jumps through leads back to the jump", |c| {
            let mut again = c.create_label();
            c.lea(rax, ptr(again))?;
            c.mov(qword_ptr(word(2)), rax)?;
            c.set_label(&mut again)?;
            c.jmp(qword_ptr(word(2)))
        }),
        Guest::new("spin-pointer-chase", 1, DEAD, "a list of three nodes without an end", |c| {
            for (from, to) in [(2, 3), (3, 4), (4, 2)] {
                c.mov(qword_ptr(word(from)), word(to) as i32)?;
            }
            c.mov(eax, word(2) as i32)?;
            let again = c.here()?;
            c.mov(rax, qword_ptr(rax))?;
            c.test(rax, rax)?;
            c.jnz(again)?;
            c.pass()
        }),
        Guest::new("spin-alias", 2, DEAD, "the word is read by another linear address, and nobody stores to it", |c| {
            // The second GiB is mapped by the table at 0x4000: its first entry now leads to the data.
            c.mov(qword_ptr(0x4000), 0x2000e3)?;
            c.mov(rbx, 0x4000_0000u64 + (word(2) - 0x20_0000))?;
            c.invlpg(ptr(rbx))?;
            let again = c.here()?;
            c.cmp(dword_ptr(rbx), 0)?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("spin-own-code", 1, DEAD, "it reads its own instructions, which nobody changes", |c| {
            let again = c.here()?;
            c.cmp(byte_ptr(CODE), 0x90)?;
            c.jne(again)?;
            c.pass()
        }),
        Guest::new("spin-conditional-move", 2, DEAD, "nobody stores to the word", |c| {
            let again = c.here()?;
            c.xor(eax, eax)?;
            c.cmp(dword_ptr(word(2)), 1)?;
            c.cmove(eax, dword_ptr(word(3)))?;
            c.sete(bl)?;
            c.test(bl, bl)?;
            c.jz(again)?;
            c.pass()
        }),
    ]);
    guests
}

/// The held word is 1 from the start.
fn hold(c: &mut Code) -> crate::code::Built {
    c.mov(dword_ptr(HELD), 1)
}

fn exchanges() -> Vec<Guest> {
    let mut guests = at(EACH, "spin-xchg", DEAD, "the lock is held by nobody; each turn stores what is there", |c| {
        hold(c)?;
        c.lock_word(HELD)?;
        c.pass()
    });
    guests.extend(at(EACH, "spin-cmpxchg", DEAD, "the exchange fails each time: the word is never 0", |c| {
        hold(c)?;
        c.mov(ecx, 1)?;
        let again = c.here()?;
        c.xor(eax, eax)?;
        c.lock().cmpxchg(dword_ptr(HELD), ecx)?;
        c.jne(again)?;
        c.pass()
    }));
    guests.extend([
        Guest::new("spin-cmpxchg8b", 1, DEAD, "the exchange fails each time: the words are never 0", |c| {
            hold(c)?;
            let again = c.here()?;
            c.xor(eax, eax)?;
            c.xor(edx, edx)?;
            c.lock().cmpxchg8b(qword_ptr(HELD))?;
            c.jne(again)?;
            c.pass()
        }),
        Guest::new("spin-bit-test-and-set", 2, DEAD, "the bit is set, and set again", |c| {
            hold(c)?;
            let again = c.here()?;
            c.lock().bts(dword_ptr(HELD), 0)?;
            c.jc(again)?;
            c.pass()
        }),
        Guest::new("spin-add-nothing", 2, DEAD, "each turn adds 0", |c| {
            let again = c.here()?;
            c.xor(eax, eax)?;
            c.lock().xadd(dword_ptr(word(2)), eax)?;
            c.test(eax, eax)?;
            c.jz(again)?;
            c.pass()
        }),
        Guest::new("spin-or-nothing", 4, DEAD, "each turn stores what is there", |c| {
            let again = c.here()?;
            c.lock().or(dword_ptr(word(2)), 0)?;
            c.jz(again)?;
            c.pass()
        }),
    ]);
    guests
}

/// A spin each turn of which takes `turns` turns of an inner loop first.
fn with_delay(name: &'static str, turns: u32) -> Guest {
    Guest::new(name, 2, DEAD, "each turn counts down first; nobody stores to the word", move |c| {
        let again = c.here()?;
        c.count_down(turns)?;
        c.cmp(dword_ptr(word(2)), 0)?;
        c.je(again)?;
        c.pass()
    })
}

fn inner_loops() -> Vec<Guest> {
    let scan = |c: &mut Code| {
        let again = c.here()?;
        c.mov(edi, BUFFER as i32)?;
        c.mov(ecx, 64)?;
        c.mov(eax, 7)?;
        c.repne().scasd()?;
        c.jne(again)?;
        c.pass()
    };
    vec![
        Guest::new("spin-rep-scas", 1, DEAD, "what it looks for is nowhere in the buffer", scan),
        Guest::new("spin-rep-scas", 2, DEAD, "what it looks for is nowhere in the buffer", scan),
        Guest::new("spin-rep-cmps", 1, DEAD, "the two buffers are the same", |c| {
            let again = c.here()?;
            c.mov(esi, BUFFER as i32)?;
            c.mov(edi, BUFFER as i32 + 0x1000)?;
            c.mov(ecx, 32)?;
            c.repe().cmpsb()?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("spin-eight-words", 2, DEAD, "nobody stores to any of the eight words", |c| {
            let again = c.here()?;
            c.xor(ecx, ecx)?;
            let next = c.here()?;
            c.mov(eax, dword_ptr(BUFFER + 8 * rcx))?;
            let mut out = c.create_label();
            c.test(eax, eax)?;
            c.jnz(out)?;
            c.inc(ecx)?;
            c.cmp(ecx, 8)?;
            c.jb(next)?;
            c.jmp(again)?;
            c.place(&mut out)?;
            c.pass()
        }),
        Guest::new(
            "spin-loop-instruction",
            1,
            DEAD,
            "each turn counts down by LOOP first; nobody stores to the word",
            |c| {
                let again = c.here()?;
                c.mov(ecx, 10)?;
                let inner = c.here()?;
                c.loop_(inner)?;
                c.cmp(dword_ptr(word(2)), 0)?;
                c.je(again)?;
                c.pass()
            },
        ),
        with_delay("spin-delay-20", 20),
        with_delay("spin-delay-100", 100),
        with_delay("spin-delay-500", 500),
    ]
}

fn constant_stores() -> Vec<Guest> {
    let private = |c: &mut Code| {
        c.private(r15)?;
        let again = c.here()?;
        c.mov(dword_ptr(r15), 1)?;
        c.cmp(dword_ptr(word(2)), 0)?;
        c.mov(dword_ptr(r15), 2)?;
        c.je(again)?;
        c.pass()
    };
    let mut guests = at(EACH, "spin-private-word", DEAD, "it stores 1 and 2 to a word of its own", private);
    guests.extend([
        Guest::new("spin-same-store", 4, DEAD, "all store 7 to a word that holds 7", |c| {
            let again = c.here()?;
            c.mov(dword_ptr(word(2)), 7)?;
            c.cmp(dword_ptr(word(2)), 7)?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("spin-rep-movs", 1, DEAD, "it copies the same bytes to the same place", |c| {
            let again = c.here()?;
            c.mov(esi, CODE as i32)?;
            c.mov(edi, BUFFER as i32)?;
            c.mov(ecx, 40)?;
            c.rep().movsb()?;
            c.cmp(dword_ptr(word(2)), 0)?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("spin-rep-stos", 2, DEAD, "it stores zeros over zeros", |c| {
            c.xor(eax, eax)?;
            let again = c.here()?;
            c.mov(edi, BUFFER as i32)?;
            c.mov(ecx, 24)?;
            c.rep().stosq()?;
            c.cmp(dword_ptr(word(2)), 0)?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("code-rewritten-as-it-is", 1, DEAD, "it stores an instruction over itself, the same one", |c| {
            let mut patched = c.create_label();
            let again = c.here()?;
            c.mov(byte_ptr(patched), 0x90)?;
            c.set_label(&mut patched)?;
            c.nop()?;
            c.cmp(dword_ptr(word(2)), 0)?;
            c.je(again)?;
            c.pass()
        }),
        Guest::new("code-patched-to-and-fro", 1, DEAD, "an instruction is patched to one of two, in turn", |c| {
            let mut patched = c.create_label();
            let again = c.here()?;
            // INC EAX and DEC EAX differ in one bit of their second byte.
            c.xor(byte_ptr(patched), 8)?;
            c.db(&[0xff])?;
            c.set_label(&mut patched)?;
            c.db(&[0xc0])?;
            c.cmp(dword_ptr(word(2)), 0)?;
            c.je(again)?;
            c.pass()
        }),
    ]);
    guests
}

fn calls() -> Vec<Guest> {
    let called = |c: &mut Code| {
        let (mut poll, mut start) = (c.create_label(), c.create_label());
        c.jmp(start)?;
        c.set_label(&mut poll)?;
        c.push(rbp)?;
        c.mov(rbp, rsp)?;
        c.mov(eax, dword_ptr(word(2)))?;
        c.pop(rbp)?;
        c.ret()?;
        c.set_label(&mut start)?;
        c.call(poll)?;
        c.test(eax, eax)?;
        c.jz(start)?;
        c.pass()
    };
    let mut guests = at(EACH, "spin-call", DEAD, "it calls a function that reads the word", called);
    guests.extend([
        Guest::new(
            "spin-call-pointer",
            2,
            DEAD,
            "it calls a function that reads the word, by a pointer in memory",
            |c| {
                let (mut poll, mut start, mut again) = (c.create_label(), c.create_label(), c.create_label());
                c.jmp(start)?;
                c.set_label(&mut poll)?;
                c.sub(rsp, 32)?;
                c.mov(dword_ptr(rsp + 8), edi)?;
                c.mov(eax, dword_ptr(word(2)))?;
                c.add(rsp, 32)?;
                c.ret()?;
                c.set_label(&mut start)?;
                c.lea(rax, ptr(poll))?;
                c.mov(qword_ptr(word(3)), rax)?;
                c.set_label(&mut again)?;
                c.call(qword_ptr(word(3)))?;
                c.test(eax, eax)?;
                c.jz(again)?;
                c.pass()
            },
        ),
        Guest::new(
            "spin-recursion",
            1,
            DEAD,
            "it calls itself to a depth of eight, and reads the word at the end",
            |c| {
                let (mut down, mut bottom, mut start) = (c.create_label(), c.create_label(), c.create_label());
                c.jmp(start)?;
                c.set_label(&mut down)?;
                c.dec(ecx)?;
                c.jz(bottom)?;
                c.push(rcx)?;
                c.call(down)?;
                c.pop(rcx)?;
                c.ret()?;
                c.set_label(&mut bottom)?;
                c.mov(eax, dword_ptr(word(2)))?;
                c.ret()?;
                c.set_label(&mut start)?;
                c.mov(ecx, 8)?;
                c.call(down)?;
                c.test(eax, eax)?;
                c.jz(start)?;
                c.pass()
            },
        ),
    ]);
    guests
}
