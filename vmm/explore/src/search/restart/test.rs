//! vCPUs that are reset and started again, in cases of the payload.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use stallbench_abi::knob::apic;
use stallbench_abi::layout::SIPI_VECTOR;
use stallbench_abi::port::Doorbell;
use stallbench_core::{Capture, Machine, MachineConfig, MachineEvent};
use stallbench_state::machine::MpState;

use super::*;
use crate::event::Hashes;
use crate::hash::StateHash;
use crate::passage::{Effect, Sent};
use crate::real_kvm::host;
use crate::search::Way;
use crate::search::test::search_by;
use crate::settings::{Irq, Passages, Settings, Varied};

const SC: Settings =
    Settings { model: Model::Sc, passages: Passages::Free, irq: Irq::Visible, varied: Varied::Nothing };
/// Steps of one vCPU that no case here needs.
const MOST: usize = 20_000;
/// Long enough for any host; no test waits so long unless it fails.
const DEADLINE: Duration = Duration::from_secs(60);

const RUN: [Choice; 2] = [Choice::Run(0), Choice::Run(1)];
const INIT: Choice = Choice::Init(1);
const START_UP: Choice = Choice::StartUp(1);

/// `init-again`, gone on by vCPU 0 alone until it has sent its INIT to vCPU 1; and how it came there.
fn sent() -> Option<(Search<'static>, State, Vec<Choice>)> {
    sent_by(SC)
}

fn sent_by(settings: Settings) -> Option<(Search<'static>, State, Vec<Choice>)> {
    let mut search = search_by("init-again", settings, apic::XAPIC)?;
    // Or a way would be another one once it has shown that.
    search.stage.expect_sent(Sent { nmi: false, init: true });
    let (mut state, mut choices) = (search.graph.state(0), Vec::new());
    while !search.apics.get(state.apics[1]).init {
        state = search.follow(&state, RUN[0]).expect("a step");
        choices.push(RUN[0]);
        assert!(choices.len() < MOST, "an INIT");
    }
    Some((search, state, choices))
}

/// What INITs leave of a machine that come to vCPU 1 wherever they can, as it is started again and goes on alone; and its steps.
fn left_by_init(irq: Irq) -> Option<(HashSet<StateHash>, usize)> {
    let (mut search, mut state, _) = sent_by(Settings { irq, ..SC })?;
    state = search.follow(&state, INIT).expect("a reset");
    search.change(&mut state, 1, |apic| apic.start_up = Some(SIPI_VECTOR));
    state = search.follow(&state, START_UP).expect("its start");
    search.change(&mut state, 1, |apic| apic.init = true);
    let (mut left, mut met) = (HashSet::new(), HashSet::new());
    while met.insert((state.locals[1], state.arena)) && met.len() < MOST {
        let choices = search.choices(&state);
        assert!(choices.contains(&INIT), "it comes anywhere");
        let mut reset = search.follow(&state, INIT).expect("a reset");
        // Where the sender stands is between other instructions then.
        reset.locals[0] = search.graph.state(0).locals[0];
        left.insert(search.hash(&reset, &mut Hashes::default()));
        if !choices.contains(&RUN[1]) {
            break;
        }
        state = search.follow(&state, RUN[1]).expect("a step");
    }
    Some((left, met.len()))
}

#[test]
fn init_comes_wherever_it_leaves_something_else() {
    let Some((left, steps)) = left_by_init(Irq::Visible) else { return };
    let Some((everywhere, instructions)) = left_by_init(Irq::EveryInsn) else { return };
    assert!(steps < instructions, "{steps}, {instructions}");
    assert!(left == everywhere, "{} of {}", left.len(), everywhere.len());
}

#[test]
fn vcpu_waits_behind_an_init_and_begins_in_its_own_tables() {
    let Some((mut search, mut state, _)) = sent() else { return };
    let up = search.stage.local(1, state.locals[1]).clone();
    // None of them comes through a reset.
    search.change(&mut state, 1, |apic| {
        apic.request(0xfb);
        apic.nmi = true;
    });
    state = search.follow(&state, INIT).expect("a reset");
    let waiting = search.stage.local(1, state.locals[1]).clone();
    assert_eq!(waiting.parked, Parked::Waits);
    // SDM 3A table 10-1: CS:EIP, EFLAGS, CR0 but for CD and NW, CR4.
    let processor = waiting.processor;
    let registers = (processor.general.rip, processor.general.rflags, processor.cr0 & !(0b11 << 29), processor.cr4);
    assert_eq!(registers, (0xfff0, 2, 0x10, 0));
    assert_eq!((&waiting.devices.msrs, waiting.devices.svr), (&up.devices.msrs, 0xff), "MTRRs stay");
    assert_eq!(search.apics.get(state.apics[1]), Default::default());
    assert!(search.choices(&state).iter().all(|choice| choice.vcpu() == 0), "it waits");
    // Its local APIC is off.
    search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_40fb, x2apic: true }).expect("an interrupt");
    assert_eq!(search.apics.get(state.apics[1]).irr, [0; 8]);
    search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_4608, x2apic: true }).expect("a start-up interrupt");
    let starting = state.clone();
    state = search.follow(&state, START_UP).expect("its start");
    let begun = search.stage.local(1, state.locals[1]).clone();
    assert_eq!((begun.parked, begun.processor.cr0), (Parked::Open, up.processor.cr0));
    assert!(crate::local::on_a_stack(1, begun.processor.general.rsp));
    assert_eq!(search.apics.get(state.apics[1]), Default::default());
    // One more is lost on it, and an INIT has it wait again.
    search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_4608, x2apic: true }).expect("a start-up interrupt");
    assert_eq!(search.apics.get(state.apics[1]), Default::default());
    search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_4500, x2apic: true }).expect("an INIT");
    let again = search.follow(&state, INIT).expect("a reset");
    assert_eq!(search.stage.local(1, again.locals[1]).parked, Parked::Waits);
    let mut with_nmi = starting;
    search.change(&mut with_nmi, 1, |apic| apic.nmi = true);
    let refused = search.follow(&with_nmi, START_UP).expect_err("real mode has no handler of it").to_string();
    assert!(refused.contains("with an NMI pending"), "{refused}");
}

