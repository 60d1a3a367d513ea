//! Whether a certificate is well formed: its numbers lie within bounds and agree with each other. It says nothing about whether
//! it is true. A file is untrusted: nothing is allocated by its word before it has passed here.

use stallbench_abi::layout::{MAX_PHYS_ADDR_BITS, MAX_VCPUS};
use stallbench_state::certificate::{
    Aside, Certificate, Component, Memory, PAGE, Processor, RFLAGS, RIP, SegmentRegister, Span, VcpuState,
};
use thiserror::Error;

/// Most pages of memory.
pub const MOST_PAGES: usize = 1 << 14;
/// Most states of vCPUs, all components together.
pub const MOST_STATES: usize = 1 << 18;
/// The flags that instructions leave results in, the only ones that can be set aside: CF, PF, AF, ZF, SF, OF (SDM 1 3.4.3.1).
pub const STATUS_FLAGS: u64 = 0x8d5;
/// Place of RSP in the registers of a state.
const RSP: usize = 6;

/// What is wrong with the form of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The number of vCPUs is none that a machine can have.
    #[error("vcpus: {found} of them, not 1 to {MAX_VCPUS}")]
    Vcpus {
        /// How many there are.
        found: usize,
    },
    /// A register has more bits than there are.
    #[error("vcpus: {field} of vcpu{vcpu} is {value:#x}, more than {bits} bits")]
    Wide {
        /// Whose it is.
        vcpu: usize,
        /// Its key.
        field: &'static str,
        /// What it is said to hold.
        value: u64,
        /// How many bits it has.
        bits: u32,
    },
    /// A vCPU is not in exactly one component.
    #[error("components: vcpu{vcpu} is in {times} of them, not in one")]
    Membership {
        /// Its number.
        vcpu: usize,
        /// In how many.
        times: usize,
    },
    /// A component names a vCPU that is not there, or none at all.
    #[error("components: one names vcpus {named:?}, of {vcpus}")]
    Members {
        /// What it names.
        named: Vec<usize>,
        /// How many there are.
        vcpus: usize,
    },
    /// There are too many states.
    #[error("components: {found} states of vcpus, more than {MOST_STATES}")]
    States {
        /// How many.
        found: usize,
    },
    /// Its instructions access memory too often.
    #[error("components: their instructions access memory more than {most} times")]
    Accesses {
        /// How often they may.
        most: usize,
    },
    /// A state does not hold what its component says.
    #[error("state {state} of {of}: it has {found}, its component {expected}")]
    State {
        /// Its index.
        state: usize,
        /// Its component.
        of: String,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// What is set aside of a register is nothing that can be.
    #[error("state {state} of {of}: register {register} cannot be set aside from {least:#x} to {most:#x}")]
    Aside {
        /// The state's index.
        state: usize,
        /// Its component.
        of: String,
        /// The register's place.
        register: usize,
        /// Its least value.
        least: u64,
        /// Its greatest value.
        most: u64,
    },
    /// There are too many pages.
    #[error("memory: {found} pages, more than {MOST_PAGES}")]
    Pages {
        /// How many.
        found: usize,
    },
    /// A page is none, or not in its place.
    #[error("memory: page {address:#x} is not a page behind the one before it")]
    Page {
        /// Its address.
        address: u64,
    },
    /// Bytes that lie outside the pages.
    #[error("{what}: {size} bytes at {address:#x} are not in its pages")]
    Outside {
        /// What they are.
        what: &'static str,
        /// The first.
        address: u64,
        /// How many.
        size: u64,
    },
    /// Two things that lie in the same bytes.
    #[error("components: the bytes at {address:#x} are in two of their lists")]
    Overlap {
        /// The first of them.
        address: u64,
    },
}

/// Checks the form of a certificate.
pub fn check(certificate: &Certificate) -> Result<(), Malformed> {
    members(certificate)?;
    certificate.vcpus.iter().enumerate().try_for_each(|(vcpu, processor)| widths(vcpu, processor))?;
    pages(&certificate.memory)?;
    runs(&certificate.memory)?;
    spans(certificate)?;
    let found = certificate.components.iter().map(|component| component.states.len() * component.vcpus.len()).sum();
    if found > MOST_STATES {
        return Err(Malformed::States { found });
    }
    certificate.components.iter().try_for_each(states)
}

