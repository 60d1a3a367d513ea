//! A target, the vCPU that is looked at, and what was read of the guest's own file so far.

mod live;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use stallbench_abi::boot::BootBlock;
use stallbench_abi::fault::FaultKind;
use stallbench_abi::layout::BOOT_BLOCK;
use stallbench_stall::set::VcpuSet;
use stallbench_stall::{Analysis, Declared, View};
use stallbench_state::machine::{MpState, VcpuState};
use stallbench_state::memory::{Memory, read_plain};
use stallbench_state::program::Program;
use stallbench_state::published::Published;

use crate::answer::Answer;
use crate::arguments::{Arguments, number};
use crate::bits;
use crate::command::{self, Needs};
use crate::error::CommandError;
use crate::guest::Guest;
use crate::linear::Linear;
use crate::region;
use crate::source::Source;
use crate::steps::Steps;
use crate::symbols::Symbols;
use crate::target::Target;
use crate::types::Types;

pub use live::Ask;

/// A target and what is looked at.
pub struct Session {
    target: Box<dyn Target>,
    guest: Guest,
    current: usize,
    is_over: bool,
    /// Where files are looked for that are not named from the root.
    directory: PathBuf,
    symbols: OnceCell<Symbols>,
    source: OnceCell<Source>,
    types: OnceCell<Types>,
    watching: live::Watching,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("guest", &self.guest).field("current", &self.current).finish_non_exhaustive()
    }
}

impl Session {
    /// Looks at vCPU 0 of a target. Symbols and lines are read when they are first asked for.
    pub fn new(target: Box<dyn Target>) -> Self {
        let guest = Guest::of(target.payload());
        let (symbols, source, types) = Default::default();
        let watching = live::Watching::default();
        Self { target, guest, current: 0, is_over: false, directory: PathBuf::new(), symbols, source, types, watching }
    }

    /// Follows a command: its name and the words behind it.
    ///
    /// # Errors
    ///
    /// [`CommandError`] says in one line why there is no answer; the session is as it was.
    pub fn run(&mut self, words: &[String]) -> Result<Answer, CommandError> {
        let (name, rest) = words.split_first().map_or(("", words), |(name, rest)| (name.as_str(), rest));
        let command = command::named(name)?;
        match command.needs {
            Needs::Nothing => {}
            Needs::Machine => self.refresh()?,
            Needs::Live if self.target.is_live() => {}
            Needs::Live => return Err(CommandError::NotLive),
            Needs::Trace => self.has_steps()?,
        }
        (command.run)(self, Arguments::new(rest, command))
    }

    /// The machine that it looks at.
    pub fn target(&self) -> &dyn Target {
        &*self.target
    }

    /// The number of the vCPU that is looked at.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Whether somebody has said `quit`.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether there is no machine any more, or not yet the next one.
    pub fn is_gone(&mut self) -> bool {
        self.target.state() == Some(crate::live::State::Gone)
    }

    /// Looks for files there from now on; at first in the process's own directory.
    pub fn set_directory(&mut self, directory: &Path) {
        self.directory = directory.to_owned();
    }

    /// Where the file of a word lies.
    pub(crate) fn path(&self, word: &str) -> PathBuf {
        self.directory.join(word)
    }

    /// The trace in which the machine stands at a step, where there is one.
    pub(crate) fn steps(&mut self) -> Option<&mut dyn Steps> {
        self.target.steps()
    }

    fn has_steps(&mut self) -> Result<(), CommandError> {
        self.steps().map(|_| ()).ok_or(CommandError::NoTrace)
    }

    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    pub(crate) fn select(&mut self, vcpu: usize) {
        self.current = vcpu;
    }

    pub(crate) fn vcpus(&self) -> &[VcpuState] {
        &self.target.machine().vcpus
    }

    /// The vCPU that is looked at.
    pub(crate) fn vcpu(&self) -> Result<&VcpuState, CommandError> {
        self.vcpu_numbered(self.current)
    }

    pub(crate) fn vcpu_numbered(&self, vcpu: usize) -> Result<&VcpuState, CommandError> {
        let unknown = || CommandError::UnknownVcpu { asked: vcpu.to_string(), vcpus: self.vcpus().len() };
        self.vcpus().get(vcpu).ok_or_else(unknown)
    }

    /// The vCPU of a word: `2` or `vcpu2`; without one, the current.
    pub(crate) fn vcpu_of(&self, word: Option<&str>) -> Result<&VcpuState, CommandError> {
        let Some(word) = word else { return self.vcpu() };
        let unknown = || CommandError::UnknownVcpu { asked: word.to_owned(), vcpus: self.vcpus().len() };
        let index = number(word.strip_prefix("vcpu").unwrap_or(word)).ok_or_else(unknown)?;
        self.vcpus().get(usize::try_from(index).unwrap_or(usize::MAX)).ok_or_else(unknown)
    }

