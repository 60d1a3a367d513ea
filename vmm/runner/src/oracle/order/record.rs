//! What is kept of what vCPUs do: accesses to MTRRs, and of the instructions of the procedure those that matter.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stallbench_abi::layout::{private, private_area};
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_core::memory::GuestMemory;
use stallbench_core::observe::{Moment, MsrAccess, Observer, Place};
use stallbench_stall::set::VcpuSet;
use stallbench_state::memory::Memory;

use super::instruction::{Decoded, decode};

/// Entries of one vCPU that are kept; a guest that makes more is not followed to its end.
const MOST_ENTRIES: usize = 1 << 16;
/// Longest instruction of the architecture.
const LONGEST_INSTRUCTION: usize = 15;

/// Something that a vCPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It came to the entry of the procedure.
    Enter,
    /// It came to the exit of the procedure.
    Leave,
    /// It wrote an MTRR.
    Write {
        /// Which.
        msr: u32,
        /// What.
        value: u64,
        /// The value was not taken.
        refused: bool,
    },
    /// WBINVD.
    Wbinvd,
    /// A write to CR0.
    Cr0(u64),
    /// A write to CR3.
    Cr3,
    /// A write to CR4.
    Cr4(u64),
}

/// Something that a vCPU did, and what it was like just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place among all entries of all vCPUs.
    pub number: u64,
    /// What it did.
    pub what: What,
    /// RFLAGS.IF.
    pub interrupts: bool,
    /// When RFLAGS.IF last went from 0 to 1 since the entry before; only where it is stepped.
    pub let_in: Option<u64>,
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// The other vCPUs that were online and outside of any rendezvous.
    pub outside: VcpuSet,
    /// It set up what its protocol will find: nothing of the protocol is asked of it.
    pub set_up: bool,
}

/// What one vCPU did.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) entries: Vec<Entry>,
    pub(super) accesses: u64,
    pub(super) instructions: u64,
    /// Something that it did is not among the entries, and why.
    pub(super) gap: Option<&'static str>,
    last: Last,
    decoded: HashMap<u64, Option<Decoded>>,
}

/// The last instruction that was told.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    rip: Option<u64>,
    next: Option<u64>,
    interrupts: bool,
    let_in: Option<u64>,
}

/// Keeps what it is told.
#[derive(Debug)]
pub struct Recorder {
    logs: Vec<Mutex<Log>>,
}

impl Recorder {
    /// For a machine of so many vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self { logs: (0..vcpus).map(|_| Mutex::default()).collect() }
    }

    /// What has been kept, by vCPU.
    pub(super) fn logs(&self) -> Vec<Log> {
        (0..self.logs.len()).filter_map(|vcpu| self.log(vcpu).map(|log| log.clone())).collect()
    }

    /// A thread that panicked while it held the lock left the log whole: each change of it is complete.
    fn log(&self, vcpu: usize) -> Option<MutexGuard<'_, Log>> {
        Some(self.logs.get(vcpu)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn entry(&self, moment: &Moment, what: What, memory: &impl Memory) -> Entry {
        Entry {
            number: moment.number,
            what,
            interrupts: moment.registers.interrupts_enabled(),
            let_in: None,
            cr0: moment.cr0,
            cr4: moment.cr4,
            outside: outside(memory, moment.vcpu, self.logs.len()),
            set_up: field(memory, moment.vcpu, offset_of!(VcpuPage, set_up)) != 0,
        }
    }
}

impl Observer for Recorder {
    fn accessed(&self, access: &MsrAccess, memory: &GuestMemory) {
        let Some(mut log) = self.log(access.moment.vcpu) else { return };
        log.accesses += 1;
        if access.write {
            let what = What::Write { msr: access.msr, value: access.value, refused: access.refused };
            log.keep(self.entry(&access.moment, what, memory));
        }
    }

    fn stepped(&self, moment: &Moment, place: Place, memory: &GuestMemory) {
        let Some(mut log) = self.log(moment.vcpu) else { return };
        if !log.follows(moment, place) {
            return;
        }
        let what = match place {
            Place::Entry => Some(What::Enter),
            Place::Exit => Some(What::Leave),
            Place::Inside => log.instruction(moment, memory),
        };
        if let Some(what) = what {
            log.keep(self.entry(moment, what, memory));
        }
    }
}

impl Log {
    fn keep(&mut self, entry: Entry) {
        if self.entries.len() < MOST_ENTRIES {
            self.entries.push(Entry { let_in: self.last.let_in.take(), ..entry });
        } else {
            self.gap = Some("a vCPU did more than is kept");
        }
    }

    /// Takes in that a vCPU has come to an instruction; false where it is told for the second time of the same one.
    fn follows(&mut self, moment: &Moment, place: Place) -> bool {
        let (rip, interrupts) = (moment.registers.rip, moment.registers.interrupts_enabled());
        if place == Place::Entry {
            self.last = Last { interrupts, ..Last::default() };
        } else if self.last.rip == Some(rip) && self.last.next.is_some() {
            return false;
        } else if self.last.next.is_some_and(|next| next != rip) {
            // An NMI, or a step that was not told.
            self.gap = Some("a step of the procedure was not seen");
        }
        if interrupts && !self.last.interrupts {
            self.last.let_in = Some(moment.number);
        }
        self.last = Last { rip: Some(rip), next: None, interrupts, ..self.last };
        self.instructions += 1;
        true
    }

    /// What matters of the instruction that comes next, if anything does.
    fn instruction(&mut self, moment: &Moment, memory: &impl Memory) -> Option<What> {
        let rip = moment.registers.rip;
        let decoded = self.decoded.entry(rip).or_insert_with(|| {
            let mut bytes = [0; LONGEST_INSTRUCTION];
            if memory.read(rip, &mut bytes) { decode(&bytes, rip) } else { None }
        });
        let Some(decoded) = decoded else {
            self.gap = Some("an instruction of the procedure could not be read");
            return None;
        };
        self.last.next = decoded.next;
        decoded.what(&moment.registers)
    }
}

/// The vCPUs other than this one that are online and inside no rendezvous, as they publish at this moment.
fn outside(memory: &impl Memory, vcpu: usize, vcpus: usize) -> VcpuSet {
    let is_outside = |other: &usize| {
        let phase = Phase(field(memory, *other, offset_of!(VcpuPage, phase)));
        let online = matches!(phase, Phase::ONLINE | Phase::CASE | Phase::FINISHED);
        online && field(memory, *other, offset_of!(VcpuPage, rendezvous)) == 0
    };
    (0..vcpus).filter(|other| *other != vcpu).filter(is_outside).collect()
}

fn field(memory: &impl Memory, vcpu: usize, offset: usize) -> u32 {
    memory.read_u32(private(vcpu) + private_area::PAGE_PUBLISHED + offset as u64).unwrap_or_default()
}
