//! The check of all states: what can happen in each is done, and has to lead to a state of the set by an edge of the file.

mod edges;
mod layout;
mod recorder;
#[cfg(test)]
mod test;

use std::collections::BTreeMap;

use stallbench_core::HostKvm;
use stallbench_state::certificate::{Certificate, Component, Does, RIP, State};

use crate::cover::{Left, hexadecimal};
use crate::enabled;
use crate::falsehood::{At, Falsehood, NotAnEdge, Wrong};
use crate::filling::{Filling, WITH_ASIDE, WITHOUT};
use crate::memory::Memory;
use crate::opening::{Class, MOST_BYTES, Opening};
use crate::order::Order;
use crate::owners::{Owners, range};
use crate::processor::{Executed, NoResult, Processor};
use crate::shape::Malformed;
use crate::{HostFailure, VerifyError, alarm::Alarm, machine};
use edges::Edges;
use layout::Layout;
use recorder::Recorder;

/// jmp to itself: what stands behind a fence while it is executed.
const STAY: [u8; 2] = [0xeb, 0xfe];

/// Most accesses that are answered: some minutes' worth.
const MOST_ACCESSES: usize = 1 << 23;

/// A certificate that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holds {
    /// States of the machine.
    pub states: u128,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Transitions of its components.
    pub transitions: usize,
    /// Instructions that were executed for them.
    pub executed: usize,
}

/// Where a transition starts.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Index of the component.
    component: usize,
    /// Index of its state.
    state: usize,
    /// Place of the vCPU in the component.
    who: usize,
}

/// Checks a certificate that is well formed.
pub(crate) fn check(host: &HostKvm, certificate: &Certificate) -> Result<Holds, VerifyError> {
    let places = executing(certificate)?;
    no_device(certificate)?;
    let edges = certificate.components.iter().enumerate().map(|(index, component)| {
        let executes = |state, who| places[index].binary_search(&(state, who)).is_ok();
        Edges::of(component, executes)
    });
    let edges = edges.collect::<Result<Vec<_>, _>>()?;
    let mut check = Check::new(host, certificate, &places)?;
    let mut executed = 0;
    for (component, (edges, places)) in edges.iter().zip(&places).enumerate() {
        executed += check.component(component, edges, places)?;
    }
    Ok(Holds {
        states: certificate.states(),
        vcpus: certificate.vcpus.len(),
        transitions: places.iter().map(Vec::len).sum(),
        executed,
    })
}

/// For each component the states and members that execute an instruction next, ascending.
fn executing(certificate: &Certificate) -> Result<Vec<Vec<(usize, usize)>>, Falsehood> {
    let of_component = |component: &Component| {
        if component.states.is_empty() {
            return Err(Falsehood { at: At::Component(component.vcpus.clone()), wrong: Wrong::NoState });
        }
        let mut places = Vec::new();
        for (state, vcpus) in component.states.iter().enumerate() {
            for (who, vcpu) in vcpus.vcpus.iter().enumerate() {
                let executes = enabled::executes(&certificate.vcpus[component.vcpus[who]], vcpu);
                if executes.map_err(|wrong| at(component, state, who).false_by(wrong))? {
                    places.push((state, who));
                }
            }
        }
        Ok(places)
    };
    certificate.components.iter().map(of_component).collect()
}

/// Reads of a local APIC's registers are no function of a state.
fn no_device(certificate: &Certificate) -> Result<(), Falsehood> {
    let has = |page: &u64| certificate.memory.pages.binary_search_by_key(page, |page| page.0).is_ok();
    let mut pages = certificate.vcpus.iter().map(enabled::apic_page).enumerate();
    match pages.find_map(|(vcpu, page)| Some((vcpu, page.filter(has)?))) {
        Some((vcpu, page)) => Err(At::Vcpu(vcpu).false_by(Wrong::Apic { page })),
        None => Ok(()),
    }
}

fn at(component: &Component, state: usize, who: usize) -> At {
    At::State { state, vcpus: component.vcpus.clone(), vcpu: component.vcpus[who] }
}

impl At {
    fn false_by(self, wrong: Wrong) -> Falsehood {
        Falsehood { at: self, wrong }
    }
}

/// A machine that holds the certificate.
struct Check<'a> {
    certificate: &'a Certificate,
    owners: Owners,
    layout: Layout,
    /// By number; those that execute nothing are not there.
    processors: BTreeMap<usize, Processor>,
    _alarm: Alarm,
    /// Accesses that were answered.
    accesses: usize,
    /// Outlives the vCPUs.
    memory: Memory,
}

