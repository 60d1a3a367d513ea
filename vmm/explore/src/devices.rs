//! What of its devices a vCPU alone knows, and its accesses to them.

use std::sync::Arc;

use stallbench_abi::layout::XAPIC;
use stallbench_abi::port::{DOORBELL, Doorbell, YIELD};
use stallbench_core::controlled::{Controlled, Stop};
use stallbench_state::mtrr::MtrrState;

/// MSRs of the local APIC in x2APIC mode (SDM 3A 11.12.1.2).
pub(crate) const X2APIC: std::ops::Range<u32> = 0x800..0x900;
/// The interrupt command register among them.
pub(crate) const SEND: u32 = X2APIC.start + (register::ICR_LOW >> 4);
/// The spurious-interrupt vector register.
pub(crate) const ENABLE: u32 = X2APIC.start + (register::SVR >> 4);
const APIC_BASE: u32 = 0x1b;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_APIC_BASE after a reset: enabled, at its usual address (SDM 3A 11.4.4). BSP is the first vCPU's.
const APIC_BASE_AT_RESET: u64 = XAPIC | 1 << 11;
const BSP: u64 = 1 << 8;
const X2APIC_ENABLED: u64 = 1 << 10;
/// The spurious-interrupt vector register after a reset: the APIC is off (SDM 3A 11.4.7.1).
const SVR_AT_RESET: u32 = 0xff;

/// Registers of the local APIC, by their offset in xAPIC mode (SDM 3A table 11-1).
mod register {
    pub(super) const ID: u32 = 0x20;
    pub(super) const TPR: u32 = 0x80;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const SVR: u32 = 0xf0;
    pub(super) const ICR_LOW: u32 = 0x300;
    pub(super) const ICR_HIGH: u32 = 0x310;
}

/// What of its devices a vCPU alone knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Devices {
    /// IA32_APIC_BASE.
    pub(crate) apic_base: u64,
    /// High half of the xAPIC's interrupt command register.
    pub(crate) icr_high: u32,
    /// Spurious-interrupt vector register.
    pub(crate) svr: u32,
    /// Task-priority register.
    pub(crate) tpr: u8,
    /// MTRRs and IA32_PAT, by index.
    pub(crate) msrs: Arc<[(u32, u64)]>,
    /// Cross-CPU calls that it has begun.
    pub(crate) calls: u64,
}

/// What became of a stop.
#[derive(Debug)]
pub(crate) enum Served {
    /// It concerned the vCPU alone, and is done.
    Own,
    /// It ends the interrupt in service, and is done but for that.
    EndOfInterrupt,
    /// It concerns others too, or is none of a device.
    Shared(Stop),
    /// It is something that no passage can contain: a fragment behind "vcpu 1".
    Unknown(String),
}

impl Devices {
    /// As after a reset.
    pub(crate) fn at_reset(vcpu: usize) -> Self {
        let bsp = if vcpu == 0 { BSP } else { 0 };
        Self {
            apic_base: APIC_BASE_AT_RESET | bsp,
            icr_high: 0,
            svr: SVR_AT_RESET,
            tpr: 0,
            msrs: MtrrState::at_start().msrs().collect(),
            calls: 0,
        }
    }

    /// As an INIT leaves it: the local APIC as a reset does, but for its id and its mode (SDM 3A 11.4.7.3, 11.12.5.1); MTRRs and IA32_PAT as
    /// they were (SDM 3A table 10-1).
    pub(crate) fn after_init(&self) -> Self {
        Self { icr_high: 0, svr: SVR_AT_RESET, tpr: 0, ..self.clone() }
    }

    /// Whether the local APIC is in x2APIC mode.
    pub(crate) fn x2apic(&self) -> bool {
        self.apic_base & X2APIC_ENABLED != 0
    }

    /// Its MTRRs and IA32_PAT.
    pub(crate) fn mtrrs(&self) -> MtrrState {
        let of = |index: u32| self.msrs.iter().find(|(kept, _)| *kept == index).map_or(0, |(_, value)| *value);
        MtrrState::from_registers(|register| of(register.msr()))
    }

