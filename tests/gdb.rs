//! The real gdb, for tests that need it.

use std::process::{Command, Stdio};

use crate::missing::is_missing;

/// Whether there is no gdb.
pub(crate) fn gdb_is_missing() -> bool {
    let output = Command::new("gdb").arg("--version").stdin(Stdio::null()).output();
    is_missing("gdb", output.is_ok_and(|output| output.status.success()))
}
