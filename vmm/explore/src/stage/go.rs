//! From one stop to the next.

use std::sync::Arc;

use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_core::Fault;
use stallbench_core::controlled::Stop;

use super::{Stage, Way, is_open, state};
use crate::arena::Arenas;
use crate::devices::{ENABLE, SEND, Served, is_xapic, sends};
use crate::local::{Local, Parked};
use crate::passage::{Effect, Input, Refusal};

/// Accesses of its own devices that a vCPU makes in one passage at most.
const MOST_ACCESSES: usize = 4096;

impl Stage<'_> {
    /// Goes until the next stop.
    pub(super) fn go(&mut self, vcpu: usize, start: &Local, input: Input, way: &mut Way) -> Result<Parked, Refusal> {
        self.access(vcpu, start, input, way)?;
        for _ in 0..MOST_ACCESSES {
            let stop = self.machine.run(vcpu);
            if let Some(parked) = self.serve(vcpu, stop, way)? {
                self.clear_resume_flag(vcpu, start, input);
                return Ok(parked);
            }
        }
        Err(self.unknown(vcpu, "uses its own devices without end"))
    }

    /// Does the access that a vCPU is parked at. It stands at it afterwards, with what it reads answered, or has nothing to do.
    pub(super) fn access(&mut self, vcpu: usize, start: &Local, input: Input, way: &mut Way) -> Result<(), Refusal> {
        let (Input::Go(read) | Input::Creep(read, _)) = input else { return Ok(()) };
        let stands = self.vcpus[vcpu].at.take().is_some();
        match start.parked {
            Parked::Read { address, size, update } => {
                if !stands {
                    self.expect(vcpu, &Stop::Read { address, size })?;
                }
                self.machine.answer(vcpu, read);
                if update {
                    self.update(vcpu, way)?;
                }
            }
            Parked::Write { address, value, .. } if is_xapic(address) && !sends(address) => {
                match way.devices.write_xapic(address, value) {
                    Served::EndOfInterrupt => way.effects.push(Effect::EndOfInterrupt),
                    Served::Unknown(what) => return Err(self.unknown(vcpu, &what)),
                    Served::Own | Served::Shared(_) => {}
                }
            }
            Parked::Write { address, value, .. } if is_xapic(address) => {
                way.effects.push(Effect::Send { icr: u64::from(way.devices.icr_high) << 32 | value, x2apic: false });
            }
            Parked::Write { address, size, value, .. } => way.effects.push(Effect::Store { address, size, value }),
            Parked::Send { icr } => {
                if !stands {
                    self.expect(vcpu, &Stop::WriteMsr { index: SEND, value: icr })?;
                }
                way.effects.push(Effect::Send { icr, x2apic: true });
            }
            Parked::Enable { svr } => {
                if !stands {
                    self.expect(vcpu, &Stop::WriteMsr { index: ENABLE, value: svr.into() })?;
                }
                way.devices.svr = svr;
            }
            Parked::Open | Parked::Drain { .. } | Parked::Halting | Parked::Halted => {}
            Parked::Off | Parked::Waits | Parked::Dead(_) => {}
        }
        Ok(())
    }

    /// The write of a locked instruction whose read is answered.
    fn update(&mut self, vcpu: usize, way: &mut Way) -> Result<(), Refusal> {
        match self.machine.complete(vcpu) {
            Stop::Write { address, size, value } if Arenas::holds(address, size) => {
                way.effects.push(Effect::Store { address, size, value });
                Ok(())
            }
            // A comparison that failed, where KVM leaves out the write that changes nothing.
            Stop::Completed => Ok(()),
            other => Err(self.unknown(vcpu, &format!("does {other:?} in a locked instruction"))),
        }
    }

    /// Enters a vCPU that was put into a state: it comes to the same stop as before.
    fn expect(&mut self, vcpu: usize, stop: &Stop) -> Result<(), Refusal> {
        match self.machine.run(vcpu) {
            same if same == *stop => Ok(()),
            other => {
                let words = match other {
                    Stop::Out { port: DOORBELL, value } if Doorbell(value) == Doorbell::EPITAPH => {
                        self.last_words(vcpu)
                    }
                    _ => Arc::from(""),
                };
                let difference = format!("it was {stop:?}, now it is {other:?} {words}").trim_end().to_owned();
                Err(Refusal::Differs { vcpu, place: self.here(vcpu), difference })
            }
        }
    }

    /// Where a vCPU is parked; nowhere where its stop concerned itself alone.
    pub(super) fn serve(&mut self, vcpu: usize, stop: Stop, way: &mut Way) -> Result<Option<Parked>, Refusal> {
        self.look(vcpu)?;
        let is_open = is_open(&state(&self.machine, vcpu)?);
        if let Some(what) = way.devices.forbids(&stop, is_open) {
            return Err(self.unknown(vcpu, what));
        }
        let enables = way.devices.enables(&stop);
        // A handler that comes between two of these finds the first, and may leave another behind.
        if let Stop::Write { address, size: 4, value } = stop
            && is_xapic(address)
            && (self.finds_drains || is_open || enables.is_some())
        {
            return Ok(Some(self.parked_at_write(vcpu, address, 4, value)?));
        }
        if let (Some(svr), Stop::WriteMsr { .. }) = (enables, &stop) {
            return Ok(Some(Parked::Enable { svr }));
        }
        let stop = match way.devices.serve(&mut self.machine, vcpu, stop) {
            Served::Own => return Ok(None),
            Served::EndOfInterrupt => {
                way.effects.push(Effect::EndOfInterrupt);
                return Ok(None);
            }
            Served::Unknown(what) => return Err(self.unknown(vcpu, &what)),
            Served::Shared(stop) => stop,
        };
        Ok(Some(match stop {
            Stop::Read { address, size } if Arenas::holds(address, size) => {
                let at = state(&self.machine, vcpu)?.general;
                if !self.code.reads_whole(self.machine.memory(), &at, address, size) {
                    return Err(self.unknown(vcpu, "reads across two words or pages of what it shares"));
                }
                Parked::Read { address, size, update: self.code.is_locked(self.machine.memory(), at.rip) }
            }
            Stop::Write { address, size, value } if Arenas::holds(address, size) || is_xapic(address) => {
                self.parked_at_write(vcpu, address, size, value)?
            }
            Stop::WriteMsr { value, .. } => Parked::Send { icr: value },
            Stop::Out { port: DOORBELL, value } if Doorbell(value) == Doorbell::EPITAPH => {
                Parked::Dead(self.last_words(vcpu))
            }
            Stop::Halted => Parked::Halting,
            Stop::Fault(fault @ (Fault::Run { .. } | Fault::FailEntry { .. } | Fault::Debug { .. })) => {
                return Err(self.unknown(vcpu, &format!("cannot be run by kvm: {fault}")));
            }
            Stop::Fault(fault) => Parked::Dead(fault.to_string().into()),
            Stop::Endless => return Err(self.unknown(vcpu, "runs on without an access to what it shares")),
            Stop::Read { address, .. } | Stop::Write { address, .. } => {
                return Err(Refusal::Nowhere { vcpu, address, place: self.here(vcpu) });
            }
            other => return Err(self.unknown(vcpu, &format!("does {other:?}"))),
        }))
    }

    pub(super) fn parked_at_write(&self, vcpu: usize, address: u64, size: u8, value: u64) -> Result<Parked, Refusal> {
        let after = state(&self.machine, vcpu)?.general;
        if !self.code.writes_whole(self.machine.memory(), &after, address, size) {
            return Err(self.unknown(vcpu, "writes across two words or pages of what it shares"));
        }
        let before = self.code.before_store(self.machine.memory(), &after, address, size);
        Ok(Parked::Write { address, size, value, before })
    }
}
