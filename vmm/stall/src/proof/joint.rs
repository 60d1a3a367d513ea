//! vCPUs that pass changing memory to each other: all states that they can come to, in every order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iced_x86::{Mnemonic, OpKind};
use stallbench_state::certificate::{Does, Edge, Span};
use stallbench_state::machine::{MachineState, Registers, SystemRegisters};
use stallbench_state::memory::Memory;

use super::aside::NAMES;
use super::dead::Dead;
use super::effect::{Decode, Effect};
use super::touched::Touched;
use super::trace::{self, Key, key};
use super::{Prover, Role, Steps, Unproved, no_interrupt};

/// Registers and words that are named.
const MOST_NAMED: usize = 3;
/// Size of the largest word that stores can be passed in without one being seen ahead of the other.
const WORD: u64 = 8;

/// What a vCPU does, its registers, and which of them it overwrites before it looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VcpuAt {
    pub(super) does: Does,
    pub(super) registers: Key,
    pub(super) dead: Dead,
}

/// A state of them: what each does, and the bytes that are not what they were at first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct JointState {
    pub(super) vcpus: Vec<VcpuAt>,
    pub(super) cells: BTreeMap<u64, u8>,
}

/// The states of some vCPUs, as far as they are known.
#[derive(Debug)]
pub(super) struct Joint {
    pub(super) vcpus: Vec<usize>,
    pub(super) states: Vec<JointState>,
    pub(super) edges: Vec<Edge>,
    known: HashMap<JointState, usize>,
    /// States from here on, up to those that are known now, are expanded at the visits under way.
    level: usize,
    expanded: usize,
    found: Vec<(usize, usize, JointState)>,
    /// What bytes that change held at first.
    pub(super) base: BTreeMap<u64, u8>,
    pub(super) touched: BTreeSet<u64>,
    /// Bytes that plain stores write.
    plain: BTreeSet<u64>,
    /// Bytes that instructions without a lock access in more than one step.
    torn: BTreeSet<u64>,
    pub(super) decode: Decode,
    dead_at: HashMap<u64, Dead>,
    ghost: Vec<Span>,
}

/// Finds who has to be looked at together. All others are alone.
pub(super) fn of(prover: &Prover, unstable: &BTreeSet<usize>) -> Result<Vec<Joint>, Unproved> {
    let whole = !unstable.is_empty();
    let vcpus = prover.roles.len();
    let touched: Vec<_> = (0..vcpus).map(|vcpu| prover.touched(vcpu, whole)).collect();
    let changed: Vec<_> = (0..vcpus).map(|vcpu| prover.changed(vcpu, whole)).collect();
    let mut group: Vec<usize> = (0..vcpus).collect();
    for one in 0..vcpus {
        for other in (0..vcpus).filter(|other| *other != one) {
            if changed[one].iter().any(|at| touched[other].contains(*at)) {
                let (from, to) = (group[other], group[one]);
                group.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
            }
        }
    }
    let members = |of: usize| (0..vcpus).filter(|vcpu| group[*vcpu] == of).collect::<Vec<_>>();
    let groups = (0..vcpus).map(members).filter(|members| members.len() > 1);
    let joints: Vec<_> = groups.map(|members| Joint::new(prover, members)).collect();
    match unstable.iter().find(|vcpu| !joints.iter().any(|joint| joint.has(**vcpu))) {
        Some(vcpu) => Err(Unproved::Changing { vcpu: *vcpu, what: "what it reads is changed meanwhile".to_owned() }),
        None => Ok(joints),
    }
}

