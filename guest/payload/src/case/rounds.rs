//! Subject `rounds`: vCPUs that go round. Some of these rounds a fair schedule can go for ever, some only one that is not fair, some none.

use core::sync::atomic::{AtomicU32, Ordering};

use stallbench_abi::knob::{FIX, answer};
use stallbench_rt::mask::Mask;
use stallbench_rt::wait::Condition;
use stallbench_rt::{boot, bring_up, this, wait_bounded, wait_until, words as names};

use super::case;
use crate::root::root;

/// Numbers that a ticket lock draws before it begins anew: more than there are vCPUs that draw one.
const NUMBERS: u32 = 4;
/// Turns after which a wait gives up.
const TURNS: u64 = 20;

/// Words that these cases share between vCPUs.
#[repr(C)]
pub(crate) struct Words {
    locks: [TicketLock; 2],
    /// vCPUs that had both locks.
    served: AtomicU32,
    /// 1 once there is nothing to look for any more.
    found: AtomicU32,
    /// Changes with each look.
    looks: AtomicU32,
    /// 1 if nobody came.
    timed_out: AtomicU32,
}

/// A lock that serves those who want it in the order in which they drew their numbers: the number that is drawn next, and from bit 8 on
/// the number that is served. One word, or numbers that have begun anew in between would be taken for those that were there before.
#[repr(transparent)]
struct TicketLock(AtomicU32);

const NEXT: u32 = 0xff;
const SERVED: u32 = 0xff00;

/// A word of which the lowest byte has counted on.
const fn after(word: u32) -> u32 {
    (word & !NEXT) | ((word + 1) % NUMBERS)
}

impl TicketLock {
    fn lock(&self) {
        let (Ok(word) | Err(word)) = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| Some(after(word)));
        let other = Mask::one(1 - this::vcpu());
        let served = Condition::of(&self.0, (word & NEXT) << 8).bits(SERVED).any(other);
        wait_until!("ticket_lock", "", "number served", LOCK, served, equal);
    }

    /// Draws a number only if it is served at once.
    fn try_lock(&self) -> bool {
        let word = self.0.load(Ordering::SeqCst);
        let is_free = word & NEXT == word >> 8;
        is_free && self.0.compare_exchange(word, after(word), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn unlock(&self) {
        let served = |word: u32| Some((word & NEXT) | (after(word >> 8) << 8));
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, served);
    }
}

case!(
    GIVE_WAY,
    "give-way",
    "two vCPUs want two ticket locks; who does not get the second gives back the first",
    [FIX],
    give_way
);

/// The fix is one order for both.
fn give_way() {
    let words = &root().rounds;
    names::name("served", &words.served);
    let [a, b] = &words.locks;
    let (first, second) = match this::vcpu() {
        0 => (a, b),
        1 if boot::word(&FIX) == answer::YES => (a, b),
        1 => (b, a),
        _ => return,
    };
    bring_up::take_part();
    loop {
        first.lock();
        if second.try_lock() {
            break;
        }
        first.unlock();
    }
    words.served.fetch_add(1, Ordering::SeqCst);
    second.unlock();
    first.unlock();
}

case!(
    LOOK_AGAIN,
    "look-again",
    "one vCPU looks again and again for what another does once, and leaves a trace of each look",
    [],
    look_again
);

fn look_again() {
    let words = &root().rounds;
    match this::vcpu() {
        0 => words.found.store(1, Ordering::SeqCst),
        1 => {
            bring_up::take_part();
            names::name("found", &words.found);
            while words.found.load(Ordering::SeqCst) == 0 {
                words.looks.fetch_xor(1, Ordering::SeqCst);
            }
        }
        _ => {}
    }
}

case!(GIVE_UP, "give-up", "one vCPU waits for another that never comes, and gives up", [], give_up);

fn give_up() {
    if !this::is_initiator() {
        return;
    }
    let words = &root().rounds;
    names::name("timed-out", &words.timed_out);
    let came = Condition::of(&words.found, 1).any(Mask::one(1));
    if !wait_bounded!("give_up", "", "somebody who comes", GATE, came, TURNS) {
        words.timed_out.store(1, Ordering::SeqCst);
    }
}
