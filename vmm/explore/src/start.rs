//! From the first instruction to the start line: once, in one order.
//!
//! vCPU 0 goes first; another goes on for as long as it has to for vCPU 0 to get to its doorbell. Each goes on until it accesses what
//! vCPUs share, up and with its part of the case before it. That is further than all are known to be at the start line: behind the last
//! thing that it did for others to see it may be as slow as any, and what comes to it may come there. So it is put back to there.

use stallbench_abi::layout::{private, private_area};
use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_core::controlled::{Controlled, ProcessorState, Stop};
use stallbench_state::memory::{Memory, read_plain};
use thiserror::Error;

use crate::apic::{Message, command};
use crate::arena::Arenas;
use crate::devices::{Devices, Served, is_xapic};
use crate::local::{Base, Local, Parked};

/// Stops that a bring-up takes at most: some hundred a vCPU.
const MOST_STOPS: usize = 200_000;
/// Stops in a row of one vCPU, while others can go on.
const TURN: usize = 64;

/// Why a guest does not come to its start line. Each message is a fragment that reads well after "failed to".
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// It does something else instead.
    #[error("bring the guest to its start line: vcpu {vcpu} {what}")]
    Astray {
        /// The vCPU.
        vcpu: usize,
        /// What it does.
        what: String,
    },
    /// It takes too long.
    #[error("bring the guest to its start line: it has made {MOST_STOPS} accesses and is not there")]
    Endless,
    /// KVM refused to start a vCPU.
    #[error("start vcpu {vcpu}")]
    StartUp {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where a vCPU is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// It was not started.
    Off,
    /// It has got an INIT, and waits for a start-up interrupt.
    Waits,
    /// It runs.
    On,
    /// It is up: what it was behind the last thing that it did for others to see.
    Up(Box<Standing>),
}

/// A vCPU at the start line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) base: Base,
    pub(crate) local: Local,
}

/// Brings a machine to its start line. Gives where each vCPU stands, which is not where KVM's does: in front of no
/// access, or off.
pub(crate) fn bring_up(machine: &mut Controlled) -> Result<Vec<Standing>, StartError> {
    let vcpus = machine.vcpus();
    let mut way = Way {
        devices: (0..vcpus).map(Devices::at_reset).collect(),
        progress: (0..vcpus).map(|vcpu| if vcpu == 0 { Progress::On } else { Progress::Off }).collect(),
        behind: vec![None; vcpus],
        rung: false,
        stops: 0,
    };
    while !matches!(way.progress[0], Progress::Up(_)) {
        for vcpu in 0..vcpus {
            way.turn(machine, vcpu)?;
        }
    }
    if let Some(vcpu) = way.progress.iter().position(|progress| *progress == Progress::On) {
        return Err(StartError::Astray { vcpu, what: "was started, and is not up".to_owned() });
    }
    if let Some(vcpu) = way.progress.iter().position(|progress| *progress == Progress::Waits) {
        return Err(StartError::Astray { vcpu, what: "has got an init, and was not started".to_owned() });
    }
    let standing = |(vcpu, (progress, devices))| match progress {
        Progress::Up(standing) => *standing,
        Progress::Off | Progress::Waits | Progress::On => off(machine, vcpu, devices),
    };
    Ok(way.progress.into_iter().zip(way.devices).enumerate().map(standing).collect())
}

/// A vCPU that was never started.
fn off(machine: &Controlled, vcpu: usize, devices: Devices) -> Standing {
    let base = Base::of(machine.memory(), vcpu);
    let local = Local::of(&base, machine.memory(), Parked::Off, ProcessorState::default(), devices);
    Standing { base, local }
}

/// A bring-up.
struct Way {
    devices: Vec<Devices>,
    progress: Vec<Progress>,
    /// Of each vCPU that may be up at its next access: what it was behind the last thing that it did for others to see.
    behind: Vec<Option<Standing>>,
    /// vCPU 0 has rung at the start line.
    rung: bool,
    stops: usize,
}

impl Way {
    /// Lets a vCPU go on for a while.
    fn turn(&mut self, machine: &mut Controlled, vcpu: usize) -> Result<(), StartError> {
        for _ in 0..TURN {
            if self.progress[vcpu] != Progress::On {
                return Ok(());
            }
            self.stops += 1;
            if self.stops > MOST_STOPS {
                return Err(StartError::Endless);
            }
            let stop = machine.run(vcpu);
            self.serve(machine, vcpu, stop)?;
        }
        Ok(())
    }

