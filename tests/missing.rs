//! What tests need that a machine may not have. A test without it says so and checks nothing, but for CI, where that is a failure.

use std::fs;

/// Whether something is missing.
pub(crate) fn is_missing(what: &str, is_there: bool) -> bool {
    assert!(is_there || std::env::var_os("CI").is_none(), "{what} is missing");
    if !is_there {
        eprintln!("SKIPPED: {what} is missing");
    }
    !is_there
}

/// Whether there is no KVM that may be used.
pub(crate) fn kvm_is_missing() -> bool {
    is_missing("/dev/kvm", fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok())
}
