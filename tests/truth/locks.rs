//! Dead guests of several vCPUs that wait for each other, and livelocks.

use iced_x86::code_asm::*;

use crate::code::{Built, Code, word};
use crate::guest::{Guest, Truth, at};

const DEAD: Truth = Truth::Dead(None);
const LIVELOCK: Truth = Truth::Dead(Some("livelock"));

pub(crate) fn guests() -> Vec<Guest> {
    let mut guests = locks();
    guests.extend(absent());
    guests.extend(tokens());
    guests.extend(back_offs());
    guests
}

/// Takes lock `rdi`, meets the others, and wants the next one's lock.
fn cycle(c: &mut Code) -> Built {
    c.mov(eax, edi)?;
    c.shl(eax, 6)?;
    c.mov(dword_ptr(rax + word(16)), 1)?;
    c.meet(word(1))?;
    c.lea(eax, dword_ptr(rdi + 1))?;
    c.xor(edx, edx)?;
    c.div(esi)?;
    c.shl(edx, 6)?;
    let again = c.here()?;
    c.mov(eax, 1)?;
    c.xchg(dword_ptr(rdx + word(16)), eax)?;
    c.test(eax, eax)?;
    c.jnz(again)?;
    c.pass()
}

fn locks() -> Vec<Guest> {
    let mut guests = at(&[2, 3, 4, 8], "lock-cycle", DEAD, "each holds its lock and spins for the next one's", cycle);
    guests.extend(at(
        &[2, 4],
        "ticket-lost",
        DEAD,
        "vCPU 0 holds the ticket that is served and never comes back",
        |c| {
            c.mov(eax, 1)?;
            c.lock().xadd(dword_ptr(word(1)), eax)?;
            let mut mine = c.create_label();
            let again = c.here()?;
            c.cmp(dword_ptr(word(2)), eax)?;
            c.je(mine)?;
            c.pause()?;
            c.jmp(again)?;
            c.place(&mut mine)?;
            c.die()
        },
    ));
    guests.extend([
        Guest::new("ticket-skipped", 3, DEAD, "a ticket was drawn by nobody: it is served for ever", |c| {
            c.on(0, |c| c.mov(dword_ptr(word(1)), 1))?;
            c.meet(word(3))?;
            c.mov(eax, 1)?;
            c.lock().xadd(dword_ptr(word(1)), eax)?;
            let again = c.here()?;
            c.cmp(dword_ptr(word(2)), eax)?;
            c.jne(again)?;
            c.inc(dword_ptr(word(2)))?;
            c.stay()
        }),
        Guest::new("lock-twice", 1, DEAD, "it wants the lock that it holds", |c| {
            c.lock_word(word(1))?;
            c.lock_word(word(1))?;
            c.pass()
        }),
        Guest::new("barrier-one-short", 4, DEAD, "the barrier waits for five of four", |c| {
            c.lock().inc(dword_ptr(word(1)))?;
            c.wait_for_value(word(1), 5)?;
            c.pass()
        }),
        Guest::new("queue-lock-lost-link", 2, DEAD, "the owner of a queue lock never hands it to its successor", |c| {
            // Each waits for a flag of its own, which the one before it should set.
            c.private(r15)?;
            c.mov(rax, r15)?;
            c.xchg(qword_ptr(word(1)), rax)?;
            c.test(rax, rax)?;
            let mut owner = c.create_label();
            c.jz(owner)?;
            c.mov(qword_ptr(rax), r15)?;
            let again = c.here()?;
            c.cmp(dword_ptr(r15 + 8), 0)?;
            c.je(again)?;
            c.pass()?;
            c.place(&mut owner)?;
            c.stay()
        }),
        Guest::new("lock-held-by-a-loop", 4, DEAD, "vCPU 0 holds the lock, and counts for ever", |c| {
            c.on(0, |c| {
                c.mov(dword_ptr(word(1)), 1)?;
                c.mov(dword_ptr(word(2)), 1)?;
                let again = c.here()?;
                c.inc(rcx)?;
                c.jmp(again)
            })?;
            c.wait_for(word(2))?;
            c.lock_word(word(1))?;
            c.pass()
        }),
        Guest::new(
            "reader-writer",
            3,
            DEAD,
            "two readers hold the lock for ever, the writer waits for them to leave",
            |c| {
                c.on(2, |c| {
                    c.wait_for_value(word(1), 2)?;
                    let again = c.here()?;
                    c.xor(eax, eax)?;
                    c.mov(edx, -1)?;
                    c.lock().cmpxchg(dword_ptr(word(1)), edx)?;
                    c.jne(again)?;
                    c.pass()
                })?;
                c.lock().inc(dword_ptr(word(1)))?;
                c.wait_in_vain()
            },
        ),
    ]);
    guests
}

