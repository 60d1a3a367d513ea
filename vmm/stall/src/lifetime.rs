//! Objects of the arena whose life is over, by their marks and by the events of their lives.
//!
//! A mark lies in guest memory like anything else: what is read here classifies a stall or explains a breach, and makes neither.

use stallbench_abi::arena::{Life, MARK, Mark, Storage};
use stallbench_abi::event::{Event, EventKind};
use stallbench_abi::layout::ARENA;
use stallbench_abi::text;
use stallbench_abi::vcpu::Wait;
use stallbench_state::memory::{Memory, read_plain};

/// How far before a word the mark of its object is looked for.
const LARGEST: u64 = 2048;
/// Bytes of a mark; objects are aligned to them.
const MARK_SIZE: u64 = size_of::<Mark>() as u64;

/// An object of the arena that somebody held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its address.
    pub address: u64,
    /// Its generation.
    pub generation: u32,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its name, with the address: `set_mtrr@0x4000e0`.
    pub name: String,
    /// Its name alone.
    pub bare: String,
    /// The vCPU that ended its life, as far as that is known.
    pub by: Option<usize>,
    /// The name of the object that lives there now.
    pub now: Option<String>,
}

impl Object {
    /// The object of a wait, where its life is over: dead, or its memory another's than when the waiter got hold of it.
    pub fn gone_of_wait(memory: &dyn Memory, wait: &Wait) -> Option<Self> {
        if wait.record != 0 && wait.generation != 0 {
            let held = Self { address: wait.record, generation: wait.generation };
            return (!held.lives(memory)).then_some(held);
        }
        let marked = [wait.record, wait.address].into_iter().find_map(|address| covering(memory, address));
        marked
            .filter(|(_, mark)| mark.life == Life::DEAD)
            .map(|(address, mark)| Self { address, generation: mark.generation })
    }

    fn lives(self, memory: &dyn Memory) -> bool {
        mark_of(memory, self.address).is_some_and(|mark| mark.life == Life::LIVE && mark.generation == self.generation)
    }

    /// What became of it, by what stands there now and by the events of all vCPUs.
    pub fn fate<'e>(self, memory: &dyn Memory, events: impl Iterator<Item = (usize, &'e Event)>) -> Gone {
        let mark = mark_of(memory, self.address);
        let own = mark.filter(|mark| mark.generation == self.generation);
        let now = mark.filter(|mark| own.is_none() && mark.life == Life::LIVE).map(|mark| shown(&mark.name));
        // Where no event tells: a dead mark says who ended it, and memory on a stack has one owner.
        let stack = mark.filter(|mark| mark.storage == Storage::STACK);
        let mut by = own.filter(|mark| mark.life == Life::DEAD).or(stack).map(|mark| mark.owner as usize);
        let mut bare = own.map(|mark| shown(&mark.name));
        for (vcpu, event) in events.filter(|(_, event)| self.is_of(event)) {
            bare = Some(shown(&event.b.to_le_bytes()));
            if event.arg & 0xff == Life::DEAD.0 {
                by = Some(vcpu);
            }
        }
        let bare = bare.unwrap_or_else(|| "an object".into());
        Gone { name: format!("{bare}@{:#x}", self.address), bare, by, now }
    }

    fn is_of(self, event: &Event) -> bool {
        event.kind == EventKind::LIFE && event.a == self.address && event.arg >> 8 == self.generation
    }
}

impl Gone {
    /// How its life ended, behind a comma: `whose life vcpu0 ended, and csd lives there now`.
    pub fn ending(&self) -> String {
        let ended = match self.by {
            Some(vcpu) => format!("whose life vcpu{vcpu} ended"),
            None => "whose life is over".into(),
        };
        match &self.now {
            Some(now) => format!("{ended}, and {now} lives there now"),
            None => ended,
        }
    }
}

/// The mark of the object at an address.
fn mark_of(memory: &dyn Memory, object: u64) -> Option<Mark> {
    let mark: Mark = read_plain(memory, object.checked_sub(MARK_SIZE).filter(|mark| *mark >= ARENA)?)?;
    (mark.magic == MARK).then_some(mark)
}

/// The object that an address lies in, and its mark.
fn covering(memory: &dyn Memory, address: u64) -> Option<(u64, Mark)> {
    let nearest = address & !(MARK_SIZE - 1);
    let objects = (0..LARGEST / MARK_SIZE).map_while(|step| nearest.checked_sub(step * MARK_SIZE));
    let (object, mark) =
        objects.take_while(|object| *object > ARENA).find_map(|object| Some((object, mark_of(memory, object)?)))?;
    (address - object < u64::from(mark.size)).then_some((object, mark))
}

