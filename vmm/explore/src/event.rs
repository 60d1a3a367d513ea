//! What happens at each step of a way: for people, and for traces to be checked by.

use std::collections::HashMap;
use std::fmt;

use stallbench_abi::layout::GHOST;
use stallbench_abi::shared::GhostPage;
use stallbench_core::controlled::Inject;
use stallbench_state::memory::read_plain;

use crate::apic::{Message, command};
use crate::buffers::Store;
use crate::graph::{Choice, State, injected};
use crate::hash::{Content, StateHash, feed_apic, of_vcpu};
use crate::local::Parked;
use crate::passage::{Effect, Input};
use crate::search::{ExploreError, Search, Way};

/// One step of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was chosen.
    pub choice: Choice,
    /// What is delivered by it.
    pub takes: Option<Inject>,
    /// What the vCPU does that others can see, or that shows it what others did, in order.
    pub does: Vec<Deed>,
    /// Where the vCPU stood.
    pub from: Place,
    /// Where it stands then.
    pub to: Place,
    /// The state of the machine then.
    pub hash: StateHash,
}

/// An instruction, which is the next that a vCPU executes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its address; none of a vCPU that is off.
    pub address: Option<u64>,
    /// `function+0x12`, for people.
    pub name: String,
}

/// An access to what vCPUs share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It reads memory.
    Read(Access),
    /// It writes memory.
    Write(Access),
    /// It stores, and holds that back: others do not see it yet.
    Hold(Access),
    /// Its oldest store that was held back comes to memory.
    Land(Access),
    /// It sends an interrupt.
    Send {
        /// `vector 0xfb`.
        what: String,
        /// Who gets it.
        to: Vec<usize>,
    },
    /// It sends an interrupt before it writes its ICR.
    Early {
        /// What it writes later.
        icr: u64,
        /// `vector 0xfb`.
        what: String,
        /// Who gets it.
        to: Vec<usize>,
    },
    /// It writes its ICR, and that was sent before.
    Wrote {
        /// What it writes.
        icr: u64,
    },
    /// It ends the interrupt in service.
    EndOfInterrupt,
}

/// An access to memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Guest-physical.
    pub address: u64,
    /// In bytes.
    pub size: u8,
    /// What is read or written.
    pub value: u64,
    /// The name that the case has for the word, printable and without spaces; empty where it has none.
    pub name: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.address.map_or(Ok(()), |address| write!(f, " ({address:#x})"))
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(access) => write!(f, "read {access}"),
            Self::Write(access) => write!(f, "write {access}"),
            Self::Hold(access) => write!(f, "hold {access}"),
            Self::Land(access) => write!(f, "land {access}"),
            Self::Send { what, to } => write!(f, "send {what} to{}", list(to)),
            Self::Early { what, to, .. } => write!(f, "send early {what} to{}", list(to)),
            Self::Wrote { icr } => write!(f, "write icr {icr:#x}, which was sent before"),
            Self::EndOfInterrupt => f.write_str("end of interrupt"),
        }
    }
}

/// Each behind a space.
fn list(vcpus: &[usize]) -> String {
    vcpus.iter().map(|vcpu| format!(" vcpu{vcpu}")).collect()
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, size, value, name } = self;
        write!(f, "{address:#x} {size} ={value:#x}")?;
        if name.is_empty() { Ok(()) } else { write!(f, " {name}") }
    }
}

/// Names states by their hashes; those of vCPUs are made once each.
#[derive(Debug, Default)]
pub(crate) struct Hashes(HashMap<(usize, u32), StateHash>);

/// The words that a case names, by address.
type Names = HashMap<u64, String>;