/// `vcpu0`, or `vcpu0 and vcpu2`.
pub(crate) fn names(vcpus: &[usize]) -> String {
    vcpus.iter().map(|vcpu| format!("vcpu{vcpu}")).collect::<Vec<_>>().join(" and ")
}

fn members(certificate: &Certificate) -> Result<(), Malformed> {
    let vcpus = certificate.vcpus.len();
    if vcpus == 0 || vcpus > MAX_VCPUS {
        return Err(Malformed::Vcpus { found: vcpus });
    }
    let mut times = vec![0; vcpus];
    for component in &certificate.components {
        let wrong = || Malformed::Members { named: component.vcpus.iter().copied().take(vcpus).collect(), vcpus };
        if component.vcpus.is_empty() {
            return Err(wrong());
        }
        for &vcpu in &component.vcpus {
            *times.get_mut(vcpu).ok_or_else(wrong)? += 1;
        }
    }
    match times.iter().position(|&times| times != 1) {
        Some(vcpu) => Err(Malformed::Membership { vcpu, times: times[vcpu] }),
        None => Ok(()),
    }
}

/// What a register cannot hold is nothing that could be checked.
fn widths(vcpu: usize, processor: &Processor) -> Result<(), Malformed> {
    let Processor { segments, tpr, svr, lvt_timer, irr, isr, .. } = processor;
    let requested = irr.iter().map(|word| ("irr", word, 32)).chain(isr.iter().map(|word| ("isr", word, 32)));
    let of_segments = segments.iter().flat_map(|SegmentRegister(_, _, limit, access)| {
        [("limit of a segment", limit, 32), ("access of a segment", access, 17)]
    });
    let single = [("tpr", tpr, 32), ("svr", svr, 32), ("lvt_timer", lvt_timer, 32)];
    let mut all = single.into_iter().chain(requested).chain(of_segments);
    match all.find(|(_, word, bits)| word.0 >> bits != 0) {
        Some((field, word, bits)) => Err(Malformed::Wide { vcpu, field, value: word.0, bits }),
        None => Ok(()),
    }
}

fn pages(memory: &Memory) -> Result<(), Malformed> {
    let found = memory.pages.len();
    if found > MOST_PAGES {
        return Err(Malformed::Pages { found });
    }
    let mut least = 0;
    for &page in &memory.pages {
        let address = page.0;
        if address < least || !address.is_multiple_of(PAGE) || address >= 1 << MAX_PHYS_ADDR_BITS {
            return Err(Malformed::Page { address });
        }
        least = address + PAGE;
    }
    Ok(())
}

fn runs(memory: &Memory) -> Result<(), Malformed> {
    let outside = |address, size| Malformed::Outside { what: "memory", address, size };
    memory.runs.iter().try_for_each(|run| {
        let (address, size) = (run.address.0, run.bytes.0.len() as u64);
        if is_inside(memory, address, size) { Ok(()) } else { Err(outside(address, size)) }
    })
}

/// Whether all of these bytes are in the pages, and there is one.
fn is_inside(memory: &Memory, address: u64, size: u64) -> bool {
    let Some(last) = size.checked_sub(1).and_then(|more| address.checked_add(more)) else { return false };
    let first = address - address % PAGE;
    let Ok(at) = memory.pages.binary_search_by_key(&first, |page| page.0) else { return false };
    // Pages ascend: if the last one is where it would be with none missing, none is.
    let more = (last - first) / PAGE;
    usize::try_from(more)
        .ok()
        .and_then(|more| memory.pages.get(at.checked_add(more)?))
        .is_some_and(|page| page.0 == last - last % PAGE)
}

fn spans(certificate: &Certificate) -> Result<(), Malformed> {
    let lists = certificate.components.iter().map(|component| &component.cells).chain([&certificate.aside]);
    let mut all: Vec<Span> = lists.flatten().copied().collect();
    for &Span { address, size } in &all {
        if !is_inside(&certificate.memory, address.0, size) {
            return Err(Malformed::Outside { what: "components", address: address.0, size });
        }
    }
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[0].address.0 + pair[0].size > pair[1].address.0) {
        Some(pair) => Err(Malformed::Overlap { address: pair[1].address.0 }),
        None => Ok(()),
    }
}

