//! Which pages of a mapping the host has ever given memory to: the others read as zeros, and reading them costs a fault each.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Size of a page of the host and of the guest.
pub(super) const PAGE: u64 = 4096;
/// Bits of an entry of /proc/self/pagemap: the page is in memory, or swapped out (Linux, admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Whether each page of `size` bytes from that address of this process on was touched.
pub(super) fn pages(address: u64, size: u64) -> io::Result<Vec<bool>> {
    let mut entries = vec![0; (size / PAGE) as usize * 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, address / PAGE * 8)?;
    let (entries, _) = entries.as_chunks();
    Ok(entries.iter().map(|entry| u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0).collect())
}
