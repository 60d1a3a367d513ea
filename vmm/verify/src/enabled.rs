//! What can happen to a vCPU in a state, derived from what the certificate says of its processor: never from its edges.

use stallbench_state::certificate::{Does, Processor, RFLAGS, VcpuState, Word};
use stallbench_state::machine::RFLAGS_IF;

use crate::falsehood::Wrong;

/// RFLAGS.TF (SDM 1 3.4.3.3).
const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.VM.
const RFLAGS_VM: u64 = 1 << 17;
/// IA32_APIC_BASE: the local APIC is enabled (SDM 3A 11.4.4).
const APIC_ENABLED: u64 = 1 << 11;
/// SVR: it is enabled by software (SDM 3A 11.9).
const SVR_ENABLED: u64 = 1 << 8;
/// A local vector table entry is masked (SDM 3A 11.5.1).
const LVT_MASKED: u64 = 1 << 16;
/// CR0.PE and CR0.PG, EFER.LME and EFER.LMA, CR4.PAE: long mode; CR4.LA57 would be paging with five levels (SDM 3A 2.5, 4.1).
const CR0_PAGING: u64 = 1 << 31 | 1;
const EFER_LONG: u64 = 1 << 8 | 1 << 10;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// Access rights of a segment: its ring, and 64-bit code (SDM 3A 3.4.5).
const SEGMENT_RING: u64 = 3 << 5;
const SEGMENT_LONG: u64 = 1 << 13;
/// Places of CS and SS in [`Processor::segments`].
const CS: usize = 0;
const SS: usize = 5;

/// Whether the vCPU executes an instruction next, and nothing else can happen to it.
pub(crate) fn executes(processor: &Processor, state: &VcpuState) -> Result<bool, Wrong> {
    if state.does == Does::Absent {
        return Ok(false);
    }
    let flags = state.registers[RFLAGS].0;
    if processor.nmi_pending > 0 && !processor.nmi_masked {
        return Err(Wrong::Nmi);
    }
    if is_apic_on(processor) {
        timer(processor)?;
        if let Some(vector) = deliverable(processor).filter(|_| flags & RFLAGS_IF != 0) {
            return Err(Wrong::Vector(vector));
        }
    }
    match state.does {
        Does::Runs if flags & RFLAGS_TF != 0 => Err(Wrong::Traps),
        Does::Runs if !is_checked_mode(processor) || flags & RFLAGS_VM != 0 => Err(Wrong::Mode),
        does => Ok(does == Does::Runs),
    }
}

/// The page of the registers of its local APIC, where reads are no reads of memory (SDM 3A 11.4.1).
pub(crate) fn apic_page(processor: &Processor) -> Option<u64> {
    let base = processor.apic_base.0;
    (base & APIC_ENABLED != 0).then_some(base & !0xfff)
}

fn is_apic_on(processor: &Processor) -> bool {
    processor.apic_base.0 & APIC_ENABLED != 0 && processor.svr.0 & SVR_ENABLED != 0
}

/// The certificate does not hold the timer's count: one that is not masked may be counting.
fn timer(processor: &Processor) -> Result<(), Wrong> {
    let lvt = processor.lvt_timer.0;
    if lvt & LVT_MASKED == 0 { Err(Wrong::Timer { lvt }) } else { Ok(()) }
}

/// The vector that its local APIC hands over as soon as interrupts are enabled: the highest one requested, if its class is above
/// that of the task and of all that is in service (SDM 3A 11.8.3.1).
fn deliverable(processor: &Processor) -> Option<u8> {
    let requested = highest(&processor.irr)?;
    let serviced = highest(&processor.isr).unwrap_or(0) >> 4;
    let priority = serviced.max((processor.tpr.0 >> 4 & 0xf) as u8);
    (requested >> 4 > priority).then_some(requested)
}

fn highest(words: &[Word; 8]) -> Option<u8> {
    // Eight words of 32 bits: at most 255.
    let vector = |(at, word): (u32, &Word)| (word.0 as u32).checked_ilog2().map(|bit| (32 * at + bit) as u8);
    (0..).zip(words).filter_map(vector).last()
}

