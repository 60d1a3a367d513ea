//! The guest's own file, as gdb asks for it: where none is given, gdb finds symbols and lines all the same.

use gdbstub::common::Pid;
use gdbstub::target::ext::exec_file::ExecFile;
use gdbstub::target::ext::host_io::{
    FsKind, HostIo, HostIoClose, HostIoCloseOps, HostIoErrno, HostIoError, HostIoFstat, HostIoFstatOps, HostIoOpen,
    HostIoOpenFlags, HostIoOpenMode, HostIoOpenOps, HostIoPread, HostIoPreadOps, HostIoResult, HostIoSetfs,
    HostIoSetfsOps, HostIoStat,
};
use gdbstub::target::{TargetError, TargetResult};

use super::machine::{Machine, part};

/// What gdb calls the file.
const NAME: &[u8] = b"/payload.elf";
/// The one file that can be open.
const DESCRIPTOR: u32 = 3;

impl Machine<'_> {
    fn payload(&self) -> &[u8] {
        self.session.target().payload()
    }
}

impl ExecFile for Machine<'_> {
    fn get_exec_file(&self, _: Option<Pid>, offset: u64, length: usize, into: &mut [u8]) -> TargetResult<usize, Self> {
        match self.payload().is_empty() {
            true => Err(TargetError::Errno(super::machine::INVALID)),
            false => Ok(part(NAME, offset, length, into)),
        }
    }
}

impl HostIo for Machine<'_> {
    fn support_open(&mut self) -> Option<HostIoOpenOps<'_, Self>> {
        Some(self)
    }

    fn support_close(&mut self) -> Option<HostIoCloseOps<'_, Self>> {
        Some(self)
    }

    fn support_pread(&mut self) -> Option<HostIoPreadOps<'_, Self>> {
        Some(self)
    }

    fn support_fstat(&mut self) -> Option<HostIoFstatOps<'_, Self>> {
        Some(self)
    }

    fn support_setfs(&mut self) -> Option<HostIoSetfsOps<'_, Self>> {
        Some(self)
    }
}

fn known(descriptor: u32) -> Result<(), HostIoError<std::convert::Infallible>> {
    if descriptor == DESCRIPTOR { Ok(()) } else { Err(HostIoError::Errno(HostIoErrno::EBADF)) }
}

impl HostIoOpen for Machine<'_> {
    fn open(&mut self, name: &[u8], flags: HostIoOpenFlags, _: HostIoOpenMode) -> HostIoResult<u32, Self> {
        let writes = HostIoOpenFlags::O_WRONLY | HostIoOpenFlags::O_RDWR | HostIoOpenFlags::O_CREAT;
        match name == NAME {
            true if flags.intersects(writes) => Err(HostIoError::Errno(HostIoErrno::EROFS)),
            true => Ok(DESCRIPTOR),
            false => Err(HostIoError::Errno(HostIoErrno::ENOENT)),
        }
    }
}

impl HostIoClose for Machine<'_> {
    fn close(&mut self, descriptor: u32) -> HostIoResult<(), Self> {
        known(descriptor)
    }
}

impl HostIoPread for Machine<'_> {
    fn pread(&mut self, descriptor: u32, count: usize, at: u64, into: &mut [u8]) -> HostIoResult<usize, Self> {
        known(descriptor)?;
        Ok(part(self.payload(), at, count, into))
    }
}

impl HostIoFstat for Machine<'_> {
    fn fstat(&mut self, descriptor: u32) -> HostIoResult<HostIoStat, Self> {
        known(descriptor)?;
        let size = self.payload().len() as u64;
        Ok(HostIoStat {
            st_dev: 0,
            st_ino: 0,
            st_mode: HostIoOpenMode::S_IFREG | HostIoOpenMode::S_IRUSR,
            st_nlink: 1,
            st_uid: 0,
            st_gid: 0,
            st_rdev: 0,
            st_size: size,
            st_blksize: 4096,
            st_blocks: size.div_ceil(512),
            st_atime: 0,
            st_mtime: 0,
            st_ctime: 0,
        })
    }
}

impl HostIoSetfs for Machine<'_> {
    fn setfs(&mut self, _: FsKind) -> HostIoResult<(), Self> {
        Ok(())
    }
}
