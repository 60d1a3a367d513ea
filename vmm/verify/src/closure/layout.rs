//! Which pages of a certificate are executed, which are page tables, and which are neither.

use std::collections::{BTreeMap, BTreeSet};

use stallbench_state::certificate::{Certificate, PAGE, RIP};

use super::at;
use crate::falsehood::{At, Falsehood, Wrong};
use crate::machine::Holds;
use crate::memory::Memory;
use crate::opening::MOST_BYTES;
use crate::owners::{Owned, Owners};
use crate::walk;

/// What the pages hold.
#[derive(Debug)]
pub(super) struct Layout {
    holds: Vec<Holds>,
    /// Of each vCPU that executes anything: CR3, and the pages of tables that its instructions could change.
    roots: BTreeMap<usize, (u64, BTreeSet<u64>)>,
    /// What those pages held.
    tables: BTreeMap<u64, Vec<u8>>,
}

impl Layout {
    /// Of a certificate, whose components' members execute in these states.
    pub(super) fn of(
        certificate: &Certificate,
        memory: &Memory,
        places: &[Vec<(usize, usize)>],
    ) -> Result<Self, Falsehood> {
        let mut layout =
            Self { holds: vec![Holds::Data; memory.pages().len()], roots: BTreeMap::new(), tables: BTreeMap::new() };
        layout.find_tables(certificate, memory, places)?;
        for (component, places) in certificate.components.iter().zip(places) {
            for &(state, who) in places {
                let rip = component.states[state].vcpus[who].registers[RIP].0;
                let found = layout.find_code(memory, component.vcpus[who], rip);
                found.map_err(|wrong| at(component, state, who).false_by(wrong))?;
            }
        }
        Ok(layout)
    }

    fn find_tables(
        &mut self,
        certificate: &Certificate,
        memory: &Memory,
        places: &[Vec<(usize, usize)>],
    ) -> Result<(), Falsehood> {
        let members = certificate.components.iter().zip(places).flat_map(|(component, places)| {
            places.iter().map(|&(_, who)| component.vcpus[who]).collect::<BTreeSet<_>>()
        });
        for vcpu in members {
            let cr3 = certificate.vcpus[vcpu].cr3.0;
            let tables = walk::tables(memory, cr3).ok_or_else(|| At::Vcpu(vcpu).false_by(Wrong::ManyTables))?;
            for &page in &tables {
                self.hold(memory, page, Holds::Tables);
                self.tables.entry(page).or_insert_with(|| memory.copy(page, PAGE as usize));
            }
            self.roots.insert(vcpu, (cr3, tables));
        }
        // Writes to tables are not seen: those that a vCPU could write are looked at behind each of its instructions.
        let all = self.tables.keys().copied().collect();
        for (cr3, own) in self.roots.values_mut() {
            own.extend(walk::mapped(memory, *cr3, &all));
        }
        Ok(())
    }

    /// The page that an instruction starts in, and the next one where it may reach into it.
    fn find_code(&mut self, memory: &Memory, vcpu: usize, rip: u64) -> Result<(), Wrong> {
        let first = self.translate(memory, vcpu, rip).filter(|address| memory.page_of(*address).is_some());
        self.hold(memory, first.ok_or(Wrong::Code { linear: rip })?, Holds::Code);
        let last = rip.wrapping_add(MOST_BYTES as u64 - 1);
        if last / PAGE != rip / PAGE {
            // If it is not there and needed, the fetch does not come to an end that a state holds.
            if let Some(next) = self.translate(memory, vcpu, last) {
                self.hold(memory, next, Holds::Code);
            }
        }
        Ok(())
    }

    fn hold(&mut self, memory: &Memory, address: u64, holds: Holds) {
        if let Some(index) = memory.page_of(address) {
            self.holds[index] = holds;
        }
    }

    /// What each page holds, in their order.
    pub(super) fn holds(&self) -> &[Holds] {
        &self.holds
    }

    /// The vCPUs that execute anything.
    pub(super) fn vcpus(&self) -> impl Iterator<Item = usize> {
        self.roots.keys().copied()
    }

    /// Where a linear address of a vCPU lies.
    pub(super) fn translate(&self, memory: &Memory, vcpu: usize, linear: u64) -> Option<u64> {
        self.roots.get(&vcpu).and_then(|(cr3, _)| walk::translate(memory, *cr3, linear))
    }

    /// Whether tables that an instruction of a vCPU could change are not what they were.
    pub(super) fn changed_tables(&self, vcpu: usize, memory: &Memory) -> Option<Wrong> {
        let (_, pages) = self.roots.get(&vcpu)?;
        let changed = pages.iter().find(|page| self.tables.get(page) != Some(&memory.copy(**page, PAGE as usize)));
        changed.map(|&page| Wrong::Tables { page })
    }

    /// Whether all that changes lies where it is seen who reads it: reads of code and of page tables are not, so every vCPU that
    /// executes anything counts as a reader.
    pub(super) fn check_owners(
        &self,
        certificate: &Certificate,
        memory: &Memory,
        owners: &Owners,
        places: &[Vec<(usize, usize)>],
    ) -> Result<(), Falsehood> {
        let executing = places.iter().filter(|places| !places.is_empty()).count();
        let all: Vec<usize> = self.vcpus().collect();
        for owned in owners.all() {
            let component = owned.component.map(|index| (&certificate.components[index].vcpus, &places[index]));
            // Whoever reads what is set aside is executed with other values of it anyway.
            let harmless = component
                .is_none_or(|(vcpus, places)| vcpus.len() == 1 && executing == usize::from(!places.is_empty()));
            if let Some((address, what)) = self.unseen(memory, owned, harmless) {
                let at = At::Component(component.map_or(&all, |(vcpus, _)| vcpus).clone());
                return Err(Falsehood { at, wrong: Wrong::Unseen { address, what } });
            }
        }
        Ok(())
    }

    fn unseen(&self, memory: &Memory, owned: &Owned, harmless: bool) -> Option<(u64, &'static str)> {
        let first = owned.bytes.start / PAGE * PAGE;
        let pages = (first..owned.bytes.end).step_by(PAGE as usize);
        pages.filter_map(|page| Some((page, self.holds[memory.page_of(page)?]))).find_map(|(page, holds)| match holds {
            Holds::Tables => Some((page.max(owned.bytes.start), "page tables")),
            Holds::Code if !harmless => Some((page.max(owned.bytes.start), "code")),
            _ => None,
        })
    }
}
