//! Goes through what vCPUs did, and says which step of the procedure was done, left out, or not seen.
//!
//! Each vCPU by itself first: its registers as the accesses left them, and within the procedure a *cycle*, from CR0.CD=1 to what
//! comes behind CR0.CD=0. Then all together: where they meet.

use std::fmt;

use stallbench_stall::set::VcpuSet;
use stallbench_state::mtrr::{ENABLED, FIXED_ENABLED, MtrrState, Register, VALID};

use super::record::Log;
use super::{Entry, Finding, Mode, Recorder, Step, What};

/// CR0.CD and CR0.NW (SDM 3A 2.5).
const CACHE_DISABLE: u64 = 1 << 30;
const NOT_WRITE_THROUGH: u64 = 1 << 29;
/// CR4.PGE.
const GLOBAL_PAGES: u64 = 1 << 7;

/// Steps that a vCPU outside of the procedure does unseen.
const UNSEEN: [Step; 7] = [
    Step::FlushCaches,
    Step::FlushTranslations,
    Step::FlushAgain,
    Step::CachesOn,
    Step::GlobalPagesOn,
    Step::LastBarrier,
    Step::InterruptsOn,
];

/// What is known of a run beside what vCPUs did.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How it was looked at.
    pub mode: Mode,
    /// The vCPUs that came up.
    pub online: VcpuSet,
    /// It came to its end, so that nothing of a procedure is still to come.
    pub finished: bool,
}

/// A step that was left out, or done at the wrong time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When it showed: its place among all that vCPUs did.
    pub number: u64,
    /// The vCPU.
    pub vcpu: usize,
    /// Which step.
    pub step: Step,
    /// What the vCPU did instead, a fragment.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu{} step {}: {}", self.vcpu, self.step.number(), self.what)
    }
}

/// What the order was like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Accesses to MTRRs that were seen.
    pub accesses: u64,
    /// Instructions that were stepped.
    pub instructions: u64,
    /// Times that a vCPU went through the procedure, step by step.
    pub visits: u64,
    /// What each vCPU did at each step.
    findings: Vec<(Step, Finding)>,
    /// The first of each step of each vCPU, in the order in which they happened.
    pub violations: Vec<Violation>,
    /// Why what was done is not known to its end, if it is not.
    pub gap: Option<&'static str>,
}

impl Judged {
    /// What is known of a step: the worst of all vCPUs and times, and nothing where nothing was seen.
    pub fn finding(&self, step: Step) -> Finding {
        let found = self.findings.iter().filter(|(of, _)| *of == step).map(|(_, finding)| *finding).max();
        match found.unwrap_or(Finding::NotObserved) {
            Finding::Ok if self.gap.is_some() => Finding::NotObserved,
            finding => finding,
        }
    }

    fn find(&mut self, step: Step, finding: Finding) {
        if !self.findings.contains(&(step, finding)) {
            self.findings.push((step, finding));
        }
    }

    fn violated(&mut self, violation: Violation) {
        self.find(violation.step, Finding::Violated);
        let same = |other: &Violation| (other.vcpu, other.step) == (violation.vcpu, violation.step);
        if !self.violations.iter().any(same) {
            self.violations.push(violation);
        }
    }
}

impl Judged {
    /// That a step without a trace at an MTRR is missing says nothing where something was not seen.
    fn forget_unseen(&mut self) {
        self.findings.retain(|(step, _)| !UNSEEN.contains(step));
        self.violations.retain(|violation| !UNSEEN.contains(&violation.step));
    }
}

/// Judges what a recorder has kept of a run.
pub fn judge(run: Run, recorder: &Recorder) -> Judged {
    judge_logs(run, &recorder.logs())
}

pub(super) fn judge_logs(run: Run, logs: &[Log]) -> Judged {
    let mut judged = Judged {
        accesses: logs.iter().map(|log| log.accesses).sum(),
        instructions: logs.iter().map(|log| log.instructions).sum(),
        gap: logs.iter().find_map(|log| log.gap),
        ..Judged::default()
    };
    let mut visits = Vec::new();
    for (vcpu, log) in logs.iter().enumerate() {
        let mut walk = Walk::new(vcpu, run, &mut judged, &mut visits);
        log.entries.iter().for_each(|entry| walk.take(entry));
        walk.end();
    }
    judged.visits = visits.len() as u64;
    meetings(run, &visits, &mut judged);
    if judged.gap.is_some() {
        judged.forget_unseen();
    }
    judged.violations.sort_by_key(|violation| violation.number);
    judged
}

