//! Several threads that ask for the passages of one search.
//!
//! Nearly all that a search takes is KVM's: what a vCPU does from one stop to the next. That depends on nothing but its state and what it
//! reads ([`crate::stage`]), so anybody can ask for it, on a machine of its own that was brought up in the same way. A worker is a thread with
//! such a machine; it goes through the states of the guest by itself, where most is new first. Nobody asks for what another asks for: that
//! is postponed, and what was said is there for all.
//!
//! The search goes on as it does alone, state for state. It takes what is there already in place of asking its own machine, and gives it
//! its own numbers then. So what it comes to does not depend on how many workers there are, nor on when they come to what. Of what a worker
//! is refused nothing is told: the search asks for it itself, if it comes there at all.

use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustc_hash::FxHashMap;

use crate::local::{Base, Local};
use crate::passage::Input;
use crate::private::Frame;
use crate::search::Search;
use crate::settings::{Irq, Passages};
use crate::stage::Answer;

mod worker;

/// Bytes of memory that all answers take at most, about: with more, nobody asks ahead any more.
const MOST_BYTES: usize = 256 << 20;

/// States in a row that a worker looks at while nobody is told anything new. Then it waits for that: where nearly all is known, it leaves the
/// processor and the memory to the search.
const MOST_BARREN: usize = 256;

/// What the threads of one search have asked for.
#[derive(Debug, Default)]
pub struct Ahead {
    table: Mutex<Table>,
    /// Somebody was told something, or the search is over.
    news: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    passages: FxHashMap<Key, Said>,
    bytes: usize,
    /// Answers and refusals so far.
    told: u64,
    origin: Option<Origin>,
    is_over: bool,
}

/// All that an answer depends on. It is compared in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) vcpu: usize,
    pub(crate) input: Input,
    pub(crate) start: Arc<Local>,
    /// Handlers that run there.
    pub(crate) frames: Box<[Frame]>,
    /// Where the vCPU stops for something that comes, in order; none where that is everywhere, or nowhere.
    pub(crate) places: Box<[u64]>,
}

/// What machines have in common that say the same.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) bases: Vec<Base>,
    pub(crate) ghost: Vec<u8>,
    pub(crate) finds_drains: bool,
    pub(crate) passages: Passages,
    pub(crate) irq: Irq,
}

#[derive(Debug)]
enum Said {
    /// Somebody asks just now.
    Nothing,
    Answer(Arc<Answer>),
    Refusal,
}

/// How far a passage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nobody has asked for it.
    New,
    /// Somebody asks just now.
    Asked,
    Answered,
    Refused,
}

/// What comes of a passage that is wanted.
pub(crate) enum Claim {
    Told(Arc<Answer>),
    /// Nobody has asked for it, nor will while this is there.
    Ours(Asking),
    /// Whoever wants it asks for itself alone.
    Refused,
}

/// A passage that somebody asks for. Dropped with nothing told, it was refused.
pub(crate) struct Asking {
    ahead: Arc<Ahead>,
    key: Option<Key>,
}

/// Ends workers, whatever becomes of the search.
struct Ends<'a>(&'a Ahead);

/// Has so many threads ask for passages, the calling one among them, which searches: with what the others have asked for, if it
/// [takes](Search::share) it. The others have gone when this returns. `start` brings a machine to its start line, in the thread that drives
/// it; a worker for which there is none is missing, and nothing else comes of that. A panic of one is one of this thread, once the search is over.
pub fn alongside<'p, T>(
    workers: usize,
    start: &(dyn Fn() -> Option<Search<'p>> + Sync),
    search: impl FnOnce(&Arc<Ahead>) -> T,
) -> T {
    let ahead = Arc::new(Ahead::default());
    thread::scope(|scope| {
        let _ends = Ends(&ahead);
        for _ in 1..workers {
            let worker = || ahead.work(start);
            // Without the thread it is missing, too.
            drop(thread::Builder::new().name("passages".to_owned()).spawn_scoped(scope, worker));
        }
        search(&ahead)
    })
}

impl Ahead {
    /// What a worker does.
    fn work<'p>(self: &Arc<Self>, start: &(dyn Fn() -> Option<Search<'p>> + Sync)) {
        if self.is_over() {
            return;
        }
        if let Some(mut search) = start()
            && search.share(self)
        {
            search.ask_ahead(self, MOST_BARREN);
        }
    }

    /// Nobody needs more: workers go.
    pub fn end(&self) {
        self.table().is_over = true;
        self.news.notify_all();
    }

    pub(crate) fn is_over(&self) -> bool {
        let table = self.table();
        table.is_over || table.bytes > MOST_BYTES
    }

    /// Whether a machine begins as the others do. The first one does.
    pub(crate) fn is_origin(&self, origin: Origin) -> bool {
        let mut table = self.table();
        let same = table.origin.as_ref().is_none_or(|first| *first == origin);
        table.origin.get_or_insert(origin);
        same
    }

    pub(crate) fn progress(&self, key: &Key) -> Progress {
        match self.table().passages.get(key) {
            None => Progress::New,
            Some(Said::Nothing) => Progress::Asked,
            Some(Said::Answer(_)) => Progress::Answered,
            Some(Said::Refusal) => Progress::Refused,
        }
    }

    /// Takes what was said to a passage, as soon as whoever asks for it knows; else it is the caller's to ask for.
    pub(crate) fn claim(ahead: &Arc<Self>, key: Key) -> Claim {
        let mut table = ahead.table();
        loop {
            match table.passages.get(&key) {
                Some(Said::Answer(answer)) => return Claim::Told(Arc::clone(answer)),
                Some(Said::Refusal) => return Claim::Refused,
                Some(Said::Nothing) => table = ahead.wait(table),
                None if table.bytes > MOST_BYTES => return Claim::Refused,
                None => break,
            }
        }
        table.passages.insert(key.clone(), Said::Nothing);
        Claim::Ours(Asking { ahead: Arc::clone(ahead), key: Some(key) })
    }

    /// Answers and refusals so far.
    pub(crate) fn told(&self) -> u64 {
        self.table().told
    }

    /// Until there are more than that, or the search is over.
    pub(crate) fn wait_for_news(&self, told: u64) {
        let mut table = self.table();
        while table.told == told && !table.is_over {
            table = self.wait(table);
        }
    }

    fn say(&self, key: Key, said: Said) {
        let mut table = self.table();
        let bytes = match &said {
            Said::Answer(answer) => answer.end.bytes() + answer.bytes(),
            Said::Nothing | Said::Refusal => 0,
        };
        table.bytes += bytes + size_of::<(Key, Said)>();
        table.told += 1;
        if let Entry::Occupied(mut asked) = table.passages.entry(key) {
            asked.insert(said);
        }
        drop(table);
        self.news.notify_all();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of it is whole when something else can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'t>(&self, table: MutexGuard<'t, Table>) -> MutexGuard<'t, Table> {
        self.news.wait(table).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    /// KVM has said this.
    pub(crate) fn tell(mut self, answer: &Arc<Answer>) {
        if let Some(key) = self.key.take() {
            self.ahead.say(key, Said::Answer(Arc::clone(answer)));
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.ahead.say(key, Said::Refusal);
        }
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod test;
