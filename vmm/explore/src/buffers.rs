//! What a vCPU has stored and others do not see yet: a buffer from which stores come to memory in their order, one at a time.
//!
//! x86-TSO (Owens, Sarkar, Sewell 2009): a load takes the newest store of its own buffer to its address, and else what memory holds. What
//! drains a buffer goes on with an empty one only: a locked instruction, MFENCE, a serialising instruction, I/O, an interrupt (SDM 3A
//! 11.10). A load of which the buffer has some bytes takes these from there and the others from memory, as x86-TSO with accesses of several
//! sizes allows (herd's x86tso-mixed.cat orders no store before a load of its own vCPU): more than a processor does that forwards a store
//! as a whole or waits.
//!
//! Beside its stores lies what a vCPU has sent before its time ([early](crate::early)): both come in its own order.

use std::collections::HashMap;
use std::rc::Rc;

use crate::graph::State;
use crate::local::Parked;
use crate::passage::Effect;
use crate::search::Landed;
use crate::settings::{Icr, Model};

/// Bytes that a content takes beside what is in it: the two counts of an [`Rc`], itself, a place in a list, one in a table.
const KEPT: usize = 4 * size_of::<usize>() + size_of::<Held>() + 8;

/// A store that its vCPU alone sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) address: u64,
    pub(crate) size: u8,
    pub(crate) value: u64,
}

impl Landed {
    pub(crate) fn of(store: &Store) -> Self {
        Self { address: store.address, size: store.size, value: store.value }
    }
}

/// What a vCPU has done of which others see nothing yet, and what others have seen of what it has not done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Held {
    /// Stores, the oldest first.
    stores: Box<[Store]>,
    /// Values that it still has to write to its ICR, the first first: they are sent.
    owed: Box<[u64]>,
}

/// Whether a vCPU can go on as far as its buffer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It can.
    Given,
    /// Once stores of its own have come to memory.
    Later,
    /// A processor could, but so many stores are not held back here.
    Full,
    /// Never: it has sent what it would have to write first.
    Owes,
}

/// Buffers, each content once. Number 0 is an empty one.
#[derive(Debug)]
pub(crate) struct Buffers {
    model: Model,
    contents: Vec<Rc<Held>>,
    numbers: HashMap<Rc<Held>, u32>,
    /// Bytes of memory that they take, about.
    pub(crate) bytes: usize,
}

impl Buffers {
    pub(crate) fn new(model: Model) -> Self {
        let empty = Rc::new(Held::default());
        Self { model, contents: vec![Rc::clone(&empty)], numbers: HashMap::from([(empty, 0)]), bytes: 0 }
    }

    /// The model that they are of.
    pub(crate) fn model(&self) -> Model {
        self.model
    }

    /// The buffers of a machine at its start line, of so many vCPUs: none where all see each store at once.
    pub(crate) fn at_start(&self, vcpus: usize) -> Box<[u32]> {
        if self.model == Model::Sc { Box::default() } else { vec![0; vcpus].into() }
    }

    /// What lies in a vCPU's buffer, the oldest first.
    pub(crate) fn stores(&self, state: &State, vcpu: usize) -> &[Store] {
        &self.contents[state.buffer(vcpu) as usize].stores
    }

    /// What a vCPU has sent and has still to write to its ICR, in that order.
    pub(crate) fn owed(&self, state: &State, vcpu: usize) -> &[u64] {
        &self.contents[state.buffer(vcpu) as usize].owed
    }

    /// Whether anybody has something still to write that was sent.
    pub(crate) fn anyone_owes(&self, state: &State) -> bool {
        (0..state.buffers.len()).any(|vcpu| !self.owed(state, vcpu).is_empty())
    }

    /// Whether a vCPU that is parked so can do what it is about to do.
    pub(crate) fn leave(&self, state: &State, vcpu: usize, parked: &Parked) -> Leave {
        let stores = self.stores(state, vcpu);
        match (parked, self.owed(state, vcpu).first()) {
            (Parked::Drain { all: true }, Some(_)) => return Leave::Owes,
            (Parked::Send { icr }, Some(owed)) if icr != owed => return Leave::Owes,
            _ if stores.is_empty() => return Leave::Given,
            _ => {}
        }
        let waits = match parked {
            Parked::Read { update: true, .. } | Parked::Drain { .. } => true,
            // A store to the xAPIC's page is not cached, and comes behind those before it.
            Parked::Write { address, size, .. } if !crate::arena::Arenas::holds(*address, *size) => true,
            Parked::Write { .. } if self.is_full(stores) => return Leave::Full,
            Parked::Send { .. } => matches!(self.model, Model::Tso { icr: Icr::Ordered, .. }),
            _ => false,
        };
        if waits { Leave::Later } else { Leave::Given }
    }

