//! Whether a state stands for what an instruction left.

use core::fmt::Write;

use stallbench_state::certificate::{Does, RFLAGS, RIP, State, VcpuState};

/// Names of the registers of a state, in their order.
const NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

/// What a component is like after an instruction.
#[derive(Debug)]
pub(crate) struct Left<'a> {
    /// The state that the instruction was executed in.
    pub(crate) from: &'a State,
    /// Place in it of the vCPU that executed it.
    pub(crate) who: usize,
    /// What that vCPU does now.
    pub(crate) does: Does,
    /// Its registers now.
    pub(crate) registers: [u64; 18],
    /// What the cells hold now.
    pub(crate) cells: Vec<Vec<u8>>,
}

impl Left<'_> {
    /// What of it the state does not stand for; `None`: it stands for all of it.
    pub(crate) fn difference(&self, state: &State) -> Option<String> {
        let own = &state.vcpus[self.who];
        of_vcpu(own, self.does, &self.registers).or_else(|| self.of_others(state)).or_else(|| self.of_cells(state))
    }

    fn of_others(&self, state: &State) -> Option<String> {
        let others = self.from.vcpus.iter().zip(&state.vcpus).enumerate().filter(|(at, _)| *at != self.who);
        others.into_iter().find_map(|(at, (was, is))| {
            let differs = |what| format!("{what}, in the part of vcpu number {at} of the component");
            (was != is).then(|| of_values(is, was).map(differs)).flatten()
        })
    }

    fn of_cells(&self, state: &State) -> Option<String> {
        let mut cells = self.cells.iter().zip(&state.cells).enumerate();
        cells.find_map(|(at, (is, listed))| {
            let byte = is.iter().zip(&listed.0).position(|(is, listed)| is != listed)?;
            Some(format!("byte {byte} of cell {at} is {:#x}, not {:#x}", is[byte], listed.0[byte]))
        })
    }

    /// How much a state has in common with it, to choose the one that it is compared with in words.
    pub(crate) fn likeness(&self, state: &State) -> usize {
        let own = &state.vcpus[self.who];
        let same = own.registers.iter().zip(&self.registers).filter(|(listed, is)| listed.0 == **is).count();
        let here = usize::from(own.registers[RIP].0 == self.registers[RIP]);
        same + 100 * here
    }
}

/// What of these registers the state of a vCPU does not stand for.
fn of_vcpu(state: &VcpuState, does: Does, registers: &[u64; 18]) -> Option<String> {
    if state.does != does {
        return Some(format!("it {}, and does not {}", words(does), infinitive(state.does)));
    }
    (0..registers.len()).find_map(|register| {
        let (is, listed) = (registers[register], state.registers[register].0);
        let name = NAMES[register];
        match state.aside.iter().find(|aside| aside.register == register) {
            None => (is != listed).then(|| format!("{name} is {is:#x}, not {listed:#x}")),
            Some(aside) if register == RFLAGS => {
                let mask = !aside.most.0;
                ((is ^ listed) & mask != 0).then(|| format!("{name} is {:#x}, not {:#x}", is & mask, listed & mask))
            }
            Some(aside) if (aside.least.0..=aside.most.0).contains(&is) => None,
            Some(aside) => Some(format!("{name} is {is:#x}, not within {} to {}", aside.least, aside.most)),
        }
    })
}

/// What of all values that one state of a vCPU stands for another one does not.
fn of_values(state: &VcpuState, values: &VcpuState) -> Option<String> {
    // A register's values are a range, and a state stands for all of it if it does so for both ends; flags are free one by one.
    let ends = [false, true].map(|end| {
        let mut registers = values.registers.map(|word| word.0);
        for aside in &values.aside {
            registers[aside.register] = match (aside.register, end) {
                (RFLAGS, false) => registers[RFLAGS] & !aside.most.0,
                (RFLAGS, true) => registers[RFLAGS] | aside.most.0,
                (_, false) => aside.least.0,
                (_, true) => aside.most.0,
            };
        }
        registers
    });
    ends.iter().find_map(|registers| of_vcpu(state, values.does, registers))
}

fn words(does: Does) -> &'static str {
    match does {
        Does::Runs => "runs",
        Does::Halts => "halts",
        Does::Absent => "is absent",
    }
}

fn infinitive(does: Does) -> &'static str {
    match does {
        Does::Runs => "run",
        Does::Halts => "halt",
        Does::Absent => "stay absent",
    }
}

/// Bytes as people write them.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _ = write!(text, "{space}{byte:02x}");
        text
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{Aside, Bytes, Word};

    fn vcpu(rax: u64, aside: Vec<Aside>) -> VcpuState {
        let mut vcpu = VcpuState { aside, ..VcpuState::default() };
        vcpu.registers[0] = Word(rax);
        vcpu
    }

    fn aside(register: usize, least: u64, most: u64) -> Aside {
        Aside { register, least: Word(least), most: Word(most) }
    }

    fn state(vcpus: Vec<VcpuState>, cell: u8) -> State {
        State { vcpus, cells: vec![Bytes(vec![cell])] }
    }

    /// vCPU 0 of a state left this in RAX, and this in the cell.
    fn left(from: &State, rax: u64, cell: u8) -> Left<'_> {
        let mut registers = [0; 18];
        registers[0] = rax;
        Left { from, who: 0, does: Does::Runs, registers, cells: vec![vec![cell]] }
    }

    #[test]
    fn state_stands_for_exactly_what_it_lists() {
        let from = state(vec![vcpu(0, vec![]), vcpu(7, vec![])], 0);
        let to = state(vec![vcpu(1, vec![]), vcpu(7, vec![])], 2);
        assert_eq!(left(&from, 1, 2).difference(&to), None);
        assert_eq!(left(&from, 3, 2).difference(&to).as_deref(), Some("rax is 0x3, not 0x1"));
        assert_eq!(left(&from, 1, 3).difference(&to).as_deref(), Some("byte 0 of cell 0 is 0x3, not 0x2"));
        let halted = Left { does: Does::Halts, ..left(&from, 1, 2) };
        assert_eq!(halted.difference(&to).as_deref(), Some("it halts, and does not run"));
    }

    #[test]
    fn register_set_aside_stands_for_its_bounds_and_flags_for_their_mask() {
        let from = state(vec![vcpu(0, vec![])], 0);
        let to = state(vec![vcpu(0, vec![aside(0, 4, 6), aside(RFLAGS, 0, 0x40)])], 0);
        for (rax, flags, covered) in [(4, 0x40, true), (6, 0, true), (3, 0, false), (7, 0, false), (5, 0x41, false)] {
            let mut left = left(&from, rax, 0);
            left.registers[RFLAGS] = flags;
            assert_eq!(left.difference(&to).is_none(), covered, "{rax} {flags:#x}");
        }
    }

    #[test]
    fn other_vcpus_stay_what_they_were() {
        let with = |other| state(vec![vcpu(0, vec![]), other], 0);
        let narrow = with(vcpu(0, vec![aside(3, 4, 6)]));
        let wide = with(vcpu(0, vec![aside(3, 0, 6)]));
        let other = with(vcpu(9, vec![aside(3, 0, 6)]));
        assert_eq!(left(&narrow, 0, 0).difference(&wide), None);
        assert!(left(&wide, 0, 0).difference(&narrow).is_some());
        assert!(left(&narrow, 0, 0).difference(&other).is_some());
    }
}
