//! Reading guest memory, wherever it lies.

use stallbench_abi::Plain;

/// The largest structure of the contract that is read in one go.
const LARGEST: usize = 4096;

/// Guest-physical memory that can be read.
///
/// Addresses come from guests: any value may be asked for.
pub trait Memory {
    /// Reads `bytes.len()` bytes from `address` on; false, with `bytes` unspecified, where not all of it is guest memory.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;

    /// Reads a 32-bit word, in one access where it is aligned and the guest may be writing it.
    fn read_u32(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes).then(|| u32::from_le_bytes(bytes))
    }

    /// Reads a 64-bit word, as [`Self::read_u32`].
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

/// Reads a structure of the contract.
pub fn read_plain<T: Plain>(memory: &(impl Memory + ?Sized), address: u64) -> Option<T> {
    let mut bytes = [0; LARGEST];
    let bytes = bytes.get_mut(..T::SIZE)?;
    if !memory.read(address, bytes) {
        return None;
    }
    T::read(bytes)
}

/// Guest memory held as bytes from an address on: for tests, and for what was copied out of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snippet {
    /// Address of the first byte.
    pub base: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Memory for Snippet {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let range = address.checked_sub(self.base).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(bytes.len())?)
        });
        match range.and_then(|range| self.bytes.get(range)) {
            Some(found) => {
                bytes.copy_from_slice(found);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn read_across_an_end_is_refused() {
        let memory = Snippet { base: 0x1000, bytes: vec![1; 16] };
        assert_eq!(memory.read_u32(0x100c), Some(0x0101_0101));
        for address in [0xfff, 0x100d, 0x1010, 0, u64::MAX, u64::MAX - 3] {
            assert_eq!(memory.read_u32(address), None, "{address:#x}");
        }
    }

    #[test]
    fn structure_is_read_by_its_own_size() {
        let memory = Snippet { base: 0, bytes: vec![2; 16] };
        let range: Option<stallbench_abi::boot::Range> = read_plain(&memory, 0);
        assert_eq!(range.map(|r| r.base), Some(0x0202_0202_0202_0202));
        assert_eq!(read_plain::<stallbench_abi::boot::Range>(&memory, 1), None);
    }
}
