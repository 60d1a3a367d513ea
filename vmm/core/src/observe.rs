//! Being told of what vCPUs do at the moment they do it: accesses to chosen model-specific registers, and each instruction of a
//! chosen procedure.
//!
//! An observer is called by the thread of the vCPU that acts, outside the guest and before it goes on; the other vCPUs run on
//! meanwhile. An access stops its vCPU by KVM's MSR filter (KVM api.rst 4.97 and 7.21) and is then done in its place; an
//! instruction by a breakpoint of the processor at the procedure's entry and single steps from there to its exit (KVM api.rst
//! 4.87). Outside of the procedure nothing is stepped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap, kvm_guest_debug,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use stallbench_state::machine::{Registers, SystemRegisters};
use thiserror::Error;

use crate::breakpoint::{self, BREAK, Breakpoint, STEP_ALONE};
use crate::host::HostKvm;
use crate::memory::GuestMemory;

/// Entries of a procedure that a processor has breakpoints for (DR0 to DR3).
pub const MOST_ENTRIES: usize = breakpoint::MOST;
/// MSRs of a range at most: what a bitmap here has room for.
const MOST_MSRS: u32 = 64;

/// Model-specific registers, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// The first.
    pub first: u32,
    /// How many, at most 64.
    pub count: u32,
}

/// Code that is stepped, from an entry until an exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Procedure {
    /// Addresses of the instructions at which it begins, at most [`MOST_ENTRIES`].
    pub entries: Vec<u64>,
    /// Addresses of the instructions at which it is over.
    pub exits: Vec<u64>,
}

/// The registers of a vCPU at the moment of which an observer is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Its place among all that observers of this machine are told, across vCPUs.
    pub number: u64,
    /// The vCPU.
    pub vcpu: usize,
    /// General registers; RIP is that of the instruction.
    pub registers: Registers,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
}

/// An access to a model-specific register. It has been done when the observer is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsrAccess {
    /// When, and by whom.
    pub moment: Moment,
    /// The register.
    pub msr: u32,
    /// Written, not read.
    pub write: bool,
    /// What was written, or read.
    pub value: u64,
    /// KVM did not take it: the guest gets #GP, and nothing has changed.
    pub refused: bool,
}

/// Where in a procedure a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an entry.
    Entry,
    /// Between an entry and an exit.
    Inside,
    /// At an exit.
    Exit,
}

/// Is told of what vCPUs do. Called by their threads, several at once.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A vCPU has accessed a register.
    fn accessed(&self, access: &MsrAccess, memory: &GuestMemory);
    /// A vCPU is about to execute the instruction at RIP. It can be told twice of one that it executes once: some processors
    /// stop once more at the first touch of a page.
    fn stepped(&self, moment: &Moment, place: Place, memory: &GuestMemory);
}

/// Why a machine cannot be observed. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// KVM lacks what it takes.
    #[error("{what}: kvm lacks {}", .missing.join(", "))]
    Missing {
        /// What was asked for.
        what: &'static str,
        /// Names of the capabilities.
        missing: Vec<&'static str>,
    },
    /// KVM refused to have accesses stop a vCPU.
    #[error("have accesses to msrs stop a vcpu ({ioctl})")]
    Filter {
        /// Which ioctl.
        ioctl: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused to stop a vCPU at the entry of the procedure.
    #[error("stop vcpu {vcpu} at the entry of the procedure (KVM_SET_GUEST_DEBUG)")]
    Debug {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused to stop a vCPU at writes.
    #[error("have writes stop vcpu {vcpu} (KVM_SET_GUEST_DEBUG)")]
    Watch {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The procedure has more entries than a processor has breakpoints, or none.
    #[error("step a procedure with {0} entries: 1 to {MOST_ENTRIES} can be waited for")]
    Entries(usize),
    /// The machine runs already.
    #[error("observe a machine that has been started")]
    Started,
}

/// Has accesses to these registers stop the vCPU that makes them.
pub(crate) fn filter(host: &HostKvm, vm: &VmFd, ranges: &[MsrRange]) -> Result<(), ObserveError> {
    let needed = ["x86-user-space-msr", "x86-msr-filter"];
    require(host, "see accesses to msrs", &needed)?;
    let failed = |ioctl| move |source| ObserveError::Filter { ioctl, source };
    let reasons = u64::from(KVM_MSR_EXIT_REASON_FILTER);
    let capability = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args: [reasons, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&capability).map_err(failed("KVM_ENABLE_CAP"))?;
    // A clear bit denies the access, which is what makes it an exit.
    const DENIED: [u8; MOST_MSRS as usize / 8] = [0; MOST_MSRS as usize / 8];
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = |range: &MsrRange| MsrFilterRange { flags, base: range.first, msr_count: range.count, bitmap: &DENIED };
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges).map_err(failed("KVM_X86_SET_MSR_FILTER"))
}

/// Refuses a procedure that this host cannot step.
pub(crate) fn check_steps(host: &HostKvm, procedure: &Procedure) -> Result<(), ObserveError> {
    let what = "step a procedure";
    require(host, what, &["set-guest-debug"])?;
    let flags = host.kvm().check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into()).cast_unsigned();
    if flags & (STEP_ALONE | BREAK) != STEP_ALONE | BREAK {
        return Err(ObserveError::Missing { what, missing: vec!["single steps with interrupts held back"] });
    }
    match procedure.entries.len() {
        1..=MOST_ENTRIES => Ok(()),
        entries => Err(ObserveError::Entries(entries)),
    }
}

