//! Proof of a stall: the stopped machine as a closed system that goes on for ever and comes nowhere.
//!
//! No KVM here: what a proof steps comes in by [`Steps`]. docs/proof.md tells the theory, [`stallbench_state::certificate`] what
//! comes of it. A [`Prover`] is taken from vCPU to vCPU, as often as it asks for it:
//!
//! 1. Each vCPU is stepped until it is where it was, with memory as it was (`trace`); one that halts is where it stays.
//! 2. A vCPU whose state does not come back may differ in what decides nothing: that is set aside (`aside`).
//! 3. If no vCPU changes a byte that another one touches, they cannot hinder each other: all combinations of their states are
//!    closed under every order. Those that do change such bytes are explored together, in every order (`joint`).

mod aside;
mod behind;
mod build;
mod dead;
mod effect;
mod joint;
#[cfg(test)]
mod test;
mod touched;
mod trace;
mod waits;

use std::collections::{BTreeMap, BTreeSet};

use stallbench_state::certificate::{Certificate, Component, Memory as Contents, Processor, Span, VERSION};
use stallbench_state::machine::{Deliverable, MachineState, MpState, Registers, SystemRegisters, VcpuState};
use stallbench_state::memory::Memory;
use stallbench_state::paging::{self, PAGE};
use thiserror::Error;

use crate::code::{Code, place};
use aside::Aside;
pub use behind::ends_at;
use joint::Joint;
use trace::{End, Trace};
pub use waits::{Loop, Read};

/// How often vCPUs are traced anew since another one has changed what they had read.
const ROUNDS: usize = 3;
/// A local vector table entry is masked (SDM 3A 11.5.1).
const LVT_MASKED: u32 = 1 << 16;

/// Memory whose contents decide nothing, as the guest declares.
pub type Ghost = [Span];

/// One vCPU of a machine that stands still. Only one of them is stepped at a time.
pub trait Steps {
    /// Its number.
    fn vcpu(&self) -> usize;
    /// Guest memory.
    fn memory(&self) -> &dyn Memory;
    /// Writes guest memory: whether all of it is.
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool;
    /// Whether its debug registers stop it anywhere, or whether nobody knows.
    fn has_breakpoints(&self) -> bool;
    /// Its general registers.
    fn registers(&mut self) -> Result<Registers, String>;
    /// Gives it these general registers.
    fn place(&mut self, registers: &Registers) -> Result<(), String>;
    /// Executes one instruction, or a turn of one with `rep`, or nothing; gives the registers behind it.
    fn step(&mut self) -> Result<Registers, String>;
}

/// How far a proof may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of each vCPU.
    pub steps: usize,
    /// States of vCPUs that pass changing memory to each other.
    pub states: usize,
}

/// What is to be proved about.
#[derive(Clone, Debug)]
pub struct Question {
    /// The vCPUs as they were captured.
    pub machine: MachineState,
    /// Memory that is declared to decide nothing.
    pub ghost: Vec<Span>,
    /// Something that the host is still going to do, where it has declared that.
    pub host_action: Option<String>,
    /// vCPUs that the host keeps out of the guest.
    pub kept_out: Vec<usize>,
    /// How far it may go.
    pub limits: Limits,
}

