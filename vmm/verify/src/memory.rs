//! The bytes of a certificate: what vCPUs find when they read, whether from a memory slot or by the answer to an access.

use stallbench_state::certificate::{self, PAGE};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::HostFailure;

/// Bytes of a page, as the host counts.
const PAGE_BYTES: usize = PAGE as usize;

/// The pages of a certificate, one behind the other in the order of their addresses.
#[derive(Debug)]
pub(crate) struct Memory {
    pages: Vec<u64>,
    bytes: MmapRegion,
}

impl Memory {
    /// Those of a certificate that is well formed.
    pub(crate) fn new(memory: &certificate::Memory) -> Result<Self, HostFailure> {
        // An empty mapping is none: a page that has no address costs nothing.
        let bytes = PAGE_BYTES * memory.pages.len().max(1);
        let region = MmapRegion::new(bytes).map_err(|source| HostFailure::Memory { bytes, source })?;
        let made = Self { pages: memory.pages.iter().map(|page| page.0).collect(), bytes: region };
        for run in &memory.runs {
            made.write(run.address.0, &run.bytes.0);
        }
        Ok(made)
    }

    /// Addresses of the pages, ascending.
    pub(crate) fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// Where the host has the page of this index, which has to be one.
    pub(crate) fn host_address(&self, index: usize) -> u64 {
        self.bytes.as_ptr() as u64 + (index * PAGE_BYTES) as u64
    }

    /// Index of the page that this address is in.
    pub(crate) fn page_of(&self, address: u64) -> Option<usize> {
        self.pages.binary_search(&(address - address % PAGE)).ok()
    }

    /// Reads bytes; false where not all of them are there.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.place(address, bytes.len()).is_some_and(|at| self.bytes.as_volatile_slice().read_slice(bytes, at).is_ok())
    }

    /// Writes bytes; false where not all of them are there.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.place(address, bytes.len()).is_some_and(|at| self.bytes.as_volatile_slice().write_slice(bytes, at).is_ok())
    }

    /// Whether all of these bytes are there.
    pub(crate) fn has(&self, address: u64, size: usize) -> bool {
        self.place(address, size).is_some()
    }

    /// A 64-bit word.
    pub(crate) fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// The bytes at an address; empty where not all of them are there.
    pub(crate) fn copy(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; if self.has(address, size) { size } else { 0 }];
        self.read(address, &mut bytes);
        bytes
    }

    fn place(&self, address: u64, size: usize) -> Option<usize> {
        let last = address.checked_add(u64::try_from(size).ok()?.checked_sub(1)?)?;
        let index = self.page_of(address)?;
        let more = usize::try_from((last / PAGE) - (address / PAGE)).ok()?;
        // Pages ascend: where the last one is in its place, none between is missing.
        let is_last = self.pages.get(index.checked_add(more)?)? / PAGE == last / PAGE;
        is_last.then_some(index * PAGE_BYTES + (address % PAGE) as usize)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{Run, Word};

    fn memory() -> Memory {
        let pages = [0x1000, 0x2000, 0x5000].map(Word).to_vec();
        let run =
            |address: u64, bytes: &[u8]| Run { address: Word(address), bytes: certificate::Bytes(bytes.to_vec()) };
        Memory::new(&certificate::Memory { pages, runs: vec![run(0x1ffe, &[1, 2, 3, 4]), run(0x5000, &[5])] })
            .expect("three pages")
    }

    #[test]
    fn memory_holds_its_runs_and_zeros() {
        let memory = memory();
        assert_eq!(memory.word(0x1ffc), Some(0x0403_0201_0000));
        assert_eq!(memory.copy(0x5000, 2), [5, 0]);
    }

    #[test]
    fn bytes_that_are_not_all_there_are_neither_read_nor_written() {
        let memory = memory();
        for (address, size) in [(0xfff, 2), (0x2fff, 2), (0x3000, 1), (0x2000, 0x3001), (u64::MAX, 2), (0x1000, 0)] {
            assert!(!memory.has(address, size), "{address:#x}+{size}");
            assert!(!memory.read(address, &mut vec![0; size]), "{address:#x}+{size}");
            assert!(!memory.write(address, &vec![0; size]), "{address:#x}+{size}");
        }
        assert!(memory.has(0x1000, 0x2000));
    }
}