fn is_checked_mode(processor: &Processor) -> bool {
    let all = |word: u64, bits: u64| word & bits == bits;
    let access = |segment: usize| processor.segments[segment].3.0;
    all(processor.cr0.0, CR0_PAGING)
        && all(processor.efer.0, EFER_LONG)
        && all(processor.cr4.0, CR4_PAE)
        && processor.cr4.0 & CR4_LA57 == 0
        && access(CS) & (SEGMENT_LONG | SEGMENT_RING) == SEGMENT_LONG
        && access(SS) & SEGMENT_RING == 0
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    fn with_requested(vector: u8) -> Processor {
        let mut processor = sample::processor();
        processor.irr[usize::from(vector / 32)] = Word(1 << (vector % 32));
        processor
    }

    fn state(flags: u64, does: Does) -> VcpuState {
        let mut state = VcpuState { does, ..VcpuState::default() };
        state.registers[RFLAGS] = Word(flags | 2);
        state
    }

    #[test]
    fn vcpu_that_nothing_reaches_executes_or_halts() {
        let quiet = sample::processor();
        assert_eq!(executes(&quiet, &state(RFLAGS_IF, Does::Runs)), Ok(true));
        assert_eq!(executes(&quiet, &state(RFLAGS_IF, Does::Halts)), Ok(false));
    }

    #[test]
    fn requested_vector_is_deliverable_with_interrupts_enabled_only() {
        let processor = with_requested(0xfc);
        for does in [Does::Runs, Does::Halts] {
            assert_eq!(executes(&processor, &state(RFLAGS_IF, does)), Err(Wrong::Vector(0xfc)));
            assert_eq!(executes(&processor, &state(0, does)), Ok(does == Does::Runs));
        }
        assert_eq!(executes(&processor, &state(RFLAGS_IF, Does::Absent)), Ok(false));
    }

    #[test]
    fn vector_must_exceed_the_class_of_the_task_and_of_what_is_in_service() {
        let mut processor = with_requested(0x52);
        let state = state(RFLAGS_IF, Does::Halts);
        processor.tpr = Word(0x4f);
        assert_eq!(executes(&processor, &state), Err(Wrong::Vector(0x52)));
        processor.tpr = Word(0x50);
        assert_eq!(executes(&processor, &state), Ok(false));
        processor.tpr = Word(0);
        processor.isr[2] = Word(1 << 17);
        assert_eq!(executes(&processor, &state), Ok(false), "0x51 is in service");
    }

    #[test]
    fn apic_that_is_off_delivers_nothing() {
        let state = state(RFLAGS_IF, Does::Runs);
        let off = [
            |processor: &mut Processor| processor.svr = Word(0xff),
            |processor: &mut Processor| processor.apic_base = Word(0xfee0_0000),
        ];
        for switch in off {
            let mut processor = Processor { lvt_timer: Word(0x40), ..with_requested(0xfc) };
            switch(&mut processor);
            assert_eq!(executes(&processor, &state), Ok(true));
        }
    }

    #[test]
    fn timer_that_is_not_masked_may_be_armed() {
        let processor = Processor { lvt_timer: Word(0x2_0040), ..sample::processor() };
        assert_eq!(executes(&processor, &state(0, Does::Halts)), Err(Wrong::Timer { lvt: 0x2_0040 }));
    }

    #[test]
    fn nmi_is_deliverable_unless_it_is_masked() {
        let pending = Processor { nmi_pending: 1, ..sample::processor() };
        assert_eq!(executes(&pending, &state(0, Does::Halts)), Err(Wrong::Nmi));
        let masked = Processor { nmi_masked: true, ..pending };
        assert_eq!(executes(&masked, &state(0, Does::Halts)), Ok(false));
    }

    #[test]
    fn code_of_another_mode_is_not_checked() {
        let change = [
            |processor: &mut Processor| processor.cr0 = Word(1),
            |processor: &mut Processor| processor.cr4 = Word(CR4_PAE | CR4_LA57),
            |processor: &mut Processor| processor.segments[CS].3 = Word(0xc09b),
            |processor: &mut Processor| processor.segments[SS].3 = Word(0xc0f3),
        ];
        for change in change {
            let mut processor = sample::processor();
            change(&mut processor);
            assert_eq!(executes(&processor, &state(0, Does::Runs)), Err(Wrong::Mode));
            assert_eq!(executes(&processor, &state(0, Does::Halts)), Ok(false));
        }
        assert_eq!(executes(&sample::processor(), &state(RFLAGS_TF, Does::Runs)), Err(Wrong::Traps));
    }
}