    /// Whether it matters that a vCPU's oldest store comes to memory now: not before somebody is about to meet one of its stores there.
    ///
    /// Until then it changes places with whatever anybody does, and the states behind both are the same: each execution to an end of the
    /// run, or to a fault, has one beside it in which every store comes to memory as late as it can.
    pub(crate) fn is_wanted<'l>(&self, state: &State, vcpu: usize, parked: impl Fn(usize) -> &'l Parked) -> bool {
        let stores = self.stores(state, vcpu);
        let mine = parked(vcpu);
        let waits = matches!(mine, Parked::Halted | Parked::Dead(_)) || self.leave(state, vcpu, mine) != Leave::Given;
        let meets = |address, size| meets(stores, address, size);
        !stores.is_empty()
            && (waits
                || (0..state.buffers.len()).filter(|&other| other != vcpu).any(|other| {
                    let reads = match parked(other) {
                        Parked::Read { address, size, .. } => meets(*address, *size),
                        _ => false,
                    };
                    reads || self.stores(state, other).iter().any(|its| meets(its.address, its.size))
                }))
    }

    fn is_full(&self, stores: &[Store]) -> bool {
        matches!(self.model, Model::Tso { buffer, .. } if stores.len() >= buffer)
    }

    /// What a vCPU reads where that is in memory.
    pub(crate) fn read(&self, state: &State, vcpu: usize, (address, size): (u64, u8), memory: u64) -> u64 {
        seen(self.stores(state, vcpu), (address, size), memory)
    }

    /// Whether what a vCPU does from there on goes to its buffer first: a plain store.
    pub(crate) fn takes(&self, parked: &Parked, effect: &Effect) -> Option<Store> {
        match *effect {
            Effect::Store { address, size, value } if self.model != Model::Sc => {
                (!matches!(parked, Parked::Read { .. })).then_some(Store { address, size, value })
            }
            _ => None,
        }
    }

    /// Holds a store back.
    pub(crate) fn push(&mut self, state: &mut State, vcpu: usize, store: Store) {
        let stores = self.stores(state, vcpu).iter().copied().chain([store]).collect();
        self.hold(state, vcpu, Held { stores, owed: self.owed(state, vcpu).into() });
    }

    /// Takes a vCPU's oldest store out.
    pub(crate) fn pop(&mut self, state: &mut State, vcpu: usize) -> Option<Store> {
        let (oldest, rest) = self.stores(state, vcpu).split_first()?;
        let (oldest, rest) = (*oldest, rest.into());
        self.hold(state, vcpu, Held { stores: rest, owed: self.owed(state, vcpu).into() });
        Some(oldest)
    }

    /// Has a vCPU owe the write of what is sent now.
    pub(crate) fn owe(&mut self, state: &mut State, vcpu: usize, icr: u64) {
        let owed = self.owed(state, vcpu).iter().copied().chain([icr]).collect();
        self.hold(state, vcpu, Held { stores: self.stores(state, vcpu).into(), owed });
    }

    /// What a vCPU does is the write of what it has sent: whether it is.
    pub(crate) fn pay(&mut self, state: &mut State, vcpu: usize, effect: &Effect) -> bool {
        let (Effect::Send { icr, x2apic: true }, Some((first, rest))) = (effect, self.owed(state, vcpu).split_first())
        else {
            return false;
        };
        debug_assert_eq!(icr, first, "no other can be written first");
        let owed = rest.into();
        self.hold(state, vcpu, Held { stores: self.stores(state, vcpu).into(), owed });
        true
    }

    fn hold(&mut self, state: &mut State, vcpu: usize, held: Held) {
        state.buffers[vcpu] = self.number(held);
    }

    /// How many contents there are.
    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    /// A content as numbers in a row: how much is owed, that, and the stores.
    pub(crate) fn words(&self, number: usize) -> Vec<u64> {
        let Held { stores, owed } = &*self.contents[number];
        let stores = stores.iter().flat_map(|store| [store.address, store.size.into(), store.value]);
        [owed.len() as u64].into_iter().chain(owed.iter().copied()).chain(stores).collect()
    }

    /// Takes over other contents. None where they cannot be.
    pub(crate) fn restore(&mut self, contents: &[Vec<u64>]) -> Option<()> {
        let mut new = Self::new(self.model);
        for (number, words) in contents.iter().enumerate() {
            let store = |words: &[u64]| {
                let &[address, size, value] = words else { return None };
                let store = Store { address, size: u8::try_from(size).ok()?, value };
                crate::arena::Arenas::holds(address, store.size).then_some(store)
            };
            let (count, words) = words.split_first()?;
            let (owed, words) = words.split_at_checked(usize::try_from(*count).ok()?)?;
            let stores: Option<Box<[_]>> = words.chunks(3).map(store).collect();
            (new.number(Held { stores: stores?, owed: owed.into() }) as usize == number).then_some(())?;
        }
        *self = new;
        Some(())
    }

    fn number(&mut self, held: Held) -> u32 {
        let next = self.contents.len() as u32;
        *self.numbers.entry(Rc::new(held)).or_insert_with_key(|held| {
            self.bytes += KEPT + size_of_val(&*held.stores) + size_of_val(&*held.owed);
            self.contents.push(Rc::clone(held));
            next
        })
    }
}