    /// Serves a stop, and where others see what that did keeps what the vCPU is behind it.
    fn serve(&mut self, machine: &mut Controlled, vcpu: usize, mut stop: Stop) -> Result<(), StartError> {
        loop {
            match self.devices[vcpu].serve(machine, vcpu, stop) {
                Served::Own | Served::EndOfInterrupt => return Ok(()),
                Served::Unknown(what) => return Err(StartError::Astray { vcpu, what }),
                Served::Shared(stop) => self.shared(machine, vcpu, stop)?,
            }
            let goes_on = self.progress[vcpu] == Progress::On;
            if !goes_on || vcpu == 0 && !self.rung {
                return Ok(());
            }
            // A locked instruction reads and writes.
            stop = machine.complete(vcpu);
            if stop == Stop::Completed {
                self.behind[vcpu] = Some(self.standing(machine, vcpu)?);
                return Ok(());
            }
        }
    }

    fn standing(&self, machine: &Controlled, vcpu: usize) -> Result<Standing, StartError> {
        let moved = |moved| StartError::Astray { vcpu, what: format!("cannot be put back: {moved}") };
        let (memory, processor) = (machine.memory(), machine.state(vcpu).map_err(moved)?);
        let base = Base::of(memory, vcpu);
        let local = Local::of(&base, memory, Parked::Open, processor, self.devices[vcpu].clone());
        Ok(Standing { base, local })
    }

    fn shared(&mut self, machine: &mut Controlled, vcpu: usize, stop: Stop) -> Result<(), StartError> {
        match stop {
            Stop::Write { address, value, .. } if is_xapic(address) => {
                let icr = u64::from(self.devices[vcpu].icr_high) << 32 | value;
                self.send(machine, vcpu, icr, false)
            }
            Stop::WriteMsr { value, .. } => self.send(machine, vcpu, value, true),
            Stop::Out { port: DOORBELL, value } if Doorbell(value) == Doorbell::START_LINE => {
                self.rung = true;
                Ok(())
            }
            Stop::Read { .. } | Stop::Write { .. } | Stop::Halted if self.is_up(machine, vcpu) => {
                let behind = self.behind[vcpu].take();
                let astray = || StartError::Astray { vcpu, what: "is up, and nobody can know it".to_owned() };
                self.progress[vcpu] = Progress::Up(behind.ok_or_else(astray)?.into());
                Ok(())
            }
            Stop::Read { address, size } if Arenas::holds(address, size) => {
                let mut bytes = [0; 8];
                let read = machine.memory().read(address, &mut bytes[..usize::from(size)]);
                debug_assert!(read, "the arena is memory of the host, if not of the guest");
                machine.answer(vcpu, u64::from_le_bytes(bytes));
                Ok(())
            }
            Stop::Write { address, size, value } if Arenas::holds(address, size) => {
                let written = machine.write(address, &value.to_le_bytes()[..usize::from(size)]);
                debug_assert!(written, "the arena is memory of the host, if not of the guest");
                Ok(())
            }
            other => Err(StartError::Astray { vcpu, what: format!("does {other:?}") }),
        }
    }

    /// vCPU 0 is where it has rung, another where it says that it is up.
    fn is_up(&self, machine: &Controlled, vcpu: usize) -> bool {
        let page: Option<VcpuPage> = read_plain(machine.memory(), private(vcpu) + private_area::PAGE_PUBLISHED);
        match vcpu {
            0 => self.rung,
            _ => page.is_some_and(|page| page.phase.0 >= Phase::ONLINE.0),
        }
    }

    fn send(&mut self, machine: &mut Controlled, sender: usize, icr: u64, x2apic: bool) -> Result<(), StartError> {
        let (message, target) = command(icr, x2apic);
        let unknown = || StartError::Astray { vcpu: sender, what: format!("sends {message:?} to {target:?}") };
        if matches!(message, Message::Other(_)) {
            return Err(unknown());
        }
        for vcpu in (0..machine.vcpus()).filter(|&vcpu| target.holds(vcpu, sender)) {
            match (message, &self.progress[vcpu]) {
                (Message::EndOfInit, _) => {}
                (Message::Init, Progress::Off | Progress::Waits) => self.progress[vcpu] = Progress::Waits,
                // Lost on whoever does not wait for one.
                (Message::StartUp(_), Progress::Off | Progress::On | Progress::Up(_)) => {}
                (Message::StartUp(vector), Progress::Waits) => {
                    machine
                        .start_up(vcpu, vector)
                        .map_err(|source| StartError::StartUp { vcpu, source: source.into() })?;
                    self.progress[vcpu] = Progress::On;
                }
                _ => return Err(unknown()),
            }
        }
        Ok(())
    }
}
