//! The model-specific registers that a full capture reads, with their names (SDM 4, chapter 2; APM 2, appendix A).
//!
//! MTRRs are not among them: [`crate::mtrr`] has them. A host may lack some; those are absent from a capture.

/// Index and name of each, by ascending index.
pub const MSRS: [(u32, &str); 21] = [
    (0x10, "TSC"),
    (0x1b, "APIC_BASE"),
    (0x3a, "FEATURE_CONTROL"),
    (0x3b, "TSC_ADJUST"),
    (0x8b, "BIOS_SIGN_ID"),
    (0x174, "SYSENTER_CS"),
    (0x175, "SYSENTER_ESP"),
    (0x176, "SYSENTER_EIP"),
    (0x1a0, "MISC_ENABLE"),
    (0x1d9, "DEBUGCTL"),
    (0x277, "PAT"),
    (0x6e0, "TSC_DEADLINE"),
    (0xc000_0080, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SFMASK"),
    (0xc000_0100, "FS_BASE"),
    (0xc000_0101, "GS_BASE"),
    (0xc000_0102, "KERNEL_GS_BASE"),
    (0xc000_0103, "TSC_AUX"),
];

/// The name of a register of [`MSRS`].
pub fn name(index: u32) -> Option<&'static str> {
    let at = MSRS.binary_search_by_key(&index, |(index, _)| *index).ok()?;
    Some(MSRS[at].1)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn registers_are_found_by_index() {
        assert!(MSRS.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((name(0x277), name(0xc000_0103), name(0x200)), (Some("PAT"), Some("TSC_AUX"), None));
    }
}