impl Joint {
    fn new(prover: &Prover, vcpus: Vec<usize>) -> Self {
        let state = |vcpu: &usize| {
            let registers = prover.traces[*vcpu].as_ref().map(|trace| trace.last);
            let captured = prover.question.machine.vcpus[*vcpu].registers.clone().unwrap_or_default();
            let does = match prover.roles[*vcpu] {
                Role::Runs => Does::Runs,
                Role::Halts => Does::Halts,
                Role::Absent => Does::Absent,
            };
            VcpuAt { does, registers: key(&registers.unwrap_or(captured)), dead: Dead::default() }
        };
        let first = JointState { vcpus: vcpus.iter().map(state).collect(), cells: BTreeMap::new() };
        Self {
            vcpus,
            states: vec![first.clone()],
            edges: Vec::new(),
            known: HashMap::from([(first, 0)]),
            level: 0,
            expanded: 1,
            found: Vec::new(),
            base: BTreeMap::new(),
            touched: BTreeSet::new(),
            plain: BTreeSet::new(),
            torn: BTreeSet::new(),
            decode: Decode::new(),
            dead_at: HashMap::new(),
            ghost: prover.question.ghost.clone(),
        }
    }

    pub(super) fn has(&self, vcpu: usize) -> bool {
        self.vcpus.contains(&vcpu)
    }

    /// Takes in what the last visits found: whether more are needed.
    pub(super) fn proceed(&mut self, limit: usize) -> Result<bool, Unproved> {
        for (from, vcpu, state) in std::mem::take(&mut self.found) {
            let to = match self.known.get(&state) {
                Some(known) => *known,
                None => {
                    self.known.insert(state.clone(), self.states.len());
                    self.states.push(state);
                    self.states.len() - 1
                }
            };
            self.edges.push(Edge { from, vcpu, to });
        }
        if self.states.len() > limit {
            return Err(Unproved::TooMany { vcpus: self.vcpus.clone(), states: limit, what: self.most_changing() });
        }
        (self.level, self.expanded) = (self.expanded, self.states.len());
        if self.level < self.expanded {
            return Ok(true);
        }
        self.check_late().map(|()| false)
    }

    /// The registers and words that have most values in the states that are known.
    fn most_changing(&self) -> String {
        let mut counts = Vec::new();
        for (place, vcpu) in self.vcpus.iter().enumerate() {
            for (index, name) in NAMES.iter().enumerate() {
                let values: BTreeSet<_> = self.states.iter().map(|state| state.vcpus[place].registers[index]).collect();
                counts.push((values.len(), format!("{name} of vcpu{vcpu}")));
            }
        }
        for span in super::spans(&self.base.keys().copied().collect()) {
            let word = |state: &JointState| {
                (span.address.0..span.address.0 + span.size).map(|at| byte_of(self, state, at)).collect::<Vec<_>>()
            };
            let values: BTreeSet<_> = self.states.iter().map(word).collect();
            counts.push((values.len(), format!("{} bytes at {}", span.size, span.address)));
        }
        counts.sort_by_key(|(count, _)| core::cmp::Reverse(*count));
        let named = counts.iter().take(MOST_NAMED).map(|(count, name)| format!("{name} ({count} values)"));
        named.collect::<Vec<_>>().join(", ")
    }

    /// Executes one instruction of a vCPU in each state of the level.
    pub(super) fn visit(
        &mut self,
        vcpu: &mut dyn Steps,
        machine: &MachineState,
        steps: &mut usize,
    ) -> Result<(), Unproved> {
        let index = vcpu.vcpu();
        let Some(place) = self.vcpus.iter().position(|member| *member == index) else { return Ok(()) };
        let expanded = self.expand_level(vcpu, place, machine, steps);
        // Whatever came of it: the machine goes on from where it was.
        self.restore(vcpu, place).and(expanded)
    }

    fn expand_level(
        &mut self,
        vcpu: &mut dyn Steps,
        place: usize,
        machine: &MachineState,
        steps: &mut usize,
    ) -> Result<(), Unproved> {
        let index = vcpu.vcpu();
        for from in self.level..self.expanded {
            let state = self.states[from].clone();
            let VcpuAt { does, registers, .. } = state.vcpus[place];
            let registers = Registers::from(&registers);
            if does != Does::Absent {
                no_interrupt(&machine.vcpus[index], &registers)?;
            }
            if does == Does::Runs {
                let after = self.expand(vcpu, machine, &state, registers)?;
                *steps += 1;
                let mut next = JointState { cells: after.1, ..state };
                next.vcpus[place] = after.0;
                self.found.push((from, index, next));
            }
        }
        Ok(())
    }

