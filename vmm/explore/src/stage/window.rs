//! To the first place on the way at which an interrupt can come.

use stallbench_abi::layout::{CODE_SELECTOR, private, private_area};
use stallbench_core::controlled::{Inject, Stop};
use stallbench_state::memory::Memory;

use super::steps::MOST_STEPS;
use super::{Stage, Way, is_open, state};
use crate::code::{TF, instruction};
use crate::local::{Local, Parked};
use crate::passage::{Input, Refusal};

/// RFLAGS.RF: whether a breakpoint at this instruction was met already.
const RF: u64 = 1 << 16;

impl Stage<'_> {
    /// Whether an interrupt can come where a vCPU is parked.
    pub(super) fn takes_interrupts(&self, here: &Local) -> bool {
        is_open(&here.processor) && here.parked.is_between()
    }

    /// Whether a vCPU came from one access to another of the same instruction: nothing can come in between.
    pub(super) fn is_inside(&self, start: &Local, here: &Local) -> bool {
        let reads = matches!(start.parked, Parked::Read { .. }) && matches!(here.parked, Parked::Write { .. });
        let end = || instruction(self.machine.memory(), start.processor.general.rip).map(|it| it.next_ip());
        reads && end() == Some(here.processor.general.rip)
    }

    /// Whether it can have taken an interrupt on its way to where it can take none.
    fn can_open(&self, start: &Local, input: Input, here: &Local) -> bool {
        let was_open = self.takes_interrupts(start) && start.parked == Parked::Open && input.delivered().is_none();
        !was_open && !matches!(here.parked, Parked::Dead(_))
    }

    /// Whether a vCPU can have passed a place where it takes an interrupt, and stands where it does not.
    pub(super) fn is_missed(&self, start: &Local, input: Input, here: &Local) -> bool {
        !self.takes_interrupts(here) && !self.is_inside(start, here) && self.can_open(start, input, here)
    }

    /// Goes on from where it stands to the first place at which it can take an interrupt, one instruction at a time; none where
    /// it comes to its next stop first.
    pub(super) fn go_to_open(
        &mut self,
        vcpu: usize,
        start: &Local,
        input: Input,
        way: &mut Way,
    ) -> Result<Option<Local>, Refusal> {
        self.access(vcpu, start, input, way)?;
        if self.machine.complete(vcpu) != Stop::Completed {
            return Err(self.unknown(vcpu, "makes two accesses in one instruction"));
        }
        let mut frame = pushed_flags(vcpu, start, input);
        let mut is_shadow = false;
        for _ in 0..MOST_STEPS {
            let before = state(&self.machine, vcpu)?;
            // Before its delivery it stands where it was interrupted, and executes nothing there.
            let delivered = frame.is_none();
            if delivered && !is_shadow && is_open(&before) {
                self.clear_resume_flag(vcpu, start, input);
                return Ok(Some(self.leave(vcpu, Parked::Open, before, way.devices.clone())));
            }
            if delivered && self.code.is_hlt(self.machine.memory(), before.general.rip) {
                return Ok(None);
            }
            if delivered && let Some(behind) = self.code.behind(self.machine.memory(), &before) {
                self.machine.load(vcpu, &behind, None);
                is_shadow = false;
                continue;
            }
            // KVM drops the shadow behind an STI that it steps over (docs/hosts.md).
            is_shadow = self.code.is_sti(self.machine.memory(), before.general.rip) && !is_open(&before);
            let mut stop = self.machine.get_on(vcpu);
            // An exchange with a device reads and writes.
            while !matches!(stop, Stop::Stepped | Stop::Completed | Stop::Window) {
                if self.serve(vcpu, stop, way)?.is_some() {
                    return Ok(None);
                }
                stop = self.machine.complete(vcpu);
            }
            if stop == Stop::Window {
                (frame, is_shadow) = (None, false);
            }
            let after = state(&self.machine, vcpu)?.general;
            // A step can end where it began: the delivery is still to come then.
            is_shadow &= after.rip != before.general.rip;
            if after.rsp != start.processor.general.rsp
                && let Some(flags) = frame.take()
            {
                self.clear_step_flag(flags);
            }
        }
        Err(self.unknown(vcpu, "goes on for long without an access to what it shares"))
    }

    /// RF says nothing in the flags that a delivery pushes between two instructions, and QEMU's SVM sets it there (docs/hosts.md).
    pub(super) fn clear_resume_flag(&self, vcpu: usize, start: &Local, input: Input) {
        let Some(flags) = pushed_flags(vcpu, start, input) else { return };
        let memory = self.machine.memory();
        let frame = [flags.wrapping_sub(8), flags, flags.wrapping_add(8)].map(|at| memory.read_u64(at));
        // What is pushed is RIP, CS, RFLAGS, RSP, SS (SDM 3A 7.14.2). A handler that has returned may have left something else there; one
        // that returns elsewhere has changed RIP.
        if let [Some(code), Some(pushed), Some(rsp)] = frame
            && (code, rsp) == (CODE_SELECTOR.into(), start.processor.general.rsp)
        {
            let written = self.machine.write(flags, &(pushed & !RF).to_le_bytes());
            debug_assert!(written, "the private areas of all vCPUs are memory");
        }
    }

    /// The step flag is the debugger's, not the guest's.
    pub(super) fn clear_step_flag(&self, address: u64) {
        let flags = self.machine.memory().read_u64(address).unwrap_or_default() & !TF;
        let written = self.machine.write(address, &flags.to_le_bytes());
        debug_assert!(written, "the private areas of all vCPUs are memory");
    }
}

/// Where the RFLAGS lie that a delivery pushes: 24 bytes below the end of a stack that the processor aligns to 16 bytes, which is that of
/// the interrupted code, or for an NMI one of its own (SDM 3A 7.14).
fn pushed_flags(vcpu: usize, start: &Local, input: Input) -> Option<u64> {
    let end = match input.delivered()? {
        Inject::Vector(_) => start.processor.general.rsp & !0xf,
        Inject::Nmi => private(vcpu) + private_area::NMI_STACK_TOP,
        Inject::Init | Inject::StartUp(_) => return None,
    };
    Some(end.wrapping_sub(24))
}
