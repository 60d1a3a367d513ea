//! C23: a vCPU that halts is started again, by INIT and SIPI.
//!
//! The bug is not the guest's: a host that loses the INIT ignores the SIPI that follows it.

use stallbench_rt::{arena, bring_up, pause_point, this, words as names};

use super::{PEER, case};

case!(INIT_AGAIN, "init-again", "a vCPU that halts is started again", [APIC], run);

/// A vCPU that is started again comes here again, and has as little to do as the first time.
fn run() {
    if !this::is_initiator() {
        return;
    }
    names::name("missing", &arena::root().missing);
    pause_point!("cpu_up/begin");
    bring_up::start_again(PEER);
}
