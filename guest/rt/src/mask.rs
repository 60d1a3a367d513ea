//! Sets of vCPUs.

use core::sync::atomic::{AtomicU64, Ordering};

use stallbench_abi::layout::MASK_WORDS;

use crate::boot;

/// A set of vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mask(pub [u64; MASK_WORDS]);

impl Mask {
    /// The set of one vCPU.
    pub fn one(vcpu: usize) -> Self {
        let mut mask = Self::default();
        mask.insert(vcpu);
        mask
    }

    /// Adds a vCPU.
    pub fn insert(&mut self, vcpu: usize) {
        self.0[vcpu / 64] |= 1 << (vcpu % 64);
    }

    /// The set without a vCPU.
    pub fn without(mut self, vcpu: usize) -> Self {
        self.0[vcpu / 64] &= !(1 << (vcpu % 64));
        self
    }

    /// Whether the vCPU is in the set.
    pub fn contains(&self, vcpu: usize) -> bool {
        self.0[vcpu / 64] >> (vcpu % 64) & 1 != 0
    }

    /// What is in both.
    pub fn and(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// How many there are, by the shift-and-clear loop: POPCNT is no instruction of the image.
    pub fn count(&self) -> u32 {
        self.iter().count() as u32
    }

    /// The lowest, if there is one.
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// All, lowest first.
    pub fn iter(&self) -> Members {
        Members { left: self.0, word: 0 }
    }
}

/// Words of a mask in which some vCPU has a bit.
fn words() -> usize {
    boot::vcpus().div_ceil(64)
}

/// Walks over a [`Mask`].
#[derive(Clone, Debug)]
pub struct Members {
    left: [u64; MASK_WORDS],
    word: usize,
}

impl Iterator for Members {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let words = words();
        while self.word < words {
            let left = &mut self.left[self.word];
            if *left != 0 {
                let bit = left.trailing_zeros() as usize;
                *left &= *left - 1;
                return Some(self.word * 64 + bit);
            }
            self.word += 1;
        }
        None
    }
}

/// A set of vCPUs in the arena.
#[derive(Debug)]
#[repr(transparent)]
pub struct SharedMask([AtomicU64; MASK_WORDS]);

impl SharedMask {
    /// Its present members.
    pub fn get(&self) -> Mask {
        Mask(core::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }

    /// Sets all members; not atomic as a whole. Words in which no vCPU has a bit stay 0, as they are from the start.
    pub fn set(&self, mask: Mask) {
        for (shared, word) in self.0.iter().zip(mask.0).take(words()) {
            shared.store(word, Ordering::Relaxed);
        }
    }

    /// Whether the vCPU is in the set.
    pub fn contains(&self, vcpu: usize) -> bool {
        self.0[vcpu / 64].load(Ordering::Relaxed) >> (vcpu % 64) & 1 != 0
    }

    /// Adds a vCPU, in one locked step.
    pub fn insert(&self, vcpu: usize) {
        self.0[vcpu / 64].fetch_or(1 << (vcpu % 64), Ordering::SeqCst);
    }

    /// Takes a vCPU out, in one locked step.
    pub fn remove(&self, vcpu: usize) {
        self.0[vcpu / 64].fetch_and(!(1 << (vcpu % 64)), Ordering::SeqCst);
    }

    /// Its address, for a wait that it narrows.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}
