//! What can be wrong with a dump.

use thiserror::Error;

/// Why a file is no dump that can be read; each reads well behind `failed to`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not an ELF core for x86-64.
    #[error("find a dump: not an ELF core file for x86-64; `stallbench run --dump always` writes one")]
    NoCore,
}