/// Why there is no proof. Each message is a clause.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unproved {
    /// Something changes that may end it.
    #[error("vcpu{vcpu} still changes: {what}")]
    Changing {
        /// The vCPU.
        vcpu: usize,
        /// Registers and words, with what they flow into.
        what: String,
    },
    /// An instruction reads what is no function of the state, or nobody knows all that it does.
    #[error("vcpu{vcpu} executes {name} at {rip:#x}, {}", of_instruction(.name))]
    Instruction {
        /// The vCPU.
        vcpu: usize,
        /// Where.
        rip: u64,
        /// Name of the instruction.
        name: String,
    },
    /// A device may answer differently the next time.
    #[error("vcpu{vcpu} accesses {address:#x} at {rip:#x}, where a device may be")]
    Device {
        /// The vCPU.
        vcpu: usize,
        /// Where.
        rip: u64,
        /// What it accesses.
        address: u64,
    },
    /// An exception is taken: its handler is another's story.
    #[error("vcpu{vcpu} takes an exception at {rip:#x}")]
    Exception {
        /// The vCPU.
        vcpu: usize,
        /// Where.
        rip: u64,
    },
    /// A vCPU is about to halt: once it does, it is at rest.
    #[error("vcpu{vcpu} is about to halt")]
    Halting {
        /// The vCPU.
        vcpu: usize,
    },
    /// An interrupt can be taken.
    #[error("vcpu{vcpu} is about to take {what}")]
    Deliverable {
        /// The vCPU.
        vcpu: usize,
        /// What.
        what: Deliverable,
    },
    /// A timer will fire.
    #[error("the APIC timer of vcpu{vcpu} is armed")]
    Timer {
        /// The vCPU.
        vcpu: usize,
    },
    /// The host is going to do something.
    #[error("the host has still to act: {0}")]
    HostAction(String),
    /// The state of a vCPU could not be read, or is none that a proof knows.
    #[error("vcpu{vcpu}: {why}")]
    NoState {
        /// The vCPU.
        vcpu: usize,
        /// What is missing.
        why: String,
    },
    /// A vCPU cannot be stepped.
    #[error("vcpu{vcpu} cannot be stepped: {why}")]
    NoSteps {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        why: String,
    },
    /// vCPUs pass changing memory to each other, in more states than were to be looked at.
    #[error("vcpus {vcpus:?} pass changing memory to each other: more than {states} states, most changing: {what}")]
    TooMany {
        /// The vCPUs.
        vcpus: Vec<usize>,
        /// The limit.
        states: usize,
        /// The registers and words that had most values.
        what: String,
    },
    /// Instructions without a lock access what others change in more than one step.
    #[error("vcpus {vcpus:?} pass changing memory to each other by instructions that others can get in between of")]
    Torn {
        /// The vCPUs.
        vcpus: Vec<usize>,
    },
    /// Stores could be seen late, which has not been looked at.
    #[error(
        "vcpus {vcpus:?} pass changing memory to each other by plain stores to several words, which may be seen late"
    )]
    Late {
        /// The vCPUs.
        vcpus: Vec<usize>,
    },
}

impl Unproved {
    /// The reason for people, with places by their symbols.
    pub fn told(&self, code: &dyn Code) -> String {
        match self {
            Self::Instruction { rip, .. } | Self::Device { rip, .. } | Self::Exception { rip, .. } => {
                self.to_string().replacen(&format!("at {rip:#x}"), &format!("at {}", place(code, *rip)), 1)
            }
            _ => self.to_string(),
        }
    }
}

fn of_instruction(name: &str) -> &'static str {
    match name {
        "rdtsc" | "rdtscp" => "which reads the time-stamp counter",
        "rdrand" | "rdseed" => "which reads a random source",
        "rdpmc" => "which reads a performance counter",
        "iret" | "iretd" | "iretq" => "which ends an interrupt, and a proof cannot follow it",
        "in" | "insb" | "insw" | "insd" | "out" | "outsb" | "outsw" | "outsd" => "which accesses a device port",
        _ => "which a proof cannot follow",
    }
}

/// A proof.
#[derive(Clone, Debug)]
pub struct Proof {
    /// What does not change of each vCPU.
    processors: Vec<Processor>,
    /// The states.
    pub components: Vec<Component>,
    aside: Vec<Span>,
    memory: Contents,
    /// Memory changes for ever, and not only what is set aside: they do not wait, and come nowhere.
    pub livelock: bool,
    /// What each vCPU does, for reports.
    pub loops: Vec<Loop>,
    /// Steps that were made for it.
    pub steps: usize,
}

