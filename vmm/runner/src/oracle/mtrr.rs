//! The MTRRs of all vCPUs, as KVM reports them: every register valid, no overlap undefined, all vCPUs equal, and what the
//! scenario programmed, register by register and as the types of all memory.
//!
//! KVM keeps what a guest writes and lets it change no memory type: this checks values, never cacheability.

use stallbench_abi::knob::{self, KNOB_SLOTS, Knob};
use stallbench_abi::mtrr::{self as replicated, RangeInput};
use stallbench_abi::programme;
use stallbench_state::machine::{MachineState, MpState, VcpuState};
use stallbench_state::mtrr::{Effective, MtrrState, Region, Register};
use stallbench_state::program::CaseInfo;

use crate::execute::RunPlan;
use crate::layout::Layout;
use crate::outcome::MtrrOutcome;

/// Problems that a report lists.
const LISTED: usize = 8;
/// Regions that a report lists: as many as the fixed ranges and eight others can make.
const LISTED_REGIONS: usize = 128;

/// What the MTRRs of all vCPUs must be when a run has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    state: MtrrState,
    /// The types of all memory by the layout that was programmed, where it was one.
    map: Option<Vec<Region>>,
    /// Whether the case programs all that there is, so that the types of all memory are worth a report.
    is_whole: bool,
    /// Whether the case programs anything: then a state that nobody can tell from the one at start shows nothing.
    programs: bool,
}

impl Expected {
    /// What a run leaves behind, by the knobs that its case takes: derived here, not told by the guest.
    pub fn of(case: &CaseInfo, plan: &RunPlan) -> Self {
        let start = MtrrState::at_start();
        let takes = |knob: &Knob| case.takes(knob.number);
        if takes(&knob::LAYOUT)
            && let Some(layout) = &plan.layout
        {
            return Self::of_layout(layout, word(&plan.knobs, &knob::INVALID));
        }
        if takes(&knob::ROUNDS) {
            return Self { state: after_rounds(plan), map: None, is_whole: true, programs: true };
        }
        if takes(&knob::MTRR) {
            let is_range = word(&plan.knobs, &knob::MTRR) == knob::mtrr::RANGE;
            let state = if is_range { with_range(start, &plan.knobs) } else { with_all(start) };
            return Self { state, map: None, is_whole: false, programs: true };
        }
        Self { state: start, map: None, is_whole: false, programs: false }
    }

    /// A layout, and what is programmed behind it. The map of a layout knows nothing of that.
    fn of_layout(layout: &Layout, invalid: u8) -> Self {
        let behind = programme::against_the_manual(invalid);
        let state = behind.iter().fold(layout.state(), |state, range| programmed(state, *range));
        Self { state, map: behind.is_empty().then(|| layout.map()), is_whole: true, programs: true }
    }
}

/// The code of the word that a knob is set to.
fn word(knobs: &[u64; KNOB_SLOTS], knob: &Knob) -> u8 {
    knobs[knob.number as usize] as u8
}

fn with_range(start: MtrrState, knobs: &[u64; KNOB_SLOTS]) -> MtrrState {
    let number = |knob: &Knob| knobs[knob.number as usize];
    let register = number(&knob::MTRR_REG) as usize % start.ranges.len();
    start.with_range(register, number(&knob::MTRR_BASE), number(&knob::MTRR_SIZE), word(knobs, &knob::MTRR_TYPE))
}

fn with_all(start: MtrrState) -> MtrrState {
    let mut state =
        MtrrState { default_type: replicated::DEFAULT_TYPE, fixed: replicated::FIXED, pat: replicated::PAT, ..start };
    state.ranges[replicated::RANGE] = (replicated::RANGE_BASE, replicated::RANGE_MASK);
    state
}

/// The end of a programme of many rounds. In which order the initiators took turns does not matter: no register has two owners.
fn after_rounds(plan: &RunPlan) -> MtrrState {
    let whole = programme::whole(plan.seed);
    let start =
        MtrrState { default_type: whole.default_type, fixed: whole.fixed, pat: whole.pat, ..MtrrState::at_start() };
    let number = |knob: &Knob| plan.knobs[knob.number as usize] as u32;
    // At most 255 vCPUs.
    let initiators = number(&knob::INITIATORS).min(plan.vcpus as u32).max(1);
    let turns = (0..initiators).flat_map(|initiator| (0..number(&knob::ROUNDS)).map(move |round| (initiator, round)));
    turns.fold(start, |state, (initiator, round)| {
        programmed(state, programme::range(plan.seed, initiator, initiators, round))
    })
}

fn programmed(state: MtrrState, range: RangeInput) -> MtrrState {
    state.with_range(range.register as usize, range.base, range.size, range.memory_type as u8)
}

