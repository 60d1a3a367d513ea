//! What the contract says about the code of wait sites, which makes a machine's registers confirm what a vCPU publishes: see
//! [`SiteRange`].

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use stallbench_abi::image::SiteRange;

use crate::code::Piece;

/// Address, mask and value of a wait, while it spins.
const OPERANDS: [Register; 3] = [Register::RDI, Register::RSI, Register::R8];

/// What is wrong with the code of the wait sites of an image.
pub(crate) fn findings(pieces: &[Piece<'_>], ranges: &[SiteRange]) -> Vec<String> {
    let code: Vec<_> = pieces.iter().flat_map(Piece::instructions).collect();
    let at_a_site = |pause: &Instruction| ranges.iter().any(|range| (range.start..range.end).contains(&pause.ip()));
    let mut found: Vec<_> = ranges.iter().flat_map(|range| range_findings(&code, range)).collect();
    for piece in pieces {
        let outside = piece.instructions().filter(|i| i.mnemonic() == Mnemonic::Pause && !at_a_site(i));
        found.extend(outside.map(|pause| piece.describe(&pause, "a wait at no wait site".into())));
    }
    found
}

fn range_findings(code: &[Instruction], range: &SiteRange) -> Vec<String> {
    let first = code.partition_point(|instruction| instruction.ip() < range.start);
    let behind = code.partition_point(|instruction| instruction.ip() < range.end);
    let spin = &code[first..behind];
    let whole =
        spin.first().is_some_and(|i| i.ip() == range.start) && spin.last().is_some_and(|i| i.next_ip() == range.end);
    let turns = spin.iter().any(|i| i.near_branch_target() == range.start && i.ip() > range.start);
    let mut found: Vec<_> = spin.iter().filter_map(objection).collect();
    if !whole {
        found.push("no whole number of instructions".into());
    }
    if !turns {
        found.push("no loop back to its start".into());
    }
    found.iter().map(|what| format!("wait site at {:#x}: {what}", range.start)).collect()
}

fn objection(instruction: &Instruction) -> Option<String> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let clobbered = info
        .used_registers()
        .iter()
        .find(|used| OPERANDS.contains(&used.register().full_register()) && writes(used.access()));
    let stores = info.used_memory().iter().any(|used| writes(used.access()));
    let elsewhere = info.used_memory().iter().any(|used| used.base() != Register::RDI || used.displacement() != 0);
    let what = match clobbered {
        Some(used) => format!("writes {:?}", used.register()),
        None if stores => "stores".into(),
        None if elsewhere => "reads another word".into(),
        None => return None,
    };
    Some(format!("{:#x} {what}", instruction.ip()))
}

fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}
