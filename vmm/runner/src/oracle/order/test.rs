//! The manual's procedure as entries, whole and with each step left out.

use stallbench_stall::set::VcpuSet;

use super::judge::judge_logs;
use super::record::Log;
use super::*;

const CD: u64 = 1 << 30;
const PGE: u64 = 1 << 7;
const CR0: u64 = 0x8001_0033;
const CR4: u64 = 0x20 | PGE;
/// E, FE and write-back, as at start; the same with E and FE off.
const ON: u64 = 0xc06;
const OFF: u64 = 0;

/// A script: what one vCPU does after the other, each step with the registers that the steps before have left.
struct Script {
    logs: Vec<Log>,
    cpus: Vec<Cpu>,
    number: u64,
    outside: VcpuSet,
    set_up: bool,
}

#[derive(Clone, Copy)]
struct Cpu {
    cr0: u64,
    cr4: u64,
    interrupts: bool,
    let_in: Option<u64>,
}

impl Script {
    fn new(vcpus: usize) -> Self {
        let cpu = Cpu { cr0: CR0, cr4: CR4, interrupts: true, let_in: None };
        let (logs, outside) = (vec![Log::default(); vcpus], VcpuSet::EMPTY);
        Self { logs, cpus: vec![cpu; vcpus], number: 0, outside, set_up: false }
    }

    fn does(&mut self, vcpu: usize, what: What) {
        let cpu = &mut self.cpus[vcpu];
        let Cpu { cr0, cr4, interrupts, .. } = *cpu;
        let (number, let_in) = (self.number, cpu.let_in.take());
        let entry = Entry { number, what, interrupts, let_in, cr0, cr4, outside: self.outside, set_up: self.set_up };
        self.logs[vcpu].entries.push(entry);
        self.number += 1;
        match what {
            What::Cr0(value) => cpu.cr0 = value,
            What::Cr4(value) => cpu.cr4 = value,
            _ => {}
        }
    }

    fn interrupts(&mut self, vcpu: usize, on: bool) {
        self.cpus[vcpu].interrupts = on;
        self.cpus[vcpu].let_in = on.then_some(self.number);
        self.number += 1;
    }

    fn writes(&mut self, vcpu: usize, msr: u32, value: u64) {
        self.does(vcpu, What::Write { msr, value, refused: false });
    }

    /// Steps 4 to 13 of one vCPU, without one of them.
    fn program(&mut self, vcpu: usize, left_out: Option<Step>) {
        let mut step = |step: Step, whats: &[What]| {
            if left_out != Some(step) {
                whats.iter().for_each(|what| self.does(vcpu, *what));
            }
        };
        let write = |msr, value| What::Write { msr, value, refused: false };
        step(Step::NoFill, &[What::Cr0(CR0 | CD)]);
        step(Step::FlushCaches, &[What::Wbinvd]);
        step(Step::GlobalPagesOff, &[What::Cr4(CR4 & !PGE)]);
        step(Step::FlushTranslations, &[What::Cr3]);
        step(Step::Disable, &[write(0x2ff, OFF)]);
        // Range 0 is in use at start.
        step(Step::Update, &[write(0x200, 0xd000_0000), write(0x201, 0x7f_f000_0800)]);
        step(Step::Enable, &[write(0x2ff, ON)]);
        step(Step::FlushAgain, &[What::Cr3]);
        step(Step::CachesOn, &[What::Cr0(CR0)]);
        step(Step::GlobalPagesOn, &[What::Cr4(CR4)]);
    }

    fn judged(&self, mode: Mode) -> Judged {
        judge_logs(Run { mode, online: VcpuSet::all(self.logs.len()), finished: true }, &self.logs)
    }
}

/// Two vCPUs go through the procedure, the second without one step.
fn stepped(left_out: Option<Step>) -> Script {
    let mut script = Script::new(2);
    for vcpu in [0, 1] {
        script.does(vcpu, What::Enter);
        script.interrupts(vcpu, false);
    }
    script.program(0, None);
    script.program(1, left_out);
    for vcpu in [0, 1] {
        script.interrupts(vcpu, true);
        script.does(vcpu, What::Leave);
    }
    script
}

/// The same, as accesses alone show it.
fn filtered(left_out: Option<Step>) -> Script {
    let mut script = stepped(left_out);
    let is_write = |entry: &Entry| matches!(entry.what, What::Write { .. });
    script.logs.iter_mut().for_each(|log| log.entries.retain(is_write));
    script
}

fn violated(judged: &Judged) -> Vec<(usize, usize)> {
    judged.violations.iter().map(|violation| (violation.vcpu, violation.step.number())).collect()
}

