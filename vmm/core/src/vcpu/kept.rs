//! A vCPU that is declared not to be let into the guest: what a hypervisor does that loses a wake-up, or an INIT.
//!
//! Its thread answers all orders and enters no `KVM_RUN`. Interrupts that others send it lie in its local APIC meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_bindings::KVM_VCPUEVENT_VALID_SMM;

use super::{State, Vcpu};
use crate::board::Order;

/// How a vCPU is kept out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is not entered.
    Out,
    /// It is not entered, and an INIT that it gets is taken away from it.
    OutWithoutInit,
}

/// What a vCPU's thread and its machine share about that.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    how: AtomicU8,
    init_lost: AtomicBool,
}

impl Kept {
    pub(crate) fn set(&self, keep: Option<Keep>) {
        let how = match keep {
            None => 0,
            Some(Keep::Out) => 1,
            Some(Keep::OutWithoutInit) => 2,
        };
        self.how.store(how, Ordering::SeqCst);
    }

    pub(crate) fn is_out(&self) -> bool {
        self.how.load(Ordering::SeqCst) != 0
    }

    fn loses_init(&self) -> bool {
        self.how.load(Ordering::SeqCst) == 2
    }

    /// Whether an INIT was taken away.
    pub(crate) fn init_lost(&self) -> bool {
        self.init_lost.load(Ordering::SeqCst)
    }
}

impl Vcpu {
    pub(super) fn is_kept_out(&self) -> bool {
        self.shared.kept[self.index].is_out()
    }

    /// Follows what the board says, until it says to run and the vCPU is kept out no more.
    pub(super) fn kept_out(&mut self) -> State {
        let mut posted = self.shared.board.current();
        while self.is_kept_out() || posted.order != Order::Run {
            posted = match posted.order {
                Order::Stop => return State::Stopped,
                Order::Run => self.shared.board.after(posted.number),
                Order::Visit => {
                    self.visited(State::KeptOut);
                    self.answer(posted)
                }
                Order::Pause | Order::Capture(_) => self.answer(posted),
            };
        }
        self.lose_init();
        State::Running
    }

    /// Takes a pending INIT away, if that is declared. Before anything reads the MP state: that lets it take effect.
    pub(super) fn lose_init(&self) {
        if !self.shared.kept[self.index].loses_init() {
            return;
        }
        let Ok(mut events) = self.fd.get_vcpu_events() else { return };
        if events.smi.latched_init == 0 {
            return;
        }
        // Of all that this structure can set, only the system-management part, which the latched INIT belongs to
        // (KVM api.rst 4.32).
        events.smi.latched_init = 0;
        events.flags = KVM_VCPUEVENT_VALID_SMM;
        if self.fd.set_vcpu_events(&events).is_ok() {
            self.shared.kept[self.index].init_lost.store(true, Ordering::SeqCst);
        }
    }
}
