//! A machine that can run on: what commands ask of it, and the target that it is for them.
//!
//! Whoever drives the machine implements [`Live`]; commands never touch a machine, they look at a copy of it ([`LiveTarget`]). A
//! machine that runs is stopped for as long as it takes to make that copy, and no longer.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use serde_json::Value;
use stallbench_state::dump::{About, Dump};
use stallbench_state::machine::{MachineState, Registers, VcpuState};
use stallbench_state::memory::Memory;
use thiserror::Error;

use crate::target::Target;

/// A machine that can run on, held by somebody who may look into it. Dropping it lets the machine go on by itself, without its
/// stops.
pub trait Live: Send {
    /// Whether it runs, or why not. Never waits.
    fn state(&mut self) -> State;

    /// Waits until it does not run, no longer than `timeout`, and gives its state then.
    fn wait(&mut self, timeout: Duration) -> State;

    /// A copy of the machine as it stands, with what it is of. One that runs is stopped meanwhile, and goes on.
    fn look(&mut self) -> Result<Dump, LiveError>;

    /// Has it stand still from now on; its state is then [`State::Stopped`], with [`Why::Asked`] if nothing else stopped it.
    fn stop(&mut self) -> Result<(), LiveError>;

    /// Lets it go on until something stops it, as one that runs does already. At its end it gets its verdict.
    fn run(&mut self, until: Until) -> Result<(), LiveError>;

    /// One instruction of one vCPU, while all others stand still and no interrupt comes in between.
    fn step(&mut self, vcpu: usize) -> Result<(), LiveError>;

    /// Stops the machine from now on wherever a vCPU comes there. Gives the number of the stop, and how it is seen.
    fn add(&mut self, stop: Stop) -> Result<(u32, How), LiveError>;

    /// Takes a stop away: whether there was one of that number.
    fn remove(&mut self, number: u32) -> Result<bool, LiveError>;

    /// The stops, by number.
    fn stops(&mut self) -> Result<Vec<(u32, Stop, How)>, LiveError>;

    /// Writes guest-physical memory, all of it or nothing. The report of the run tells of it, as of everything below.
    fn write(&mut self, physical: u64, bytes: &[u8]) -> Result<(), LiveError>;

    /// Gives a vCPU these general registers.
    fn set_registers(&mut self, vcpu: usize, registers: &Registers) -> Result<(), LiveError>;

    /// Sends a vCPU a fixed interrupt of this vector, by its local APIC.
    fn interrupt(&mut self, vcpu: usize, vector: u8) -> Result<(), LiveError>;

    /// Sends a vCPU an NMI.
    fn nmi(&mut self, vcpu: usize) -> Result<(), LiveError>;

    /// Lets go the vCPUs that are held at a pause point of that name, and gives their numbers.
    fn release(&mut self, point: &str) -> Result<Vec<usize>, LiveError>;

    /// Tries to prove, now, that the machine can make no progress: what came of it, for people and for programs.
    fn prove(&mut self) -> Result<(String, Value), LiveError>;

    /// Counters of each vCPU that only a running machine has, by name; `Err` where this host has none.
    fn statistics(&mut self) -> Result<Vec<Vec<(String, u64)>>, LiveError>;

    /// Ends the run now, without a verdict: it was interrupted.
    fn end(&mut self);
}

/// Whether a machine runs.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It runs.
    Running,
    /// All its vCPUs stand still.
    Stopped(Why),
    /// There is no machine any more, or not yet one.
    Gone,
}

/// Why a machine stands still.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// It has not run yet.
    Start,
    /// Somebody asked.
    Asked,
    /// A vCPU has been stepped.
    Stepped {
        /// Which.
        vcpu: usize,
    },
    /// A vCPU came to a stop. It stands before the instruction where it executes, behind it where it writes or reads.
    At {
        /// The number of the stop.
        number: u32,
        /// Which vCPU; `None` where that cannot be said.
        vcpu: Option<usize>,
    },
    /// There was progress.
    Progress {
        /// Of which vCPU.
        vcpu: usize,
    },
    /// The run is over: the machine as it was when it got its verdict. When it goes on it is gone.
    End {
        /// What the report for people says of it, whole lines.
        text: String,
        /// The same, as a line of a JSON report has it (docs/json.md).
        result: Value,
    },
}

