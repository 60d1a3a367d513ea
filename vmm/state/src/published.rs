//! What the vCPUs publish about themselves, read from guest memory.
//!
//! All of it is written by the guest: a claim, not a fact. Numbers are kept as they are, whatever they are.

use stallbench_abi::event::{Event, RING_EVENTS};
use stallbench_abi::layout::{GHOST, private, private_area};
use stallbench_abi::shared::GhostPage;
use stallbench_abi::vcpu::VcpuPage;

use crate::memory::{Memory, read_plain};

/// What all vCPUs have published at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The page of each vCPU, by index.
    pub vcpus: Vec<VcpuPage>,
    /// The page that they share.
    pub ghost: GhostPage,
}

/// The events of one vCPU that its ring still holds, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The events.
    pub events: Vec<Event>,
    /// How many older ones were overwritten.
    pub lost: u64,
}

impl Published {
    /// Reads the pages of `vcpus` vCPUs and the ghost page; a page that is not guest memory reads as zeros.
    pub fn read(memory: &(impl Memory + ?Sized), vcpus: usize) -> Self {
        let page = |vcpu| read_plain(memory, private(vcpu) + private_area::PAGE_PUBLISHED);
        Self {
            vcpus: (0..vcpus).map(|vcpu| page(vcpu).unwrap_or_default()).collect(),
            ghost: read_plain(memory, GHOST).unwrap_or_default(),
        }
    }
}

/// The event ring of a vCPU, meaningful while the vCPU stands still.
///
/// An event is counted before it is written. Where the vCPU stands in between, its place holds what was there before, older than
/// all others, and no event. One that an interrupt delayed is older only than the events of that interrupt.
pub fn events(memory: &(impl Memory + ?Sized), vcpu: usize) -> Ring {
    let page: VcpuPage = read_plain(memory, private(vcpu) + private_area::PAGE_PUBLISHED).unwrap_or_default();
    let held = page.events.min(RING_EVENTS as u64);
    let lost = page.events - held;
    let read = |number: u64| read_plain(memory, event_address(vcpu, number));
    let mut events: Vec<Event> = (lost..page.events).filter_map(read).collect();
    if let [oldest, .., newest] = events.as_slice()
        && newest.clock < oldest.clock
    {
        events.pop();
    }
    Ring { events, lost }
}

/// The events of all vCPUs with the vCPU of each, in the order in which they happened.
pub fn merged_events(memory: &(impl Memory + ?Sized), vcpus: usize) -> Vec<(usize, Event)> {
    let of_vcpu = |vcpu| events(memory, vcpu).events.into_iter().map(move |event| (vcpu, event));
    let mut all: Vec<_> = (0..vcpus).flat_map(of_vcpu).collect();
    all.sort_by_key(|(_, event)| event.clock);
    all
}

/// Where the event of this number lies.
fn event_address(vcpu: usize, number: u64) -> u64 {
    let slot = number % RING_EVENTS as u64;
    private(vcpu) + private_area::RING + slot * size_of::<Event>() as u64
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::Snippet;
    use stallbench_abi::Plain;

    fn guest(vcpu_events: &[(u64, &[u64])]) -> Snippet {
        let base = private(0);
        let mut memory = Snippet { base, bytes: vec![0; (private(vcpu_events.len()) - base) as usize] };
        for (vcpu, (count, clocks)) in vcpu_events.iter().enumerate() {
            let page = VcpuPage { events: *count, ..VcpuPage::default() };
            put(&mut memory, private(vcpu), &page);
            for (i, clock) in clocks.iter().enumerate() {
                let number = count.saturating_sub(clocks.len() as u64) + i as u64;
                put(&mut memory, event_address(vcpu, number), &Event { clock: *clock, ..Event::default() });
            }
        }
        memory
    }

    fn put(memory: &mut Snippet, address: u64, value: &impl Plain) {
        let at = (address - memory.base) as usize;
        value.write(&mut memory.bytes[at..]).expect("the snippet is large enough");
    }

    #[test]
    fn ring_that_overflowed_gives_the_newest_and_counts_the_lost() {
        let clocks: Vec<u64> = (100..100 + RING_EVENTS as u64).collect();
        let ring = events(&guest(&[(RING_EVENTS as u64 + 5, &clocks)]), 0);
        assert_eq!((ring.lost, ring.events.len()), (5, RING_EVENTS));
        assert_eq!(ring.events.first().map(|e| e.clock), Some(100));
        assert_eq!(ring.events.last().map(|e| e.clock), Some(99 + RING_EVENTS as u64));
    }

    #[test]
    fn newest_event_that_is_not_yet_written_is_none() {
        for (clocks, whole) in [
            (&[5, 6, 0][..], &[5, 6][..]),
            (&[5, 6, 7], &[5, 6, 7]),
            (&[5, 4], &[5]),
            (&[4], &[4]),
            (&[5, 7, 6], &[5, 7, 6]),
        ] {
            let ring = events(&guest(&[(clocks.len() as u64, clocks)]), 0);
            assert_eq!(ring.events.iter().map(|e| e.clock).collect::<Vec<_>>(), whole, "{clocks:?}");
        }
    }

    #[test]
    fn events_of_all_are_merged_by_clock() {
        let merged = merged_events(&guest(&[(2, &[1, 4]), (2, &[2, 3])]), 2);
        let order: Vec<_> = merged.iter().map(|(vcpu, event)| (*vcpu, event.clock)).collect();
        assert_eq!(order, [(0, 1), (1, 2), (1, 3), (0, 4)]);
    }

    #[test]
    fn count_of_any_size_is_data() {
        let ring = events(&guest(&[(u64::MAX, &[])]), 0);
        assert_eq!((ring.events.len(), ring.lost), (RING_EVENTS, u64::MAX - RING_EVENTS as u64));
    }

    #[test]
    fn pages_outside_guest_memory_read_as_zeros() {
        let published = Published::read(&Snippet::default(), 2);
        assert_eq!(published.vcpus, [VcpuPage::default(); 2]);
        assert_eq!(published.ghost, GhostPage::default());
    }
}
