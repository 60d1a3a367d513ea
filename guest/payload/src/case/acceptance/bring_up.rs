//! C35: an application processor that does not come up, and a boot processor that waits for it without an end.
//!
//! All of it happens before the case: what is left of it here is a name for the word that the boot processor waits for.

use super::case;

case!(BRING_UP, "bring-up", "all vCPUs come up, and that is all", [APIC, SIPIS], run);

fn run() {}