/// A time in the procedure, from its entry to its exit.
#[derive(Clone, Debug)]
struct Visit {
    vcpu: usize,
    entered: u64,
    /// `None`: it is still in it.
    left: Option<u64>,
    /// Interrupts were on when it entered.
    interrupts: bool,
    /// CR4.PGE was set when it entered.
    global_pages: bool,
    /// The first and the last that it did to caches, translations or MTRRs.
    worked: Option<(u64, u64)>,
    /// When it let interrupts in behind that.
    let_in: Option<u64>,
    set_up: bool,
}

impl Visit {
    fn covers(&self, number: u64) -> bool {
        self.entered < number && self.left.is_none_or(|left| number < left)
    }
}

/// From the caches of a vCPU going off to their being on again.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    caches_flushed: bool,
    flushed: bool,
    /// An MTRR was written.
    wrote: bool,
    /// MTRRs were switched off, and on again.
    enabled: bool,
    flushed_again: bool,
    caches_on: bool,
}

/// One vCPU, entry by entry.
struct Walk<'j> {
    vcpu: usize,
    run: Run,
    judged: &'j mut Judged,
    visits: &'j mut Vec<Visit>,
    /// Its registers, as its writes left them.
    mtrr: MtrrState,
    visit: Option<Visit>,
    cycle: Cycle,
    /// Its first write since its MTRRs were last on came before all others were inside.
    began_early: bool,
    last: u64,
}

impl<'j> Walk<'j> {
    fn new(vcpu: usize, run: Run, judged: &'j mut Judged, visits: &'j mut Vec<Visit>) -> Self {
        let (mtrr, cycle) = (MtrrState::at_start(), Cycle::default());
        Self { vcpu, run, judged, visits, mtrr, visit: None, cycle, began_early: false, last: 0 }
    }

    fn ok(&mut self, step: Step) {
        self.judged.find(step, Finding::Ok);
    }

    fn violated(&mut self, number: u64, step: Step, what: impl Into<String>) {
        self.judged.violated(Violation { number, vcpu: self.vcpu, step, what: what.into() });
    }

    fn check(&mut self, entry: &Entry, step: Step, holds: bool, otherwise: impl FnOnce() -> String) {
        if holds { self.ok(step) } else { self.violated(entry.number, step, otherwise()) }
    }

    fn take(&mut self, entry: &Entry) {
        self.last = entry.number;
        match entry.what {
            What::Enter => self.enter(entry),
            What::Leave => self.leave(entry),
            What::Write { msr, value, refused } => self.write(entry, msr, value, refused),
            What::Wbinvd => self.flush_caches(entry),
            What::Cr0(value) => self.cr0(entry, value),
            What::Cr3 => self.cr3(entry),
            What::Cr4(value) => self.cr4(entry, value),
        }
    }

    fn enter(&mut self, entry: &Entry) {
        self.cycle = Cycle::default();
        self.visit = Some(Visit {
            vcpu: self.vcpu,
            entered: entry.number,
            left: None,
            interrupts: entry.interrupts,
            global_pages: entry.cr4 & GLOBAL_PAGES != 0,
            worked: None,
            let_in: None,
            set_up: entry.set_up,
        });
    }

    /// Something that has to be done with interrupts off, and that others wait for.
    fn work(&mut self, entry: &Entry, doing: &str) {
        self.check(entry, Step::InterruptsOff, !entry.interrupts, || format!("{doing} with RFLAGS.IF=1"));
        if let Some(visit) = &mut self.visit {
            let began = visit.worked.map(|(first, _)| first);
            visit.worked = Some((began.unwrap_or(entry.number), entry.number));
            if began.is_some() && entry.let_in.is_some() && !entry.interrupts {
                self.violated(entry.number, Step::InterruptsOff, format!("let interrupts in before it {doing}"));
            }
        }
    }

    fn write(&mut self, entry: &Entry, msr: u32, value: u64, refused: bool) {
        let doing = format!("writes {msr:#x}={value:#x}");
        self.work(entry, &doing);
        self.check(entry, Step::NoFill, entry.cr0 & CACHE_DISABLE != 0, || format!("{doing} with CR0.CD=0"));
        self.check(entry, Step::NoFill, entry.cr0 & NOT_WRITE_THROUGH == 0, || format!("{doing} with CR0.NW=1"));
        let pages_off = entry.cr4 & GLOBAL_PAGES == 0;
        self.check(entry, Step::GlobalPagesOff, pages_off, || format!("{doing} with CR4.PGE=1"));
        if self.visit.is_some() {
            self.before_first_write(entry, &doing);
        } else {
            UNSEEN.into_iter().for_each(|step| self.judged.find(step, Finding::NotObserved));
            self.others_inside(entry, &doing);
        }
        self.cycle.wrote = true;
        if refused {
            self.violated(entry.number, Step::Update, format!("{doing}, which the processor refuses"));
        } else if let Some(register) = Register::of_msr(msr) {
            self.program(entry, register, value, &doing);
        }
    }