/// The name that the guest gave an object, fit for a terminal.
fn shown(name: &[u8]) -> String {
    text::of(name).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod test {
    use stallbench_abi::Plain;
    use stallbench_state::memory::Snippet;

    use super::*;

    const OBJECT: u64 = ARENA + 0x100;
    const GENERATION: u32 = 0x301;

    fn mark(life: Life, generation: u32, name: &str) -> Mark {
        let storage = Storage::STACK;
        let mut mark = Mark { magic: MARK, life, storage, owner: 2, generation, size: 48, ..Mark::default() };
        mark.name[..name.len()].copy_from_slice(name.as_bytes());
        mark
    }

    fn memory(mark: Mark) -> Snippet {
        let mut memory = Snippet { base: ARENA, bytes: vec![0; 0x400] };
        mark.write(&mut memory.bytes[0x100 - 32..]).expect("there is room");
        memory
    }

    fn life(life: Life, generation: u32, name: u64) -> Event {
        Event { kind: EventKind::LIFE, arg: life.0 | generation << 8, a: OBJECT, b: name, ..Event::default() }
    }

    #[test]
    fn wait_for_a_word_of_a_dead_object_has_lost_it() {
        let wait = |address| Wait { address, ..Wait::default() };
        let dead = memory(mark(Life::DEAD, GENERATION, "set_mtrr"));
        let lost = Some(Object { address: OBJECT, generation: GENERATION });
        assert_eq!(Object::gone_of_wait(&dead, &wait(OBJECT + 4)), lost);
        assert_eq!(Object::gone_of_wait(&dead, &wait(OBJECT + 44)), lost);
        assert_eq!(Object::gone_of_wait(&dead, &wait(OBJECT + 48)), None, "behind it");
        assert_eq!(Object::gone_of_wait(&dead, &wait(OBJECT - 36)), None, "before it");
        let live = memory(mark(Life::LIVE, GENERATION, "set_mtrr"));
        assert_eq!(Object::gone_of_wait(&live, &wait(OBJECT + 4)), None);
    }

    #[test]
    fn wait_for_an_object_of_another_generation_has_lost_it() {
        let held = Object { address: OBJECT, generation: GENERATION };
        let wait = Wait { address: OBJECT + 4, record: OBJECT, generation: GENERATION, ..Wait::default() };
        for (there, lost) in [
            (mark(Life::LIVE, GENERATION, "set_mtrr"), None),
            (mark(Life::LIVE, GENERATION + 0x100, "csd"), Some(held)),
            (mark(Life::DEAD, GENERATION, "set_mtrr"), Some(held)),
            (Mark::default(), Some(held)),
        ] {
            assert_eq!(Object::gone_of_wait(&memory(there), &wait), lost, "{there:?}");
        }
    }

    #[test]
    fn name_of_an_object_does_not_drive_the_terminal() {
        let held = Object { address: OBJECT, generation: GENERATION };
        let dead = memory(mark(Life::DEAD, GENERATION, "a\u{1b}[2J"));
        assert_eq!(held.fate(&dead, std::iter::empty()).bare, "a\u{fffd}[2J");
        let told = life(Life::DEAD, GENERATION, u64::from_le_bytes(*b"b\x07\0\0\0\0\0\0"));
        assert_eq!(held.fate(&dead, [(1, &told)].into_iter()).bare, "b\u{fffd}");
    }

    #[test]
    fn addresses_of_any_value_are_data() {
        let memory = memory(mark(Life::DEAD, GENERATION, "set_mtrr"));
        for address in [0, 31, ARENA, ARENA + 31, OBJECT - 1, u64::MAX - 8, u64::MAX] {
            for generation in [0, 1] {
                let wait = Wait { address, record: address, generation, ..Wait::default() };
                let _ = Object::gone_of_wait(&memory, &wait);
            }
        }
    }

    #[test]
    fn fate_is_told_by_events_and_without_them_by_the_mark() {
        let held = Object { address: OBJECT, generation: GENERATION };
        let taken = memory(mark(Life::LIVE, GENERATION + 0x100, "csd"));
        let name = u64::from_le_bytes(*b"set_mtrr");
        let events = [life(Life::LIVE, GENERATION, name), life(Life::DEAD, GENERATION, name)];
        let told = held.fate(&taken, [(1, &events[0]), (3, &events[1])].into_iter());
        assert_eq!((told.name.as_str(), told.by, told.now.as_deref()), ("set_mtrr@0x400100", Some(3), Some("csd")));
        assert_eq!(told.ending(), "whose life vcpu3 ended, and csd lives there now");
        let other = life(Life::DEAD, GENERATION + 0x100, name);
        let untold = held.fate(&taken, [(3, &other)].into_iter());
        assert_eq!((untold.name.as_str(), untold.by), ("an object@0x400100", Some(2)), "{untold:?}");
        let dead = held.fate(&memory(mark(Life::DEAD, GENERATION, "set_mtrr")), core::iter::empty());
        assert_eq!((dead.bare.as_str(), dead.by, dead.now), ("set_mtrr", Some(2), None));
    }
}