impl Proof {
    /// The number of states of the machine: all combinations of those of its components.
    pub fn states(&self) -> u128 {
        self.components.iter().fold(1, |states, component| states.saturating_mul(component.states.len() as u128))
    }

    /// The certificate of a run of a payload with this digest.
    pub fn certificate(&self, payload: &str, run: &str) -> Certificate {
        Certificate {
            stallbench_certificate: VERSION,
            payload: payload.to_owned(),
            run: run.to_owned(),
            vcpus: self.processors.clone(),
            components: self.components.clone(),
            aside: self.aside.clone(),
            memory: self.memory.clone(),
        }
    }
}

/// What a prover needs next.
#[derive(Debug)]
pub enum Next {
    /// To visit each vCPU once more.
    Visit,
    /// Nothing.
    Done(Box<Result<Proof, Unproved>>),
}

/// What a vCPU is from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Runs,
    Halts,
    Absent,
}

/// Comes to a proof by visiting vCPUs.
#[derive(Debug)]
pub struct Prover {
    question: Question,
    roles: Vec<Role>,
    traces: Vec<Option<Trace>>,
    asides: BTreeMap<usize, Aside>,
    /// vCPUs that are to be traced at the next visit.
    wanted: BTreeSet<usize>,
    rounds: usize,
    joints: Vec<Joint>,
    failed: Option<Unproved>,
    steps: usize,
}

impl Prover {
    /// Begins with what the captured machine says by itself.
    pub fn new(question: Question) -> Self {
        let vcpus = question.machine.vcpus.len();
        let mut prover = Self {
            question,
            roles: Vec::new(),
            traces: (0..vcpus).map(|_| None).collect(),
            asides: BTreeMap::new(),
            wanted: BTreeSet::new(),
            rounds: 0,
            joints: Vec::new(),
            failed: None,
            steps: 0,
        };
        match prover.look() {
            Ok(roles) => {
                prover.wanted = (0..vcpus).filter(|vcpu| roles[*vcpu] == Role::Runs).collect();
                prover.roles = roles;
            }
            Err(unproved) => prover.failed = Some(unproved),
        }
        prover
    }

    /// What stands in the way of any proof; else what each vCPU is.
    fn look(&self) -> Result<Vec<Role>, Unproved> {
        if let Some(action) = &self.question.host_action {
            return Err(Unproved::HostAction(action.clone()));
        }
        if let Some(vcpu) = self.question.kept_out.first() {
            return Err(Unproved::HostAction(format!("it keeps vcpu{vcpu} out of the guest")));
        }
        self.question.machine.vcpus.iter().map(role).collect()
    }

    /// What it needs next; all vCPUs stand still.
    pub fn next(&mut self, memory: &dyn Memory) -> Next {
        let done = |result| Next::Done(Box::new(result));
        if let Some(unproved) = self.failed.take() {
            return done(Err(unproved));
        }
        match self.proceed(memory) {
            Ok(true) => Next::Visit,
            Ok(false) => done(build::proof(self, memory)),
            Err(unproved) => done(Err(unproved)),
        }
    }

    /// Visits a vCPU.
    pub fn visit(&mut self, vcpu: &mut dyn Steps) {
        if self.failed.is_some() {
            return;
        }
        let index = vcpu.vcpu();
        let visited = if self.wanted.contains(&index) {
            self.trace(vcpu)
        } else {
            let mut joints = self.joints.iter_mut().filter(|joint| joint.has(index));
            joints.try_for_each(|joint| joint.visit(vcpu, &self.question.machine, &mut self.steps))
        };
        self.failed = visited.err();
    }

    fn trace(&mut self, vcpu: &mut dyn Steps) -> Result<(), Unproved> {
        let index = vcpu.vcpu();
        let system = self.system(index);
        let trace = Trace::of(vcpu, &system, &self.question.ghost, self.question.limits.steps)?;
        self.steps += trace.steps.len();
        self.traces[index] = Some(trace);
        Ok(())
    }

