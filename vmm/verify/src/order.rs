//! Whether stores that wait in a buffer change anything.
//!
//! The states of vCPUs that share changing memory are closed under instructions that are executed one after the other. A processor
//! delays its stores past its own later loads (SDM 3A 9.2.2), and an instruction with two accesses is two steps for others. Neither
//! makes a difference if every store to shared bytes is locked, or if all of them are to one and the same aligned word: the accesses
//! to a single location have an order that all processors agree on. All else is refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::falsehood::Wrong;

/// An access to a byte that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) size: usize,
    pub(crate) write: bool,
}

impl Access {
    fn bytes(self) -> impl Iterator<Item = u64> {
        (self.address..).take(self.size)
    }

    /// One step for all processors (SDM 3A 10.1.1).
    fn is_one_step(self) -> bool {
        self.address / 8 == (self.address + self.size as u64 - 1) / 8
    }

    fn is_aligned(self) -> bool {
        self.size.is_power_of_two() && self.address.is_multiple_of(self.size as u64)
    }
}

/// The accesses of one instruction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Instruction {
    vcpu: usize,
    locked: bool,
    accesses: Vec<Access>,
}

/// What the vCPUs of a component do to its cells.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// With a state in which it is done.
    instructions: BTreeMap<Instruction, usize>,
}

impl Order {
    /// An instruction of a vCPU, in a state, accesses cells.
    pub(crate) fn record(&mut self, state: usize, vcpu: usize, locked: bool, accesses: Vec<Access>) {
        if !accesses.is_empty() {
            self.instructions.entry(Instruction { vcpu, locked, accesses }).or_insert(state);
        }
    }

    /// What would make a difference, with the state and the vCPU.
    pub(crate) fn check(&self) -> Result<(), (usize, usize, Wrong)> {
        let shared = self.shared();
        let is_shared = |access: &&Access| access.bytes().any(|byte| shared.contains(&byte));
        let mut stores = BTreeSet::new();
        let mut delayed = None;
        for (instruction, &state) in &self.instructions {
            let accesses: Vec<_> = instruction.accesses.iter().filter(is_shared).collect();
            let at = |wrong| (state, instruction.vcpu, wrong);
            if !instruction.locked {
                let torn = accesses.get(1).or_else(|| accesses.iter().find(|access| !access.is_one_step()));
                if let Some(access) = torn {
                    return Err(at(Wrong::Torn { address: access.address }));
                }
            }
            for access in accesses.into_iter().filter(|access| access.write) {
                stores.insert((access.address, access.size, access.is_aligned()));
                if !instruction.locked {
                    delayed = Some(at(Wrong::Delayed { address: access.address, size: access.size }));
                }
            }
        }
        let one_word = stores.len() <= 1 && stores.iter().all(|(_, _, aligned)| *aligned);
        delayed.filter(|_| !one_word).map_or(Ok(()), Err)
    }

    /// The bytes that more than one vCPU accesses.
    fn shared(&self) -> BTreeSet<u64> {
        let mut first: BTreeMap<u64, usize> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for instruction in self.instructions.keys() {
            for byte in instruction.accesses.iter().flat_map(|access| access.bytes()) {
                if *first.entry(byte).or_insert(instruction.vcpu) != instruction.vcpu {
                    shared.insert(byte);
                }
            }
        }
        shared
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn access(address: u64, size: usize, write: bool) -> Access {
        Access { address, size, write }
    }

    fn order(instructions: &[(usize, bool, &[Access])]) -> Order {
        let mut order = Order::default();
        for (state, &(vcpu, locked, accesses)) in instructions.iter().enumerate() {
            order.record(state, vcpu, locked, accesses.to_vec());
        }
        order
    }

    #[test]
    fn locked_stores_to_several_words_are_not_delayed() {
        let exchange = |address| [access(address, 4, false), access(address, 4, true)];
        let order =
            order(&[(0, true, &exchange(0x100)), (1, true, &exchange(0x108)), (0, false, &[access(0x108, 4, false)])]);
        assert_eq!(order.check(), Ok(()));
    }

    #[test]
    fn plain_stores_to_one_word_are_in_an_order_that_all_agree_on() {
        let store = [access(0x100, 4, true)];
        assert_eq!(
            order(&[(0, false, &store), (1, false, &store), (0, false, &[access(0x100, 4, false)])]).check(),
            Ok(())
        );
    }

    #[test]
    fn plain_store_beside_a_store_to_another_word_may_be_delayed() {
        let (one, other) = ([access(0x100, 4, true)], [access(0x108, 4, true)]);
        let reads = [access(0x100, 4, false)];
        let reads_other = [access(0x108, 4, false)];
        for locked in [false, true] {
            let order = order(&[(0, false, &one), (1, locked, &other), (1, false, &reads), (0, false, &reads_other)]);
            assert!(matches!(order.check(), Err((_, _, Wrong::Delayed { .. }))), "{locked}");
        }
    }

    #[test]
    fn private_cells_are_nobody_elses_matter() {
        let push = [access(0x200, 8, true), access(0x101, 8, false)];
        let order =
            order(&[(0, false, &push), (1, true, &[access(0x300, 4, true)]), (0, false, &[access(0x208, 8, true)])]);
        assert_eq!(order.check(), Ok(()));
    }

    #[test]
    fn instruction_with_two_accesses_is_no_step_unless_it_is_locked() {
        let increment = [access(0x100, 4, false), access(0x100, 4, true)];
        let reads = [access(0x100, 4, false)];
        let torn = order(&[(0, false, &increment), (1, false, &reads)]).check();
        assert_eq!(torn, Err((0, 0, Wrong::Torn { address: 0x100 })));
        assert_eq!(order(&[(0, true, &increment), (1, false, &reads)]).check(), Ok(()));
    }

    #[test]
    fn access_across_words_is_no_step() {
        let across = [access(0x106, 4, false)];
        let torn = order(&[(0, false, &across), (1, true, &[access(0x108, 4, true)])]).check();
        assert_eq!(torn, Err((0, 0, Wrong::Torn { address: 0x106 })));
    }
}
