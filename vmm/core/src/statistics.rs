//! What KVM counts of each vCPU, under the names that it gives (KVM api.rst 4.133, `KVM_GET_STATS_FD`).
//!
//! Counts are read from a file of their own, so that the vCPU runs on meanwhile.
#![expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_GET_STATS_FD")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_CAP_BINARY_STATS_FD, KVMIO};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::host::HostKvm;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Bytes of `kvm_stats_header`: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER: usize = 24;
/// Bytes of `kvm_stats_desc` before the name: flags, exponent, size, offset, bucket_size.
const DESCRIPTOR: usize = 16;
/// More than any kernel has of each.
const MOST_DESCRIPTORS: usize = 4096;
const LONGEST_NAME: usize = 1024;
const FARTHEST_COUNT: usize = 1 << 20;

/// Counts by name. Of a histogram there is none.
pub type Counts = Vec<(String, u64)>;

/// The file of counts of one vCPU.
#[derive(Debug)]
pub(crate) struct Statistics {
    file: File,
    /// Where the counts begin in the file.
    data: u64,
    /// Names, and where each count lies from there on.
    names: Vec<(String, usize)>,
}

impl Statistics {
    /// Opens the file; `None` where the host has none.
    pub(crate) fn of(host: &HostKvm, vcpu: &VcpuFd) -> io::Result<Option<Self>> {
        if host.kvm().check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) <= 0 {
            return Ok(None);
        }
        // SAFETY: the descriptor is a vCPU's, and this ioctl takes no argument.
        let descriptor = unsafe { ioctl(&vcpu.as_raw_fd(), KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made the descriptor, for us alone.
        let file = unsafe { File::from_raw_fd(descriptor) };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let [_, name, count, _, at, data] = std::array::from_fn(|index| number(&header[4 * index..][..4]));
        let (name, count) = (name as usize, count as usize);
        if name > LONGEST_NAME || count > MOST_DESCRIPTORS {
            return Err(io::Error::other(format!("{count} counts with names of {name} bytes")));
        }
        let mut descriptors = vec![0; count * (DESCRIPTOR + name)];
        file.read_exact_at(&mut descriptors, at)?;
        Ok(Some(Self { file, data, names: parse(&descriptors, DESCRIPTOR + name) }))
    }

    /// The counts at this moment.
    pub(crate) fn read(&self) -> io::Result<Counts> {
        let end = self.names.iter().map(|(_, offset)| offset + size_of::<u64>()).max().unwrap_or_default();
        let mut data = vec![0; end];
        self.file.read_exact_at(&mut data, self.data)?;
        let count = |offset: usize| number(&data[offset..][..size_of::<u64>()]);
        Ok(self.names.iter().map(|(name, offset)| (name.clone(), count(*offset))).collect())
    }
}

/// The names in descriptors of so many bytes each, and the offsets of their counts.
fn parse(descriptors: &[u8], each: usize) -> Vec<(String, usize)> {
    let parse = |descriptor: &[u8]| {
        let (size, offset) = (number(&descriptor[6..8]), number(&descriptor[8..12]) as usize);
        let name = descriptor[DESCRIPTOR..].split(|byte| *byte == 0).next().unwrap_or_default();
        let is_one_count = size == 1 && offset < FARTHEST_COUNT;
        is_one_count.then(|| (String::from_utf8_lossy(name).into_owned(), offset))
    };
    descriptors.chunks_exact(each.max(DESCRIPTOR)).filter_map(parse).collect()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod test {
    use super::*;

    fn descriptor(name: &str, size: u16, offset: u32) -> Vec<u8> {
        let mut bytes = [&[0; 6][..], &size.to_le_bytes(), &offset.to_le_bytes(), &[0; 4], name.as_bytes()].concat();
        bytes.resize(DESCRIPTOR + 16, 0);
        bytes
    }

    #[test]
    fn counts_have_their_names_and_histograms_are_left_out() {
        let descriptors = [("exits", 1, 8), ("wait_hist", 32, 16), ("irq_exits", 1, 0), ("far", 1, u32::MAX)];
        let bytes: Vec<u8> = descriptors.into_iter().flat_map(|(name, size, at)| descriptor(name, size, at)).collect();
        let names = [("exits".to_owned(), 8), ("irq_exits".to_owned(), 0)];
        assert_eq!(parse(&bytes, DESCRIPTOR + 16), names);
        assert_eq!(parse(&bytes[..40], DESCRIPTOR + 16), names[..1], "the rest is missing");
    }
}