    fn system(&self, vcpu: usize) -> SystemRegisters {
        self.question.machine.vcpus[vcpu].system.clone().unwrap_or_default()
    }

    /// After a visit: whether another one is needed.
    fn proceed(&mut self, memory: &dyn Memory) -> Result<bool, Unproved> {
        if !self.joints.is_empty() {
            let limit = self.question.limits.states;
            return self.joints.iter_mut().try_fold(false, |more, joint| Ok(more | joint.proceed(limit)?));
        }
        if self.rounds == 0 && !self.wanted.is_empty() {
            self.rounds = 1;
            return Ok(true);
        }
        self.wanted = self.outdated(memory);
        if !self.wanted.is_empty() && self.rounds < ROUNDS {
            self.rounds += 1;
            return Ok(true);
        }
        let unstable = core::mem::take(&mut self.wanted);
        self.settle(memory, &unstable)
    }

    /// vCPUs that have read what is no longer there: another one, traced later, has changed it on the way to where it is now.
    /// What ghosts hold is no matter.
    fn outdated(&self, memory: &dyn Memory) -> BTreeSet<usize> {
        let is_outdated = |trace: &Trace| {
            let mut now = BTreeMap::new();
            for step in trace.cycle() {
                for touch in step.effect.touches.iter().filter(|touch| touch.reads) {
                    for (at, byte) in touch.bytes().zip(&touch.before) {
                        now.entry(at).or_insert(*byte);
                    }
                }
                for (at, before, _) in step.written() {
                    now.entry(at).or_insert(before);
                }
            }
            let holds = |(at, byte): (&u64, &u8)| {
                if trace::is_ghost(&self.question.ghost, *at) {
                    return true;
                }
                let mut found = [0];
                memory.read(*at, &mut found) && found[0] == *byte || trace::is_ghost(&self.question.ghost, *at)
            };
            !now.iter().all(holds)
        };
        let traces = self.traces.iter().enumerate();
        traces.filter_map(|(vcpu, trace)| trace.as_ref().filter(|trace| is_outdated(trace)).map(|_| vcpu)).collect()
    }

    /// Sets aside what decides nothing, and finds who has to be looked at together: whether that takes another visit.
    fn settle(&mut self, memory: &dyn Memory, unstable: &BTreeSet<usize>) -> Result<bool, Unproved> {
        let settled = |vcpu: &usize| !unstable.contains(vcpu);
        let vcpus: Vec<_> = (0..self.roles.len()).filter(settled).collect();
        for &vcpu in &vcpus {
            let Some(trace) = &self.traces[vcpu] else { continue };
            if trace.end == End::Changes || aside::touches_ghost(trace, &self.question.ghost) {
                self.set_aside(vcpu, memory, &BTreeSet::new()).map_err(|what| Unproved::Changing { vcpu, what })?;
            }
        }
        while vcpus.iter().try_fold(false, |any, &vcpu| Ok(any | self.set_foreign_aside(vcpu, memory)?))? {}
        self.check_interrupts(unstable)?;
        self.joints = joint::of(self, unstable)?;
        Ok(!self.joints.is_empty())
    }

    fn set_aside(&mut self, vcpu: usize, memory: &dyn Memory, foreign: &BTreeSet<u64>) -> Result<(), String> {
        let system = self.system(vcpu);
        let Some(trace) = self.traces[vcpu].as_mut() else { return Ok(()) };
        let aside = Aside::of(trace, &system, memory, &self.question.ghost, foreign)?;
        self.asides.insert(vcpu, aside);
        Ok(())
    }

