//! A local APIC as far as interrupts between processors go: what is requested, what is in service (SDM 3A 11.8.4).
//!
//! Sending, by the interrupt command register, is decoded here too. What one vCPU alone knows of its APIC (mode, SVR, TPR, the high half
//! of the ICR) is part of its own state.

#[cfg(test)]
mod kernel;

use stallbench_core::controlled::Inject;
use stallbench_state::apic::VectorSet;

/// SVR: the APIC is enabled by software (SDM 3A 11.9).
const SVR_ENABLED: u32 = 1 << 8;

/// Who gets an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The vCPU with this APIC id, which is its number.
    One(u32),
    /// The sender alone.
    Itself,
    /// All.
    All,
    /// All but the sender.
    Others,
}

impl Target {
    /// Whether a vCPU is among those that it names.
    pub(crate) fn holds(self, vcpu: usize, sender: usize) -> bool {
        match self {
            Self::One(id) => id as usize == vcpu,
            Self::Itself => vcpu == sender,
            Self::All => true,
            Self::Others => vcpu != sender,
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Fixed(u8),
    Nmi,
    Init,
    StartUp(u8),
    /// The end of the level of an INIT: no processor since the Pentium 4 does anything by it (SDM 3A 11.6.1).
    EndOfInit,
    /// A delivery or destination mode that no payload uses: the value.
    Other(u64),
}

impl Message {
    /// Whether what it does to those that it comes to is known here: else nobody knows who that is, either.
    pub(crate) fn is_known(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// Whether it resets a processor, or starts one.
    pub(crate) fn restarts(self) -> bool {
        matches!(self, Self::Init | Self::StartUp(_))
    }
}

/// What a write to the interrupt command register sends (SDM 3A 11.6.1). In xAPIC mode the destination has 8 bits.
pub(crate) fn command(icr: u64, x2apic: bool) -> (Message, Target) {
    const LOGICAL: u64 = 1 << 11;
    const ASSERT: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const INIT: u64 = 0b101;
    let destination = (icr >> 32) as u32;
    let target = match icr >> 18 & 0b11 {
        0b01 => Target::Itself,
        0b10 => Target::All,
        0b11 => Target::Others,
        // All ones is everybody (SDM 3A 11.6.2.1).
        _ if destination == u32::MAX || !x2apic && destination >> 24 == 0xff => Target::All,
        _ => Target::One(if x2apic { destination } else { destination >> 24 }),
    };
    let vector = icr as u8;
    let message = match icr >> 8 & 0b111 {
        _ if icr & LOGICAL != 0 && icr >> 18 & 0b11 == 0 => Message::Other(icr),
        INIT if icr & LEVEL != 0 && icr & ASSERT == 0 => Message::EndOfInit,
        // To whoever sends it, by a shorthand: no such command (SDM 3A table 11-3).
        INIT | 0b110 if matches!(target, Target::Itself | Target::All) => Message::Other(icr),
        INIT => Message::Init,
        _ if icr & LEVEL != 0 => Message::Other(icr),
        // An illegal vector: an error in the ESR (SDM 3A 11.5.3).
        0b000 if vector < 16 => Message::Other(icr),
        0b000 => Message::Fixed(vector),
        0b100 => Message::Nmi,
        0b110 => Message::StartUp(vector),
        _ => Message::Other(icr),
    };
    (message, target)
}

/// What of a local APIC others change, or an interrupt does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Apic {
    /// Interrupt request register: requests of one vector merge.
    pub(crate) irr: VectorSet,
    /// In-service register.
    pub(crate) isr: VectorSet,
    /// An NMI is pending: further ones merge.
    pub(crate) nmi: bool,
    /// An INIT is pending.
    pub(crate) init: bool,
    /// A start-up interrupt that came behind that, or to a processor that waits for one: its vector. The last one counts.
    pub(crate) start_up: Option<u8>,
}

impl Apic {
    /// A message [that is known](Message::is_known) arrives at a local APIC with this SVR, of a processor that `waits` for a start-up
    /// interrupt or not. One that is not enabled takes no interrupt (SDM 3A 11.4.7.2). A start-up interrupt is lost on whoever does not wait,
    /// but stays behind an INIT that is pending, as with KVM (`kvm_apic_accept_events`).
    pub(crate) fn receive(&mut self, message: Message, svr: u32, waits: bool) {
        match message {
            Message::Fixed(vector) if svr & SVR_ENABLED != 0 => self.request(vector),
            Message::Nmi => self.nmi = true,
            Message::Init => (self.init, self.start_up) = (true, None),
            Message::StartUp(vector) if self.init || waits => self.start_up = Some(vector),
            Message::Fixed(_) | Message::StartUp(_) | Message::EndOfInit | Message::Other(_) => {}
        }
    }

    /// The processor takes its INIT: nothing that was requested before is left (SDM 3A 11.4.7.3; of an NMI, KVM's `kvm_vcpu_reset`).
    pub(crate) fn reset(&mut self) {
        *self = Self { start_up: self.start_up, ..Self::default() };
    }

    /// Requests a vector.
    pub(crate) fn request(&mut self, vector: u8) {
        self.irr[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    /// Ends the interrupt of the highest priority in service.
    pub(crate) fn end_of_interrupt(&mut self) {
        if let Some(vector) = highest(&self.isr) {
            self.isr[usize::from(vector / 32)] &= !(1 << (vector % 32));
        }
    }

    /// The vector that is delivered next, where its class is above those of the TPR and of what is in service.
    pub(crate) fn deliverable(&self, tpr: u8) -> Option<u8> {
        let class = tpr.max(highest(&self.isr).unwrap_or(0)) >> 4;
        highest(&self.irr).filter(|vector| vector >> 4 > class)
    }

    /// What is requested beside what is taken.
    pub(crate) fn without(mut self, taken: Inject) -> Self {
        match taken {
            Inject::Vector(vector) => self.accept(vector),
            Inject::Nmi => self.nmi = false,
            Inject::Init | Inject::StartUp(_) => {}
        }
        self
    }

    /// The processor takes a vector.
    pub(crate) fn accept(&mut self, vector: u8) {
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.irr[word] &= !bit;
        self.isr[word] |= bit;
    }
}

fn highest(set: &VectorSet) -> Option<u8> {
    let word = (0..set.len()).rev().find(|word| set[*word] != 0)?;
    // At most 7 words of 32 bits.
    Some((word as u32 * 32 + set[word].ilog2()) as u8)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_merge_and_the_highest_comes_first() {
        let mut apic = Apic::default();
        [0xfb, 0xfc, 0xfb].into_iter().for_each(|vector| apic.request(vector));
        assert_eq!(apic.deliverable(0), Some(0xfc));
        apic.accept(0xfc);
        assert_eq!(apic.deliverable(0), None, "0xfb is of the class of what is in service");
        apic.end_of_interrupt();
        assert_eq!(apic.deliverable(0), Some(0xfb));
        apic.accept(0xfb);
        apic.end_of_interrupt();
        assert_eq!(apic, Apic::default());
    }

    #[test]
    fn priority_of_the_task_holds_back_its_class() {
        let mut apic = Apic::default();
        apic.request(0x41);
        assert_eq!((apic.deliverable(0x3f), apic.deliverable(0x40)), (Some(0x41), None));
    }

    #[test]
    fn start_up_interrupt_is_lost_on_whoever_does_not_wait() {
        let mut apic = Apic::default();
        apic.receive(Message::StartUp(8), 0x1ff, false);
        assert_eq!(apic, Apic::default());
        apic.receive(Message::StartUp(8), 0xff, true);
        apic.receive(Message::StartUp(9), 0xff, true);
        assert_eq!(apic.start_up, Some(9), "the last one");
    }

    #[test]
    fn init_drops_all_that_was_requested_before_it_and_nothing_behind() {
        let mut apic = Apic::default();
        [Message::Fixed(0xfb), Message::Nmi].into_iter().for_each(|message| apic.receive(message, 0x1ff, false));
        apic.accept(0xfb);
        apic.receive(Message::Init, 0x1ff, false);
        apic.receive(Message::EndOfInit, 0x1ff, false);
        apic.receive(Message::StartUp(8), 0x1ff, false);
        assert_eq!((apic.init, apic.start_up), (true, Some(8)), "it is pending, and the other stays behind it");
        apic.reset();
        assert_eq!(apic, Apic { start_up: Some(8), ..Apic::default() });
        apic.receive(Message::Init, 0xff, true);
        assert_eq!((apic.init, apic.start_up), (true, None), "a further one takes it away");
        apic.reset();
        assert_eq!(apic, Apic::default());
    }

    #[test]
    fn commands_are_those_of_the_manual() {
        assert_eq!(command(0x0300_0000_0000_40fb, false), (Message::Fixed(0xfb), Target::One(3)));
        assert_eq!(command(0x0000_0003_0000_40fb, true), (Message::Fixed(0xfb), Target::One(3)));
        assert_eq!(command(0x000c_40fc, false), (Message::Fixed(0xfc), Target::Others));
        assert_eq!(command(0x0008_4400, false), (Message::Nmi, Target::All));
        assert_eq!(command(0x0100_0000_0000_4608, false), (Message::StartUp(8), Target::One(1)));
        assert_eq!(command(0x0100_0000_0000_4500, false).0, Message::Init);
        assert_eq!(command(0xff00_0000_0000_40fb, false).1, Target::All);
        assert_eq!(command(0xff00_0000_0000_40fb, true).1, Target::One(0xff00_0000));
        assert!(matches!(command(0x0100_0000_0000_48fb, false).0, Message::Other(_)), "logical destination");
        assert!(matches!(command(0x0100_0000_0000_400f, false).0, Message::Other(_)), "illegal vector");
        assert_eq!(command(0x0100_0000_0000_c500, false), (Message::Init, Target::One(1)), "its level");
        assert_eq!(command(0x0100_0000_0000_8500, false).0, Message::EndOfInit);
        assert_eq!(command(0x000c_c500, false), (Message::Init, Target::Others));
        assert!(matches!(command(0x0008_4500, false).0, Message::Other(_)), "an INIT to all, itself included");
        assert!(matches!(command(0x0004_4608, false).0, Message::Other(_)), "a start-up interrupt to itself");
        assert!(matches!(command(0x0100_0000_0000_c0fb, false).0, Message::Other(_)), "a level that is no INIT's");
        assert!(command(0x000c_40fc, false).0.is_known() && !command(0x0200_0000_0000_48fb, false).0.is_known());
    }
}