fn states(component: &Component) -> Result<(), Malformed> {
    let sizes: Vec<u64> = component.cells.iter().map(|span| span.size).collect();
    let of = || names(&component.vcpus);
    for (index, state) in component.states.iter().enumerate() {
        let wrong = |found, expected| Malformed::State { state: index, of: of(), found, expected };
        if state.vcpus.len() != component.vcpus.len() {
            let vcpus = |count| format!("{count} vcpus");
            return Err(wrong(vcpus(state.vcpus.len()), vcpus(component.vcpus.len())));
        }
        if !state.cells.iter().map(|cell| cell.0.len() as u64).eq(sizes.iter().copied()) {
            let bytes = |sizes: &mut dyn Iterator<Item = u64>| format!("cells of {} bytes", sizes.sum::<u64>());
            let mut found = state.cells.iter().map(|cell| cell.0.len() as u64);
            let lists = |count| format!("{count} cells, ");
            let (has, should) = (lists(state.cells.len()), lists(sizes.len()));
            return Err(wrong(has + &bytes(&mut found), should + &bytes(&mut sizes.iter().copied())));
        }
        state.vcpus.iter().try_for_each(|vcpu| asides(vcpu, index, &of))?;
    }
    Ok(())
}

fn asides(vcpu: &VcpuState, state: usize, of: &impl Fn() -> String) -> Result<(), Malformed> {
    for (at, aside) in vcpu.aside.iter().enumerate() {
        let again = vcpu.aside[..at].iter().any(|other| other.register == aside.register);
        if again || !is_possible(aside) {
            let &Aside { register, least, most } = aside;
            return Err(Malformed::Aside { state, of: of(), register, least: least.0, most: most.0 });
        }
    }
    Ok(())
}