    fn expand(
        &mut self,
        vcpu: &mut dyn Steps,
        machine: &MachineState,
        state: &JointState,
        registers: Registers,
    ) -> Result<(VcpuAt, BTreeMap<u64, u8>), Unproved> {
        let index = vcpu.vcpu();
        let system = machine.vcpus[index].system.clone().unwrap_or_default();
        self.write(vcpu, &state.cells)?;
        let effect = self.decode.at(&registers, &system, vcpu.memory());
        let effect = effect.map_err(|refusal| trace::refused(index, &registers, refusal))?;
        if effect.instruction.mnemonic() == Mnemonic::Hlt {
            let halted = Registers { rip: effect.instruction.next_ip(), ..registers };
            let halted = VcpuAt { does: Does::Halts, registers: key(&halted), dead: Dead::default() };
            return Ok((halted, state.cells.clone()));
        }
        self.refuse_ghosts(&effect, index)?;
        self.note(&effect);
        vcpu.place(&registers).map_err(|why| trace::cannot_step(vcpu, why))?;
        let (step, after) = trace::execute(vcpu, registers, effect)?;
        let mut cells = state.cells.clone();
        for (at, before, after) in step.written() {
            if before == after && !self.base.contains_key(&at) {
                continue;
            }
            let base = *self.base.entry(at).or_insert(before);
            if after == base {
                cells.remove(&at);
            } else {
                cells.insert(at, after);
            }
        }
        let dead = self.dead(&after, &system, vcpu.memory());
        Ok((VcpuAt { does: Does::Runs, registers: key(&dead.canonical(&after)), dead }, cells))
    }

    /// A proof holds whatever ghosts hold, and here they hold what they do.
    fn refuse_ghosts(&self, effect: &Effect, vcpu: usize) -> Result<(), Unproved> {
        let mut read = effect.touches.iter().filter(|touch| touch.reads).flat_map(|touch| touch.bytes());
        match read.find(|at| trace::is_ghost(&self.ghost, *at)) {
            None => Ok(()),
            Some(at) => {
                let what = format!("ghost memory at {at:#x}, which it reads at {:#x}", effect.instruction.ip());
                Err(Unproved::Changing { vcpu, what })
            }
        }
    }

    /// What a vCPU overwrites before it looks at it, from where it is now.
    fn dead(&mut self, registers: &Registers, system: &SystemRegisters, memory: &dyn Memory) -> Dead {
        // Code changes only where a vCPU writes it.
        if let Some(known) = self.dead_at.get(&registers.rip).filter(|_| self.base.is_empty() || !self.writes_code()) {
            return *known;
        }
        let dead = Dead::at(&mut self.decode, registers.rip, system, memory);
        self.dead_at.insert(registers.rip, dead);
        dead
    }

    fn writes_code(&self) -> bool {
        let pages = &self.decode.fetched;
        self.base.keys().any(|at| pages.contains(&(at & !(super::PAGE - 1))))
    }

