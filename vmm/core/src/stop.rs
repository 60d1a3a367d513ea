//! Where a machine stops by itself: before an instruction, or behind one that touches a word.
//!
//! Each stop is a breakpoint of the processor (SDM 3B 18.2), given to every vCPU by its own thread
//! ([`Paused::set_stops`](crate::Paused::set_stops)). Where breakpoints on words do not fire
//! ([`HostKvm::watches_writes`](crate::HostKvm::watches_writes)), every instruction of every vCPU can be a step instead
//! ([`Stops::stepping`]), which sees who changes a word, and takes the machine some tens of times as long. A vCPU that comes to one sends
//! [`MachineEvent::Stopped`](crate::MachineEvent) and stands still until that event has been taken and the machine goes on from a later
//! pause; the others run on meanwhile.
//!
//! A visit that steps a vCPU comes past no stop either: its step is refused there ([`StepError::AtStop`](crate::StepError)), and the
//! vCPU comes to the stop when the machine goes on. Only [`Paused::step`](crate::Paused::step) does, since whoever asks for that sees
//! where the vCPU stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_guest_debug;
use stallbench_state::memory::Memory;
use thiserror::Error;

use crate::breakpoint::{self, Breakpoint};
use crate::floor::Floor;
use crate::machine::VisitError;
use crate::memory::GuestMemory;
use crate::watch::{self, Word};

/// Stops that a vCPU has breakpoints for (DR0 to DR3).
pub const MOST_STOPS: usize = breakpoint::MOST;

/// All stops of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Linear addresses of instructions, each for one vCPU or for all.
    pub execute: Vec<(u64, Option<usize>)>,
    /// Words.
    pub access: Vec<Watched>,
    /// See them by stepping every instruction of every vCPU, and not by breakpoints: any number of them. Reads do not show so, nor
    /// does a write of what was there already.
    pub stepping: bool,
}

/// A word that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The word: 1, 2, 4 or 8 aligned bytes.
    pub word: Word,
    /// A read is a stop too.
    pub reads: bool,
}

/// What a vCPU came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// It stands before the instruction of a stop.
    Execute {
        /// RIP.
        rip: u64,
    },
    /// It stands behind an instruction that touched a word.
    Access {
        /// Which of [`Stops::access`].
        word: usize,
        /// RIP behind the instruction.
        behind: u64,
    },
}

/// Why a machine was not given its stops. Each message is a fragment that reads well after "failed to".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StopError {
    /// A processor has not so many breakpoints.
    #[error(
        "set {asked} stops for vcpu {vcpu}: a processor has breakpoints for {MOST_STOPS}, of instructions and words together"
    )]
    TooMany {
        /// The vCPU.
        vcpu: usize,
        /// How many it was to have.
        asked: usize,
    },
    /// There is no such vCPU.
    #[error("set a stop for vcpu {0}: there is no such vcpu")]
    NoVcpu(usize),
    /// No breakpoint covers just this word.
    #[error("watch {size} bytes at {linear:#x}: it takes 1, 2, 4 or 8 bytes at a multiple of that")]
    Word {
        /// The linear address.
        linear: u64,
        /// The size in bytes.
        size: usize,
    },
    /// The vCPUs' debugging serves something else.
    #[error("set stops: the vcpus' breakpoints serve {0}")]
    Taken(&'static str),
    /// A read changes nothing.
    #[error("see reads by steps: only a write that changes a word shows")]
    Reads,
    /// It cannot be looked at.
    #[error("watch {physical:#x} by steps: it is no guest memory")]
    NoMemory {
        /// The guest-physical address.
        physical: u64,
    },
    /// KVM refused.
    #[error("set the stops of vcpu {vcpu} (KVM_SET_GUEST_DEBUG): errno {errno}")]
    Refused {
        /// The vCPU.
        vcpu: usize,
        /// What KVM said.
        errno: i32,
    },
    /// The vCPUs did not come to it.
    #[error(transparent)]
    Visit(#[from] VisitError),
}

/// A breakpoint of a vCPU and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The instruction at this linear address.
    Execute(u64),
    /// The word of this index.
    Access(usize),
}

/// Stops that are in force.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    stops: Stops,
    /// What the words held when they were last looked at.
    values: Mutex<Vec<[u8; 8]>>,
    /// For whom it is to step.
    floor: Floor,
}