#[test]
fn interrupts_are_lost_on_a_vcpu_until_it_enables_its_apic_again() {
    let Some((mut search, mut state, _)) = sent() else { return };
    state = search.follow(&state, INIT).expect("a reset");
    search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_4608, x2apic: true }).expect("a start-up interrupt");
    state = search.follow(&state, START_UP).expect("its start");
    let mut gets = |state: &State| {
        let mut state = state.clone();
        search.apply(&mut state, 0, Effect::Send { icr: 0x1_0000_40fb, x2apic: true }).expect("an interrupt");
        let gets = search.apics.get(state.apics[1]).irr != [0; 8];
        (gets, search.follow(&state, RUN[1]).expect("a step"))
    };
    let mut got = Vec::new();
    for _ in 0..4 {
        let (gets, next) = gets(&state);
        got.push(gets);
        // Without what was sent.
        state.locals = next.locals;
        state.arena = next.arena;
    }
    assert!(!got[0] && got[3] && got.is_sorted(), "{got:?}");
}

#[test]
fn what_nobody_knows_the_end_of_is_refused() {
    let Some(mut search) = search_by("lock-and-call", SC, apic::XAPIC) else { return };
    let state = search.graph.state(0);
    let init = |to: u64| Effect::Send { icr: to << 32 | 0x4500, x2apic: true };
    let refused = search.apply(&mut state.clone(), 1, init(0)).expect_err("the first").to_string();
    assert!(refused.contains("goes on at its reset vector"), "{refused}");
    let mut pending = state.clone();
    search.apply(&mut pending, 0, init(1)).expect("an INIT");
    search.change(&mut pending, 1, |apic| apic.request(0xfb));
    if search.choices(&pending).contains(&Choice::Interrupt(1)) {
        let refused = search.follow(&pending, Choice::Interrupt(1)).expect_err("its handler").to_string();
        assert!(refused.contains("with an INIT on its way"), "{refused}");
    }
    let Some(mut search) = search_by("lock-and-call", Settings::under(Model::tso()), apic::XAPIC) else { return };
    let refused = search.apply(&mut state.clone(), 0, init(1)).expect_err("stores that are held back").to_string();
    assert!(refused.contains("under sc alone"), "{refused}");
}

/// A free machine that goes on from a way's end comes to its own.
fn assert_goes_on(search: &mut Search<'_>, choices: &[Choice], waits: bool) {
    let Some(host) = host() else { return };
    let way = Way { choices: choices.to_vec(), states: Vec::new(), preemptions: 0 };
    let moment = search.moment(&way, 0).expect("a moment");
    let is = moment.machine.vcpus[1].mp_state.as_ref().expect("its state");
    assert_eq!(*is == MpState::InitReceived, waits, "{is:?}");
    let config = MachineConfig::new(2);
    let mut machine = Machine::resumed(&host, &config, &moment.machine, &moment.memory).expect("a machine");
    machine.start().expect("threads");
    let end = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < end, "the end of the case in time");
        match machine.next_event(Duration::from_millis(1)) {
            Some(MachineEvent::Doorbell { vcpu: 0, doorbell: Doorbell::DONE }) => break,
            Some(MachineEvent::Log { .. }) | None => machine.enforce_turns(),
            other => panic!("{other:?}"),
        }
    }
    let state = machine.pause(DEADLINE).expect("all stop").capture(Capture::Control);
    assert!(state.vcpus[1].mp_state.as_ref().expect("its state").is_up(), "it was started");
}

#[test]
fn free_machine_goes_on_with_a_vcpu_that_waits() {
    let Some((mut search, _, sent)) = sent() else { return };
    // An INIT on its way, taken before it is handed over.
    assert_goes_on(&mut search, &sent, true);
    let waiting = [&sent[..], &[INIT]].concat();
    assert_goes_on(&mut search, &waiting, true);
    // With a start-up interrupt on its way, too.
    let mut starting = waiting;
    let mut state = search.walk(&starting).expect("a way");
    while search.apics.get(state.apics[1]).start_up.is_none() {
        state = search.follow(&state, RUN[0]).expect("a step");
        starting.push(RUN[0]);
        assert!(starting.len() < MOST, "a start-up interrupt");
    }
    assert_goes_on(&mut search, &starting, false);
}

/// Behind the write to its ICR it would execute what an INIT of its own comes in front of.
#[test]
fn init_of_oneself_is_refused() {
    let Some((search, state, _)) = sent() else { return };
    for message in [Message::Init, Message::StartUp(SIPI_VECTOR)] {
        assert!(search.expect_restartable(&state, 1, 1, message).is_err(), "{message:?}");
    }
    assert!(search.expect_restartable(&state, 0, 1, Message::Init).is_ok());
}
