//! The MTRRs of all vCPUs, as KVM reports them: valid, equal, and those that the scenario programmed.
//!
//! KVM keeps what a guest writes and lets it change no memory type: this checks values, never cacheability.

use stallbench_abi::knob::{self, KNOB_SLOTS, Knob};
use stallbench_abi::mtrr as replicated;
use stallbench_state::machine::{MachineState, MpState, VcpuState};
use stallbench_state::mtrr::MtrrState;
use stallbench_state::program::CaseInfo;

use crate::outcome::MtrrOutcome;

/// Problems that a report lists.
const LISTED: usize = 8;

/// What the MTRRs of all vCPUs must be when a run has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    state: MtrrState,
    /// Whether the case programs anything: then a state that nobody can tell from the one at start shows nothing.
    programs: bool,
}

impl Expected {
    /// What a case leaves behind, by the knobs that it takes: derived here, not told by the guest.
    pub fn of(case: &CaseInfo, knobs: &[u64; KNOB_SLOTS]) -> Self {
        let start = MtrrState::at_start();
        if !case.takes(knob::MTRR.number) {
            return Self { state: start, programs: false };
        }
        let state = if value(knobs, &knob::MTRR) == 0 { with_range(start, knobs) } else { with_all(start) };
        Self { state, programs: true }
    }
}

/// The raw value of a knob; of words, their code.
fn value(knobs: &[u64; KNOB_SLOTS], knob: &Knob) -> u64 {
    let raw = knobs[knob.number as usize];
    if matches!(knob.values, knob::Values::Words(_)) { raw & 0xff } else { raw }
}

fn with_range(start: MtrrState, knobs: &[u64; KNOB_SLOTS]) -> MtrrState {
    let of = |knob| value(knobs, knob);
    let register = of(&knob::MTRR_REG) as usize % start.ranges.len();
    start.with_range(register, of(&knob::MTRR_BASE), of(&knob::MTRR_SIZE), of(&knob::MTRR_TYPE) as u8)
}

fn with_all(start: MtrrState) -> MtrrState {
    let mut state =
        MtrrState { default_type: replicated::DEFAULT_TYPE, fixed: replicated::FIXED, pat: replicated::PAT, ..start };
    state.ranges[replicated::RANGE] = (replicated::RANGE_BASE, replicated::RANGE_MASK);
    state
}

