//! From what was traced and explored to a proof.

use std::collections::{BTreeMap, BTreeSet};

use stallbench_state::apic::LocalApic;
use stallbench_state::certificate::{
    self, Bytes, Component, Does, Edge, Memory as Contents, Processor, RFLAGS, Span, State, VcpuState, Word,
};
use stallbench_state::machine::Events;
use stallbench_state::memory::Memory;

use super::aside::{Aside, Unknown};
use super::joint::{Joint, byte_of};
use super::touched::Touched;
use super::trace::{Step, Trace, key};
use super::waits::{self, Loop};
use super::{Proof, Prover, Role, Unproved, pages, spans};
use crate::activity::HeldBack;

/// Puts the proof together, once nothing is missing.
pub(super) fn proof(prover: &Prover, memory: &dyn Memory) -> Result<Proof, Unproved> {
    let alone = (0..prover.roles.len()).filter(|vcpu| !prover.joints.iter().any(|joint| joint.has(*vcpu)));
    let mut parts: Vec<_> = alone.map(|vcpu| Part::alone(prover, vcpu)).collect();
    parts.extend(prover.joints.iter().map(Part::joint));
    check_independence(&parts)?;
    let used: BTreeSet<u64> = parts.iter().flat_map(Part::pages).collect();
    let contents = Contents::take(used, |page, bytes| memory.read(page, bytes));
    let missing = || Unproved::NoState { vcpu: 0, why: "memory that was read cannot be read again".to_owned() };
    let aside: BTreeSet<u64> = prover.asides.values().flat_map(|aside| aside.memory.iter().copied()).collect();
    Ok(Proof {
        aside: spans(&aside),
        processors: (0..prover.roles.len()).map(|vcpu| processor(prover, vcpu)).collect(),
        livelock: parts.iter().any(|part| !part.component.cells.is_empty()),
        components: parts.into_iter().map(|part| part.component).collect(),
        memory: contents.ok_or_else(missing)?,
        loops: (0..prover.roles.len()).map(|vcpu| in_words(prover, vcpu)).collect(),
        steps: prover.steps,
    })
}

/// What a vCPU does.
fn in_words(prover: &Prover, vcpu: usize) -> Loop {
    let captured = &prover.question.machine.vcpus[vcpu];
    let registers = captured.registers.clone().unwrap_or_default();
    let flag = u8::from(registers.interrupts_enabled());
    let held_back = HeldBack::of(captured).map(|held| format!(", {held}")).unwrap_or_default();
    let joint = prover.joints.iter().find(|joint| joint.has(vcpu));
    let does = match (prover.roles[vcpu], joint) {
        (Role::Absent, _) => "was never started".to_owned(),
        (Role::Halts, _) => format!("halts with IF={flag}{held_back}"),
        (Role::Runs, Some(joint)) => {
            let others = joint.vcpus.iter().filter(|other| **other != vcpu).map(|other| format!("vcpu{other}"));
            format!("passes changing memory to and from {}", others.collect::<Vec<_>>().join(", "))
        }
        (Role::Runs, None) => format!("spins with IF={flag}{held_back}"),
    };
    let aside = prover.asides.get(&vcpu);
    let steps = match (&prover.traces[vcpu], aside) {
        (Some(trace), Some(aside)) => &trace.steps[aside.from..],
        (Some(trace), None) => trace.cycle(),
        (None, _) => &[],
    };
    let registers_aside = aside.map(|aside| aside.registers()).unwrap_or_default();
    let memory_aside = aside.map(|aside| spans(&aside.memory)).unwrap_or_default();
    let words = memory_aside.iter().map(|span| format!("{} bytes at {}", span.size, span.address));
    Loop {
        vcpu,
        rip: prover.traces[vcpu].as_ref().map_or(registers.rip, |trace| trace.last.rip),
        does,
        reads: if joint.is_some() { Vec::new() } else { waits::reads(steps) },
        aside: registers_aside.into_iter().map(str::to_owned).chain(words).collect(),
    }
}

/// A component, with the bytes by which it could meet others.
struct Part {
    component: Component,
    touched: Touched,
    changed: BTreeSet<u64>,
}

impl Part {
    fn alone(prover: &Prover, vcpu: usize) -> Self {
        let touched = prover.touched(vcpu, false);
        let changed = prover.changed(vcpu, false);
        let mut component = match (&prover.traces[vcpu], prover.asides.get(&vcpu)) {
            (Some(trace), Some(aside)) => set_aside(trace, aside),
            (Some(trace), None) => cycle(trace),
            (None, _) => at_rest(prover, vcpu),
        };
        component.vcpus = vec![vcpu];
        component.edges.iter_mut().for_each(|edge| edge.vcpu = vcpu);
        Self { component, touched, changed }
    }