    /// Sets aside what others change and this vCPU touches, where it decides nothing: whether there was more of it than before.
    /// What others set aside can be looked at in no other way.
    fn set_foreign_aside(&mut self, vcpu: usize, memory: &dyn Memory) -> Result<bool, Unproved> {
        let others: Vec<_> = (0..self.roles.len()).filter(|other| *other != vcpu).collect();
        let changed: BTreeSet<_> = others.iter().flat_map(|other| self.changed(*other, false)).collect();
        if changed.is_empty() {
            return Ok(false);
        }
        let touched = self.touched(vcpu, false);
        let foreign: BTreeSet<_> = changed.into_iter().filter(|at| touched.contains(*at)).collect();
        if foreign.is_empty() {
            return Ok(false);
        }
        let is_aside = others.iter().any(|other| {
            self.asides.get(other).is_some_and(|aside| foreign.iter().any(|at| aside.memory.contains(at)))
        });
        let all = self.asides.get(&vcpu).map(|aside| aside.memory.clone()).unwrap_or_default();
        match self.set_aside(vcpu, memory, &all.into_iter().chain(foreign).collect()) {
            Ok(()) => Ok(true),
            Err(what) if is_aside => Err(Unproved::Changing { vcpu, what }),
            Err(_) => Ok(false),
        }
    }

    /// Nothing can be taken wherever a vCPU that is alone comes.
    fn check_interrupts(&self, unstable: &BTreeSet<usize>) -> Result<(), Unproved> {
        for (vcpu, trace) in self.traces.iter().enumerate() {
            let Some(trace) = trace.as_ref().filter(|_| !unstable.contains(&vcpu)) else { continue };
            let cycle = match self.asides.get(&vcpu) {
                Some(aside) => &trace.steps[aside.from..],
                None => trace.cycle(),
            };
            let anywhere = cycle.iter().map(|step| step.registers).chain([trace.last]);
            for registers in anywhere {
                no_interrupt(&self.question.machine.vcpus[vcpu], &registers)?;
            }
        }
        Ok(())
    }
}

/// Fails if a vCPU would take an interrupt with these registers.
fn no_interrupt(vcpu: &VcpuState, registers: &Registers) -> Result<(), Unproved> {
    let there = VcpuState { registers: Ok(*registers), ..vcpu.clone() };
    there.deliverable().map_or(Ok(()), |what| Err(Unproved::Deliverable { vcpu: vcpu.index, what }))
}

/// What a vCPU is from the start.
fn role(vcpu: &VcpuState) -> Result<Role, Unproved> {
    let index = vcpu.index;
    let no_state = |why: String| Unproved::NoState { vcpu: index, why };
    let mp_state = vcpu.mp_state.clone().map_err(|unread| no_state(unread.to_string()))?;
    let role = match mp_state {
        MpState::Uninitialized | MpState::InitReceived => return Ok(Role::Absent),
        MpState::Runnable => Role::Runs,
        MpState::Halted => Role::Halts,
        MpState::SipiReceived | MpState::Other(_) => return Err(no_state(format!("it is {mp_state:?}"))),
    };
    let system = vcpu.system.as_ref().map_err(|unread| no_state(unread.to_string()))?;
    let apic = vcpu.apic.as_ref().map_err(|unread| no_state(unread.to_string()))?;
    let registers = vcpu.registers.as_ref().map_err(|unread| no_state(unread.to_string()))?;
    if apic.is_enabled() && apic.lvt_timer & LVT_MASKED == 0 {
        return Err(Unproved::Timer { vcpu: index });
    }
    no_interrupt(vcpu, registers)?;
    if role == Role::Runs && !paging::is_known(system) {
        return Err(no_state("it is not in 64-bit mode with four levels of page tables".to_owned()));
    }
    Ok(role)
}

/// The pages that bytes lie in.
fn pages(addresses: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    addresses.into_iter().map(|address| address & !(PAGE - 1)).collect()
}

/// Bytes as stretches of memory.
fn spans(addresses: &BTreeSet<u64>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for &address in addresses {
        match spans.last_mut() {
            Some(span) if span.address.0 + span.size == address => span.size += 1,
            _ => spans.push(Span { address: stallbench_state::certificate::Word(address), size: 1 }),
        }
    }
    spans
}