#[test]
fn whole_procedure_is_ok_in_every_step_that_a_mode_shows() {
    for (mode, script) in [(Mode::Step, stepped(None)), (Mode::Filter, filtered(None))] {
        let judged = script.judged(mode);
        assert_eq!(violated(&judged), []);
        for step in Step::ALL {
            let expected = if mode.shows(step) { Finding::Ok } else { Finding::NotObserved };
            assert_eq!(judged.finding(step), expected, "{mode} {step:?}");
        }
    }
}

#[test]
fn each_step_that_is_left_out_is_the_one_that_is_violated() {
    use Step::*;
    for step in [NoFill, FlushCaches, GlobalPagesOff, Disable, Enable, FlushAgain, CachesOn, GlobalPagesOn] {
        let judged = stepped(Some(step)).judged(Mode::Step);
        // Without E=1 there is no time after it, and PGE comes back too early while the caches are off.
        let more: &[Step] = match step {
            CachesOn => &[GlobalPagesOn],
            _ => &[],
        };
        let mut expected: Vec<_> = [&[step], more].concat().iter().map(|step| (1, step.number())).collect();
        let mut found = violated(&judged);
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{step:?}: {:?}", judged.violations);
    }
}

#[test]
fn accesses_show_what_they_can_and_never_say_ok_of_the_rest() {
    use Step::*;
    for step in [NoFill, GlobalPagesOff, Disable, Enable] {
        assert_eq!(violated(&filtered(Some(step)).judged(Mode::Filter)), [(1, step.number())], "{step:?}");
    }
    for step in [FlushCaches, FlushTranslations, FlushAgain, CachesOn, GlobalPagesOn] {
        let judged = filtered(Some(step)).judged(Mode::Filter);
        assert_eq!((violated(&judged), judged.finding(step)), (vec![], Finding::NotObserved), "{step:?}");
    }
}

#[test]
fn reload_of_cr3_is_needed_only_where_no_global_page_was_switched_off() {
    assert_eq!(violated(&stepped(Some(Step::FlushTranslations)).judged(Mode::Step)), []);
    let mut script = Script::new(1);
    script.interrupts(0, false);
    script.cpus[0].cr4 &= !PGE;
    script.does(0, What::Enter);
    script.does(0, What::Cr0(CR0 | CD));
    script.does(0, What::Wbinvd);
    script.writes(0, 0x2ff, OFF);
    assert_eq!(violated(&script.judged(Mode::Step)), [(0, 7)]);
}

#[test]
fn ranges_may_be_taken_in_and_out_of_use_in_the_place_of_e() {
    let mut script = Script::new(1);
    script.interrupts(0, false);
    (script.cpus[0].cr0, script.cpus[0].cr4) = (CR0 | CD, CR4 & !PGE);
    for (msr, value) in [(0x201, 0), (0x200, 0xd000_0000), (0x201, 0x7f_f000_0800), (0x202, 1), (0x2ff, ON)] {
        script.writes(0, msr, value);
    }
    assert_eq!(violated(&script.judged(Mode::Filter)), []);
    for (msr, value) in [(0x200, 1), (0x201, 0x7f_e000_0800), (0x250, 0), (0x2ff, ON & !(1 << 10))] {
        let mut wrong = Script::new(1);
        wrong.interrupts(0, false);
        (wrong.cpus[0].cr0, wrong.cpus[0].cr4) = (CR0 | CD, CR4 & !PGE);
        wrong.writes(0, msr, value);
        assert_eq!(violated(&wrong.judged(Mode::Filter)), [(0, 8)], "{msr:#x}");
    }
}

#[test]
fn interrupts_that_are_on_at_work_are_named_with_the_access() {
    let mut script = filtered(None);
    script.logs[1].entries.iter_mut().for_each(|entry| entry.interrupts = true);
    let judged = script.judged(Mode::Filter);
    assert_eq!(judged.violations.len(), 1, "one of each step and vCPU");
    assert_eq!(judged.violations[0].to_string(), "vcpu1 step 2: writes 0x2ff=0x0 with RFLAGS.IF=1");
}

#[test]
fn interrupts_that_are_let_in_for_a_moment_are_found() {
    let mut script = Script::new(1);
    script.does(0, What::Enter);
    script.interrupts(0, false);
    script.does(0, What::Cr0(CR0 | CD));
    script.interrupts(0, true);
    script.cpus[0].interrupts = false;
    script.does(0, What::Wbinvd);
    assert_eq!(violated(&script.judged(Mode::Step)), [(0, 2)]);
}