/// What may stop a machine that goes on, beside its stops and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    /// Progress of any vCPU.
    pub progress: bool,
}

/// Where a machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Before the instruction at this linear address.
    Execute {
        /// The address.
        linear: u64,
        /// Only this vCPU; `None`: any.
        vcpu: Option<usize>,
    },
    /// Behind an instruction that writes there, or if `reads` reads or writes; a write of what is there already may go unseen.
    Access {
        /// The linear address, as vCPU 0 maps it.
        linear: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: usize,
        /// Reads too.
        reads: bool,
    },
}

/// How a stop is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By the processor's breakpoints: the machine runs at its full speed.
    Breakpoint,
    /// By stepping every instruction of every vCPU: the machine takes some tens of times as long.
    Stepping,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Breakpoint => "by a breakpoint of the processor",
            Self::Stepping => "by stepping every instruction",
        })
    }
}

/// Why a machine did not do what was asked. Each message is a fragment that reads well after "failed to" or by itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// There is no machine any more, or not yet one.
    #[error("there is no machine: its run is over, or has not begun")]
    Gone,
    /// It has to stand still for that.
    #[error("the machine runs; `stop` it first")]
    Running,
    /// It did not do it.
    #[error("{0}")]
    Refused(String),
}

/// A live machine as a target: commands look at the last copy.
pub struct LiveTarget {
    live: Box<dyn Live>,
    now: Dump,
    /// As it was at the last look before this at which it was another.
    then: Option<Dump>,
    /// It may have changed since.
    is_old: bool,
}

impl fmt::Debug for LiveTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveTarget").field("now", &self.now).field("is_old", &self.is_old).finish_non_exhaustive()
    }
}

impl LiveTarget {
    /// Takes the first look.
    pub fn new(mut live: Box<dyn Live>) -> Result<Self, LiveError> {
        let now = live.look()?;
        Ok(Self { live, now, then: None, is_old: true })
    }
}

impl Target for LiveTarget {
    fn about(&self) -> &About {
        &self.now.about
    }

    fn machine(&self) -> &MachineState {
        &self.now.machine
    }

    fn memory(&self) -> &dyn Memory {
        &self.now.memory
    }

    fn filled(&self) -> Vec<Range<u64>> {
        self.now.filled()
    }

    fn payload(&self) -> &[u8] {
        &self.now.payload
    }

    fn is_live(&self) -> bool {
        true
    }

    fn dump(&self) -> Option<&Dump> {
        Some(&self.now)
    }

    /// Takes another look, if the machine may have changed.
    fn refresh(&mut self) -> Result<(), LiveError> {
        let state = self.live.state();
        if self.is_old || state == State::Running {
            let before = std::mem::replace(&mut self.now, self.live.look()?);
            // A machine that did nothing since is still to be compared with what it was before that.
            if has_moved(&before, &self.now) {
                self.then = Some(before);
            }
        }
        self.is_old = state == State::Running;
        Ok(())
    }

    fn then(&self) -> Option<&Dump> {
        self.then.as_ref()
    }

    fn state(&mut self) -> Option<State> {
        Some(self.live.state())
    }

    /// The machine itself; it is taken to have changed by what follows.
    fn live(&mut self) -> Option<&mut dyn Live> {
        self.is_old = true;
        Some(&mut *self.live)
    }
}

/// Whether a machine is another than it was, beyond its clocks.
fn has_moved(before: &Dump, now: &Dump) -> bool {
    let is_same = |(a, b): (&VcpuState, &VcpuState)| {
        (&a.registers, &a.system, &a.apic, &a.events, &a.mp_state, &a.mtrr)
            == (&b.registers, &b.system, &b.apic, &b.events, &b.mp_state, &b.mtrr)
    };
    let (before_vcpus, vcpus) = (&before.machine.vcpus, &now.machine.vcpus);
    before_vcpus.len() != vcpus.len() || !before_vcpus.iter().zip(vcpus).all(is_same) || before.memory != now.memory
}