/// Whether a store changes any of these bytes. What is shared lies far below the end of the address space.
fn meets(stores: &[Store], address: u64, size: u8) -> bool {
    stores
        .iter()
        .any(|store| store.address < address + u64::from(size) && address < store.address + u64::from(store.size))
}

/// Bytes as they are behind all of these stores.
fn seen(stores: &[Store], (address, size): (u64, u8), memory: u64) -> u64 {
    let byte = |memory: u64, (at, byte): (u64, u64)| match at.checked_sub(address) {
        Some(place) if place < size.into() => memory & !(0xff << (8 * place)) | byte << (8 * place),
        _ => memory,
    };
    let bytes = stores.iter().flat_map(|store| {
        (0..u64::from(store.size)).map(|place| (store.address + place, store.value >> (8 * place) & 0xff))
    });
    bytes.fold(memory, byte)
}

#[cfg(test)]
mod test {
    use super::*;

    fn store(address: u64, size: u8, value: u64) -> Store {
        Store { address, size, value }
    }

    #[test]
    fn newest_store_to_an_address_is_read_before_it_is_in_memory() {
        let stores = [store(0x100, 4, 1), store(0x100, 4, 2), store(0x108, 4, 3)];
        assert_eq!(seen(&stores, (0x100, 4), 7), 2);
        assert_eq!(seen(&stores, (0x104, 4), 7), 7);
        assert!(meets(&stores, 0x100, 4) && !meets(&stores, 0x104, 4));
    }

    #[test]
    fn each_byte_is_that_of_the_newest_store_to_it_or_of_memory() {
        let stores = [store(0x100, 8, 0x8877_6655_4433_2211)];
        assert_eq!((seen(&stores, (0x102, 2), 0), seen(&stores, (0x107, 1), 0)), (0x4433, 0x88));
        let stores = [store(0x100, 2, 0x2211), store(0x101, 1, 0x99), store(0x103, 1, 0x44)];
        assert_eq!(seen(&stores, (0x100, 4), 0xffee_ddcc), 0x44ee_9911);
        assert_eq!(seen(&[store(0x0fe, 4, 0x4433_2211)], (0x100, 4), 0xffee_ddcc), 0xffee_4433);
    }

    #[test]
    fn load_of_which_the_buffer_has_a_part_does_not_wait() {
        let mut buffers = Buffers::new(Model::tso());
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        buffers.push(&mut state, 0, store(0x100, 1, 1));
        let read = |update| Parked::Read { address: 0x100, size: 2, update };
        assert_eq!(buffers.leave(&state, 0, &read(false)), Leave::Given);
        assert_eq!(buffers.leave(&state, 0, &read(true)), Leave::Later, "a locked one drains");
        assert_eq!(buffers.read(&state, 0, (0x100, 2), 0x0100), 0x0101);
    }

    #[test]
    fn what_is_held_back_is_counted_as_memory_once() {
        let mut buffers = Buffers::new(Model::tso());
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        (0..100).for_each(|at| buffers.push(&mut state, 0, store(0x100 + at, 1, 1)));
        let held = buffers.bytes;
        // All numbers of stores from 1 to 100.
        assert!(held >= 5050 * size_of::<Store>(), "{held}");
        assert!(std::iter::from_fn(|| buffers.pop(&mut state, 0)).count() == 100 && buffers.bytes > held);
        let again = buffers.bytes;
        (0..100).for_each(|at| buffers.push(&mut state, 0, store(0x100 + at, 1, 1)));
        assert_eq!(buffers.bytes, again);
    }

