//! A guest, and the truth about it, which is known by how it is built.

use iced_x86::IcedError;

use crate::code::{Built, Code};
use crate::elf;

/// What is true of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It never makes progress again, and a finite set of states shows it: a stall, of this kind where one is given.
    Dead(Option<&'static str>),
    /// It ends by itself, well: a pass.
    Live,
    /// It may end or not, but not within any budget: something counts. The reason names one of these.
    Changing(&'static [&'static str]),
    /// What it reads, or waits for, is no part of the machine's state: the reason has one of these words.
    Undecidable(&'static [&'static str]),
}

impl Truth {
    /// The verdict that is the truth.
    pub(crate) fn verdict(self) -> &'static str {
        match self {
            Self::Dead(_) => "stall",
            Self::Live => "pass",
            Self::Changing(_) | Self::Undecidable(_) => "budget",
        }
    }

    /// The truth in a few words.
    pub(crate) fn told(self) -> String {
        match self {
            Self::Dead(None) => "stall".into(),
            Self::Dead(Some(kind)) => format!("stall, {kind}"),
            Self::Live => "pass".into(),
            Self::Changing(names) | Self::Undecidable(names) => format!("budget: {}", names.join(" or ")),
        }
    }
}

/// A guest.
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    /// How many vCPUs it has.
    pub(crate) vcpus: u32,
    pub(crate) truth: Truth,
    /// Why that is the truth.
    pub(crate) why: &'static str,
    /// Whether a run of it takes a second or more.
    pub(crate) is_long: bool,
    /// More options of the run.
    pub(crate) flags: Vec<&'static str>,
    /// All vCPUs start at the entry; otherwise the guest starts them itself.
    started: bool,
    code: Box<dyn Fn(&mut Code) -> Built + Send + Sync>,
}

impl Guest {
    /// A guest all of whose vCPUs start at the entry.
    pub(crate) fn new(
        name: &'static str,
        vcpus: u32,
        truth: Truth,
        why: &'static str,
        code: impl Fn(&mut Code) -> Built + Send + Sync + 'static,
    ) -> Self {
        Self { name, vcpus, truth, why, is_long: false, flags: Vec::new(), started: true, code: Box::new(code) }
    }

    /// With one more option.
    pub(crate) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// A run of it takes a second or more.
    pub(crate) fn long(mut self) -> Self {
        self.is_long = true;
        self
    }

    /// It starts its processors itself.
    pub(crate) fn parked(mut self) -> Self {
        self.started = false;
        self
    }

    /// Its file.
    pub(crate) fn file(&self) -> Result<Vec<u8>, IcedError> {
        elf::file(&self.code)
    }

    /// What tells its runs apart.
    pub(crate) fn title(&self) -> String {
        format!("{}@vcpus={}", self.name, self.vcpus)
    }

    /// The options of a run that do not depend on where its file lies.
    pub(crate) fn options(&self) -> Vec<String> {
        let aps = if self.started { "started" } else { "parked" };
        let mut options = vec![format!("--vcpus={}", self.vcpus), format!("--aps={aps}")];
        options.extend(self.flags.iter().map(|flag| (*flag).to_owned()));
        options
    }
}

/// One guest at several numbers of vCPUs.
pub(crate) fn at(
    vcpus: &[u32],
    name: &'static str,
    truth: Truth,
    why: &'static str,
    code: impl Fn(&mut Code) -> Built + Send + Sync + Copy + 'static,
) -> Vec<Guest> {
    vcpus.iter().map(|vcpus| Guest::new(name, *vcpus, truth, why, code)).collect()
}