/// Judges a full capture. `expected` is `None` where the run did not come to its end: then they need only agree and be valid.
pub fn judge(machine: &MachineState, expected: Option<&Expected>) -> MtrrOutcome {
    let mut problems = Problems::default();
    let up: Vec<(usize, &MtrrState)> = machine.vcpus.iter().filter_map(|vcpu| problems.read(vcpu)).collect();
    if problems.unread {
        return MtrrOutcome { problems: problems.lines, ..MtrrOutcome::default() };
    }
    let reference =
        expected.map(|expected| (None, &expected.state)).or_else(|| up.first().map(|(i, state)| (Some(*i), *state)));
    let mut maps = Maps::default();
    for (vcpu, state) in &up {
        problems.invalid(*vcpu, state);
        if let Some((of, reference)) = reference {
            problems.different(*vcpu, state, of, reference);
        }
        if let Some(map) = maps.of(state) {
            problems.undefined(*vcpu, state, map);
            if let Some(layout) = expected.and_then(|expected| expected.map.as_deref()) {
                problems.other_types(*vcpu, map, layout);
            }
        }
    }
    let changed = up.iter().any(|(_, state)| **state != MtrrState::at_start());
    if expected.is_some_and(|expected| expected.programs) && !changed {
        problems.add("no vCPU's MTRRs differ from those at start: it cannot be told that anything was written".into());
    }
    let consistent = problems.count == 0;
    let is_shown = consistent && expected.is_some_and(|expected| expected.is_whole);
    let map = up.first().filter(|_| is_shown).and_then(|(_, state)| maps.of(state)).unwrap_or_default();
    let map = map.iter().take(LISTED_REGIONS).map(Region::to_string).collect();
    MtrrOutcome { consistent: Some(consistent), changed: Some(changed), problems: problems.lines, map }
}

/// The maps of states: vCPUs that agree have one.
#[derive(Default)]
struct Maps(Vec<(MtrrState, Option<Vec<Region>>)>);

impl Maps {
    /// The map of a state; `None` where a mask has holes, which is a problem of its own.
    fn of(&mut self, state: &MtrrState) -> Option<&[Region]> {
        let place = self.0.iter().position(|(known, _)| known == state).unwrap_or_else(|| {
            self.0.push((*state, state.map()));
            self.0.len() - 1
        });
        self.0[place].1.as_deref()
    }
}

#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    count: usize,
    unread: bool,
}

impl Problems {
    fn add(&mut self, line: String) {
        self.count += 1;
        if self.lines.len() < LISTED {
            self.lines.push(line);
        }
    }

    /// The MTRRs of a vCPU that came up.
    fn read<'m>(&mut self, vcpu: &'m VcpuState) -> Option<(usize, &'m MtrrState)> {
        if !vcpu.mp_state.as_ref().is_ok_and(|state: &MpState| state.is_up()) {
            return None;
        }
        match &vcpu.mtrr {
            Some(Ok(state)) => return Some((vcpu.index, state)),
            Some(Err(unread)) => self.add(format!("vcpu{}: {unread}", vcpu.index)),
            None => self.add(format!("vcpu{}: not captured", vcpu.index)),
        }
        self.unread = true;
        None
    }

    fn invalid(&mut self, vcpu: usize, state: &MtrrState) {
        state.invalid().iter().for_each(|invalid| self.add(format!("vcpu{vcpu}: {invalid}")));
    }

    fn undefined(&mut self, vcpu: usize, state: &MtrrState, map: &[Region]) {
        for region in map.iter().filter(|region| matches!(region.effective, Effective::Overlap(_))) {
            let ranges: Vec<_> = state.matching(region.start).map(|range| Register::Base(range).to_string()).collect();
            self.add(format!("vcpu{vcpu}: {} overlap: {region}", ranges.join(" and ")));
        }
    }

    /// Both cover all memory.
    fn other_types(&mut self, vcpu: usize, map: &[Region], layout: &[Region]) {
        if map == layout {
            return;
        }
        for expected in layout {
            let other = map.iter().find(|region| {
                region.effective != expected.effective && region.start < expected.end && expected.start < region.end
            });
            if let Some(region) = other {
                let (start, end) = (region.start.max(expected.start), region.end.min(expected.end));
                let is = Region { start, end, ..*region };
                self.add(format!("vcpu{vcpu}: {is}, {} by the layout", expected.effective));
            }
        }
    }

    fn different(&mut self, vcpu: usize, state: &MtrrState, of: Option<usize>, reference: &MtrrState) {
        let whose = of.map_or("expected".into(), |of| format!("as in vcpu{of}"));
        for difference in state.differences(reference) {
            let (register, here, there) = (difference.register, difference.here, difference.there);
            self.add(format!("vcpu{vcpu}: {register} is {here:#x}, {whose} {there:#x}"));
        }
    }
}

#[cfg(test)]
mod test;
