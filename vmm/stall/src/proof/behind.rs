//! The instruction that ends at an address: what a processor that stopped behind it has executed.

use stallbench_state::machine::SystemRegisters;
use stallbench_state::memory::Memory;

use super::effect::{self, Decode};
use crate::code::Code;

/// How far from the symbol before it an instruction is looked for, in bytes.
const FARTHEST: u64 = 4096;

/// The instruction that ends at an address, decoded from the symbol before it on: where it begins, and its mnemonic. For reports.
///
/// `None` where there is no symbol, or no instruction ends there.
pub fn ends_at(behind: u64, code: &dyn Code, system: &SystemRegisters, memory: &dyn Memory) -> Option<(u64, String)> {
    let last = behind.checked_sub(1)?;
    let (_, offset) = code.symbol(last)?;
    let mut decode = Decode::new();
    let mut at = last.checked_sub(offset).filter(|_| offset < FARTHEST)?;
    while at < behind {
        let instruction = decode.ahead(at, system, memory).ok()?;
        if instruction.next_ip() == behind {
            return Some((at, effect::text(&instruction)));
        }
        at = instruction.next_ip();
    }
    None
}
