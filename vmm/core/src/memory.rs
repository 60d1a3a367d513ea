//! Guest memory and its KVM slots.
//!
//! A guest of the contract has three regions, a slot each (`abi::layout`): what the guest is made of, the arena that vCPUs share,
//! and page tables with the private areas. A plain guest has one. They are anonymous and without huge pages, so that a guest
//! costs the host what it touches.
#![expect(unsafe_code, reason = "a KVM memory slot names memory by its address")]

mod touched;

use std::io;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use stallbench_abi::Plain;
use stallbench_abi::layout::{ARENA, ARENA_SIZE, CONTROL_END, TABLES, memory_end};
use stallbench_state::dump::DumpedMemory;
use stallbench_state::memory::Memory;
use thiserror::Error;
use touched::PAGE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// The memory of one guest. Guests write it while they run: it is read by volatile copies and atomic loads.
#[derive(Debug)]
pub struct GuestMemory {
    map: GuestMemoryMmap<()>,
}

/// Why a guest has no memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The memory could not be mapped.
    #[error("map guest memory")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// Huge pages could not be switched off.
    #[error("keep huge pages out of guest memory")]
    HugePages(#[source] io::Error),
    /// KVM refused a memory slot.
    #[error("set memory slot {slot} (KVM_SET_USER_MEMORY_REGION)")]
    Slot {
        /// The slot.
        slot: usize,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl GuestMemory {
    /// Maps memory for `vcpus` vCPUs; all of it reads as zeros.
    pub(crate) fn new(vcpus: usize) -> Result<Self, MemoryError> {
        let region = |start: u64, end: u64| (GuestAddress(start), (end - start) as usize);
        Self::of(&[region(0, CONTROL_END), region(ARENA, ARENA + ARENA_SIZE), region(TABLES, memory_end(vcpus))])
    }

    /// Maps that many bytes of memory from address 0 on, for a plain guest.
    pub(crate) fn plain(size: u64) -> Result<Self, MemoryError> {
        Self::of(&[(GuestAddress(0), size as usize)])
    }

    fn of(regions: &[(GuestAddress, usize)]) -> Result<Self, MemoryError> {
        let memory = Self { map: GuestMemoryMmap::from_ranges(regions)? };
        memory.map.iter().try_for_each(keep_huge_pages_out).map_err(MemoryError::HugePages)?;
        Ok(memory)
    }

    /// Gives the memory to a VM, a slot for each region. The memory has to outlive every vCPU that may run: each vCPU's thread
    /// shares its ownership.
    pub(crate) fn attach(&self, vm: &VmFd) -> Result<(), MemoryError> {
        self.attach_some(vm, |_| true)
    }

    /// As [`Self::attach`], but for the region at that address: accesses to it are exits then.
    pub(crate) fn attach_all_but(&self, vm: &VmFd, hole: u64) -> Result<(), MemoryError> {
        self.attach_some(vm, |start| start != hole)
    }

    fn attach_some(&self, vm: &VmFd, wanted: impl Fn(u64) -> bool) -> Result<(), MemoryError> {
        for (slot, region) in self.map.iter().enumerate().filter(|(_, region)| wanted(region.start_addr().0)) {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the address and the size are those of a mapping that `self` owns, and the threads of the vCPUs, which
            // alone let the guest write to it, keep `self` alive.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot { slot, source })?;
        }
        Ok(())
    }

    /// Bytes of memory.
    pub(crate) fn size(&self) -> u64 {
        self.map.iter().map(GuestMemoryRegion::len).sum()
    }

    /// A copy of all of it that is not zero. Only of memory that nobody writes meanwhile is it the memory of one moment.
    pub fn copy(&self) -> DumpedMemory {
        let range = |region: &GuestRegionMmap<()>| region.start_addr().0..region.start_addr().0 + region.len();
        let mut copy = DumpedMemory::zeroed(self.map.iter().map(range));
        for region in self.map.iter() {
            let start = region.start_addr().0;
            let pages = (region.len() / PAGE) as usize;
            // Without the kernel's help every page is looked at.
            let touched = touched::pages(region.as_ptr() as u64, region.len()).unwrap_or_else(|_| vec![true; pages]);
            let addresses = (start..).step_by(PAGE as usize).zip(touched).filter(|(_, touched)| *touched);
            addresses.for_each(|(address, _)| copy.copy(self, address..address + PAGE));
        }
        copy
    }

    /// The mapping, for the image loader.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Writes bytes; false where not all of it is guest memory.
    #[must_use]
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.map.write_slice(bytes, GuestAddress(address)).is_ok()
    }

    /// Writes bytes, all of them or none; false where not all of it is guest memory.
    #[must_use]
    pub(crate) fn write_whole(&self, address: u64, bytes: &[u8]) -> bool {
        self.map.check_range(GuestAddress(address), bytes.len()) && self.write(address, bytes)
    }

    /// Writes a structure of the contract; false where not all of it is guest memory.
    #[must_use]
    pub(crate) fn write_plain<T: Plain>(&self, address: u64, value: &T) -> bool {
        let mut bytes = vec![0; T::SIZE];
        value.write(&mut bytes).is_some() && self.write(address, &bytes)
    }

    /// Writes a 64-bit word; false where it is no guest memory.
    #[must_use]
    pub(crate) fn write_u64(&self, address: u64, word: u64) -> bool {
        self.write(address, &word.to_le_bytes())
    }
}

impl Memory for GuestMemory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.map.check_range(GuestAddress(address), bytes.len())
            && self.map.read_slice(bytes, GuestAddress(address)).is_ok()
    }

    fn read_u32(&self, address: u64) -> Option<u32> {
        self.map.load(GuestAddress(address), Ordering::Acquire).ok().or_else(|| {
            let mut bytes = [0; 4];
            self.read(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
        })
    }

    fn read_u64(&self, address: u64) -> Option<u64> {
        self.map.load(GuestAddress(address), Ordering::Acquire).ok().or_else(|| {
            let mut bytes = [0; 8];
            self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
        })
    }
}

