//! A guest that takes some seconds on any host, and passes: what is looked into while it lasts.

use std::fs;
use std::path::Path;

use crate::executable::executable;

/// rdtsc; shl rdx, 32; or rdx, rax; mov rbx, rdx; mov rcx, 1 << 33; add rbx, rcx: some seconds from now. Then rdtsc; shl rdx, 32; or rdx, rax;
/// cmp rdx, rbx; jb back until it is then. xor eax, eax; out 0xf4, al: it has passed.
const WAIT: &[u8] = &[
    0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xc2, 0x48, 0x89, 0xd3, 0x48, 0xb9, 0, 0, 0, 0, 2, 0, 0, 0, 0x48,
    0x01, 0xcb, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xc2, 0x48, 0x39, 0xda, 0x72, 0xf2, 0x31, 0xc0, 0xe6,
    0xf4,
];

/// The options that run it with two vCPUs, its file in that directory.
pub(crate) fn options(directory: &Path) -> Vec<String> {
    let path = directory.join("clock.elf");
    fs::write(&path, executable(WAIT, 0)).unwrap();
    ["--payload", path.to_str().unwrap(), "--vcpus", "2", "--budget", "60000"].map(str::to_owned).into()
}
