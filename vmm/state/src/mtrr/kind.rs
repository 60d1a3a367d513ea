//! Memory types, as MTRRs number them (SDM 3A 12.11) and as /proc/mtrr calls them.

use std::fmt;

/// A memory type that an MTRR can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB.
    WriteBack = 6,
}

impl MemoryType {
    /// Every type, in the order of its code.
    pub const ALL: [Self; 5] =
        [Self::Uncacheable, Self::WriteCombining, Self::WriteThrough, Self::WriteProtected, Self::WriteBack];

    /// The type of a code; `None` where the manual reserves it.
    pub const fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }

    /// The type of a word, as the kernel spells it.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Its code in a register.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The word for it in /proc/mtrr and in the kernel's log (`mtrr_attrib_to_str`).
    pub const fn word(self) -> &'static str {
        match self {
            Self::Uncacheable => "uncachable",
            Self::WriteCombining => "write-combining",
            Self::WriteThrough => "write-through",
            Self::WriteProtected => "write-protect",
            Self::WriteBack => "write-back",
        }
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn codes_and_words_lead_back_to_their_types() {
        for kind in MemoryType::ALL {
            assert_eq!((MemoryType::of(kind.code()), MemoryType::named(kind.word())), (Some(kind), Some(kind)));
        }
        let known = (0..=u8::MAX).filter(|code| MemoryType::of(*code).is_some()).count();
        assert_eq!((known, MemoryType::named("uncacheable")), (5, None));
    }
}