    /// Why a stop is none that a passage can contain, though it concerns the vCPU's own APIC: others' interrupts could come before it or
    /// behind it, and its registers are no stop where it writes them by an MSR; nor is another TPR, with interrupts off either: where between two
    /// stops what is requested can come is looked for by IF alone. A fragment behind "vcpu 1".
    pub(crate) fn forbids(&self, stop: &Stop, is_open: bool) -> Option<&'static str> {
        let (offset, value, by_msr) = self.written(stop)?;
        match offset {
            // A register of 32 bits.
            register::TPR if value as u32 != u32::from(self.tpr) => Some("changes the priority of its task"),
            register::EOI if by_msr && is_open => Some("ends an interrupt in service with interrupts on, by an msr"),
            _ => None,
        }
    }

    /// What a stop writes to its spurious-interrupt vector register, where that is not what it holds: interrupts that others send are lost
    /// before it, and are not behind it.
    pub(crate) fn enables(&self, stop: &Stop) -> Option<u32> {
        let (offset, value, _) = self.written(stop)?;
        // A register of 32 bits.
        (offset == register::SVR && value as u32 != self.svr).then_some(value as u32)
    }

    /// The register of the local APIC that a stop writes, by its offset in xAPIC mode; what; whether by an MSR.
    fn written(&self, stop: &Stop) -> Option<(u32, u64, bool)> {
        match *stop {
            Stop::Write { address, value, .. } if is_xapic(address) => Some(((address - XAPIC) as u32, value, false)),
            Stop::WriteMsr { index, value } if X2APIC.contains(&index) && self.x2apic() => {
                Some(((index - X2APIC.start) << 4, value, true))
            }
            _ => None,
        }
    }

    /// Does what a stop asks of the vCPU's own devices.
    pub(crate) fn serve(&mut self, machine: &mut Controlled, vcpu: usize, stop: Stop) -> Served {
        match stop {
            Stop::Read { address, size: 4 } if is_xapic(address) => {
                let Some(value) = self.read_apic(vcpu, (address - XAPIC) as u32) else {
                    return Served::Unknown(format!("reads its APIC at {address:#x}"));
                };
                machine.answer(vcpu, value.into());
                Served::Own
            }
            Stop::Write { address, size: 4, value } if is_xapic(address) => match (address - XAPIC) as u32 {
                register::ICR_LOW => Served::Shared(stop),
                _ => self.write_xapic(address, value),
            },
            Stop::Read { address, size } | Stop::Write { address, size, .. } if is_xapic(address) => {
                Served::Unknown(format!("accesses {size} bytes of its APIC at {address:#x}"))
            }
            Stop::ReadMsr { index: TSC } | Stop::WriteMsr { index: TSC, .. } => {
                Served::Unknown("uses its time-stamp counter".to_owned())
            }
            Stop::ReadMsr { index } => self.read_msr(machine, vcpu, index),
            Stop::WriteMsr { index: SEND, .. } if self.x2apic() => Served::Shared(stop),
            Stop::WriteMsr { index, value } => self.write_msr(machine, vcpu, index, value),
            Stop::Out { port: DOORBELL, value } => match Doorbell(value) {
                Doorbell::DONE | Doorbell::LOG => Served::Own,
                _ => Served::Shared(stop),
            },
            Stop::Out { port: YIELD, .. } => Served::Own,
            other => Served::Shared(other),
        }
    }

    /// What it reads of a register of its local APIC, by its offset in xAPIC mode.
    pub(crate) fn read_apic(&self, vcpu: usize, offset: u32) -> Option<u32> {
        Some(match offset {
            register::ID if self.x2apic() => vcpu as u32,
            register::ID => (vcpu as u32) << 24,
            register::TPR => self.tpr.into(),
            register::SVR => self.svr,
            register::ICR_HIGH => self.icr_high,
            // It is write-only; an exchange reads it.
            register::EOI => 0,
            // What was sent has arrived at the target's APIC: delivery status is idle (SDM 3A 11.6.1).
            register::ICR_LOW => 0,
            _ => return None,
        })
    }

    /// Writes a register of the xAPIC that sends nothing.
    pub(crate) fn write_xapic(&mut self, address: u64, value: u64) -> Served {
        // An access of 4 bytes to the page.
        self.write_apic((address - XAPIC) as u32, value as u32)
    }

    /// Writes a register of the local APIC that sends nothing, by its offset in xAPIC mode.
    pub(crate) fn write_apic(&mut self, offset: u32, value: u32) -> Served {
        match offset {
            register::EOI => return Served::EndOfInterrupt,
            // 8 bits.
            register::TPR => self.tpr = value as u8,
            register::SVR => self.svr = value,
            register::ICR_HIGH => self.icr_high = value,
            other => return Served::Unknown(format!("writes register {other:#x} of its APIC")),
        }
        Served::Own
    }

    fn read_msr(&self, machine: &mut Controlled, vcpu: usize, index: u32) -> Served {
        let value = match index {
            APIC_BASE => Some(self.apic_base),
            index if X2APIC.contains(&index) && self.x2apic() => {
                self.read_apic(vcpu, (index - X2APIC.start) << 4).map(u64::from)
            }
            index => self.msrs.iter().find(|(kept, _)| *kept == index).map(|(_, value)| *value),
        };
        match value {
            Some(value) => {
                machine.answer(vcpu, value);
                Served::Own
            }
            None => Served::Unknown(format!("reads msr {index:#x}, which is part of no state,")),
        }
    }

    fn write_msr(&mut self, machine: &mut Controlled, vcpu: usize, index: u32, value: u64) -> Served {
        if index == APIC_BASE {
            self.apic_base = value;
            return Served::Own;
        }
        if X2APIC.contains(&index) && self.x2apic() {
            // Registers of 32 bits, but for the ICR.
            return self.write_apic((index - X2APIC.start) << 4, value as u32);
        }
        match self.msrs.iter().position(|(kept, _)| *kept == index) {
            Some(at) if machine.takes_msr(vcpu, index, value) => Arc::make_mut(&mut self.msrs)[at].1 = value,
            Some(_) => machine.refuse(vcpu),
            None => return Served::Unknown(format!("writes msr {index:#x}, which is part of no state,")),
        }
        Served::Own
    }
}