fn is_possible(&Aside { register, least, most }: &Aside) -> bool {
    match register {
        RFLAGS => least.0 == 0 && most.0 & !STATUS_FLAGS == 0,
        RSP => false,
        _ => register < RIP && least <= most,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample::{DATA, RCX, SPIN, aside, certificate, run, span, spinning};
    use stallbench_state::certificate::{Bytes, Word};

    /// What makes a certificate malformed, and what is said of it.
    type Case = (fn(&mut Certificate), &'static str);

    fn good() -> Certificate {
        let mut certificate = certificate(SPIN, vec![run(DATA + 8, &[1])], vec![spinning(0, DATA), spinning(1, DATA)]);
        certificate.components[0].cells = vec![span(DATA + 8, 2), span(DATA + 0x100, 0x1000)];
        for state in &mut certificate.components[0].states {
            state.cells = vec![Bytes(vec![0; 2]), Bytes(vec![0; 0x1000])];
        }
        certificate
    }

    fn refused(change: impl Fn(&mut Certificate)) -> String {
        let mut certificate = good();
        change(&mut certificate);
        check(&certificate).expect_err("malformed").to_string()
    }

    #[test]
    fn well_formed_certificate_is_accepted() {
        assert_eq!(check(&good()), Ok(()));
    }

    #[test]
    fn vcpus_are_each_in_one_component() {
        let cases: [Case; 5] = [
            (|c| c.vcpus.clear(), "vcpus: 0 of them, not 1 to 255"),
            (|c| c.vcpus.resize(300, c.vcpus[0].clone()), "vcpus: 300 of them, not 1 to 255"),
            (|c| c.components[1].vcpus = vec![0], "components: vcpu0 is in 2 of them, not in one"),
            (|c| c.components[1].vcpus = vec![7], "components: one names vcpus [7], of 2"),
            (|c| c.components[1].vcpus.clear(), "components: one names vcpus [], of 2"),
        ];
        for (change, text) in cases {
            assert_eq!(refused(change), text);
        }
    }

    #[test]
    fn states_hold_what_their_component_says() {
        let cases: [Case; 3] = [
            (|c| c.components[1].states[2].vcpus.clear(), "state 2 of vcpu1: it has 0 vcpus, its component 1 vcpus"),
            (
                |c| drop(c.components[0].states[1].cells.pop()),
                "state 1 of vcpu0: it has 1 cells, cells of 2 bytes, its component 2 cells, cells of 4098 bytes",
            ),
            (
                |c| c.components[0].states[1].cells[0] = Bytes(vec![0; 3]),
                "state 1 of vcpu0: it has 2 cells, cells of 4099 bytes, its component 2 cells, cells of 4098 bytes",
            ),
        ];
        for (change, text) in cases {
            assert_eq!(refused(change), text);
        }
    }

    #[test]
    fn registers_are_set_aside_within_bounds() {
        for wrong in [aside(RIP, 0, 9), aside(RSP, 0, 9), aside(18, 0, 9), aside(RCX, 9, 8), aside(RFLAGS, 0, 0x200)] {
            let text = refused(|c| c.components[0].states[1].vcpus[0].aside = vec![wrong]);
            assert!(text.starts_with("state 1 of vcpu0: register "), "{text}");
        }
        refused(|c| c.components[0].states[1].vcpus[0].aside = vec![aside(RCX, 0, 1); 2]);
    }

    #[test]
    fn memory_lies_in_pages() {
        let cases: [Case; 6] = [
            (|c| c.memory.pages[1] = Word(0x2008), "memory: page 0x2008 is not a page behind the one before it"),
            (|c| c.memory.pages[1] = Word(0x1000), "memory: page 0x1000 is not a page behind the one before it"),
            (
                |c| c.memory.pages.push(Word(1 << 39)),
                "memory: page 0x8000000000 is not a page behind the one before it",
            ),
            (|c| c.memory.runs.push(run(0x3fff, &[1, 2])), "memory: 2 bytes at 0x3fff are not in its pages"),
            (
                |c| c.memory.runs.push(run(u64::MAX, &[1, 2])),
                "memory: 2 bytes at 0xffffffffffffffff are not in its pages",
            ),
            (
                |c| c.memory.pages = (0..=MOST_PAGES as u64).map(|page| Word(page * PAGE)).collect(),
                "memory: 16385 pages, more than 16384",
            ),
        ];
        for (change, text) in cases {
            assert_eq!(refused(change), text);
        }
    }

    #[test]
    fn registers_have_the_bits_that_they_have() {
        let cases: [Case; 3] = [
            (|c| c.vcpus[1].irr[7] = Word(1 << 32), "vcpus: irr of vcpu1 is 0x100000000, more than 32 bits"),
            (|c| c.vcpus[0].tpr = Word(1 << 63), "vcpus: tpr of vcpu0 is 0x8000000000000000, more than 32 bits"),
            (
                |c| c.vcpus[0].segments[0].3 = Word(0x2_0000),
                "vcpus: access of a segment of vcpu0 is 0x20000, more than 17 bits",
            ),
        ];
        for (change, text) in cases {
            assert_eq!(refused(change), text);
        }
    }

    #[test]
    fn states_are_bounded() {
        let text = refused(|c| {
            let state = c.components[1].states[0].clone();
            c.components[1].states = vec![state; MOST_STATES];
        });
        assert_eq!(text, "components: 262147 states of vcpus, more than 262144");
    }

    #[test]
    fn cells_lie_in_pages_and_are_nobody_elses() {
        let cases: [Case; 4] = [
            (|c| c.aside = vec![span(DATA + 9, 1)], "components: the bytes at 0x10009 are in two of their lists"),
            (|c| c.aside = vec![span(DATA + 0x1fff, 2)], "components: 2 bytes at 0x11fff are not in its pages"),
            (|c| c.aside = vec![span(DATA, 0)], "components: 0 bytes at 0x10000 are not in its pages"),
            (
                |c| c.aside = vec![span(DATA, u64::MAX)],
                "components: 18446744073709551615 bytes at 0x10000 are not in its pages",
            ),
        ];
        for (change, text) in cases {
            assert_eq!(refused(change), text);
        }
    }
}