/// Judges a full capture. `expected` is `None` where the run did not come to its end: then they need only agree and be valid.
pub fn judge(machine: &MachineState, expected: Option<&Expected>) -> MtrrOutcome {
    let mut problems = Problems::default();
    let up: Vec<(usize, &MtrrState)> = machine.vcpus.iter().filter_map(|vcpu| problems.read(vcpu)).collect();
    if problems.unread {
        return MtrrOutcome { consistent: None, changed: None, problems: problems.lines };
    }
    let reference =
        expected.map(|expected| (None, &expected.state)).or_else(|| up.first().map(|(i, state)| (Some(*i), *state)));
    for (vcpu, state) in &up {
        problems.invalid(*vcpu, state);
        if let Some((of, reference)) = reference {
            problems.different(*vcpu, state, of, reference);
        }
    }
    let changed = up.iter().any(|(_, state)| **state != MtrrState::at_start());
    if expected.is_some_and(|expected| expected.programs) && !changed {
        problems.add("no vCPU's MTRRs differ from those at start: it cannot be told that anything was written".into());
    }
    MtrrOutcome { consistent: Some(problems.count == 0), changed: Some(changed), problems: problems.lines }
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

    fn different(&mut self, vcpu: usize, state: &MtrrState, of: Option<usize>, reference: &MtrrState) {
        let whose = of.map_or("expected".into(), |of| format!("as in vcpu{of}"));
        for difference in state.differences(reference) {
            let (register, here, there) = (difference.register, difference.here, difference.there);
            self.add(format!("vcpu{vcpu}: {register} is {here:#x}, {whose} {there:#x}"));
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn case(takes_mtrr: bool) -> CaseInfo {
        let knobs = if takes_mtrr { 1 << knob::MTRR.number } else { 0 };
        CaseInfo { name: "set-mtrr".into(), summary: String::new(), entry: 0, knobs }
    }

    fn defaults() -> [u64; KNOB_SLOTS] {
        let mut knobs = [0; KNOB_SLOTS];
        knob::ALL.iter().for_each(|knob| knobs[knob.number as usize] = knob.default_value());
        knobs
    }

    fn machine(states: &[MtrrState]) -> MachineState {
        let unread = stallbench_state::machine::Unread { what: "registers", reason: "not needed".into() };
        let vcpu = |(index, mtrr): (usize, &MtrrState)| VcpuState {
            index,
            registers: Err(unread.clone()),
            system: Err(unread.clone()),
            apic: Err(unread.clone()),
            events: Err(unread.clone()),
            mp_state: Ok(MpState::Halted),
            mtrr: Some(Ok(*mtrr)),
            ran: core::time::Duration::ZERO,
        };
        MachineState { vcpus: states.iter().enumerate().map(vcpu).collect() }
    }

    #[test]
    fn range_that_all_programmed_is_consistent_and_changed() {
        let expected = Expected::of(&case(true), &defaults());
        let outcome = judge(&machine(&[expected.state; 2]), Some(&expected));
        assert_eq!((outcome.consistent, outcome.changed), (Some(true), Some(true)), "{outcome:?}");
    }

    #[test]
    fn programme_that_changes_nothing_is_inconsistent() {
        let mut knobs = defaults();
        knobs[knob::MTRR_REG.number as usize] = 7;
        knobs[knob::MTRR_SIZE.number as usize] = 0;
        let expected = Expected::of(&case(true), &knobs);
        assert_eq!(expected.state, MtrrState::at_start());
        assert_eq!(judge(&machine(&[expected.state; 2]), Some(&expected)).consistent, Some(false));
        let unchanged = Expected::of(&case(false), &knobs);
        assert_eq!(judge(&machine(&[unchanged.state; 2]), Some(&unchanged)).consistent, Some(true));
    }

    #[test]
    fn replicated_state_is_valid_and_differs_in_every_class() {
        let mut knobs = defaults();
        knobs[knob::MTRR.number as usize] = 1;
        let expected = Expected::of(&case(true), &knobs);
        let start = MtrrState::at_start();
        assert_eq!(judge(&machine(&[expected.state]), Some(&expected)).problems, Vec::<String>::new());
        assert!(expected.state.default_type != start.default_type && expected.state.pat != start.pat);
        assert!(expected.state.fixed != start.fixed && expected.state.ranges != start.ranges);
    }

    #[test]
    fn vcpu_left_out_is_named_with_its_register() {
        let expected = Expected::of(&case(true), &defaults());
        let outcome = judge(&machine(&[expected.state, MtrrState::at_start()]), Some(&expected));
        assert_eq!(outcome.consistent, Some(false));
        assert!(outcome.problems.iter().all(|line| line.starts_with("vcpu1: ")), "{outcome:?}");
    }

    #[test]
    fn nobody_changed_what_the_case_programs_is_a_problem() {
        let expected = Expected::of(&case(true), &defaults());
        let outcome = judge(&machine(&[MtrrState::at_start(); 2]), Some(&expected));
        assert_eq!((outcome.consistent, outcome.changed), (Some(false), Some(false)));
    }

    #[test]
    fn case_that_programs_nothing_must_leave_everything() {
        let expected = Expected::of(&case(false), &defaults());
        assert_eq!(judge(&machine(&[MtrrState::at_start(); 2]), Some(&expected)).consistent, Some(true));
        let changed = MtrrState { pat: 0, ..MtrrState::at_start() };
        assert_eq!(judge(&machine(&[changed; 2]), Some(&expected)).consistent, Some(false));
    }

    #[test]
    fn unfinished_run_needs_agreement_only() {
        let changed = MtrrState::at_start().with_range(1, 0xd000_0000, 0x100_0000, 1);
        assert_eq!(judge(&machine(&[changed; 2]), None).consistent, Some(true));
        assert_eq!(judge(&machine(&[changed, MtrrState::at_start()]), None).consistent, Some(false));
    }

    #[test]
    fn state_that_could_not_be_read_is_neither() {
        let mut machine = machine(&[MtrrState::at_start(); 2]);
        machine.vcpus[1].mtrr = None;
        assert_eq!(judge(&machine, None).consistent, None);
    }
}