    /// The vCPUs of a word: one, or all of them.
    pub(crate) fn vcpus_of(&self, word: Option<&str>) -> Result<Vec<&VcpuState>, CommandError> {
        match word {
            Some("all") => Ok(self.vcpus().iter().collect()),
            word => self.vcpu_of(word).map(|vcpu| vec![vcpu]),
        }
    }

    /// Guest-physical memory.
    pub(crate) fn memory(&self) -> &dyn Memory {
        self.target.memory()
    }

    /// Memory as the current vCPU sees it.
    pub(crate) fn linear(&self) -> Result<Linear<'_>, CommandError> {
        Linear::of(self.memory(), self.vcpu()?)
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The program, where the guest keeps the contract.
    pub(crate) fn contract(&self, what: &'static str) -> Result<&Program, CommandError> {
        match &self.guest {
            Guest::Contract(program) => Ok(program),
            Guest::Plain(_) => Err(CommandError::NothingPublished { what }),
            Guest::Unreadable(error) => Err(error.into()),
        }
    }

    pub(crate) fn symbols(&self) -> &Symbols {
        self.symbols.get_or_init(|| Symbols::new(self.guest.symbols()))
    }

    /// Lines of the guest's source.
    pub(crate) fn source(&self) -> &Source {
        self.source.get_or_init(|| Source::of(self.target.payload()))
    }

    /// Structures of the guest's source.
    pub(crate) fn types(&self) -> &Types {
        self.types.get_or_init(|| Types::of(self.target.payload()))
    }

    /// What an address or a value that looks like one means: a function, or a part of memory.
    pub(crate) fn meaning(&self, value: u64) -> Option<String> {
        let region = || self.guest.contract().and_then(|_| region::at(value, self.vcpus().len()));
        let object = || self.guest.object(value);
        self.symbols().place(value).or_else(region).or_else(object)
    }

    /// An address with its meaning: `0x4000e0 (arena+0xe0)`.
    pub(crate) fn shown(&self, value: u64) -> String {
        match self.meaning(value) {
            Some(meaning) => format!("{value:#x} ({meaning})"),
            None => format!("{value:#x}"),
        }
    }

    /// A vector with its meaning: `0xe (page fault)`.
    pub(crate) fn vector(&self, vector: u64) -> String {
        let of_payload = || self.guest.contract().and_then(|_| bits::payload_vector(vector));
        match bits::exception(vector).or_else(of_payload) {
            Some(name) => format!("{vector:#x} ({name})"),
            None => format!("{vector:#x}"),
        }
    }

    /// What the vCPUs publish; of a guest that publishes nothing, pages of zeros.
    pub(crate) fn published(&self) -> Published {
        let vcpus = self.vcpus().len();
        match self.guest {
            Guest::Contract(_) => Published::read(self.memory(), vcpus),
            _ => Published { vcpus: vec![Default::default(); vcpus], ghost: Default::default() },
        }
    }

    /// What the analysis of stalls makes of the machine as it stands.
    pub(crate) fn analysed<T>(&self, look: impl FnOnce(&Analysis<'_>) -> T) -> T {
        let published = self.published();
        let (machine, memory) = (self.target.machine(), self.memory());
        let view = View { code: &self.guest, machine, memory, published: &published, declared: self.declared() };
        look(&Analysis::of(view))
    }

    /// What the host did to vCPUs because the scenario says so. The boot block says to whom; that it was done is seen by what no
    /// machine that runs would stay in: halted, with something deliverable.
    fn declared(&self) -> Declared {
        let block: Option<BootBlock> = self.guest.contract().and_then(|_| read_plain(self.memory(), BOOT_BLOCK));
        let Some(block) = block else { return Declared::default() };
        let faults = &block.faults[..block.faults.len().min(block.fault_count as usize)];
        let host: Vec<_> = faults.iter().filter(|fault| fault.kind.is_of_host()).collect();
        let meant = |vcpu: &&VcpuState| host.iter().any(|fault| fault.to as usize == vcpu.index);
        let stays = |vcpu: &&VcpuState| vcpu.mp_state == Ok(MpState::Halted) && vcpu.deliverable().is_some();
        let kept_out = self.vcpus().iter().filter(meant).filter(stays).map(|vcpu| vcpu.index).collect();
        let lost = host.iter().filter(|fault| fault.kind == FaultKind::LOSE_INIT).map(|fault| fault.to as usize);
        let init_lost: VcpuSet = lost.filter(|&vcpu| vcpu < self.vcpus().len()).collect();
        Declared { kept_out, init_lost }
    }
}
