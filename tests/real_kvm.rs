//! This machine's /dev/kvm, for tests on the real device.

use super::HostKvm;

/// The host, or a loud skip where there is none; a failure under CI.
pub(crate) fn host() -> Option<HostKvm> {
    match HostKvm::open() {
        Ok(host) => Some(host),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED, this host cannot run guests: {error}; {}", error.remedy());
            None
        }
        Err(error) => panic!("{error}; {}", error.remedy()),
    }
}
