//! Files that claim to be dumps: whatever lies in them, they are read or refused in one line, and what is read can be written.
//!
//! Some thousand inputs each time; a million by `STALLBENCH_FUZZ=1000000 cargo test --release -p stallbench-state --test dump`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence};
use stallbench_state::dump::{About, Dump, DumpedMemory};
use stallbench_state::machine::{MachineState, Registers, SystemRegisters, Unread, VcpuState};
use stallbench_state::memory::{Memory, Snippet};
use stallbench_state::mtrr::MtrrState;

/// The file that the inputs are made of.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| written(&dump()));
/// Numbers at which readers of files break.
const EDGES: [u64; 12] =
    [0, 1, 7, 0xfff, 0x1000, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 52, (1 << 63) - 1, u64::MAX - 4095, u64::MAX];

/// A small dump with something in each of its parts.
fn dump() -> Dump {
    let vcpu = |index| VcpuState {
        index,
        registers: Ok(Registers { rip: 0x1000, ..Registers::default() }),
        system: Ok(SystemRegisters { cr0: 1 << 31, cr3: 0x1000, efer: 1 << 10, ..SystemRegisters::default() }),
        apic: Err(Unread { what: "local apic".into(), reason: "no".into() }),
        events: Ok(Default::default()),
        mp_state: Ok(stallbench_state::machine::MpState::Halted),
        mtrr: Some(Ok(MtrrState::at_start())),
        msrs: Some(Ok(vec![(0x277, 7)])),
        ran: Default::default(),
    };
    let mut memory = DumpedMemory::zeroed(std::iter::once(0x1000..0x3000));
    memory.copy(&Snippet { base: 0x1000, bytes: vec![3; 0x2000] }, 0x1000..0x3000);
    let about = About { run: "a/b".into(), host: serde_json::json!({ "cpu": "x" }), ..About::default() };
    Dump { about, machine: MachineState { vcpus: (0..2).map(vcpu).collect() }, memory, payload: vec![5; 300] }
}

fn written(dump: &Dump) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).unwrap();
    bytes
}

/// Where the checksum lies: behind the version, in the first note of stallbench.
fn checksum_at(bytes: &[u8]) -> Option<usize> {
    let owner = bytes.windows(12).position(|window| window == b"stallbench\0\0")?;
    Some(owner + 16)
}

/// Puts the checksum right, so that what lies behind it is looked at.
fn mend(bytes: &mut [u8]) {
    let Some(at) = checksum_at(bytes).filter(|at| at + 4 <= bytes.len()) else { return };
    bytes[at..at + 4].fill(0);
    let sum = crc32fast::hash(bytes);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Reads it: an error is one line, and a dump can be used and written.
fn check(bytes: &[u8]) {
    match Dump::read(bytes) {
        Ok(dump) => {
            let kept: usize = dump.memory.runs().iter().map(|run| run.bytes.len()).sum();
            assert!(kept <= bytes.len());
            for range in dump.memory.ranges() {
                assert!(dump.memory.read_u64(range.start).is_some() && dump.memory.read_u64(range.end - 8).is_some());
            }
            let again = Dump::read(&written(&dump)).expect("what was written");
            assert!(again == dump);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n') && text.len() < 400, "{text}");
        }
    }
}

/// A change to a file.
#[derive(Clone, Debug)]
enum Change {
    Byte(Index, u8),
    /// A word of so many bytes where the structures of the file have theirs.
    Word(Index, usize, u64),
    Cut(Index),
    Remove(Index, u8),
    Repeat(Index, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![proptest::sample::select(&EDGES[..]), any::<u64>(), 0..0x5000_u64];
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        6 => (any::<Index>(), proptest::sample::select(&[2_usize, 4, 8][..]), number)
            .prop_map(|(at, size, number)| Change::Word(at, size, number)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, size)| Change::Remove(at, size)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, size)| Change::Repeat(at, size)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let size = bytes.len();
    match change {
        Change::Byte(at, byte) => bytes[at.index(size)] = *byte,
        Change::Word(at, width, number) => {
            // What lies before memory has all the structure.
            let at = at.index(size.saturating_sub(0x2000).max(4).min(size)) & !3;
            let end = (at + width).min(size);
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        Change::Cut(at) => bytes.truncate(at.index(size)),
        Change::Remove(at, count) => {
            let at = at.index(size);
            bytes.drain(at..(at + usize::from(*count)).min(size));
        }
        Change::Repeat(at, count) => {
            let at = at.index(size);
            let again = bytes[at..(at + usize::from(*count)).min(size)].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

fn inputs() -> Config {
    let asked = std::env::var("STALLBENCH_FUZZ").ok().and_then(|number| number.parse().ok());
    let cases = asked.unwrap_or(4_000) / 4;
    Config { cases, failure_persistence: Some(Box::new(FileFailurePersistence::Off)), ..Config::default() }
}

proptest! {
    #![proptest_config(inputs())]

    #[test]
    fn changed_dump_is_read_or_refused(changes in proptest::collection::vec(change(), 1..6)) {
        let mut bytes = GOOD.clone();
        changes.iter().for_each(|change| apply(&mut bytes, change));
        check(&bytes);
    }

    #[test]
    fn changed_dump_with_a_good_checksum_is_read_or_refused(changes in proptest::collection::vec(change(), 1..6)) {
        let mut bytes = GOOD.clone();
        changes.iter().for_each(|change| apply(&mut bytes, change));
        mend(&mut bytes);
        check(&bytes);
    }

    #[test]
    fn one_changed_word_with_a_good_checksum_is_read_or_refused(
        at in any::<Index>(),
        number in proptest::sample::select(&EDGES[..]),
    ) {
        let mut bytes = GOOD.clone();
        apply(&mut bytes, &Change::Word(at, 8, number));
        mend(&mut bytes);
        check(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), is_core in any::<bool>()) {
        if is_core {
            let known = bytes.len().min(64);
            bytes[..known].copy_from_slice(&GOOD[..known]);
        }
        check(&bytes);
    }
}

#[test]
fn mended_dump_is_the_dump() {
    let mut bytes = written(&dump());
    let good = bytes.clone();
    mend(&mut bytes);
    assert!(bytes == good && bytes.len() < 0x6000, "{:#x}", bytes.len());
    assert!(Dump::read(&bytes).unwrap() == dump());
}