impl Armed {
    /// Checks stops for a machine of so many vCPUs.
    pub(crate) fn new(stops: &Stops, vcpus: usize, memory: &GuestMemory) -> Result<Self, StopError> {
        if let Some(vcpu) = stops.execute.iter().filter_map(|(_, vcpu)| *vcpu).find(|vcpu| *vcpu >= vcpus) {
            return Err(StopError::NoVcpu(vcpu));
        }
        let odd = |word: &Word| !matches!(word.size, 1 | 2 | 4 | 8) || !word.linear.is_multiple_of(word.size as u64);
        if let Some(Watched { word, .. }) = stops.access.iter().find(|watched| odd(&watched.word)) {
            return Err(StopError::Word { linear: word.linear, size: word.size });
        }
        let armed = Self { stops: stops.clone(), ..Self::default() };
        if stops.stepping {
            check_stepped(stops, memory)?;
            return Ok(armed);
        }
        let asked = |vcpu| (vcpu, armed.slots(vcpu).count());
        match (0..vcpus).map(asked).find(|(_, asked)| *asked > MOST_STOPS) {
            Some((vcpu, asked)) => Err(StopError::TooMany { vcpu, asked }),
            None => Ok(armed),
        }
    }

    /// There are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.stops.execute.is_empty() && self.stops.access.is_empty()
    }

    /// Every vCPU is stepped.
    pub(crate) fn steps(&self) -> bool {
        self.stops.stepping
    }

    /// For whom it is to step.
    pub(crate) fn floor(&self) -> &Floor {
        &self.floor
    }

    /// The first word that has changed since they were last looked at.
    pub(crate) fn changed(&self, memory: &GuestMemory) -> Option<usize> {
        let now = self.stops.access.iter().map(|watched| watch::value(&watched.word, memory));
        let now: Vec<_> = now.collect();
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *values, now);
        // There is nothing to compare with at the first look.
        (0..before.len()).find(|&word| before[word] != values[word])
    }

    /// The breakpoints of a vCPU, in DR0 and on: words first, so that they keep their places without the instructions.
    pub(crate) fn slots(&self, vcpu: usize) -> impl Iterator<Item = Slot> {
        let words = (0..self.stops.access.len()).map(Slot::Access);
        let of_it = move |whom: &Option<usize>| whom.is_none_or(|whom| whom == vcpu);
        let instructions = self.stops.execute.iter().filter(move |(_, whom)| of_it(whom));
        words.chain(instructions.map(|(linear, _)| Slot::Execute(*linear)))
    }

    /// Whether a vCPU stops before the instruction at this linear address.
    pub(crate) fn executes(&self, vcpu: usize, linear: u64) -> bool {
        self.slots(vcpu).any(|slot| slot == Slot::Execute(linear))
    }

    /// How a vCPU is debugged that is to stop there.
    pub(crate) fn debug(&self, vcpu: usize) -> kvm_guest_debug {
        match self {
            _ if self.is_empty() => return kvm_guest_debug::default(),
            // Each step is asked for.
            _ if self.steps() => return kvm_guest_debug { control: breakpoint::STEP, ..Default::default() },
            _ => {}
        }
        breakpoint::debug(self.slots(vcpu).map(|slot| self.breakpoint(slot)))
    }

    /// How a vCPU is debugged that is to execute one instruction without stopping before it.
    pub(crate) fn debug_step(&self) -> kvm_guest_debug {
        let words = (0..self.stops.access.len()).map(|index| self.breakpoint(Slot::Access(index)));
        let mut debug = breakpoint::debug(words);
        debug.control |= breakpoint::STEP_ALONE;
        debug
    }

    fn breakpoint(&self, slot: Slot) -> Breakpoint {
        match slot {
            Slot::Execute(linear) => Breakpoint::Execute(linear),
            Slot::Access(index) => match self.stops.access[index] {
                Watched { word, reads: true } => Breakpoint::Access(word),
                Watched { word, reads: false } => Breakpoint::Write(word),
            },
        }
    }

    /// What a vCPU came to whose debug exit told this: RIP, linear and as it has it, and DR6 (bits 3:0, SDM 3B 18.2.3).
    pub(crate) fn hit(&self, vcpu: usize, (linear, rip): (u64, u64), dr6: u64) -> Option<Hit> {
        let touched = (0..self.stops.access.len()).find(|index| dr6 >> index & 1 != 0);
        let access = touched.map(|word| Hit::Access { word, behind: rip });
        access.or_else(|| self.executes(vcpu, linear).then_some(Hit::Execute { rip }))
    }
}

