//! The allocator of call records: kmalloc(GFP_ATOMIC) of a bench, which fails where a scenario says so.
//!
//! `pool:K` is no injected failure: the pool has K records, and runs out when earlier calls still hold them.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use stallbench_abi::arena::{Mark, Storage};
use stallbench_abi::event::{AllocSite, EventKind, INJECTED_FAILURE};
use stallbench_abi::knob::{ALLOC, ALLOC_SITE, alloc, alloc_site};
use stallbench_rt::lock::SpinLock;
use stallbench_rt::{arena, boot, cpu, event};

use crate::root::root;

/// Bytes of a record, its mark included.
const SLOT: u64 = 256;
/// Records of the pool when the scenario does not say how many.
const SLOTS: u64 = 1024;

/// Places that allocate.
const SITES: usize = AllocSite::KNOWN.len();

/// The allocator's state.
#[repr(C)]
pub struct Shared {
    lock: SpinLock,
    /// Allocations so far.
    allocations: AtomicU32,
    /// Those of each site.
    allocations_at: [AtomicU32; SITES],
    /// Records that are not in the pool.
    held: AtomicU32,
    base: AtomicU64,
    slots: AtomicU64,
    /// Slots from here on were never used.
    unused: AtomicU64,
    /// The first free record; each free record begins with the address of the next.
    free: AtomicU64,
}

impl Shared {
    /// Places the records.
    pub(crate) fn place(&self) {
        let slots = if boot::word(&ALLOC) == alloc::POOL { boot::word_number(&ALLOC) } else { SLOTS };
        self.base.store(arena::place_pool(slots * SLOT), Ordering::Relaxed);
        self.slots.store(slots, Ordering::Relaxed);
    }

    fn take(&self) -> Option<u64> {
        let were = self.lock.lock_and_disable_interrupts();
        let record = self.take_freed().or_else(|| self.take_unused());
        if record.is_some() {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        self.lock.unlock_and_restore_interrupts(were);
        record
    }

    fn take_freed(&self) -> Option<u64> {
        let record = self.free.load(Ordering::Relaxed);
        if record == 0 {
            return None;
        }
        // SAFETY: a free record of the pool, whose first word `give` wrote, under the lock.
        let next = unsafe { AtomicU64::from_ptr(record as *mut u64) }.load(Ordering::Relaxed);
        self.free.store(next, Ordering::Relaxed);
        Some(record)
    }

    fn take_unused(&self) -> Option<u64> {
        let slot = self.unused.load(Ordering::Relaxed);
        if slot == self.slots.load(Ordering::Relaxed) {
            return None;
        }
        self.unused.store(slot + 1, Ordering::Relaxed);
        Some(self.base.load(Ordering::Relaxed) + slot * SLOT + size_of::<Mark>() as u64)
    }

    fn give(&self, record: u64) {
        let were = self.lock.lock_and_disable_interrupts();
        // SAFETY: the record is dead, and the pool's again; an atomic, since a protocol that uses it still is what the bench is for.
        let next = unsafe { AtomicU64::from_ptr(record as *mut u64) };
        next.store(self.free.load(Ordering::Relaxed), Ordering::Relaxed);
        self.free.store(record, Ordering::Relaxed);
        self.held.fetch_sub(1, Ordering::SeqCst);
        self.lock.unlock_and_restore_interrupts(were);
    }
}

/// Records that are not in the pool.
pub(crate) fn held() -> &'static AtomicU32 {
    &root().pool.held
}

/// Allocates a record for a call: `None` where the scenario injects a failure, or where the pool has none left.
pub(crate) fn allocate<T: arena::Shared>(site: AllocSite, name: &str) -> Option<&'static T> {
    const { assert!(size_of::<T>() + size_of::<Mark>() <= SLOT as usize) };
    let number = next_number(site);
    if fails(number, site) {
        event::record(EventKind::ALLOC, number, INJECTED_FAILURE, site.0);
        return None;
    }
    let record = root().pool.take();
    event::record(EventKind::ALLOC, number, record.unwrap_or(0), site.0);
    let record = record?;
    // SAFETY: the record is this caller's, of at least this size.
    unsafe { cpu::clear(record, size_of::<T>()) };
    arena::mark_live(record, size_of::<T>(), Storage::POOL, name);
    // SAFETY: as above; the pool's memory stays mapped for ever, a use after `free` is the protocol's bug and no undefined one.
    Some(unsafe { &*(record as *const T) })
}

/// Gives a record back.
pub(crate) fn free(record: u64) {
    arena::mark_dead(record);
    event::record(EventKind::FREE, 0, record, 0);
    root().pool.give(record);
}

/// The number of an allocation: among those of its site where the scenario names one, else among all.
fn next_number(site: AllocSite) -> u32 {
    let pool = &root().pool;
    let all = pool.allocations.fetch_add(1, Ordering::Relaxed) + 1;
    let here = AllocSite::KNOWN
        .iter()
        .position(|known| *known == site)
        .map_or(all, |index| pool.allocations_at[index].fetch_add(1, Ordering::Relaxed) + 1);
    if boot::word(&ALLOC_SITE) == alloc_site::ANY { all } else { here }
}

fn fails(number: u32, site: AllocSite) -> bool {
    let here = match boot::word(&ALLOC_SITE) {
        alloc_site::CALL_MANY => site == AllocSite::CALL_MANY,
        alloc_site::CALL_SINGLE => site == AllocSite::CALL_SINGLE,
        _ => true,
    };
    let n = boot::word_number(&ALLOC);
    here && match boot::word(&ALLOC) {
        alloc::FAIL => true,
        alloc::NTH => u64::from(number) == n,
        alloc::FROM => u64::from(number) >= n,
        alloc::RANDOM => chance(number) < n,
        _ => false,
    }
}

/// A number below 100 that the seed and the allocation's number decide (the finalizer of SplitMix64).
fn chance(number: u32) -> u64 {
    let mut z = boot::block().seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ z >> 31) % 100
}
