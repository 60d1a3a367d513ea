//! Memory as a vCPU sees it: linear addresses, by its own page tables.

use stallbench_state::machine::{DescriptorTable, SystemRegisters, VcpuState};
use stallbench_state::memory::Memory;
use stallbench_state::paging::{self, PAGE};

use crate::address::Address;
use crate::error::CommandError;

/// CR0.PG.
const CR0_PG: u64 = 1 << 31;

/// An entry that a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it lies, guest-physical.
    pub(crate) at: u64,
    /// The entry; `None` where no memory is.
    pub(crate) entry: Option<u64>,
}

/// A walk through page tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// The entries that it reads, from PML4 on.
    pub(crate) steps: Vec<Step>,
    /// Where it leads, guest-physical.
    pub(crate) physical: Option<u64>,
}

/// The names of the levels, from the highest on.
pub(crate) const LEVELS: [&str; 4] = ["PML4E", "PDPTE", "PDE", "PTE"];

/// Memory through the eyes of a vCPU.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a> {
    memory: &'a dyn Memory,
    vcpu: usize,
    system: &'a SystemRegisters,
}

impl<'a> Linear<'a> {
    pub(crate) fn of(memory: &'a dyn Memory, vcpu: &'a VcpuState) -> Result<Self, CommandError> {
        let unread = |unread: &_| CommandError::Unread { vcpu: vcpu.index, unread: Clone::clone(unread) };
        let system = vcpu.system.as_ref().map_err(unread)?;
        Ok(Self { memory, vcpu: vcpu.index, system })
    }

    /// A descriptor table of the vCPU.
    pub(crate) fn table(&self, of: fn(&SystemRegisters) -> DescriptorTable) -> DescriptorTable {
        of(self.system)
    }

    /// Whether there are page tables at all.
    pub(crate) fn is_paged(&self) -> bool {
        self.system.cr0 & CR0_PG != 0
    }

    /// Walks to an address; `None` where the vCPU is in a paging mode other than that of 64-bit mode with four levels.
    pub(crate) fn walk(&self, linear: u64) -> Option<Walk> {
        if !paging::is_known(self.system) {
            return None;
        }
        let mut steps = Vec::new();
        let mut table = |at| steps.push(Step { at, entry: self.memory.read_u64(at) });
        let physical = paging::physical(self.memory, self.system.cr3, linear, &mut table);
        Some(Walk { steps, physical })
    }

    /// Where an address lies.
    pub(crate) fn physical(&self, address: Address) -> Result<u64, CommandError> {
        let linear = match address {
            Address::Physical(physical) => return Ok(physical),
            // Without paging a linear address is a physical one.
            Address::Linear(linear) if !self.is_paged() => return Ok(linear),
            Address::Linear(linear) => linear,
        };
        let not_mapped = |why: String| CommandError::NotMapped { vcpu: self.vcpu, address: linear, why };
        let walk =
            self.walk(linear).ok_or_else(|| not_mapped("it is in a paging mode that is not known here".into()))?;
        walk.physical.ok_or_else(|| not_mapped(walk.end()))
    }

    /// Reads as many bytes as there are, page by page; at least one.
    pub(crate) fn read(&self, address: Address, length: usize) -> Result<Vec<u8>, CommandError> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let here = address.plus(bytes.len() as u64);
            match self.read_in_page(here, length - bytes.len()) {
                Ok(more) => bytes.extend(more),
                Err(error) if bytes.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(bytes)
    }

    /// Reads all of that, or says where it ends.
    pub(crate) fn read_exact(&self, address: Address, length: usize) -> Result<Vec<u8>, CommandError> {
        let bytes = self.read(address, length)?;
        if bytes.len() == length {
            return Ok(bytes);
        }
        self.read(address.plus(bytes.len() as u64), 1)
    }

    /// A word of the stack, or of what it leads to.
    pub(crate) fn read_u64(&self, linear: u64) -> Option<u64> {
        let bytes = self.read(Address::Linear(linear), 8).ok()?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn read_in_page(&self, address: Address, length: usize) -> Result<Vec<u8>, CommandError> {
        let physical = self.physical(address)?;
        let in_page = (PAGE - address.value() % PAGE).min(length as u64);
        let mut bytes = vec![0; in_page as usize];
        if self.memory.read(physical, &mut bytes) {
            return Ok(bytes);
        }
        // Memory may end within a page.
        let mut byte = [0];
        let there = self.memory.read(physical, &mut byte);
        there.then(|| byte.to_vec()).ok_or(CommandError::NoMemory { address: physical })
    }
}

impl Walk {
    /// Why it leads nowhere.
    fn end(&self) -> String {
        let level = LEVELS.get(self.steps.len().saturating_sub(1)).copied().unwrap_or("entry");
        match self.steps.last() {
            Some(Step { at, entry: Some(entry) }) => format!("its {level} at {at:#x} is {entry:#x}, not present"),
            Some(Step { at, entry: None }) => format!("its {level} at {at:#x} lies outside guest memory"),
            None => "there is no table".into(),
        }
    }
}
