//! The registers of a local APIC (SDM 3A 11.4).

/// Offsets of the registers (SDM 3A table 11-1).
mod offset {
    pub(super) const ID: usize = 0x20;
    pub(super) const TPR: usize = 0x80;
    pub(super) const PPR: usize = 0xa0;
    pub(super) const LDR: usize = 0xd0;
    pub(super) const DFR: usize = 0xe0;
    pub(super) const SVR: usize = 0xf0;
    pub(super) const ISR: usize = 0x100;
    pub(super) const TMR: usize = 0x180;
    pub(super) const IRR: usize = 0x200;
    pub(super) const ESR: usize = 0x280;
    pub(super) const ICR_LOW: usize = 0x300;
    pub(super) const ICR_HIGH: usize = 0x310;
    pub(super) const LVT_TIMER: usize = 0x320;
    pub(super) const LVT_LINT0: usize = 0x350;
    pub(super) const LVT_LINT1: usize = 0x360;
    pub(super) const LVT_ERROR: usize = 0x370;
}

/// SVR: the APIC is enabled by software (SDM 3A 11.9).
const SVR_ENABLED: u32 = 1 << 8;

/// A set of interrupt vectors, as in IRR, ISR and TMR.
pub type VectorSet = [u32; 8];

/// The registers of a local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalApic {
    /// In x2APIC mode, where destinations have 32 bits.
    pub x2apic: bool,
    /// Id.
    pub id: u32,
    /// Task priority.
    pub tpr: u32,
    /// Processor priority; 0 on a host that does not keep it (kvm_pvm).
    pub ppr: u32,
    /// Logical destination.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious interrupt vector, with the software enable bit.
    pub svr: u32,
    /// Errors.
    pub esr: u32,
    /// Interrupt command: the last interprocessor interrupt that it sent.
    pub icr: u64,
    /// Requested: accepted and not yet taken.
    pub irr: VectorSet,
    /// In service; empty on a host that does not keep it (kvm_pvm).
    pub isr: VectorSet,
    /// Level-triggered.
    pub tmr: VectorSet,
    /// Local vector table entry of the timer.
    pub lvt_timer: u32,
    /// Local vector table entry of pin LINT0.
    pub lvt_lint0: u32,
    /// Local vector table entry of pin LINT1.
    pub lvt_lint1: u32,
    /// Local vector table entry of errors.
    pub lvt_error: u32,
}

impl LocalApic {
    /// The page of registers, as [`Self::from_registers`] reads it: with the id where xAPIC mode has it.
    pub fn to_registers(&self) -> [u8; 1024] {
        let mut page = [0; 1024];
        let mut set = |at: usize, word: u32| page[at..at + 4].copy_from_slice(&word.to_le_bytes());
        let words = [
            (offset::ID, self.id << 24),
            (offset::TPR, self.tpr),
            (offset::PPR, self.ppr),
            (offset::LDR, self.ldr),
            (offset::DFR, self.dfr),
            (offset::SVR, self.svr),
            (offset::ESR, self.esr),
            // The two halves.
            (offset::ICR_LOW, self.icr as u32),
            (offset::ICR_HIGH, (self.icr >> 32) as u32),
            (offset::LVT_TIMER, self.lvt_timer),
            (offset::LVT_LINT0, self.lvt_lint0),
            (offset::LVT_LINT1, self.lvt_lint1),
            (offset::LVT_ERROR, self.lvt_error),
        ];
        words.into_iter().for_each(|(at, word)| set(at, word));
        for (at, vectors) in [(offset::ISR, self.isr), (offset::TMR, self.tmr), (offset::IRR, self.irr)] {
            vectors.into_iter().enumerate().for_each(|(i, word)| set(at + 16 * i, word));
        }
        page
    }

    /// Reads the page of registers that KVM hands out (KVM api.rst 4.57).
    ///
    /// Its id stands in bits 31:24 in either mode, unless a VM asks for 32-bit ids (KVM api.rst 7.7); the destination of the
    /// interrupt command stands in the upper half of `icr`, in either mode as that mode lays it out.
    pub fn from_registers(page: &[u8; 1024], x2apic: bool) -> Self {
        let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let set = |at: usize| std::array::from_fn(|i| word(at + 16 * i));
        Self {
            x2apic,
            id: word(offset::ID) >> 24,
            tpr: word(offset::TPR),
            ppr: word(offset::PPR),
            ldr: word(offset::LDR),
            dfr: word(offset::DFR),
            svr: word(offset::SVR),
            esr: word(offset::ESR),
            icr: u64::from(word(offset::ICR_HIGH)) << 32 | u64::from(word(offset::ICR_LOW)),
            irr: set(offset::IRR),
            isr: set(offset::ISR),
            tmr: set(offset::TMR),
            lvt_timer: word(offset::LVT_TIMER),
            lvt_lint0: word(offset::LVT_LINT0),
            lvt_lint1: word(offset::LVT_LINT1),
            lvt_error: word(offset::LVT_ERROR),
        }
    }