impl<'a> Check<'a> {
    fn new(host: &HostKvm, certificate: &'a Certificate, places: &[Vec<(usize, usize)>]) -> Result<Self, VerifyError> {
        let memory = Memory::new(&certificate.memory)?;
        let owners = Owners::of(certificate);
        let layout = Layout::of(certificate, &memory, places)?;
        layout.check_owners(certificate, &memory, &owners, places)?;
        let vcpus = certificate.vcpus.len();
        let vm = machine::create(host, &memory, layout.holds(), vcpus)?;
        let mut processors = BTreeMap::new();
        for vcpu in layout.vcpus() {
            let processor = Processor::new(&vm, vcpu, vcpus, &certificate.vcpus[vcpu]);
            processors.insert(vcpu, processor.map_err(|error| of_vcpu(vcpu, error))?);
        }
        Ok(Self { certificate, owners, layout, processors, _alarm: Alarm::new()?, accesses: 0, memory })
    }

    /// Checks a component; says how many instructions were executed.
    fn component(&mut self, index: usize, edges: &Edges, places: &[(usize, usize)]) -> Result<usize, VerifyError> {
        let component = &self.certificate.components[index];
        let mut order = Order::default();
        let mut executed = 0;
        let base: Vec<_> =
            component.cells.iter().map(|span| self.memory.copy(span.address.0, span.size as usize)).collect();
        for turn in 0..WITH_ASIDE {
            self.fill_aside(turn);
            for &(state, who) in places {
                if turn < self.turns(&component.states[state], who) {
                    self.lay_out(component, component.states[state].cells.iter().map(|cell| &cell.0[..]));
                    self.transition(Place { component: index, state, who }, turn, edges, &mut order)?;
                    executed += 1;
                }
            }
        }
        self.lay_out(component, base.iter().map(|bytes| &bytes[..]));
        if component.vcpus.len() > 1 {
            order.check().map_err(|(state, vcpu, wrong)| {
                At::State { state, vcpus: component.vcpus.clone(), vcpu }.false_by(wrong)
            })?;
        }
        Ok(executed)
    }

    /// How often a transition is tried.
    fn turns(&self, state: &State, who: usize) -> usize {
        let nothing = self.certificate.aside.is_empty() && state.vcpus[who].aside.is_empty();
        if nothing { WITHOUT } else { WITH_ASIDE }
    }

    fn fill_aside(&self, turn: usize) {
        let mut filling = Filling::new(turn);
        for span in &self.certificate.aside {
            let mut bytes = vec![0; span.size as usize];
            filling.bytes(&mut bytes);
            self.memory.write(span.address.0, &bytes);
        }
    }

    fn lay_out<'b>(&self, component: &Component, cells: impl Iterator<Item = &'b [u8]>) {
        for (span, bytes) in component.cells.iter().zip(cells) {
            self.memory.write(span.address.0, bytes);
        }
    }

    /// Executes the instruction that a vCPU is at, and looks for what it leaves among the states.
    fn transition(&mut self, place: Place, turn: usize, edges: &Edges, order: &mut Order) -> Result<(), VerifyError> {
        let component = &self.certificate.components[place.component];
        let state = &component.states[place.state];
        let vcpu = component.vcpus[place.who];
        let is_false = |wrong| at(component, place.state, place.who).false_by(wrong);
        let registers = Filling::new(turn).registers(&state.vcpus[place.who]);
        let code = self.code(vcpu, registers[RIP]);
        let opening = Opening::of(&code);
        let mut recorder = Recorder::new(&self.memory, &self.owners, self.certificate, place.component, vcpu);
        let executed = match opening.class {
            Class::Refused(what) => Err(Wrong::Refused(what).into()),
            class => {
                let _behind = Behind::a_fence(class, &self.memory, &self.layout, vcpu, registers[RIP]);
                let processor = self.processors.get_mut(&vcpu).expect("made for each that executes");
                processor.execute(&registers, &opening, &mut recorder)
            }
        };
        self.accesses += recorder.accesses();
        if self.accesses > MOST_ACCESSES {
            return Err(Malformed::Accesses { most: MOST_ACCESSES }.into());
        }
        let executed = executed.map_err(|error| no_result(error, is_false, registers[RIP], &code))?;
        let changed = recorder.changed().or_else(|| self.layout.changed_tables(vcpu, &self.memory));
        changed.map_or(Ok(()), |wrong| Err(is_false(wrong)))?;
        let left = left(component, state, place.who, executed, &self.memory);
        leads(&left, component, edges.to(place.state, vcpu)).map_err(is_false)?;
        if component.vcpus.len() > 1 {
            order.record(place.state, vcpu, opening.locked, recorder.of_cells());
        }
        recorder.undo();
        Ok(())
    }

    /// The bytes that a vCPU would fetch, as far as they are there.
    fn code(&self, vcpu: usize, rip: u64) -> Vec<u8> {
        let mut code = Vec::with_capacity(MOST_BYTES);
        for offset in 0..MOST_BYTES as u64 {
            let address = self.layout.translate(&self.memory, vcpu, rip.wrapping_add(offset));
            let mut byte = [0];
            if !address.is_some_and(|address| self.memory.read(address, &mut byte)) {
                break;
            }
            code.push(byte[0]);
        }
        code
    }
}

