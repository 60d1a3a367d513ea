//! What an instruction reads and writes: answered from the memory of the certificate, held against whose it is, and undone.

use std::collections::BTreeMap;

use stallbench_state::certificate::Certificate;

use crate::falsehood::Wrong;
use crate::memory::Memory;
use crate::order::Access;
use crate::owners::{Owned, Owners};
use crate::processor::Bus;

/// The accesses of one instruction of a vCPU.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    memory: &'a Memory,
    owners: &'a Owners,
    certificate: &'a Certificate,
    /// Index of the vCPU's component.
    component: usize,
    vcpu: usize,
    /// What each byte held that was written.
    before: BTreeMap<u64, u8>,
    /// The first byte that changed and is the same in all states.
    changed: Option<Wrong>,
    accesses: Vec<Access>,
}

impl<'a> Recorder<'a> {
    /// Of a vCPU, and nothing yet.
    pub(super) fn new(
        memory: &'a Memory,
        owners: &'a Owners,
        certificate: &'a Certificate,
        component: usize,
        vcpu: usize,
    ) -> Self {
        Self {
            memory,
            owners,
            certificate,
            component,
            vcpu,
            before: BTreeMap::new(),
            changed: None,
            accesses: Vec::new(),
        }
    }

    /// The first byte that changed and is the same in all states: if only until the next write of the same instruction.
    pub(super) fn changed(&mut self) -> Option<Wrong> {
        self.changed.take()
    }

    /// Keeps what a byte held before, and whether it may change: cells are compared with those of states, what is set aside with
    /// nothing.
    fn keep(&mut self, address: u64, was: u8, is: u8) {
        let first = *self.before.entry(address).or_insert(was);
        let is_free = || self.owners.of_byte(address).is_some_and(|owned| self.may_use(owned));
        if is != first && self.changed.is_none() && !is_free() {
            self.changed = Some(Wrong::Changes { address, was: first, is });
        }
    }

    /// How many accesses there were.
    pub(super) fn accesses(&self) -> usize {
        self.accesses.len()
    }

    /// The accesses to what the component changes.
    pub(super) fn of_cells(&self) -> Vec<Access> {
        let is_of_cells = |access: &&Access| {
            let mut parts = self.owners.within(access.address..access.address + access.size as u64);
            parts.any(|(_, owned)| owned.component.is_some())
        };
        self.accesses.iter().filter(is_of_cells).copied().collect()
    }

    /// Leaves memory as it was.
    pub(super) fn undo(&self) {
        for (&address, &was) in &self.before {
            self.memory.write(address, &[was]);
        }
    }

    /// Whose the first byte is that is not the component's own.
    fn other(&self, address: u64, size: usize) -> Option<(u64, &[usize])> {
        let mut parts = self.owners.within(address..address + size as u64);
        let (part, owned) = parts.find(|(_, owned)| !self.may_use(owned))?;
        Some((part.start, &self.certificate.components[owned.component?].vcpus))
    }

    fn may_use(&self, owned: &Owned) -> bool {
        owned.component.is_none_or(|component| component == self.component)
    }
}

impl Bus for Recorder<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Wrong> {
        let size = bytes.len();
        if !self.memory.read(address, bytes) {
            return Err(Wrong::Foreign { access: "reads", address, size });
        }
        if let Some((address, changers)) = self.other(address, size) {
            return Err(Wrong::Dependent { address, changers: changers.to_vec(), reader: self.vcpu });
        }
        self.accesses.push(Access { address, size, write: false });
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let size = bytes.len();
        let was = self.memory.copy(address, size);
        if was.is_empty() {
            return Err(Wrong::Foreign { access: "writes", address, size });
        }
        if let Some((address, owners)) = self.other(address, size) {
            return Err(Wrong::Intruder { address, owners: owners.to_vec() });
        }
        for (address, (was, is)) in (address..).zip(was.into_iter().zip(bytes)) {
            self.keep(address, was, *is);
        }
        self.memory.write(address, bytes);
        self.accesses.push(Access { address, size, write: true });
        Ok(())
    }
}