#[test]
fn vcpu_that_begins_before_another_has_come_is_named() {
    let mut script = Script::new(2);
    script.interrupts(0, false);
    script.does(0, What::Enter);
    script.program(0, None);
    script.interrupts(1, false);
    script.does(1, What::Enter);
    script.program(1, None);
    let judged = script.judged(Mode::Step);
    assert_eq!(judged.violations.len(), 1);
    assert_eq!(judged.violations[0].to_string(), "vcpu0 step 3: begins before vcpu1 has come");
}

#[test]
fn vcpu_that_leaves_before_another_is_done_is_named() {
    let mut script = Script::new(2);
    for vcpu in [0, 1] {
        script.does(vcpu, What::Enter);
        script.interrupts(vcpu, false);
    }
    script.program(0, None);
    script.does(1, What::Cr0(CR0 | CD));
    script.interrupts(0, true);
    script.does(0, What::Leave);
    script.does(1, What::Wbinvd);
    let judged = script.judged(Mode::Step);
    assert_eq!(violated(&judged), [(0, 15), (0, 14)]);
    assert_eq!(judged.violations[1].to_string(), "vcpu0 step 14: leaves before vcpu1 is done");
}

#[test]
fn write_while_another_vcpu_is_elsewhere_shows_at_the_access() {
    let mut script = Script::new(3);
    script.interrupts(0, false);
    script.outside = [1, 2].into_iter().collect();
    script.program(0, None);
    script.logs[0].entries.retain(|entry| matches!(entry.what, What::Write { .. }));
    let judged = script.judged(Mode::Filter);
    assert_eq!(violated(&judged), [(0, 3)]);
    assert_eq!(
        judged.violations[0].to_string(),
        "vcpu0 step 3: writes 0x2ff=0x0 while vcpu1, vcpu2 are outside of the rendezvous"
    );
    script.logs[0].entries.iter_mut().for_each(|entry| entry.set_up = true);
    assert_eq!(violated(&script.judged(Mode::Filter)), [], "nobody is waited for when the case sets up");
}

#[test]
fn write_when_another_vcpu_has_left_shows_at_the_access() {
    let mut script = filtered(None);
    let last = script.logs[1].entries.last_mut().expect("it writes");
    last.outside = [0].into_iter().collect();
    assert_eq!(violated(&script.judged(Mode::Filter)), [(1, 14)]);
}

#[test]
fn interrupts_that_stay_off_are_found_at_the_exit() {
    let mut script = stepped(None);
    let last = script.logs[1].entries.last_mut().expect("it leaves");
    (last.interrupts, last.let_in) = (false, None);
    let judged = script.judged(Mode::Step);
    assert_eq!(judged.violations[0].to_string(), "vcpu1 step 15: leaves with RFLAGS.IF=0, entered with 1");
}

#[test]
fn value_that_is_refused_changes_nothing_and_is_named() {
    let mut script = stepped(None);
    script.does(0, What::Enter);
    script.does(0, What::Write { msr: 0x2ff, value: 2, refused: true });
    let judged = script.judged(Mode::Step);
    assert!(judged.violations.iter().any(|violation| violation.step == Step::Update), "{:?}", judged.violations);
    assert!(!judged.violations.iter().any(|violation| violation.step == Step::Enable), "{:?}", judged.violations);
}

#[test]
fn what_was_not_seen_to_its_end_is_not_ok() {
    let mut script = stepped(None);
    script.logs[0].gap = Some("a step of the procedure was not seen");
    let judged = script.judged(Mode::Step);
    assert!(Step::ALL.into_iter().all(|step| judged.finding(step) == Finding::NotObserved));
}

#[test]
fn step_that_leaves_no_trace_is_not_missed_where_something_was_not_seen() {
    let mut script = Script::new(1);
    script.does(0, What::Enter);
    script.does(0, What::Write { msr: 0x2ff, value: 0, refused: false });
    let missed = script.judged(Mode::Step);
    assert_eq!(missed.finding(Step::FlushCaches), Finding::Violated);
    script.logs[0].gap = Some("a step of the procedure was not seen");
    let judged = script.judged(Mode::Step);
    assert_eq!(judged.finding(Step::FlushCaches), Finding::NotObserved);
    assert!(!judged.violations.iter().any(|violation| violation.step == Step::FlushCaches), "{:?}", judged.violations);
}

#[test]
fn nothing_seen_is_not_observed() {
    let judged = Script::new(2).judged(Mode::Filter);
    assert!(Step::ALL.into_iter().all(|step| judged.finding(step) == Finding::NotObserved));
}

#[test]
fn numbers_and_words_of_steps_are_the_manuals() {
    for (index, step) in Step::ALL.into_iter().enumerate() {
        assert_eq!(step.number(), index + 2);
        assert!(step.word().starts_with(&format!("{}-", index + 2)));
    }
    assert_eq!("step".parse(), Ok(Mode::Step));
    assert!("steps".parse::<Mode>().is_err());
}