    /// The vectors that are requested, the highest first.
    pub fn requested(&self) -> impl Iterator<Item = u8> {
        vectors(self.irr)
    }

    /// The highest requested vector.
    pub fn highest_requested(&self) -> Option<u8> {
        self.requested().next()
    }

    /// Whether this vector is requested.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.irr[usize::from(vector / 32)] & 1 << (vector % 32) != 0
    }

    /// The vectors in service, the highest first.
    pub fn in_service(&self) -> impl Iterator<Item = u8> {
        vectors(self.isr)
    }

    /// Whether software has enabled it.
    pub fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLED != 0
    }

    /// The priority class that a vector must exceed (SDM 3A 11.8.3.1): of TPR, PPR and ISR, the highest.
    pub fn priority_class(&self) -> u8 {
        let in_service = self.in_service().next().unwrap_or(0);
        // Bits 7:0 are all that the registers have.
        [self.tpr as u8, self.ppr as u8, in_service].into_iter().max().unwrap_or(0) >> 4
    }

    /// The vector that the processor takes next if it lets interrupts in.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.highest_requested().filter(|_| self.is_enabled())?;
        (vector >> 4 > self.priority_class()).then_some(vector)
    }
}

/// The vectors of a set, the highest first.
fn vectors(set: VectorSet) -> impl Iterator<Item = u8> {
    (0..=u8::MAX).rev().filter(move |v| set[usize::from(v / 32)] & 1 << (v % 32) != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    fn page(words: &[(usize, u32)]) -> [u8; 1024] {
        let mut page = [0; 1024];
        for &(at, value) in words {
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    #[test]
    fn page_of_registers_is_read_by_offset() {
        let apic = LocalApic::from_registers(
            &page(&[(0x20, 3 << 24), (0xf0, 0x1ff), (0x270, 1 << 27), (0x200, 1), (0x310, 2 << 24), (0x300, 0x40fb)]),
            false,
        );
        assert_eq!((apic.id, apic.svr, apic.icr), (3, 0x1ff, 0x0200_0000_0000_40fb));
        assert_eq!(apic.requested().collect::<Vec<_>>(), [0xfb, 0]);
        assert!(apic.is_requested(0xfb) && !apic.is_requested(0xfc));
    }

    #[test]
    fn page_is_written_as_it_is_read() {
        let apic = LocalApic {
            id: 3,
            tpr: 0x20,
            svr: 0x1ff,
            icr: 0x0200_0000_0000_40fb,
            irr: [1, 2, 3, 4, 5, 6, 7, 8],
            isr: [9; 8],
            lvt_error: 0x1_0000,
            ..LocalApic::default()
        };
        assert_eq!(LocalApic::from_registers(&apic.to_registers(), false), apic);
    }

    #[test]
    fn vector_is_held_by_its_own_class_in_tpr() {
        let apic = LocalApic { svr: SVR_ENABLED, irr: [0, 0, 0, 0, 0, 0, 0, 1 << 27], ..LocalApic::default() };
        assert_eq!(apic.deliverable(), Some(0xfb));
        assert_eq!(LocalApic { tpr: 0xf0, ..apic }.deliverable(), None);
        assert_eq!(LocalApic { tpr: 0xef, ..apic }.deliverable(), Some(0xfb));
    }

    #[test]
    fn vector_is_held_by_one_of_its_class_in_service() {
        let apic = LocalApic { svr: SVR_ENABLED, irr: [0, 0, 0, 0, 0, 0, 0, 1 << 27], ..LocalApic::default() };
        assert_eq!(LocalApic { isr: [0, 0, 0, 0, 0, 0, 0, 1 << 28], ..apic }.deliverable(), None);
    }

    #[test]
    fn vector_is_held_by_an_apic_that_is_not_enabled() {
        let apic = LocalApic { irr: [0, 0, 0, 0, 0, 0, 0, 1 << 27], ..LocalApic::default() };
        assert_eq!(apic.deliverable(), None);
    }
}