    fn joint(joint: &Joint) -> Self {
        let changed: BTreeSet<u64> = joint.base.keys().copied().collect();
        let cells = spans(&changed);
        let state = |state: &super::joint::JointState| State {
            vcpus: state
                .vcpus
                .iter()
                .map(|at| VcpuState { does: at.does, registers: at.registers, aside: at.dead.asides() })
                .collect(),
            cells: cells.iter().map(|span| bytes(span, |at| byte_of(joint, state, at))).collect(),
        };
        let touched = Touched::by_fetching(&joint.decode).and(joint.touched.iter().copied());
        let component = Component {
            vcpus: joint.vcpus.clone(),
            states: joint.states.iter().map(state).collect(),
            edges: joint.edges.clone(),
            cells,
        };
        Self { component, touched, changed }
    }
}

impl Part {
    /// The pages that it reads or changes.
    fn pages(&self) -> BTreeSet<u64> {
        self.touched.pages().chain(pages(self.changed.iter().copied())).collect()
    }
}

/// No component changes what another one touches: then all combinations of their states are closed under every order.
fn check_independence(parts: &[Part]) -> Result<(), Unproved> {
    for (index, part) in parts.iter().enumerate() {
        for other in parts.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other) {
            if let Some(at) = part.changed.iter().find(|at| other.touched.contains(**at)) {
                let what = format!("memory at {at:#x}, which vcpus {:?} touch", other.component.vcpus);
                return Err(Unproved::Changing { vcpu: part.component.vcpus[0], what });
            }
        }
    }
    Ok(())
}

fn at_rest(prover: &Prover, vcpu: usize) -> Component {
    let registers = prover.question.machine.vcpus[vcpu].registers.clone().unwrap_or_default();
    let does = if prover.roles[vcpu] == Role::Absent { Does::Absent } else { Does::Halts };
    let state = VcpuState { does, registers: key(&registers), aside: Vec::new() };
    Component { states: vec![State { vcpus: vec![state], cells: Vec::new() }], ..Component::default() }
}

/// The states of a vCPU that comes back.
fn cycle(trace: &Trace) -> Component {
    let steps = trace.cycle();
    let changed = steps.iter().flat_map(Step::written).filter(|(_, before, after)| before != after);
    let changed: BTreeSet<u64> = changed.map(|(at, ..)| at).collect();
    states(steps, &changed, |_| Vec::new())
}

/// The states of a vCPU that goes round in one path, with what is set aside.
fn set_aside(trace: &Trace, aside: &Aside) -> Component {
    let steps = &trace.steps[aside.from..];
    let changed = steps.iter().flat_map(Step::written).filter(|(_, before, after)| before != after);
    let changed: BTreeSet<u64> = changed.map(|(at, ..)| at).filter(|at| !aside.memory.contains(at)).collect();
    states(steps, &changed, |index| asides(&aside.at[index]))
}

fn asides(unknown: &Unknown) -> Vec<certificate::Aside> {
    let registers = unknown.registers.iter().enumerate().filter_map(|(register, bounds)| {
        bounds.map(|bounds| certificate::Aside { register, least: Word(bounds.least), most: Word(bounds.most) })
    });
    let flags = (unknown.flags != 0).then_some(certificate::Aside {
        register: RFLAGS,
        least: Word(0),
        most: Word(unknown.flags),
    });
    registers.chain(flags).collect()
}

/// A state before each step, the last leading to the first.
fn states(steps: &[Step], changed: &BTreeSet<u64>, asides: impl Fn(usize) -> Vec<certificate::Aside>) -> Component {
    let mut now = BTreeMap::new();
    for (at, before, _) in steps.iter().flat_map(Step::written) {
        now.entry(at).or_insert(before);
    }
    let cells = spans(changed);
    let mut component = Component { cells: cells.clone(), ..Component::default() };
    for (index, step) in steps.iter().enumerate() {
        let vcpu = VcpuState { does: Does::Runs, registers: key(&step.registers), aside: asides(index) };
        let held = cells.iter().map(|span| bytes(span, |at| now.get(&at).copied().unwrap_or_default())).collect();
        component.states.push(State { vcpus: vec![vcpu], cells: held });
        component.edges.push(Edge { from: index, vcpu: 0, to: (index + 1) % steps.len() });
        now.extend(step.written().map(|(at, _, after)| (at, after)));
    }
    component
}

fn bytes(span: &Span, byte: impl Fn(u64) -> u8) -> Bytes {
    Bytes((span.address.0..span.address.0 + span.size).map(byte).collect())
}

fn processor(prover: &Prover, vcpu: usize) -> Processor {
    let captured = &prover.question.machine.vcpus[vcpu];
    let system = captured.system.clone().unwrap_or_default();
    let apic: LocalApic = captured.apic.clone().unwrap_or_default();
    let events: Events = captured.events.clone().unwrap_or_default();
    let words = |set: [u32; 8]| set.map(|word| Word(word.into()));
    Processor {
        tpr: Word(apic.tpr.into()),
        svr: Word(apic.svr.into()),
        irr: words(apic.irr),
        isr: words(apic.isr),
        lvt_timer: Word(apic.lvt_timer.into()),
        nmi_pending: events.nmi_pending,
        nmi_masked: events.nmi_masked,
        ..Processor::with_system(&system)
    }
}
