//! From the first instruction to the start line: once, in one order.
//!
//! vCPU 0 goes first; another goes on for as long as it has to for vCPU 0 to get to its doorbell, and then stands where it first
//! accesses what it shares, up and with its part of the case before it.

use stallbench_abi::layout::{private, private_area};
use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_abi::vcpu::{Phase, VcpuPage};
use stallbench_core::controlled::{Controlled, Stop};
use stallbench_state::memory::{Memory, read_plain};
use thiserror::Error;

use crate::apic::{Message, command};
use crate::arena::Arenas;
use crate::devices::{Devices, Served, is_xapic};

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
enum Standing {
    /// It was not started.
    Off,
    /// It has got an INIT, and waits for a start-up interrupt.
    Waits,
    /// It runs.
    On,
    /// It is up, and stands at this access.
    Up(Stop),
}

/// Brings a machine to its start line. Gives for each vCPU the access at which it stands, none for one that is off, and its devices.
pub(crate) fn bring_up(machine: &mut Controlled) -> Result<Vec<(Option<Stop>, Devices)>, StartError> {
    let vcpus = machine.vcpus();
    let mut way = Way {
        devices: (0..vcpus).map(Devices::at_reset).collect(),
        standing: (0..vcpus).map(|vcpu| if vcpu == 0 { Standing::On } else { Standing::Off }).collect(),
        rung: false,
        stops: 0,
    };
    while !matches!(way.standing[0], Standing::Up(_)) {
        for vcpu in 0..vcpus {
            way.turn(machine, vcpu)?;
        }
    }
    if let Some(vcpu) = way.standing.iter().position(|standing| *standing == Standing::On) {
        return Err(StartError::Astray { vcpu, what: "was started, and is not up".to_owned() });
    }
    if let Some(vcpu) = way.standing.iter().position(|standing| *standing == Standing::Waits) {
        return Err(StartError::Astray { vcpu, what: "has got an init, and was not started".to_owned() });
    }
    let stops = way.standing.into_iter().map(|standing| match standing {
        Standing::Up(stop) => Some(stop),
        Standing::Off | Standing::Waits | Standing::On => None,
    });
    Ok(stops.zip(way.devices).collect())
}

/// A bring-up.
struct Way {
    devices: Vec<Devices>,
    standing: Vec<Standing>,
    /// vCPU 0 has rung at the start line.
    rung: bool,
    stops: usize,
}

impl Way {
    /// Lets a vCPU go on for a while.
    fn turn(&mut self, machine: &mut Controlled, vcpu: usize) -> Result<(), StartError> {
        for _ in 0..TURN {
            if self.standing[vcpu] != Standing::On {
                return Ok(());
            }
            self.stops += 1;
            if self.stops > MOST_STOPS {
                return Err(StartError::Endless);
            }
            let stop = machine.run(vcpu);
            match self.devices[vcpu].serve(machine, vcpu, stop) {
                Served::Own | Served::EndOfInterrupt => {}
                Served::Unknown(what) => return Err(StartError::Astray { vcpu, what }),
                Served::Shared(stop) => self.shared(machine, vcpu, stop)?,
            }
        }
        Ok(())
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
            stop @ (Stop::Read { .. } | Stop::Write { .. } | Stop::Halted) if self.is_up(machine, vcpu) => {
                self.standing[vcpu] = Standing::Up(stop);
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
            match (message, &self.standing[vcpu]) {
                (Message::EndOfInit, _) => {}
                (Message::Init, Standing::Off | Standing::Waits) => self.standing[vcpu] = Standing::Waits,
                // Lost on whoever does not wait for one.
                (Message::StartUp(_), Standing::Off | Standing::On | Standing::Up(_)) => {}
                (Message::StartUp(vector), Standing::Waits) => {
                    machine
                        .start_up(vcpu, vector)
                        .map_err(|source| StartError::StartUp { vcpu, source: source.into() })?;
                    self.standing[vcpu] = Standing::On;
                }
                _ => return Err(unknown()),
            }
        }
        Ok(())
    }
}
