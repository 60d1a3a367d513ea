//! Declared deviations from a protocol, one a run: what they change is marked in the event ring, as injected by the guest.

use stallbench_abi::event::EventKind;
use stallbench_abi::knob::FLIP;
use stallbench_rt::{boot, event};

/// Whether the scenario asks for this deviation; its use is recorded.
pub fn is(flip: u8) -> bool {
    let flipped = boot::word(&FLIP) == flip;
    if flipped {
        event::record(EventKind::FLIP, u32::from(flip), 0, 0);
    }
    flipped
}