impl Search<'_> {
    /// What happens on a way, step by step.
    ///
    /// # Errors
    ///
    /// KVM was asked for a step that is not known yet, and could not do it.
    pub fn events(&mut self, way: &Way) -> Result<Vec<Event>, ExploreError> {
        let (mut state, mut hashes) = (self.graph.state(0), Hashes::default());
        let mut events = Vec::new();
        for choice in &way.choices {
            let (next, event) = self.step(&state, *choice, &mut hashes)?;
            events.push(event);
            state = next;
        }
        self.name(&mut events, way)?;
        Ok(events)
    }

    /// Gives the words that were accessed on a way the names that the case has for them: it says so on the way, in the ghost page.
    pub(crate) fn name(&mut self, events: &mut [Event], way: &Way) -> Result<(), ExploreError> {
        self.walk(&way.choices)?;
        let ghost: GhostPage = read_plain(self.stage.machine().memory(), GHOST).unwrap_or_default();
        let named = ghost.words.into_iter().filter(|word| word.address != 0);
        let names = named.map(|word| (word.address, printable(stallbench_abi::text::of(&word.name)))).collect();
        events.iter_mut().for_each(|event| name(event, &names));
        Ok(())
    }

    /// The state at the start line: it stands for the memory that vCPUs share, too.
    pub fn start_hash(&self) -> StateHash {
        let mut content = Content::default();
        let first = self.hash(&self.graph.state(0), &mut Hashes::default());
        content.hash(first).hash(self.arenas.base_hash());
        content.end()
    }

    /// One step, and what happens at it; words have no names yet.
    pub(crate) fn step(
        &mut self,
        state: &State,
        choice: Choice,
        hashes: &mut Hashes,
    ) -> Result<(State, Event), ExploreError> {
        if !choice.executes() {
            return self.unexecuted(state, choice, hashes);
        }
        let vcpu = choice.vcpu();
        let (apic, input) = (self.apics.get(state.apics[vcpu]), self.input(state, choice));
        let local = self.stage.local(vcpu, state.locals[vcpu]);
        let takes = injected(choice, &apic, local.devices.tpr);
        let reads = match (&local.parked, input) {
            (Parked::Read { address, size, .. }, Input::Go(value)) => Some(access(*address, *size, value)),
            _ => None,
        };
        let next = self.follow(state, choice)?;
        let passage = self.stage.passage(vcpu, self.from(state, choice), input)?;
        let vcpus = state.locals.len();
        let parked = &self.stage.local(vcpu, state.locals[vcpu]).parked;
        let effects = passage.effects.iter().map(|effect| match self.buffers.takes(parked, effect) {
            Some(store) => Deed::Hold(access(store.address, store.size, store.value)),
            None => match *effect {
                Effect::Send { icr, x2apic: true } if self.buffers.owed(state, vcpu).first() == Some(&icr) => {
                    Deed::Wrote { icr }
                }
                effect => deed(effect, vcpu, vcpus),
            },
        });
        let does = reads.map(Deed::Read).into_iter().chain(effects).collect();
        let [from, to] = [state, &next].map(|state| self.place_of(vcpu, state));
        let hash = self.hash(&next, hashes);
        Ok((next, Event { choice, takes, does, from, to, hash }))
    }

    /// A store that comes to memory, or an interrupt that is sent before its time: its vCPU stays where it is.
    fn unexecuted(
        &mut self,
        state: &State,
        choice: Choice,
        hashes: &mut Hashes,
    ) -> Result<(State, Event), ExploreError> {
        let vcpu = choice.vcpu();
        let land = |store: &Store| Deed::Land(access(store.address, store.size, store.value));
        let does = match choice {
            Choice::Early(_, number) => self.early_icr(number).map(|icr| early(icr, vcpu, state.locals.len())),
            _ => self.buffers.stores(state, vcpu).first().map(land),
        };
        let does = does.into_iter().collect();
        let next = self.follow(state, choice)?;
        let (place, hash) = (self.place_of(vcpu, state), self.hash(&next, hashes));
        Ok((next, Event { choice, takes: None, does, from: place.clone(), to: place, hash }))
    }

    fn place_of(&self, vcpu: usize, state: &State) -> Place {
        let number = state.locals[vcpu];
        Place { address: self.stage.next(vcpu, number), name: self.stage.place(vcpu, number) }
    }

    /// The hash of a state.
    pub(crate) fn hash(&self, state: &State, hashes: &mut Hashes) -> StateHash {
        let State { locals, apics, arena, buffers } = state;
        let mut content = Content::default();
        content.word(locals.len() as u64);
        for (vcpu, number) in locals.iter().enumerate() {
            let of = || of_vcpu(&self.stage.local(vcpu, *number).identity());
            content.hash(*hashes.0.entry((vcpu, *number)).or_insert_with(of));
        }
        apics.iter().for_each(|apic| feed_apic(&mut content, &self.apics.get(*apic)));
        let changes = self.arenas.changes(*arena);
        content.word(changes.len() as u64).words(changes.into_iter().flat_map(|(address, word)| [address, word]));
        // None where all see each store at once.
        for vcpu in 0..buffers.len() {
            let stores = self.buffers.stores(state, vcpu);
            let words = stores.iter().flat_map(|store| [store.address, store.size.into(), store.value]);
            content.word(stores.len() as u64).words(words);
            if self.foretold.is_some() {
                let owed = self.buffers.owed(state, vcpu);
                content.word(owed.len() as u64).words(owed.iter().copied());
            }
        }
        content.end()
    }
}

