//! What is handed over between the threads of one search, with a machine of the payload.

use stallbench_abi::knob::apic;

use super::*;
use crate::search::Limits;
use crate::search::test::search_by;
use crate::settings::{Model, Settings};

const LIMITS: Limits = Limits { states: 20_000, bytes: 1 << 30 };

/// A case with two vCPUs at its start line.
fn at_start(case: &str, model: Model) -> Option<Search<'static>> {
    search_by(case, Settings::under(model), apic::X2APIC)
}

/// What a search comes to, with what is in its checkpoint.
fn said(search: &mut Search<'_>) -> Option<(bool, Vec<u8>)> {
    let is_complete = search.run(LIMITS).ok()?;
    let mut saved = Vec::new();
    search.save(&mut saved).ok()?;
    Some((is_complete, saved))
}

/// What a worker has asked for that nobody has disturbed.
fn all_asked() -> Option<Arc<Ahead>> {
    let mut worker = at_start("lock-and-call", Model::Sc)?;
    let ahead = Arc::new(Ahead::default());
    assert!(worker.share(&ahead));
    worker.ask_ahead(&ahead, usize::MAX);
    Some(ahead)
}

#[test]
fn search_takes_what_a_worker_has_brought_in_place_of_asking() {
    let Some(ahead) = all_asked() else { return };
    let mut alone = at_start("lock-and-call", Model::Sc).expect("another one");
    let expected = said(&mut alone);
    assert_eq!(expected.as_ref().map(|(is_complete, _)| *is_complete), Some(true));
    let mut search = at_start("lock-and-call", Model::Sc).expect("another one");
    assert!(search.share(&ahead));
    assert!(said(&mut search) == expected);
    let halts = search.counts().passages - search.brought();
    assert!(halts < search.brought() / 4, "{} brought, {halts} not: a halt is no question", search.brought());
}

/// Else the test above would say nothing.
#[test]
fn answer_to_another_passage_is_found_out() {
    let Some(ahead) = all_asked() else { return };
    let expected = said(&mut at_start("lock-and-call", Model::Sc).expect("another one"));
    let read = |key: &Key| matches!(key.input, Input::Go(_)).then(|| (key.vcpu, Arc::clone(&key.start)));
    let mut table = ahead.table();
    let keys: Vec<Key> = table.passages.keys().cloned().collect();
    let mut pairs = keys.iter().enumerate().flat_map(|(at, one)| keys[at + 1..].iter().map(move |other| (one, other)));
    let same_state = |(one, other): &(&Key, &Key)| read(one).is_some() && read(one) == read(other);
    let (one, other) = pairs.find(same_state).expect("a state in which a vcpu reads one thing or another");
    let [first, second] = [one, other].map(|key| table.passages.remove(key).expect("it is there"));
    table.passages.insert(one.clone(), second);
    table.passages.insert(other.clone(), first);
    drop(table);
    let mut search = at_start("lock-and-call", Model::Sc).expect("another one");
    assert!(search.share(&ahead));
    assert!(said(&mut search) != expected);
}

#[test]
fn what_begins_otherwise_is_not_shared() {
    let Some(mut first) = at_start("lock-and-call", Model::Sc) else { return };
    let mut other = at_start("lock-and-call", Model::tso()).expect("another one");
    let ahead = Arc::new(Ahead::default());
    assert!(first.share(&ahead) && !other.share(&ahead));
    assert!(said(&mut other).is_some());
    assert_eq!((other.brought(), ahead.told()), (0, 0));
}

#[test]
fn what_a_worker_is_refused_the_search_asks_for_itself() {
    let Some(ahead) = all_asked() else { return };
    let refused = ahead.table().passages.values_mut().map(|said| *said = Said::Refusal).count();
    let mut search = at_start("lock-and-call", Model::Sc).expect("another one");
    assert!(refused > 0 && search.share(&ahead));
    assert!(said(&mut search) == said(&mut at_start("lock-and-call", Model::Sc).expect("another one")));
    assert_eq!(search.brought(), 0);
}

#[test]
fn whoever_wants_what_is_asked_for_gets_it_as_soon_as_it_is_told() {
    let Some(ahead) = all_asked() else { return };
    let (key, answer) = {
        let mut table = ahead.table();
        let key = table.passages.keys().next().cloned().expect("it has asked");
        let Some(Said::Answer(answer)) = table.passages.remove(&key) else { panic!("it was told") };
        (key, answer)
    };
    for tells in [true, false] {
        let Claim::Ours(asking) = Ahead::claim(&ahead, key.clone()) else { panic!("nobody asks") };
        assert_eq!(ahead.progress(&key), Progress::Asked);
        let other = thread::spawn({
            let (ahead, key) = (Arc::clone(&ahead), key.clone());
            move || matches!(Ahead::claim(&ahead, key), Claim::Told(_))
        });
        match tells {
            true => asking.tell(&answer),
            false => drop(asking),
        }
        assert_eq!(other.join().expect("it ends"), tells);
        ahead.table().passages.remove(&key);
    }
}

#[test]
fn nobody_asks_ahead_with_too_much_in_memory() {
    let Some(ahead) = all_asked() else { return };
    let key = ahead.table().passages.keys().next().cloned().expect("it has asked");
    ahead.table().passages.clear();
    ahead.table().bytes = MOST_BYTES + 1;
    assert!(ahead.is_over() && matches!(Ahead::claim(&ahead, key), Claim::Refused));
    let mut worker = at_start("lock-and-call", Model::Sc).expect("another one");
    assert!(worker.share(&ahead));
    worker.ask_ahead(&ahead, usize::MAX);
    assert_eq!(worker.counts().passages, 0);
}

#[test]
fn worker_without_a_machine_is_missing_and_nothing_else_comes_of_it() {
    assert_eq!(alongside(4, &|| None, |ahead| ahead.told()), 0);
}

#[test]
#[should_panic = "a scoped thread panicked"]
fn panic_of_a_worker_is_not_lost() {
    let began = std::sync::Barrier::new(2);
    let start = || -> Option<Search<'static>> {
        began.wait();
        panic!("a worker's")
    };
    alongside(2, &start, |_| _ = began.wait());
}