/// Refuses what does not show by steps.
fn check_stepped(stops: &Stops, memory: &GuestMemory) -> Result<(), StopError> {
    let unreadable = |word: &Word| !memory.read(word.physical, &mut [0; 8][..word.size]);
    for Watched { word, reads } in &stops.access {
        match word.physical {
            _ if *reads => return Err(StopError::Reads),
            physical if unreadable(word) => return Err(StopError::NoMemory { physical }),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a vCPU stands still at a stop, shared by its thread and the machine: up to which order of the board.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicU64);

impl Held {
    /// Thread: it came to a stop, and is about to tell.
    pub(crate) fn hold(&self) {
        self.0.store(u64::MAX, Ordering::SeqCst);
    }

    /// Asker: the stop was told, while this was the number of the latest order.
    pub(crate) fn told(&self, number: u64) {
        self.0.store(number + 1, Ordering::SeqCst);
    }

    /// Asker: nobody is told any more.
    pub(crate) fn release(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Thread: whether the order of this number does not let it go on.
    pub(crate) fn is_held(&self, number: u64) -> bool {
        number < self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn word(linear: u64, size: usize) -> Word {
        Word { linear, physical: linear, size }
    }

    fn watched(linear: u64, size: usize) -> Watched {
        Watched { word: word(linear, size), reads: false }
    }

    fn armed(stops: &Stops, vcpus: usize) -> Result<Armed, StopError> {
        Armed::new(stops, vcpus, &GuestMemory::plain(2 << 20).expect("memory"))
    }

    #[test]
    fn stops_of_one_vcpu_take_no_breakpoint_of_another() {
        let execute = (0..8).map(|index| (0x1000 + index, Some(index as usize / 4))).collect();
        let stops = Stops { execute, ..Stops::default() };
        let taken = armed(&stops, 2).expect("four of each vcpu");
        assert!(taken.executes(0, 0x1003) && !taken.executes(1, 0x1003));
        let more = Stops { access: vec![watched(0x9000, 4)], ..stops };
        assert_eq!(armed(&more, 2).expect_err("a fifth"), StopError::TooMany { vcpu: 0, asked: 5 });
    }

    #[test]
    fn stop_that_no_breakpoint_can_be_is_refused() {
        let stops = |execute, access| Stops { execute, access, stepping: false };
        let refused = |stops| armed(&stops, 2).expect_err("it is refused");
        assert_eq!(refused(stops(vec![(0, Some(2))], vec![])), StopError::NoVcpu(2));
        for (linear, size) in [(0x9001, 2), (0x9004, 8), (0x9000, 3), (0x9000, 0)] {
            assert_eq!(refused(stops(vec![], vec![watched(linear, size)])), StopError::Word { linear, size });
        }
    }

    #[test]
    fn stops_that_are_seen_by_steps_are_any_number_of_writes_to_memory() {
        let many = (0..20).map(|index| watched(0x9000 + 8 * index, 8)).collect();
        let stops = Stops { access: many, stepping: true, ..Stops::default() };
        assert!(armed(&stops, 1).is_ok());
        let reads = vec![Watched { reads: true, ..watched(0x9000, 8) }];
        let refused = |access| armed(&Stops { access, ..stops.clone() }, 1).expect_err("it is refused");
        assert_eq!(refused(reads), StopError::Reads);
        assert_eq!(refused(vec![watched(0x20_0000, 8)]), StopError::NoMemory { physical: 0x20_0000 });
    }

    #[test]
    fn word_has_changed_since_it_was_last_looked_at() {
        let memory = GuestMemory::plain(2 << 20).expect("memory");
        let stops = Stops { access: vec![watched(0x9000, 4), watched(0x9008, 1)], stepping: true, ..Stops::default() };
        let taken = Armed::new(&stops, 1, &memory).expect("they are taken");
        let write = |address| assert!(memory.write(address, &[7]));
        write(0x9008);
        assert_eq!(taken.changed(&memory), None, "the first look");
        write(0x9000);
        write(0x9009);
        assert_eq!((taken.changed(&memory), taken.changed(&memory)), (Some(0), None));
    }

    #[test]
    fn exit_tells_the_word_before_the_instruction_behind_its_writer() {
        let stops = Stops { execute: vec![(0x1000, None)], access: vec![watched(0x9000, 4); 2], stepping: false };
        let taken = armed(&stops, 1).expect("they are taken");
        let hit = |rip, dr6| taken.hit(0, (rip, rip), dr6);
        assert_eq!(hit(0x1000, 0b10), Some(Hit::Access { word: 1, behind: 0x1000 }));
        assert_eq!(hit(0x1000, 0b100), Some(Hit::Execute { rip: 0x1000 }));
        assert_eq!(hit(0x1000, 0), Some(Hit::Execute { rip: 0x1000 }));
        assert_eq!(hit(0x1001, 0b100), None, "nothing that is asked for");
    }

    #[test]
    fn vcpu_is_held_until_an_order_after_it_was_told() {
        let held = Held::default();
        assert!(!held.is_held(0));
        held.hold();
        assert!(held.is_held(7));
        held.told(7);
        assert!(held.is_held(7) && !held.is_held(8));
        held.hold();
        held.release();
        assert!(!held.is_held(0));
    }
}