fn left<'a>(component: &Component, from: &'a State, who: usize, executed: Executed, memory: &Memory) -> Left<'a> {
    let bytes = |span| {
        let range = range(span);
        memory.copy(range.start, (range.end - range.start) as usize)
    };
    let does = if executed.halts { Does::Halts } else { Does::Runs };
    Left { from, who, does, registers: executed.registers, cells: component.cells.iter().map(bytes).collect() }
}

/// Whether what an instruction left is what the edge says.
fn leads(left: &Left, component: &Component, edge: Option<usize>) -> Result<(), Wrong> {
    let states = &component.states;
    if edge.is_some_and(|to| left.difference(&states[to]).is_none()) {
        return Ok(());
    }
    let found = states.iter().position(|state| left.difference(state).is_none());
    match (found, edge) {
        (Some(found), Some(to)) => Err(Wrong::NotAnEdge { to, because: NotAnEdge::Elsewhere(found) }),
        (Some(to), None) => Err(Wrong::NoEdge { to }),
        (None, _) => {
            let nearest = (0..states.len()).rev().max_by_key(|index| left.likeness(&states[*index]));
            let index =
                edge.filter(|to| states[*to].vcpus[left.who].registers[RIP].0 == left.registers[RIP]).or(nearest);
            let difference = index.and_then(|index| Some((index, left.difference(&states[index])?)));
            let difference = difference.map(|(index, text)| format!("{text} as in state {index}")).unwrap_or_default();
            Err(Wrong::NotClosed { rip: left.registers[RIP], difference })
        }
    }
}

fn no_result(error: NoResult, is_false: impl Fn(Wrong) -> Falsehood, rip: u64, code: &[u8]) -> VerifyError {
    match error {
        NoResult::Wrong(wrong) => is_false(wrong).into(),
        NoResult::NotExecuted => HostFailure::NotExecuted { rip, bytes: hexadecimal(code) }.into(),
        NoResult::Host(failure) => failure.into(),
    }
}

fn of_vcpu(vcpu: usize, error: NoResult) -> VerifyError {
    match error {
        NoResult::Wrong(wrong) => At::Vcpu(vcpu).false_by(wrong).into(),
        NoResult::Host(failure) => failure.into(),
        NoResult::NotExecuted => unreachable!("nothing was executed"),
    }
}

/// Bytes behind a fence that stand for others while it is executed. A jump to itself comes next: where the step executes it too,
/// the vCPU is behind the fence all the same.
struct Behind<'a> {
    memory: &'a Memory,
    /// Addresses, and what was there.
    were: Vec<(u64, u8)>,
}

impl<'a> Behind<'a> {
    fn a_fence(class: Class, memory: &'a Memory, layout: &Layout, vcpu: usize, rip: u64) -> Self {
        let mut behind = Self { memory, were: Vec::new() };
        if let Class::Fence(length) = class {
            for (linear, byte) in (rip.wrapping_add(length as u64)..).zip(STAY) {
                behind.put(layout.translate(memory, vcpu, linear), byte);
            }
        }
        behind
    }

    fn put(&mut self, address: Option<u64>, byte: u8) {
        let mut was = [0];
        if let Some(address) = address.filter(|address| self.memory.read(*address, &mut was)) {
            self.were.push((address, was[0]));
            self.memory.write(address, &[byte]);
        }
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        for &(address, was) in self.were.iter().rev() {
            self.memory.write(address, &[was]);
        }
    }
}