/// Whether a write there sends an interrupt.
pub(crate) fn sends(address: u64) -> bool {
    address == XAPIC + u64::from(register::ICR_LOW)
}

/// Whether a write there ends the interrupt in service.
pub(crate) fn ends_interrupt(address: u64) -> bool {
    address == XAPIC + u64::from(register::EOI)
}

/// The end-of-interrupt register of the x2APIC.
pub(crate) const END: u32 = X2APIC.start + (register::EOI >> 4);

/// Whether an address is one of the xAPIC's registers.
pub(crate) fn is_xapic(address: u64) -> bool {
    address & !0xfff == XAPIC
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn init_leaves_mode_and_mtrrs() {
        let mut devices = Devices::at_reset(1);
        devices.apic_base |= X2APIC_ENABLED;
        (devices.icr_high, devices.svr, devices.tpr, devices.calls) = (1 << 24, 0x1ff, 0x20, 3);
        Arc::make_mut(&mut devices.msrs)[0].1 ^= 1;
        let after = devices.after_init();
        assert!(after.x2apic() && after.msrs == devices.msrs && after.calls == 3);
        assert_eq!((after.icr_high, after.svr, after.tpr), (0, 0xff, 0));
    }

    #[test]
    fn register_that_decides_what_comes_is_not_written_unseen() {
        let mut devices = Devices::at_reset(1);
        let xapic = |offset: u32, value| Stop::Write { address: XAPIC + u64::from(offset), size: 4, value };
        for is_open in [true, false] {
            assert!(devices.forbids(&xapic(register::TPR, 0x20), is_open).is_some(), "another priority");
            assert_eq!(devices.forbids(&xapic(register::TPR, 0), is_open), None, "what it is");
        }
        assert_eq!(devices.enables(&xapic(register::SVR, 0xff)), None, "what it is");
        assert_eq!(devices.enables(&xapic(register::SVR, 0x1ff)), Some(0x1ff));
        devices.apic_base |= X2APIC_ENABLED;
        let msr = |offset: u32, value| Stop::WriteMsr { index: X2APIC.start + (offset >> 4), value };
        let ends = [true, false].map(|is_open| devices.forbids(&msr(register::EOI, 0), is_open).is_some());
        assert_eq!(ends, [true, false]);
        assert!(devices.forbids(&msr(register::TPR, 0x20), false).is_some());
        assert_eq!(devices.enables(&msr(register::SVR, 0x1ff)), Some(0x1ff));
        assert_eq!(devices.forbids(&msr(register::ICR_LOW, 0), true), None);
    }
}