fn absent() -> Vec<Guest> {
    let never = "the vCPU that it waits for waits for a SIPI that nobody sends";
    vec![
        Guest::new("never-started", 2, DEAD, never, |c| c.wait_in_vain()).parked(),
        Guest::new("never-started", 4, DEAD, never, |c| c.wait_in_vain()).parked(),
        Guest::new("lock-held-by-the-dead", 2, DEAD, "vCPU 0 holds the lock in cli; hlt", |c| {
            c.on(0, |c| {
                c.mov(dword_ptr(word(1)), 1)?;
                c.mov(dword_ptr(word(2)), 1)?;
                c.die()
            })?;
            c.wait_for(word(2))?;
            c.lock_word(word(1))?;
            c.pass()
        }),
    ]
}

/// Passes a token to the next vCPU, for ever; `hand` stores the number in EDX.
fn hand_on(c: &mut Code, hand: impl Fn(&mut Code) -> Built) -> Built {
    c.lea(eax, dword_ptr(rdi + 1))?;
    c.xor(edx, edx)?;
    c.div(esi)?;
    c.mov(ebx, edx)?;
    let again = c.here()?;
    c.pause()?;
    c.cmp(dword_ptr(word(1)), edi)?;
    c.jne(again)?;
    c.mov(edx, ebx)?;
    hand(c)?;
    c.jmp(again)
}

fn tokens() -> Vec<Guest> {
    let why = "the token goes round, whatever the order, and that is all";
    let mut guests = at(&[2, 3], "token", LIVELOCK, why, |c| hand_on(c, |c| c.mov(dword_ptr(word(1)), edx)));
    guests.extend(at(&[2], "token-xchg", LIVELOCK, why, |c| hand_on(c, |c| c.xchg(dword_ptr(word(1)), edx))));
    guests.extend([
        Guest::new("token-tight", 4, LIVELOCK, why, |c| {
            c.lea(ebx, dword_ptr(rdi + 1))?;
            c.and(ebx, 3)?;
            let again = c.here()?;
            c.cmp(dword_ptr(word(1)), edi)?;
            c.jne(again)?;
            c.mov(dword_ptr(word(1)), ebx)?;
            c.jmp(again)
        }),
        Guest::new(
            "token-and-a-waiter",
            3,
            LIVELOCK,
            "two hand a token back and forth, the third waits for ever",
            |c| {
                c.on(2, |c| c.wait_in_vain())?;
                c.mov(esi, 2)?;
                hand_on(c, |c| c.mov(dword_ptr(word(1)), edx))
            },
        ),
        Guest::new("token-watched", 3, LIVELOCK, "the third waits for a value that the token never has", |c| {
            c.on(2, |c| {
                c.wait_for_value(word(1), 7)?;
                c.pass()
            })?;
            c.mov(esi, 2)?;
            hand_on(c, |c| c.mov(dword_ptr(word(1)), edx))
        }),
        Guest::new("toggle", 2, LIVELOCK, "both toggle one bit of a word, and wait for another", |c| {
            let again = c.here()?;
            c.lock().xor(dword_ptr(word(1)), 1)?;
            c.mov(eax, dword_ptr(word(1)))?;
            c.test(eax, 2)?;
            c.jz(again)?;
            c.pass()
        }),
    ]);
    guests
}

fn back_offs() -> Vec<Guest> {
    let try_lock = |c: &mut Code| {
        c.on(0, |c| {
            c.mov(dword_ptr(word(1)), 1)?;
            c.mov(dword_ptr(word(3)), 1)?;
            c.die()
        })?;
        c.wait_for(word(3))?;
        let again = c.here()?;
        let mut free = c.create_label();
        c.lock().bts(dword_ptr(word(2)), 0)?;
        c.jc(again)?;
        c.lock().bts(dword_ptr(word(1)), 0)?;
        c.jnc(free)?;
        c.lock().btr(dword_ptr(word(2)), 0)?;
        c.jmp(again)?;
        c.place(&mut free)?;
        c.pass()
    };
    let why = "they take the second lock, fail to take the first, which a dead vCPU holds, and back off";
    let alone = "it takes the second lock, fails to take the first, which a dead vCPU holds, and backs off";
    let mut guests = at(&[3], "try-lock-back-off", LIVELOCK, why, try_lock);
    // Nobody else looks at the word that changes.
    guests.push(Guest::new("try-lock-back-off-alone", 2, DEAD, alone, try_lock));
    guests.push(Guest::new(
        "polite",
        3,
        LIVELOCK,
        "each claims, sees the claim of a dead vCPU, and takes its own back",
        |c| {
            c.on(0, |c| {
                c.lock().or(dword_ptr(word(2)), 1)?;
                c.mov(dword_ptr(word(1)), 1)?;
                c.die()
            })?;
            c.wait_for(word(1))?;
            let again = c.here()?;
            let mut free = c.create_label();
            c.lock().bts(dword_ptr(word(2)), edi)?;
            c.mov(eax, dword_ptr(word(2)))?;
            c.btr(eax, edi)?;
            c.test(eax, eax)?;
            c.jz(free)?;
            c.lock().btr(dword_ptr(word(2)), edi)?;
            c.jmp(again)?;
            c.place(&mut free)?;
            c.pass()
        },
    ));
    guests
}