    fn before_first_write(&mut self, entry: &Entry, doing: &str) {
        let Cycle { wrote, caches_flushed, flushed, .. } = self.cycle;
        if wrote {
            return;
        }
        self.check(entry, Step::FlushCaches, caches_flushed, || format!("{doing}, and no WBINVD came before it"));
        self.check(entry, Step::FlushTranslations, flushed, || {
            format!("{doing}, and translations were not flushed before it")
        });
    }

    /// Where it is not stepped: by what the others publish at this moment.
    fn others_inside(&mut self, entry: &Entry, doing: &str) {
        if entry.set_up {
            return;
        }
        let outside = entry.outside;
        let verb = if outside.len() == 1 { "is" } else { "are" };
        let what = || format!("{doing} while {outside} {verb} outside of the rendezvous");
        if self.mtrr.default_type & ENABLED != 0 {
            self.check(entry, Step::Barrier, outside.is_empty(), what);
            self.began_early = !outside.is_empty();
        } else if !outside.is_empty() && !self.began_early {
            // All had come, and one has left.
            self.violated(entry.number, Step::LastBarrier, what());
        }
    }

    /// Steps 8 to 10: the write itself.
    fn program(&mut self, entry: &Entry, register: Register, value: u64, doing: &str) {
        let before = self.mtrr;
        let now = before.with_register(register, value);
        self.mtrr = now;
        let (on_before, on_now) = (before.default_type & ENABLED != 0, now.default_type & ENABLED != 0);
        match (on_before, on_now) {
            (true, false) => self.ok(Step::Disable),
            (false, true) => {
                self.cycle.enabled = true;
                self.cycle.flushed_again = false;
                self.ok(Step::Enable);
            }
            (false, false) => self.ok(Step::Update),
            (true, true) => {
                self.ok(Step::Update);
                self.check(entry, Step::Disable, may_change_while_on(&before, register, value), || {
                    format!("{doing} with IA32_MTRR_DEF_TYPE.E=1")
                });
            }
        }
    }

    fn flush_caches(&mut self, entry: &Entry) {
        self.work(entry, "executes WBINVD");
        if self.cycle.flushed && !self.cycle.caches_flushed {
            self.violated(entry.number, Step::FlushCaches, "executes WBINVD only after translations were flushed");
        }
        self.cycle.caches_flushed = true;
    }

    fn cr3(&mut self, entry: &Entry) {
        self.work(entry, "reloads CR3");
        self.flush_translations();
    }

    fn flush_translations(&mut self) {
        let cycle = &mut self.cycle;
        if cycle.enabled {
            cycle.flushed_again |= !cycle.caches_on;
        } else if !cycle.wrote {
            cycle.flushed = true;
        }
    }

    fn cr4(&mut self, entry: &Entry, value: u64) {
        let (before, now) = (entry.cr4 & GLOBAL_PAGES != 0, value & GLOBAL_PAGES != 0);
        self.work(entry, if now { "sets CR4.PGE" } else { "writes CR4 with PGE=0" });
        if before == now {
            return;
        }
        // A change of PGE flushes all translations (SDM 3A 4.10.4.1).
        self.flush_translations();
        if now {
            let caches_on = entry.cr0 & CACHE_DISABLE == 0;
            self.check(entry, Step::GlobalPagesOn, caches_on, || "sets CR4.PGE with CR0.CD=1".to_owned());
        }
    }

    fn cr0(&mut self, entry: &Entry, value: u64) {
        let off = value & CACHE_DISABLE != 0;
        self.work(entry, if off { "writes CR0 with CD=1" } else { "writes CR0 with CD=0" });
        if off {
            if value & NOT_WRITE_THROUGH != 0 {
                self.violated(entry.number, Step::NoFill, "sets CR0.NW");
            }
            if entry.cr0 & CACHE_DISABLE == 0 {
                self.cycle = Cycle::default();
            }
        } else if self.cycle.wrote {
            self.enabled(entry, "writes CR0 with CD=0");
            self.flushed_again(entry, "writes CR0 with CD=0");
            self.cycle.caches_on = true;
            self.ok(Step::CachesOn);
        }
    }

    fn enabled(&mut self, entry: &Entry, doing: &str) {
        let on = self.mtrr.default_type & ENABLED != 0;
        self.check(entry, Step::Enable, on, || format!("{doing} with IA32_MTRR_DEF_TYPE.E=0"));
    }

