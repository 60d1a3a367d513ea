//! A search of a case of the payload, looked at from within.

use crate::stage::is_open;
use stallbench_abi::boot::{BootBlock, MAGIC, Range};
use stallbench_abi::knob::{self, apic};
use stallbench_abi::layout::{ARENA, ARENA_SIZE, GHOST, PAGE};
use stallbench_image::program;

use super::*;
use crate::passage::Passage;
use crate::real_kvm::host;
use crate::settings::Model;

const VCPUS: usize = 2;

/// A case with two vCPUs and xAPICs, at its start line.
fn search(case: &str, model: Model) -> Option<Search<'static>> {
    search_with(case, model, apic::XAPIC)
}

fn search_with(case: &str, model: Model, apic: u8) -> Option<Search<'static>> {
    search_by(case, Settings::under(model), apic)
}

/// The same, by these settings.
pub(crate) fn search_by(case: &str, settings: Settings, apic: u8) -> Option<Search<'static>> {
    let host = host()?;
    let (index, _) = program().case(case).expect("a case of the payload");
    let mut block = BootBlock {
        magic: MAGIC,
        version: stallbench_abi::VERSION,
        vcpus: VCPUS as u32,
        case: index as u32,
        arena: Range { base: ARENA, size: ARENA_SIZE },
        ghost: Range { base: GHOST, size: PAGE },
        ..BootBlock::default()
    };
    block.knobs[knob::APIC.number as usize] = apic.into();
    let machine = Controlled::new(&host, VCPUS, program().bytes(), &block).expect("a machine");
    Some(Search::new(machine, program(), settings).expect("the start line"))
}

#[test]
fn message_of_an_unknown_mode_is_refused_whoever_gets_it() {
    let Some(mut search) = search("lock-and-call", Model::Sc) else { return };
    let state = search.graph.state(0);
    let mut send = |icr| search.apply(&mut state.clone(), 0, Effect::Send { icr, x2apic: false });
    // To the logical destination 2, an interrupt of an 8259 to nobody; to a vCPU that there is not.
    for icr in [0x0200_0000_0000_48fb, 0x0700_0000_0000_4700] {
        assert!(matches!(send(icr), Err(ExploreError::Refused(Refusal::Unknown { .. }))), "{icr:#x}");
    }
    assert!(send(0x0700_0000_0000_40fb).is_ok());
}

#[test]
fn interrupt_is_over_on_a_free_machine_where_its_end_cannot_be_begun_anew() {
    let Some(mut search) = search("lock-and-call", Model::tso()) else { return };
    search.run(Limits { states: 20_000, bytes: 1 << 30 }).expect("a search");
    let at_end = |search: &Search<'_>, number: u32| {
        let state = search.graph.state(number);
        let ends = |vcpu: &usize| {
            let parked = &search.stage.local(*vcpu, state.locals[*vcpu]).parked;
            matches!(parked, Parked::Write { address, before: None, .. } if ends_interrupt(*address))
        };
        (0..VCPUS).find(ends).map(|vcpu| (state, vcpu))
    };
    let numbers = 0..search.graph.len() as u32;
    let (mut state, vcpu) = numbers.into_iter().find_map(|number| at_end(&search, number)).expect("an interrupt");
    let in_service = |search: &Search<'_>, state: &State| search.apics.get(state.apics[vcpu]).isr;
    assert_ne!(in_service(&search, &state), [0; 8]);
    search.finish_stores(&mut state).expect("all is known");
    assert_eq!(in_service(&search, &state), [0; 8]);
}

#[test]
fn nmi_comes_in_front_of_a_store_that_is_still_to_be_done() {
    for model in [Model::Sc, Model::tso()] {
        let Some(mut search) = search("mutual-calls", model) else { return };
        search.run(Limits { states: 4_000, bytes: 1 << 30 }).expect("a search");
        let begins = |number: u32| {
            let of = |vcpu: &usize| {
                let local = search.graph.local(number, *vcpu);
                let is_off = !is_open(&search.stage.local(*vcpu, local).processor);
                let begin = search.stage.begin_of(*vcpu, local).filter(|begin| *begin != local && is_off)?;
                Some((number, *vcpu, local, begin))
            };
            (0..VCPUS).collect::<Vec<_>>().iter().find_map(of)
        };
        let found = (0..search.graph.len() as u32).find_map(begins);
        let (number, vcpu, stands, begin) = found.expect("a store that is no plain move, with interrupts off");
        let [behind, before] = [stands, begin].map(|local| search.stage.local(vcpu, local).processor.general.rip);
        let it = crate::code::instruction(search.stage.machine().memory(), before).expect("an instruction");
        assert!(behind == it.next_ip() || behind == it.ip(), "{it}");
        let mut state = search.graph.state(number);
        let [run, nmi] = [Choice::Run(vcpu as u8), Choice::Nmi(vcpu as u8)];
        assert!(!search.choices(&state).contains(&nmi), "there is none");
        search.change(&mut state, vcpu, |apic| apic.nmi = true);
        assert!(search.choices(&state).contains(&nmi));
        state = search.follow(&state, nmi).expect("its handler");
        assert!(search.stage.local(vcpu, state.locals[vcpu]).processor.nmi_masked);
        // Behind its handler it comes to the same store.
        for _ in 0..100 {
            if state.locals[vcpu] == stands {
                break;
            }
            state = search.follow(&state, run).expect("the way back");
        }
        assert_eq!(
            search.stage.local(vcpu, state.locals[vcpu]).identity(),
            search.stage.local(vcpu, stands).identity()
        );
    }
}

