//! Call records of the payload: what their fields mean beyond the number.

use stallbench_abi::boot::BootBlock;
use stallbench_abi::knob::CALL;
use stallbench_abi::layout::BOOT_BLOCK;
use stallbench_abi::record::flags;
use stallbench_state::memory::read_plain;

use crate::session::Session;

/// Where the payload has the structures of its call layers.
const OF_CALLS: &str = "stallbench_payload::call::";

/// What a field of a structure means, where it is one of a call record: the flags of the layer that the scenario has, and who it
/// is from and for.
pub(super) fn meaning(session: &Session, structure: &str, field: &str, value: u64) -> Option<String> {
    if !structure.starts_with(OF_CALLS) {
        return None;
    }
    match field.rsplit('.').next()? {
        "flags" => names(session, u32::try_from(value).ok()?),
        "caller" | "target" if value == 0 => Some("none".into()),
        "caller" | "target" => Some(format!("vcpu{}", value - 1)),
        _ => None,
    }
}

/// The flags that are set.
fn names(session: &Session, set: u32) -> Option<String> {
    let block: BootBlock = read_plain(session.memory(), BOOT_BLOCK)?;
    let known = flags(u8::try_from(block.knob(&CALL)).ok()?);
    let mut names: Vec<_> =
        known.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    let rest = known.iter().fold(set, |rest, (bit, _)| rest & !bit);
    if rest != 0 && !known.is_empty() {
        names.push(format!("unknown {rest:#x}"));
    }
    if set == 0 { Some("none".into()) } else { Some(names.join(" ")).filter(|names| !names.is_empty()) }
}