    fn flushed_again(&mut self, entry: &Entry, doing: &str) {
        let Cycle { enabled, flushed_again, .. } = self.cycle;
        self.check(entry, Step::FlushAgain, flushed_again || !enabled, || {
            format!("{doing}, and translations were not flushed since IA32_MTRR_DEF_TYPE.E=1")
        });
    }

    fn leave(&mut self, entry: &Entry) {
        let Some(mut visit) = self.visit.take() else { return };
        if self.cycle.wrote {
            self.leave_cycle(entry, &visit);
        }
        visit.left = Some(entry.number);
        visit.let_in = entry.let_in;
        self.visits.push(visit);
    }

    fn leave_cycle(&mut self, entry: &Entry, visit: &Visit) {
        if !self.cycle.caches_on {
            self.enabled(entry, "leaves");
            self.flushed_again(entry, "leaves");
        }
        let bit = |register: u64, bit: u64| u8::from(register & bit != 0);
        self.check(entry, Step::CachesOn, entry.cr0 & CACHE_DISABLE == 0, || "leaves with CR0.CD=1".to_owned());
        let pages = entry.cr4 & GLOBAL_PAGES != 0;
        self.check(entry, Step::GlobalPagesOn, pages == visit.global_pages, || {
            format!(
                "leaves with CR4.PGE={}, entered with {}",
                bit(entry.cr4, GLOBAL_PAGES),
                u8::from(visit.global_pages)
            )
        });
        self.check(entry, Step::InterruptsOn, entry.interrupts == visit.interrupts, || {
            let (now, before) = (u8::from(entry.interrupts), u8::from(visit.interrupts));
            format!("leaves with RFLAGS.IF={now}, entered with {before}")
        });
    }

    fn end(self) {
        let Self { vcpu, run, judged, visits, mtrr, visit, last, .. } = self;
        if run.finished && visit.is_none() && mtrr.default_type & ENABLED == 0 {
            let what = "ends with IA32_MTRR_DEF_TYPE.E=0".to_owned();
            judged.violated(Violation { number: last, vcpu, step: Step::Enable, what });
        }
        visits.extend(visit);
    }
}

/// Whether a register may get this value while MTRRs are on: where nothing changes, where the register is not in use, or where
/// the range is only taken out of use or into use (step 8 of the manual allows that in the place of E=0).
fn may_change_while_on(before: &MtrrState, register: Register, value: u64) -> bool {
    let in_use = |range: usize| before.ranges[range].1 & VALID != 0;
    before.registers().any(|same| same == (register, value))
        || match register {
            Register::DefaultType => false,
            Register::Base(range) => !in_use(range),
            Register::Mask(range) => !in_use(range) || value & VALID == 0,
            Register::Fixed(_) => before.default_type & FIXED_ENABLED == 0,
            // Not under E: the type of a page comes from PAT and MTRRs together (SDM 3A 12.12.4).
            Register::Pat => true,
        }
}

/// Where vCPUs meet: nobody begins before all have come, and nobody leaves or lets interrupts in before all are done.
fn meetings(run: Run, visits: &[Visit], judged: &mut Judged) {
    for visit in visits.iter().filter(|visit| !visit.set_up) {
        let others = run.online.without(visit.vcpu);
        let violated = |number, step, what| Violation { number, vcpu: visit.vcpu, step, what };
        if let Some((first, _)) = visit.worked {
            let has_come = |vcpu: usize| visits.iter().any(|other| other.vcpu == vcpu && other.covers(first));
            match others.iter().find(|vcpu| !has_come(*vcpu)) {
                None => judged.find(Step::Barrier, Finding::Ok),
                Some(missing) => {
                    let what = format!("begins before vcpu{missing} has come");
                    judged.violated(violated(first, Step::Barrier, what));
                }
            }
        }
        let ends =
            [(visit.left, Step::LastBarrier, "leaves"), (visit.let_in, Step::InterruptsOn, "lets interrupts in")];
        for (number, step, doing) in ends {
            let Some(number) = number else { continue };
            let at_work =
                |other: &&Visit| other.vcpu != visit.vcpu && other.covers(number) && works_after(other, number);
            match visits.iter().find(at_work) {
                None => judged.find(step, Finding::Ok),
                Some(other) => {
                    let what = format!("{doing} before vcpu{} is done", other.vcpu);
                    judged.violated(violated(number, step, what));
                }
            }
        }
    }
}

fn works_after(visit: &Visit, number: u64) -> bool {
    visit.worked.is_some_and(|(_, last)| last > number)
}