#[test]
fn state_is_the_same_again_in_all_of_it_and_not_just_where_it_stands() {
    let Some(mut search) = search("lock-and-call", Model::Sc) else { return };
    search.run(Limits { states: 2_000, bytes: 1 << 30 }).expect("a search");
    let stage = &mut search.stage;
    let other = |stage: &Stage<'_>, vcpu: usize, to: u32| {
        let parked = &stage.local(vcpu, to).parked;
        (0..stage.locals_of(vcpu) as u32).find(|other| *other != to && stage.local(vcpu, *other).parked == *parked)
    };
    let log = stage.log().to_vec();
    let (vcpu, from, input, known, wrong) = log
        .into_iter()
        .find_map(|(vcpu, from, input, _)| {
            let known = stage.known(vcpu, from, input)?.clone();
            let wrong = other(stage, vcpu, known.to)?;
            Some((vcpu, from, input, known, wrong))
        })
        .expect("two states at one access");
    assert_eq!(stage.once_more(vcpu, from, input, &known), Ok(()));
    let differs = stage.once_more(vcpu, from, input, &Passage { to: wrong, ..known });
    assert!(matches!(differs, Err(Refusal::Differs { .. })), "{differs:?}");
}

/// A vCPU that owes what it never writes has never sent it.
#[test]
fn state_in_which_what_is_owed_is_never_written_is_void_and_no_stall() {
    let Model::Tso { buffer, .. } = Model::tso() else { unreachable!("it is no other") };
    let model = Model::Tso { icr: Icr::Early, buffer };
    let Some(mut search) = search_with("unfenced-rendezvous", model, apic::X2APIC) else { return };
    assert!(search.run(Limits { states: 20_000, bytes: 1 << 30 }).expect("a search"));
    let (stuck, known) = (search.findings().stuck, search.graph.len() as u32);
    let mut state = search.graph.state(*search.ends.first().expect("an end"));
    search.send_early(&mut state, 0, 0).expect("a message");
    assert!(search.buffers.anyone_owes(&state), "it is known what is sent");
    search.graph.number(&state);
    let mut next = known;
    while next < search.graph.len() as u32 {
        search.expand(next).expect("what the other does then");
        next += 1;
    }
    search.sound.take();
    let void: Vec<_> = search.void().filter(|number| *number >= known).collect();
    assert_eq!(void, (known..next).collect::<Vec<_>>(), "nobody pays in any of them");
    assert_eq!(search.findings().stuck, stuck);
}

/// What a vCPU is about to send to itself comes on the passage that begins with it.
#[test]
fn interrupt_of_oneself_is_on_its_way_when_it_is_sent() {
    let Some(search) = search("lock-and-call", Model::Sc) else { return };
    let mut local = search.stage.local(1, search.graph.state(0).locals[1]).clone();
    local.devices.svr = 0x1ff;
    let mut sends = |icr| {
        local.parked = Parked::Send { icr };
        with_own(Apic::default(), 1, &local)
    };
    // By the shorthand of itself, to its id, to another; an NMI to all.
    assert_ne!(sends(0x0004_40fb).irr, Apic::default().irr);
    assert_ne!(sends(1 << 32 | 0x40fb).irr, Apic::default().irr);
    assert_eq!(sends(0x40fb), Apic::default());
    assert!(sends(0x0008_4400).nmi);
}

/// What ends where nothing can come before it is judged as that.
#[test]
fn what_was_seen_on_a_passage_is_seen_on_it_with_something_requested() {
    let Some(mut search) = search("call-in-interrupt", Model::Sc) else { return };
    search.run(Limits { states: 50_000, bytes: 1 << 30 }).expect("a search");
    let mut shown = 0;
    for (vcpu, from, input, passage) in search.stage.log() {
        let Some(whole) = input.whole().and_then(|whole| search.stage.known(*vcpu, *from, whole)) else { continue };
        if whole.to == passage.to {
            assert_eq!(passage.seen, whole.seen, "vcpu {vcpu}, {from}, {input:?}");
            shown += usize::from(passage.seen.is_some());
        }
    }
    assert!(shown > 0, "the calls that it makes");
}