    #[test]
    fn stores_come_out_in_their_order_and_an_empty_buffer_is_the_first() {
        let mut buffers = Buffers::new(Model::tso());
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        buffers.push(&mut state, 0, store(0x100, 4, 1));
        buffers.push(&mut state, 0, store(0x104, 4, 2));
        assert_eq!(buffers.leave(&state, 0, &Parked::Drain { all: false }), Leave::Later);
        assert_eq!(buffers.pop(&mut state, 0), Some(store(0x100, 4, 1)));
        assert_eq!(buffers.pop(&mut state, 0), Some(store(0x104, 4, 2)));
        assert_eq!((buffers.pop(&mut state, 0), state.buffer(0)), (None, 0));
    }

    #[test]
    fn buffer_that_is_full_takes_no_store() {
        let mut buffers = Buffers::new(Model::Tso { icr: Icr::Buffer, buffer: 1 });
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        let write = Parked::Write { address: stallbench_abi::layout::ARENA, size: 4, value: 1, before: None };
        assert_eq!(buffers.leave(&state, 0, &write), Leave::Given);
        buffers.push(&mut state, 0, store(0x100, 4, 1));
        assert_eq!(buffers.leave(&state, 0, &write), Leave::Full);
        assert_eq!(buffers.leave(&state, 0, &Parked::Send { icr: 0 }), Leave::Given);
    }

    #[test]
    fn what_is_owed_is_written_first_and_in_order_and_before_a_barrier() {
        let mut buffers = Buffers::new(Model::Tso { icr: Icr::Early, buffer: 8 });
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        let (send, barrier) = (|icr| Parked::Send { icr }, |all| Parked::Drain { all });
        buffers.push(&mut state, 0, store(0x100, 4, 1));
        buffers.owe(&mut state, 0, 7);
        buffers.owe(&mut state, 0, 8);
        assert_eq!(buffers.leave(&state, 0, &send(8)), Leave::Owes);
        assert_eq!(buffers.leave(&state, 0, &send(7)), Leave::Given);
        assert_eq!(buffers.leave(&state, 0, &barrier(true)), Leave::Owes);
        assert_eq!(buffers.leave(&state, 0, &barrier(false)), Leave::Later, "the store is seen first");
        assert!(!buffers.pay(&mut state, 0, &Effect::EndOfInterrupt) && buffers.owed(&state, 0) == [7, 8]);
        assert!(buffers.pay(&mut state, 0, &Effect::Send { icr: 7, x2apic: true }));
        assert_eq!((buffers.owed(&state, 0), buffers.leave(&state, 0, &send(8))), (&[8][..], Leave::Given));
        assert_eq!((buffers.pop(&mut state, 0), buffers.anyone_owes(&state)), (Some(store(0x100, 4, 1)), true));
        assert!(buffers.pay(&mut state, 0, &Effect::Send { icr: 8, x2apic: true }) && state.is_flushed());
        assert!(!buffers.pay(&mut state, 0, &Effect::Send { icr: 8, x2apic: true }), "that sends");
    }

    #[test]
    fn contents_are_read_as_they_were_written() {
        let mut buffers = Buffers::new(Model::Tso { icr: Icr::Early, buffer: 8 });
        let mut state = State { locals: [0].into(), apics: [0].into(), arena: 0, buffers: buffers.at_start(1) };
        let at = stallbench_abi::layout::ARENA;
        buffers.owe(&mut state, 0, 7);
        buffers.push(&mut state, 0, store(at, 4, 1));
        let words: Vec<_> = (0..buffers.len()).map(|number| buffers.words(number)).collect();
        assert_eq!(words, [vec![0], vec![1, 7], vec![1, 7, at, 4, 1]]);
        let mut other = Buffers::new(Model::tso());
        assert_eq!(other.restore(&words), Some(()));
        assert_eq!((other.owed(&state, 0), other.stores(&state, 0)), (&[7][..], &[store(at, 4, 1)][..]));
        for wrong in [vec![], vec![2, 7], vec![0, 1], vec![u64::MAX]] {
            assert_eq!(other.restore(&[vec![0], wrong]), None);
        }
    }
}