    fn note(&mut self, effect: &Effect) {
        self.touched.extend(effect.touches.iter().flat_map(|touch| touch.bytes()));
        let instruction = &effect.instruction;
        let exchanges = instruction.mnemonic() == Mnemonic::Xchg
            && (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if !(instruction.has_lock_prefix() || exchanges) {
            let written = effect.touches.iter().filter(|touch| touch.writes);
            self.plain.extend(written.flat_map(|touch| touch.bytes()));
            if !is_one_access(effect) {
                self.torn.extend(effect.touches.iter().flat_map(|touch| touch.bytes()));
            }
        }
    }

    /// Makes memory what it is in a state.
    fn write(&self, vcpu: &mut dyn Steps, cells: &BTreeMap<u64, u8>) -> Result<(), Unproved> {
        let all = self.base.iter().map(|(at, base)| (*at, cells.get(at).copied().unwrap_or(*base)));
        match all.into_iter().all(|(at, byte)| vcpu.write(at, &[byte])) {
            true => Ok(()),
            false => Err(trace::cannot_step(vcpu, "its memory cannot be written".to_owned())),
        }
    }

    /// Puts a vCPU back where it was at first.
    fn restore(&mut self, vcpu: &mut dyn Steps, place: usize) -> Result<(), Unproved> {
        self.write(vcpu, &BTreeMap::new())?;
        let VcpuAt { does, registers, .. } = self.states[0].vcpus[place];
        if does != Does::Runs {
            return Ok(());
        }
        vcpu.place(&Registers::from(&registers)).map_err(|why| trace::cannot_step(vcpu, why))
    }

    /// Orders in which stores are seen late are orders in which they are made, if all of them go to one word, or each empties the
    /// store buffer (SDM 3A 9.2.2, 9.2.3).
    fn check_late(&self) -> Result<(), Unproved> {
        let mut words: Vec<_> = self.plain.iter().filter(|at| self.base.contains_key(at)).map(|at| at / WORD).collect();
        words.dedup();
        if self.torn.iter().any(|at| self.base.contains_key(at)) {
            return Err(Unproved::Torn { vcpus: self.vcpus.clone() });
        }
        match words.len() {
            0 | 1 => Ok(()),
            _ => Err(Unproved::Late { vcpus: self.vcpus.clone() }),
        }
    }
}

/// Whether nobody can get in between the accesses of an instruction without a lock: it makes one, within a word that is accessed at
/// once (SDM 3A 9.1.1).
fn is_one_access(effect: &Effect) -> bool {
    match effect.touches.as_slice() {
        [] => true,
        [touch] => {
            let last = touch.address + touch.before.len() as u64 - 1;
            !(touch.reads && touch.writes) && touch.address / WORD == last / WORD
        }
        _ => false,
    }
}

impl Prover {
    /// Bytes that a vCPU touches where it goes round, its instructions and page tables too, but for those that it sets aside.
    pub(super) fn touched(&self, vcpu: usize, whole: bool) -> Touched {
        let Some(trace) = &self.traces[vcpu] else { return Touched::default() };
        let touches = self.round(vcpu, whole).iter().flat_map(|step| &step.effect.touches);
        let touched = Touched::by_fetching(&trace.decode).and(touches.flat_map(|touch| touch.bytes()));
        match self.asides.get(&vcpu) {
            Some(aside) => touched.and(aside.reads.iter().copied()).but_for(&aside.memory),
            None => touched,
        }
    }

    /// Bytes that it changes there.
    pub(super) fn changed(&self, vcpu: usize, whole: bool) -> BTreeSet<u64> {
        let written = self.round(vcpu, whole).iter().flat_map(super::trace::Step::written);
        let mut changed: BTreeSet<_> =
            written.filter(|(_, before, after)| before != after).map(|(at, ..)| at).collect();
        if let Some(aside) = self.asides.get(&vcpu) {
            changed.extend(&aside.memory);
        }
        changed
    }

    fn round(&self, vcpu: usize, whole: bool) -> &[trace::Step] {
        match (&self.traces[vcpu], self.asides.get(&vcpu)) {
            (None, _) => &[],
            (Some(trace), _) if whole => &trace.steps,
            (Some(trace), Some(aside)) => &trace.steps[aside.from..],
            (Some(trace), None) => trace.cycle(),
        }
    }
}

/// A byte at an address, as a state has it.
pub(super) fn byte_of(joint: &Joint, state: &JointState, at: u64) -> u8 {
    state.cells.get(&at).or_else(|| joint.base.get(&at)).copied().unwrap_or_default()
}