fn require(host: &HostKvm, what: &'static str, names: &[&'static str]) -> Result<(), ObserveError> {
    let missing: Vec<_> = names.iter().copied().filter(|name| !host.has(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(ObserveError::Missing { what, missing }) }
}

/// What a vCPU's thread needs to tell an observer.
#[derive(Clone, Debug)]
pub(crate) struct Telling {
    observer: Arc<dyn Observer>,
    /// Counts all that is told, of all vCPUs.
    clock: Arc<AtomicU64>,
    procedure: Option<Arc<Procedure>>,
    /// It is between an entry and an exit.
    inside: bool,
}

impl Telling {
    pub(crate) fn new(observer: Arc<dyn Observer>, procedure: Option<Procedure>) -> Self {
        let procedure = procedure.map(Arc::new);
        Self { observer, clock: Arc::new(AtomicU64::new(0)), procedure, inside: false }
    }

    /// The moment that is now, for a vCPU with these registers.
    pub(crate) fn moment(&self, vcpu: usize, registers: Registers, system: &SystemRegisters) -> Moment {
        let number = self.clock.fetch_add(1, Ordering::Relaxed);
        Moment { number, vcpu, registers, cr0: system.cr0, cr3: system.cr3, cr4: system.cr4 }
    }

    pub(crate) fn accessed(&self, access: &MsrAccess, memory: &GuestMemory) {
        self.observer.accessed(access, memory);
    }

    /// A stop at a breakpoint or after a step: tells of it, and says how the vCPU is to be debugged from here on, where that
    /// changes.
    pub(crate) fn stopped(&mut self, moment: &Moment, memory: &GuestMemory) -> Option<kvm_guest_debug> {
        let procedure = self.procedure.clone()?;
        let rip = moment.registers.rip;
        let place = match (self.inside, procedure.exits.contains(&rip), procedure.entries.contains(&rip)) {
            (true, true, _) => Place::Exit,
            (true, false, _) => Place::Inside,
            (false, _, true) => Place::Entry,
            // The last step of a procedure can be told twice.
            (false, _, false) => return None,
        };
        self.inside = place != Place::Exit;
        self.observer.stepped(moment, place, memory);
        match place {
            // For each step anew: where KVM emulates an instruction it writes RFLAGS back without TF, unless RIP is still where
            // this was last asked for (`__kvm_set_rflags()` in arch/x86/kvm/x86.c).
            Place::Entry | Place::Inside => Some(kvm_guest_debug { control: STEP_ALONE, ..Default::default() }),
            Place::Exit => Some(at_entries(&procedure)),
        }
    }

    /// How a vCPU is to be debugged before it runs, if it is.
    pub(crate) fn at_first(&self) -> Option<kvm_guest_debug> {
        self.procedure.as_deref().map(at_entries)
    }
}

/// Breakpoints at the entries: of executions, one byte (SDM 3B 18.2.4).
fn at_entries(procedure: &Procedure) -> kvm_guest_debug {
    breakpoint::debug(procedure.entries.iter().copied().map(Breakpoint::Execute))
}

#[cfg(test)]
mod test {
    use super::*;

    /// Knows nothing and keeps nothing.
    #[derive(Debug)]
    struct Deaf;

    impl Observer for Deaf {
        fn accessed(&self, _: &MsrAccess, _: &GuestMemory) {}
        fn stepped(&self, _: &Moment, _: Place, _: &GuestMemory) {}
    }

    fn at(rip: u64) -> Moment {
        Moment { registers: Registers { rip, ..Registers::default() }, ..Moment::default() }
    }

    #[test]
    fn procedure_is_stepped_from_its_entry_to_its_exit_and_waited_for_again() {
        let memory = GuestMemory::new(1).expect("memory");
        let procedure = Procedure { entries: vec![0x1000, 0x3000], exits: vec![0x2000] };
        let mut telling = Telling::new(Arc::new(Deaf), Some(procedure));
        let mut control = |rip| telling.stopped(&at(rip), &memory).map(|debug| debug.control);
        assert_eq!(control(0x1234), None, "a stop that nobody asked for changes nothing");
        assert_eq!(control(0x1000), Some(STEP_ALONE));
        assert_eq!(control(0x1001), Some(STEP_ALONE), "each step is asked for");
        assert_eq!(control(0x3000), Some(STEP_ALONE), "an entry within is a step");
        assert_eq!(control(0x2000), Some(BREAK));
        assert_eq!(control(0x2000), None, "an exit that is told twice ends nothing more");
        assert_eq!(control(0x3000), Some(STEP_ALONE));
    }

    #[test]
    fn moments_of_all_vcpus_are_numbered_in_one_order() {
        let one = Telling::new(Arc::new(Deaf), None);
        let other = one.clone();
        let number = |telling: &Telling| telling.moment(0, Registers::default(), &SystemRegisters::default()).number;
        assert_eq!([number(&one), number(&other), number(&one)], [0, 1, 2]);
    }
}