fn keep_huge_pages_out(region: &GuestRegionMmap<()>) -> io::Result<()> {
    // SAFETY: the range is a mapping that `region` owns; the advice changes nothing but the size of its pages.
    let status = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_NOHUGEPAGE) };
    // A kernel that was built without them says EINVAL: there is nothing to keep out.
    match io::Error::last_os_error() {
        error if status != 0 && error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_abi::layout::private;

    #[test]
    fn memory_reads_as_zeros_and_keeps_what_is_written() {
        let memory = GuestMemory::new(1).expect("memory");
        assert_eq!(memory.read_u64(private(0)), Some(0));
        assert!(memory.write_u64(private(0), 7));
        assert_eq!(memory.read_u64(private(0)), Some(7));
        assert_eq!(memory.read_u32(private(0) + 1), Some(0), "not aligned");
    }

    #[test]
    fn copy_holds_what_was_written_and_reads_as_the_memory_does() {
        let memory = GuestMemory::new(1).expect("memory");
        assert!(memory.write_u64(private(0) + 8, 7) && memory.write_u64(ARENA, 0));
        let copy = memory.copy();
        assert_eq!(copy.runs().len(), 1);
        assert_eq!(
            (copy.read_u64(private(0) + 8), copy.read_u64(ARENA), copy.read_u64(TABLES)),
            (Some(7), Some(0), Some(0))
        );
        assert_eq!((copy.read_u32(CONTROL_END), copy.read_u32(memory_end(1))), (None, None));
    }

    #[test]
    fn addresses_of_guests_are_refused_where_there_is_no_memory() {
        let memory = GuestMemory::new(1).expect("memory");
        for address in
            [CONTROL_END, CONTROL_END - 2, ARENA - 1, memory_end(1) - 3, memory_end(1), 1 << 40, u64::MAX - 1]
        {
            assert_eq!(memory.read_u32(address), None, "{address:#x}");
            assert!(!memory.write(address, &[0; 4]), "{address:#x}");
        }
    }
}