/// The guest says what it likes.
fn printable(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '[' | ']') { c } else { '?' };
    name.chars().map(kept).collect()
}

/// Gives the words of an event their names.
fn name(event: &mut Event, names: &Names) {
    for deed in &mut event.does {
        if let Deed::Read(access) | Deed::Write(access) | Deed::Hold(access) | Deed::Land(access) = deed
            && let Some(name) = names.get(&access.address)
        {
            access.name.clone_from(name);
        }
    }
}

fn access(address: u64, size: u8, value: u64) -> Access {
    Access { address, size, value, name: String::new() }
}

fn deed(effect: Effect, vcpu: usize, vcpus: usize) -> Deed {
    match effect {
        Effect::Store { address, size, value } => Deed::Write(access(address, size, value)),
        Effect::EndOfInterrupt => Deed::EndOfInterrupt,
        Effect::Send { icr, x2apic } => {
            let (what, to) = message(icr, x2apic, vcpu, vcpus);
            Deed::Send { what, to }
        }
    }
}

/// What a write to the ICR sends, and to whom.
fn message(icr: u64, x2apic: bool, vcpu: usize, vcpus: usize) -> (String, Vec<usize>) {
    let (message, target) = command(icr, x2apic);
    let what = match message {
        Message::Fixed(vector) => format!("vector {vector:#x}"),
        Message::Nmi => "nmi".to_owned(),
        Message::Init => "init".to_owned(),
        Message::StartUp(vector) => format!("sipi {vector:#x}"),
        Message::EndOfInit => "end of init".to_owned(),
        Message::Other(icr) => format!("icr {icr:#x}"),
    };
    (what, (0..vcpus).filter(|&other| target.holds(other, vcpu)).collect())
}

fn early(icr: u64, vcpu: usize, vcpus: usize) -> Deed {
    let (what, to) = message(icr, true, vcpu, vcpus);
    Deed::Early { icr, what, to }
}

/// `vector 0xfb to vcpu1`, of what a vCPU sends by its x2APIC.
pub(crate) fn sent(icr: u64, vcpu: usize, vcpus: usize) -> String {
    let (what, to) = message(icr, true, vcpu, vcpus);
    format!("{what} to{}", list(&to))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn deeds_are_told_in_words() {
        let mut access = access(0x40_0010, 4, 1);
        assert_eq!(Deed::Read(access.clone()).to_string(), "read 0x400010 4 =0x1");
        access.name = printable("gate; x\n|");
        assert_eq!(Deed::Write(access).to_string(), "write 0x400010 4 =0x1 gate??x??");
        let sent = deed(Effect::Send { icr: 0x000c_40fc, x2apic: true }, 1, 3);
        assert_eq!(sent.to_string(), "send vector 0xfc to vcpu0 vcpu2");
        let early = early(0x000c_40fc, 1, 3);
        assert_eq!(early.to_string(), "send early vector 0xfc to vcpu0 vcpu2");
        assert_eq!(Deed::Wrote { icr: 0xfc }.to_string(), "write icr 0xfc, which was sent before");
    }
}
