//! What an analysis needs to know of a guest's code: its wait sites and its symbols.

use stallbench_state::program::{PlainProgram, Program, SiteInfo};

/// The code of a guest.
pub trait Code {
    /// The wait site whose descriptor lies at that address.
    fn site_at(&self, descriptor: u64) -> Option<&SiteInfo>;

    /// The wait site in whose spin that instruction lies.
    fn site_of_rip(&self, rip: u64) -> Option<&SiteInfo>;

    /// The function in which an address lies, and the offset in it. May be slow at its first call.
    fn symbol(&self, address: u64) -> Option<(String, u64)>;
}

impl Code for Program {
    fn site_at(&self, descriptor: u64) -> Option<&SiteInfo> {
        self.site_at(descriptor)
    }

    fn site_of_rip(&self, rip: u64) -> Option<&SiteInfo> {
        self.site_of_rip(rip)
    }

    fn symbol(&self, address: u64) -> Option<(String, u64)> {
        self.symbol(address)
    }
}

/// A plain guest publishes nothing: it has no wait sites.
impl Code for PlainProgram {
    fn site_at(&self, _: u64) -> Option<&SiteInfo> {
        None
    }

    fn site_of_rip(&self, _: u64) -> Option<&SiteInfo> {
        None
    }

    fn symbol(&self, address: u64) -> Option<(String, u64)> {
        self.symbol(address)
    }
}

/// An address for people: `function+0x12`, or the number alone.
pub fn place(code: &dyn Code, address: u64) -> String {
    match code.symbol(address) {
        Some((name, offset)) => format!("{name}+{offset:#x}"),
        None => format!("{address:#x}"),
    }
}
