//! Intrusive lists in the arena, as the call layers use them: the doubly linked circular list of Linux, which readers may walk
//! while one writer changes it, and the lock-free stack of today (`llist`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arena::Shared;

/// A link of a circular list, and its head: addresses of the next and the previous link.
#[derive(Debug)]
#[repr(C)]
pub struct Link {
    next: AtomicU64,
    prev: AtomicU64,
}

// SAFETY: atomics, valid when zero (a list that is not initialised yet).
unsafe impl Shared for Link {}

/// The link at an address that another link holds.
fn at(address: u64) -> &'static Link {
    // SAFETY: links hold addresses of links in the arena, whose memory stays mapped for ever, or of a `Link::new` that this
    // vCPU's handler keeps until the list is empty. A link of a record that is dead may hold anything: then this faults or
    // misleads, as the protocol that left it there deserves.
    unsafe { &*(address as *const Link) }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Link {
    /// A link that belongs to no list yet; [`Link::init`] comes first.
    pub const fn new() -> Self {
        Self { next: AtomicU64::new(0), prev: AtomicU64::new(0) }
    }

    fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }

    /// Makes this link an empty list.
    pub fn init(&self) {
        self.next.store(self.address(), Ordering::Relaxed);
        self.prev.store(self.address(), Ordering::Relaxed);
    }

    /// Whether the list has no entry; needs no lock.
    pub fn is_empty(&self) -> bool {
        self.next.load(Ordering::Acquire) == self.address()
    }

    /// Address of the next link.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Puts `entry` last. The store that makes it reachable for a reader comes behind those that fill it in.
    pub fn add_tail(&self, entry: &Link) {
        Self::insert(entry, at(self.prev.load(Ordering::Relaxed)), self);
    }

    /// Puts `entry` first.
    pub fn add_head(&self, entry: &Link) {
        Self::insert(entry, self, at(self.next.load(Ordering::Relaxed)));
    }

    fn insert(entry: &Link, prev: &Link, next: &Link) {
        entry.next.store(next.address(), Ordering::Relaxed);
        entry.prev.store(prev.address(), Ordering::Relaxed);
        prev.next.store(entry.address(), Ordering::Release);
        next.prev.store(entry.address(), Ordering::Relaxed);
    }

    /// Takes this entry out of its list. Its own `next` stays, so that a reader that stands on it finds the way back.
    pub fn remove(&self) {
        let (prev, next) = (self.prev.load(Ordering::Relaxed), self.next.load(Ordering::Relaxed));
        at(next).prev.store(prev, Ordering::Relaxed);
        at(prev).next.store(next, Ordering::Release);
    }

    /// Moves all entries to `other`, which becomes the list; this one is empty then.
    pub fn move_all(&self, other: &Link) {
        if self.is_empty() {
            other.init();
            return;
        }
        let (first, last) = (self.next.load(Ordering::Relaxed), self.prev.load(Ordering::Relaxed));
        other.next.store(first, Ordering::Relaxed);
        other.prev.store(last, Ordering::Relaxed);
        at(first).prev.store(other.address(), Ordering::Relaxed);
        at(last).next.store(other.address(), Ordering::Release);
        self.init();
    }
}

/// Head of a lock-free stack.
#[derive(Debug)]
#[repr(transparent)]
pub struct Stack(AtomicU64);

// SAFETY: one atomic, valid when zero.
unsafe impl Shared for Stack {}

impl Stack {
    /// Puts `entry` on top, whose first word is its link: whether the stack was empty.
    pub fn push(&self, entry: &Link) -> bool {
        let mut top = self.0.load(Ordering::Relaxed);
        loop {
            entry.next.store(top, Ordering::Relaxed);
            match self.0.compare_exchange(top, entry.address(), Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return top == 0,
                Err(newer) => top = newer,
            }
        }
    }

    /// Takes the whole stack, oldest entry first: the address of its first link, 0 for none. The last link holds 0.
    pub fn take_all_in_order(&self) -> u64 {
        let mut entry = self.0.swap(0, Ordering::SeqCst);
        let mut reversed = 0;
        while entry != 0 {
            let link = at(entry);
            let next = link.next.load(Ordering::Relaxed);
            link.next.store(reversed, Ordering::Relaxed);
            reversed = entry;
            entry = next;
        }
        reversed
    }

    /// The lower half of its top, 0 while it has no entry: a word for reports.
    pub fn low_half(&self) -> &AtomicU32 {
        // SAFETY: the first four bytes of the aligned word, which lives as long; x86 is little-endian, and both are atomics.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().cast()) }
    }

    /// Whether the stack has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// The link behind `entry` in a chain that [`Stack::take_all_in_order`] gave.
pub fn chain_next(entry: u64) -> u64 {
    at(entry).next.load(Ordering::Relaxed)
}

/// The lower half of the address behind `entry` in such a chain: what a walk that cannot get on waits for.
pub fn chain_word(entry: u64) -> &'static AtomicU32 {
    // SAFETY: as in `Stack::low_half`; the link is of the arena, as `at` says.
    unsafe { AtomicU32::from_ptr(at(entry).next.as_ptr().cast()) }
}

/// Lets `entry` lead to `next` in such a chain.
pub fn chain_set_next(entry: u64, next: u64) {
    at(entry).next.store(next, Ordering::Relaxed);
}

#[cfg(test)]
mod test {
    use super::{Link, Stack, chain_next};

    #[test]
    fn entries_come_in_the_order_they_were_put() {
        let (head, a, b, c) = (Link::new(), Link::new(), Link::new(), Link::new());
        head.init();
        assert!(head.is_empty());
        head.add_tail(&a);
        head.add_tail(&b);
        head.add_head(&c);
        assert_eq!(
            [head.next(), c.next(), a.next(), b.next()],
            [c.address(), a.address(), b.address(), head.address()]
        );
        a.remove();
        assert_eq!(c.next(), b.address());
        assert_eq!(a.next(), b.address(), "a reader that stands on it finds the way back");
    }

    #[test]
    fn a_moved_list_is_the_other_and_the_first_is_empty() {
        let (head, other, a, b) = (Link::new(), Link::new(), Link::new(), Link::new());
        head.init();
        head.add_tail(&a);
        head.add_tail(&b);
        head.move_all(&other);
        assert!(head.is_empty());
        assert_eq!([other.next(), a.next(), b.next()], [a.address(), b.address(), other.address()]);
        head.move_all(&other);
        assert!(other.is_empty());
    }

    #[test]
    fn a_stack_is_taken_oldest_first() {
        let stack = Stack(0.into());
        let (a, b) = (Link::new(), Link::new());
        assert!(stack.push(&a));
        assert!(!stack.push(&b));
        assert_eq!(stack.take_all_in_order(), a.address());
        assert_eq!(chain_next(a.address()), b.address());
        assert_eq!(chain_next(b.address()), 0);
        assert!(stack.is_empty());
    }
}
