//! Watching who writes chosen words, while the guest runs at its full speed.
//!
//! Each word is a data breakpoint of every vCPU (SDM 3B 18.2.4, APM 2 13.1.1): the write traps behind its instruction, and the
//! thread of the vCPU keeps who it was before it lets it go on. A machine that is stepped is not watched meanwhile. Not every host
//! lets these breakpoints fire: [`HostKvm::watches_writes`](crate::HostKvm::watches_writes) asks it.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_guest_debug;
use stallbench_state::memory::Memory;

use crate::breakpoint::{self, Breakpoint};
use crate::memory::GuestMemory;

/// Words that a processor has breakpoints for (DR0 to DR3).
pub const MOST_WORDS: usize = breakpoint::MOST;

/// Memory whose writes are watched: as much of it as lies in one aligned piece of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The linear address by which it is written. A write by another one is not seen.
    pub linear: u64,
    /// The guest-physical address where it lies.
    pub physical: u64,
    /// Its size in bytes, 1 to 8.
    pub size: usize,
}

/// Who wrote a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The vCPU.
    pub vcpu: usize,
    /// RIP behind the instruction that wrote.
    pub behind: u64,
}

/// Who last changed each of the words, up to now. A write of what is there already changes nothing.
#[derive(Debug)]
pub struct LastWriters(Vec<(Word, Mutex<Last>)>);

/// What is known of a word.
#[derive(Clone, Copy, Debug)]
struct Last {
    value: [u8; 8],
    writer: Option<Writer>,
}

impl LastWriters {
    /// Nobody wrote yet. Words beyond [`MOST_WORDS`] are not watched.
    pub(crate) fn new(words: &[Word], memory: &GuestMemory) -> Self {
        let last = |word: &Word| Mutex::new(Last { value: value(word, memory), writer: None });
        Self(words.iter().take(MOST_WORDS).map(|word| (*word, last(word))).collect())
    }

    /// Who last changed a word; `None`: nobody since the start, or it is not watched.
    pub fn of(&self, word: usize) -> Option<Writer> {
        self.0.get(word).and_then(|(_, last)| last.lock().unwrap_or_else(PoisonError::into_inner).writer)
    }

    /// Whether a word holds what its last writer left, or what it held at the start: nobody wrote it unseen.
    pub fn holds(&self, word: usize, memory: &GuestMemory) -> bool {
        self.0.get(word).is_some_and(|(word, last)| {
            last.lock().unwrap_or_else(PoisonError::into_inner).value == value(word, memory)
        })
    }

    /// A vCPU stopped behind an instruction that wrote, with the breakpoints that DR6 tells.
    pub(crate) fn note(&self, writer: Writer, dr6: u64, memory: &GuestMemory) {
        for (index, (word, last)) in self.0.iter().enumerate() {
            if dr6 >> index & 1 == 0 {
                continue;
            }
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let value = value(word, memory);
            if value != last.value {
                *last = Last { value, writer: Some(writer) };
            }
        }
    }

    /// How a vCPU is debugged that is watched.
    pub(crate) fn debug(&self) -> kvm_guest_debug {
        breakpoint::debug(self.0.iter().map(|(word, _)| Breakpoint::Write(*word)))
    }
}

/// What a word holds.
pub(crate) fn value(word: &Word, memory: &GuestMemory) -> [u8; 8] {
    let mut value = [0; 8];
    // What cannot be read never changes.
    memory.read(word.physical, &mut value[..word.size.min(8)]);
    value
}

/// Who keeps the writers of a machine's words, for its vCPUs.
pub(crate) type Watching = Arc<LastWriters>;

#[cfg(test)]
mod test {
    use super::*;

    fn word(linear: u64, size: usize) -> Word {
        Word { linear, physical: linear, size }
    }

    #[test]
    fn last_writer_is_the_last_that_changed_the_word() {
        let memory = GuestMemory::plain(2 << 20).expect("memory");
        let words = [word(0x9000, 4), word(0x9004, 4)];
        let last = LastWriters::new(&words, &memory);
        let writer = |vcpu| Writer { vcpu, behind: 0x1000 };
        last.note(writer(0), 1, &memory);
        assert_eq!(last.of(0), None, "what was there already was written");
        assert!(memory.write(0x9000, &[1]));
        last.note(writer(1), 2, &memory);
        assert_eq!((last.of(0), last.of(1)), (None, None), "another word was written");
        last.note(writer(2), 1, &memory);
        last.note(writer(3), 1, &memory);
        assert_eq!((last.of(0), last.holds(0, &memory)), (Some(writer(2)), true));
        assert!(memory.write(0x9000, &[2]));
        assert!(!last.holds(0, &memory), "written unseen");
        assert_eq!(last.of(7), None);
    }
}
