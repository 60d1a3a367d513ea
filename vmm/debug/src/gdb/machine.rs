//! The machine as gdb sees it: a thread a vCPU, whose id is one more than the vCPU's number.

use std::convert::Infallible;
use std::sync::Arc;

use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::exec_file::ExecFileOps;
use gdbstub::target::ext::host_io::HostIoOps;
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use stallbench_state::machine::VcpuState;

use super::client::Presence;
use super::registers::{Number, Source, Values, X86, all, description, number};
use super::resume::Resume;
use super::stops::Planted;
use crate::address::Address;
use crate::error::CommandError;
use crate::linear::Linear;
use crate::live::{Live, LiveError};
use crate::session::Session;
use crate::style::printable;

/// EINVAL, EFAULT and EIO, as gdb's protocol numbers them.
pub(super) const INVALID: u8 = 22;
const FAULT: u8 = 14;
const FAILED: u8 = 5;

/// What is said where something would change a machine that cannot run on.
pub(super) const READ_ONLY: &str = "this is a dump: it can be looked at, and no more";

/// Lines that wait for gdb: a report has a few for each vCPU. The rest is counted.
const MOST_NOTICES: usize = 1024;

/// The machine.
#[derive(Debug)]
pub(super) struct Machine<'s> {
    pub(super) session: &'s mut Session,
    pub(super) resume: Resume,
    pub(super) planted: Vec<Planted>,
    /// Lines that gdb prints as soon as it listens.
    pub(super) notices: Vec<String>,
    /// How many there were no room for.
    left_out: usize,
    /// Why the request at hand was refused.
    pub(super) refusal: Option<String>,
    /// What was last said of the threads.
    pub(super) threads: Option<String>,
    description: String,
    /// What is looked at may differ from the machine by now.
    pub(super) is_old: bool,
    pub(super) client: Presence,
}

impl<'s> Machine<'s> {
    pub(super) fn new(session: &'s mut Session) -> Self {
        let (resume, description) = (Resume::default(), description());
        let (planted, notices, left_out, refusal, threads) = Default::default();
        Self {
            session,
            resume,
            planted,
            notices,
            left_out,
            refusal,
            threads,
            description,
            is_old: false,
            client: Presence::default(),
        }
    }

    /// Another client is in.
    pub(super) fn serve(&mut self, client: Presence) {
        self.session.set_interrupt(Arc::clone(&client.interrupt));
        self.client = client;
    }

    /// Looks again where the machine may have changed. If that fails gdb goes on with what it has.
    pub(super) fn look(&mut self) {
        if std::mem::take(&mut self.is_old) {
            self.threads = None;
            if let Err(error) = self.session.refresh() {
                self.note_refusal(&error.to_string());
            }
        }
    }

    /// Has gdb print a line once it listens; of too many it is told how many are left out.
    pub(super) fn note(&mut self, line: &str) {
        match self.notices.len() {
            MOST_NOTICES.. => self.left_out += 1,
            _ => self.notices.push(printable(line)),
        }
    }

    /// The same of a line that is never left out.
    pub(super) fn note_always(&mut self, line: &str) {
        self.notices = self.take_notices();
        self.notices.push(printable(line));
    }

    /// What gdb is to print now.
    pub(super) fn take_notices(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.notices);
        match std::mem::take(&mut self.left_out) {
            0 => {}
            1 => lines.push("… 1 line more is left out here".into()),
            many => lines.push(format!("… {many} lines more are left out here")),
        }
        lines
    }

    /// Has gdb print why something was not done, once: it asks for some things again and again.
    pub(super) fn note_refusal(&mut self, why: &str) {
        if !self.notices.contains(&printable(why)) {
            self.note(why);
        }
    }

    /// The machine itself, to be changed.
    pub(super) fn live(&mut self) -> Result<&mut dyn Live, LiveError> {
        self.is_old = true;
        self.session.live().ok_or(LiveError::Refused(READ_ONLY.into()))
    }

    /// The vCPU of a thread.
    pub(super) fn vcpu(&self, thread: Tid) -> Option<&VcpuState> {
        self.session.vcpus().get(thread.get() - 1)
    }

    /// Remembers why, and says to gdb that it failed.
    fn refused<T>(&mut self, why: impl ToString) -> TargetResult<T, Self> {
        self.refusal = Some(why.to_string());
        Err(TargetError::Errno(FAILED))
    }

    fn write(&mut self, thread: Tid, start: u64, bytes: &[u8]) -> Result<(), String> {
        let vcpu = self.vcpu(thread).ok_or("there is no such vCPU")?;
        let pieces = pieces(self.session, vcpu, start, bytes.len()).map_err(|error| error.to_string())?;
        let mut rest = bytes;
        for (physical, length) in pieces {
            let (piece, behind) = rest.split_at(length);
            let live = self.live().map_err(|error| error.to_string())?;
            live.write(physical, piece).map_err(|error| error.to_string())?;
            rest = behind;
        }
        self.look();
        Ok(())
    }

    fn set_register(&mut self, thread: Tid, register: usize, value: Option<u64>) -> Result<(), String> {
        let vcpu = self.vcpu(thread).ok_or("there is no such vCPU")?;
        let mut registers = *vcpu.registers.as_ref().map_err(ToString::to_string)?;
        let index = vcpu.index;
        let (Some(Source::General(of)), Some(value)) = (all().nth(register).map(|register| register.source), value)
        else {
            return Err("only general registers can be written".into());
        };
        let word = of(&mut registers);
        // RFLAGS is half as long to gdb.
        let kept = if all().nth(register).is_some_and(|register| register.size() == 4) { *word >> 32 << 32 } else { 0 };
        *word = kept | value;
        let live = self.live().map_err(|error| error.to_string())?;
        live.set_registers(index, &registers).map_err(|error| error.to_string())?;
        self.look();
        Ok(())
    }
}

