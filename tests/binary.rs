//! The binary that is tested.

use std::path::PathBuf;

/// That of this build, or on a machine without it, that of the variable.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("STALLBENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_stallbench").into(), PathBuf::from)
}