/// Where the bytes from a linear address on lie, page by page: guest-physical, with the length there.
fn pieces(session: &Session, vcpu: &VcpuState, start: u64, length: usize) -> Result<Vec<(u64, usize)>, CommandError> {
    let linear = Linear::of(session.memory(), vcpu)?;
    let (mut all, mut done) = (Vec::new(), 0);
    while done < length {
        let here = start.wrapping_add(done as u64);
        let in_page = (stallbench_state::paging::PAGE - here % stallbench_state::paging::PAGE) as usize;
        let piece = in_page.min(length - done);
        all.push((linear.physical(Address::Linear(here))?, piece));
        done += piece;
    }
    Ok(all)
}

/// The part of something that gdb reads in parts.
pub(super) fn part(of: &[u8], offset: u64, length: usize, into: &mut [u8]) -> usize {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(of.len());
    let length = length.min(into.len()).min(of.len() - start);
    into[..length].copy_from_slice(&of[start..start + length]);
    length
}

impl Target for Machine<'_> {
    type Arch = X86;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(&mut self) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn support_exec_file(&mut self) -> Option<ExecFileOps<'_, Self>> {
        Some(self)
    }

    fn support_host_io(&mut self) -> Option<HostIoOps<'_, Self>> {
        Some(self)
    }

    // Processes do not fork here.
    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }
}

impl MultiThreadBase for Machine<'_> {
    fn read_registers(&mut self, values: &mut Values, thread: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(thread).ok_or(TargetError::Errno(INVALID))?;
        values.0 = all().map(|register| register.value(vcpu)).collect();
        Ok(())
    }

    fn write_registers(&mut self, values: &Values, thread: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(thread).ok_or(TargetError::Errno(INVALID))?;
        let before: Vec<_> = all().map(|register| register.value(vcpu)).collect();
        let known = before.iter().zip(&values.0).enumerate().filter(|(_, (before, _))| before.is_some());
        let changed: Vec<_> = known.filter(|(_, (before, after))| before != after).map(|(at, _)| at).collect();
        for register in changed {
            if let Err(why) = self.set_register(thread, register, values.0[register]) {
                return self.refused(why);
            }
        }
        Ok(())
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, bytes: &mut [u8], thread: Tid) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(thread).ok_or(TargetError::Errno(INVALID))?;
        let linear = Linear::of(self.session.memory(), vcpu);
        let read = linear.and_then(|linear| linear.read(Address::Linear(start), bytes.len()));
        let read = read.map_err(|_| TargetError::Errno(FAULT))?;
        bytes[..read.len()].copy_from_slice(&read);
        Ok(read.len())
    }

    fn write_addrs(&mut self, start: u64, bytes: &[u8], thread: Tid) -> TargetResult<(), Self> {
        self.write(thread, start, bytes).or_else(|why| self.refused(why))
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (1..=self.session.vcpus().len()).filter_map(Tid::new).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Machine<'_> {
    fn read_register(&mut self, thread: Tid, register: Number, bytes: &mut [u8]) -> TargetResult<usize, Self> {
        let vcpu = self.vcpu(thread).ok_or(TargetError::Errno(INVALID))?;
        let register = all().nth(register.0).ok_or(TargetError::Errno(INVALID))?;
        let Some(value) = register.value(vcpu) else { return Ok(0) };
        Ok(part(&value.to_le_bytes(), 0, register.size(), bytes))
    }

    fn write_register(&mut self, thread: Tid, register: Number, bytes: &[u8]) -> TargetResult<(), Self> {
        self.set_register(thread, register.0, number(bytes)).or_else(|why| self.refused(why))
    }
}

impl TargetDescriptionXmlOverride for Machine<'_> {
    fn target_description_xml(
        &self,
        name: &[u8],
        offset: u64,
        length: usize,
        into: &mut [u8],
    ) -> TargetResult<usize, Self> {
        match name {
            b"target.xml" => Ok(part(self.description.as_bytes(), offset, length, into)),
            _ => Err(TargetError::Errno(INVALID)),
        }
    }
}
