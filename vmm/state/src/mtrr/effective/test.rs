//! The rules one by one, and all of them against a model that knows registers only as the tables of the manual.

use proptest::array::{uniform8, uniform11};
use proptest::prelude::*;

use super::*;
use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteProtected, WriteThrough};

/// All MTRRs on, write-back by default, no range in use.
fn plain() -> MtrrState {
    MtrrState { ranges: [(0, 0); 8], ..MtrrState::at_start() }
}

fn with(ranges: &[(u64, u64, MemoryType)]) -> MtrrState {
    let place = |state: MtrrState, (i, (base, size, kind)): (usize, &(u64, u64, MemoryType))| {
        state.with_range(i, *base, *size, kind.code())
    };
    ranges.iter().enumerate().fold(plain(), place)
}

#[test]
fn off_is_uncacheable_everywhere() {
    let off = MtrrState { default_type: FIXED_ENABLED | 6, ..with(&[(0, 0x1000_0000, WriteBack)]) };
    assert_eq!(off.map(), Some(vec![Region { start: 0, end: ADDRESS_SPACE, effective: Effective::Type(Uncacheable) }]));
}

#[test]
fn fixed_ranges_win_below_1_mib_and_only_when_they_are_on() {
    let on = with(&[(0, 0x1000_0000, Uncacheable)]);
    assert_eq!(on.effective(0x9_ffff), Effective::Type(WriteBack));
    assert_eq!(on.effective(0xa_0000), Effective::Type(Uncacheable));
    assert_eq!(on.effective(0xc_0000), Effective::Type(WriteProtected));
    assert_eq!(on.effective(0x10_0000), Effective::Type(Uncacheable));
    let off = MtrrState { default_type: ENABLED | 6, ..on };
    assert_eq!(off.effective(0x9_ffff), Effective::Type(Uncacheable));
}

#[test]
fn overlaps_are_decided_by_the_manual_or_by_nobody() {
    let both = |a, b| with(&[(0, 0x4000_0000, a), (0x1000_0000, 0x1000_0000, b)]).effective(0x1000_0000);
    for kind in MemoryType::ALL {
        assert_eq!(both(kind, kind), Effective::Type(kind));
        assert_eq!(
            (both(kind, Uncacheable), both(Uncacheable, kind)),
            (Effective::Type(Uncacheable), Effective::Type(Uncacheable))
        );
    }
    assert_eq!(both(WriteThrough, WriteBack), Effective::Type(WriteThrough));
    assert_eq!(both(WriteBack, WriteThrough), Effective::Type(WriteThrough));
    for (a, b) in [
        (WriteCombining, WriteThrough),
        (WriteCombining, WriteProtected),
        (WriteCombining, WriteBack),
        (WriteProtected, WriteThrough),
        (WriteProtected, WriteBack),
    ] {
        assert_eq!(both(a, b).defined(), None, "{a} {b}");
        assert_eq!(both(b, a).defined(), None, "{b} {a}");
    }
    let three = with(&[(0, 0x4000_0000, WriteThrough), (0, 0x2000_0000, WriteBack), (0, 0x1000_0000, WriteCombining)]);
    assert_eq!(
        three.effective(0x200_0000).to_string(),
        "undefined (write-combining and write-through and write-back overlap)"
    );
    assert_eq!(three.effective(0x1000_0000), Effective::Type(WriteThrough));
}

#[test]
fn reserved_types_are_undefined() {
    let mut state = plain().with_range(3, 0x4000_0000, 0x1000, 6);
    state.ranges[3].0 |= 1;
    assert_eq!(state.effective(0x4000_0000), Effective::Reserved(7));
    assert_eq!(MtrrState { default_type: 0xc02, ..plain() }.effective(0x10_0000), Effective::Reserved(2));
}

#[test]
fn mask_with_holes_matches_by_the_letter_and_has_no_map() {
    let mut state = plain();
    // Bit 20 is not compared: every second page of 1 MiB from 4 MiB on.
    state.ranges[0] = (0x40_0000, (ADDRESS & !0x10_0000) | VALID);
    assert_eq!(state.effective(0x40_0000), Effective::Type(Uncacheable));
    assert_eq!(state.effective(0x50_0000), Effective::Type(Uncacheable));
    assert_eq!(state.effective(0x40_1000), Effective::Type(WriteBack));
    assert_eq!(state.map(), None);
    state.ranges[0].1 &= !VALID;
    assert!(state.map().is_some());
}

#[test]
fn map_at_start_is_that_of_a_pc() {
    let map = MtrrState::at_start().map().unwrap();
    let lines: Vec<_> = map.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "0x0 to 0x9ffff write-back",
            "0xa0000 to 0xbffff uncachable",
            "0xc0000 to 0xfffff write-protect",
            "0x100000 to 0xbfffffff write-back",
            "0xc0000000 to 0xffffffff uncachable",
            "0x100000000 to 0x7fffffffff write-back"
        ]
    );
}

/// The model: which of the manual's answers an address has; `None` where it has none. It shares no code with what it is
/// compared with: bits are compared one by one, fixed ranges are painted page by page, types are plain codes.
fn model(state: &MtrrState, address: u64) -> Option<u8> {
    let known = |code: u8| [0, 1, 4, 5, 6].contains(&code).then_some(code);
    let bit = |value: u64, n: u32| (value / 2u64.pow(n)) % 2;
    if bit(state.default_type, 11) == 0 {
        return Some(0);
    }
    if address < 1024 * 1024 && bit(state.default_type, 10) == 1 {
        return known(painted(&state.fixed, address as usize));
    }
    let matches = |base: u64, mask: u64| {
        bit(mask, 11) == 1 && (12..39).all(|n| bit(mask, n) == 0 || bit(address, n) == bit(base, n))
    };
    let mut codes: Vec<u8> =
        state.ranges.iter().filter(|(base, mask)| matches(*base, *mask)).map(|(base, _)| (base % 256) as u8).collect();
    codes.sort_unstable();
    codes.dedup();
    if codes.iter().any(|code| known(*code).is_none()) {
        return None;
    }
    match codes[..] {
        [] => known((state.default_type % 256) as u8),
        [one] => Some(one),
        [0, ..] => Some(0),
        [4, 6] => Some(4),
        _ => None,
    }
}

/// The code of the fixed range at an address: base address and size of the ranges of each register, from the manual's table
/// 12-9, looked through from the first to the last.
fn painted(fixed: &[u64; 11], address: usize) -> u8 {
    const TABLE: [(usize, usize); 11] = [
        (0x0_0000, 0x1_0000),
        (0x8_0000, 0x4000),
        (0xa_0000, 0x4000),
        (0xc_0000, 0x1000),
        (0xc_8000, 0x1000),
        (0xd_0000, 0x1000),
        (0xd_8000, 0x1000),
        (0xe_0000, 0x1000),
        (0xe_8000, 0x1000),
        (0xf_0000, 0x1000),
        (0xf_8000, 0x1000),
    ];
    for (value, (base, size)) in fixed.iter().zip(TABLE) {
        for n in 0..8 {
            let start = base + n as usize * size;
            if start <= address && address < start + size {
                return ((value / 256u64.pow(n)) % 256) as u8;
            }
        }
    }
    unreachable!("the table covers the first MiB")
}

fn agrees(state: &MtrrState, address: u64) -> bool {
    state.effective(address).defined().map(MemoryType::code) == model(state, address)
}

fn any_code() -> impl Strategy<Value = u64> {
    prop_oneof![8 => prop::sample::select(vec![0, 1, 4, 5, 6]), 1 => 0..=255u64]
}

fn valid_pair(least: u32, most: u32) -> impl Strategy<Value = (u64, u64)> {
    (least..=most, any::<u64>(), any_code(), prop::bool::weighted(0.85)).prop_map(move |(order, place, code, used)| {
        let size = 1u64 << order;
        let base = place % (1u64 << most) / size * size;
        (base | code, (ADDRESS & !(size - 1)) | if used { VALID } else { 0 })
    })
}

/// Ranges that crowd at the bottom, ranges all over, and any bits at all.
fn any_pair() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        4 => valid_pair(12, 24),
        4 => valid_pair(12, 39),
        1 => (any::<u64>(), any::<u64>()),
        1 => (0..0x100_0000u64, (0..0x100_0000u64).prop_map(|mask| ADDRESS & !0xff_ffff | mask | VALID)),
    ]
}

fn any_fixed() -> impl Strategy<Value = u64> {
    prop_oneof![
        9 => uniform8(prop::sample::select(vec![0u8, 1, 4, 5, 6])).prop_map(u64::from_le_bytes),
        1 => any::<u64>(),
    ]
}

fn state_of(pair: impl Strategy<Value = (u64, u64)>) -> impl Strategy<Value = MtrrState> {
    let default_type = (any_code(), prop::bool::weighted(0.9), any::<bool>())
        .prop_map(|(code, on, fixed)| code | if on { ENABLED } else { 0 } | if fixed { FIXED_ENABLED } else { 0 });
    (default_type, uniform8(pair), uniform11(any_fixed()), any::<u64>())
        .prop_map(|(default_type, ranges, fixed, pat)| MtrrState { default_type, ranges, fixed, pat })
}

/// Addresses where something could change, and one byte to each side.
fn edges(state: &MtrrState) -> Vec<u64> {
    let of_pair = |(base, mask): &(u64, u64)| {
        let (base, low) = (base & ADDRESS, ADDRESS & !mask | 0xfff);
        [base, base | low, (base & !low).wrapping_sub(1), (base | low).wrapping_add(1), base & mask]
    };
    let fixed = [0, 0x7_ffff, 0x8_0000, 0xb_ffff, 0xc_0000, 0xf_ffff, 0x10_0000];
    state.ranges.iter().flat_map(of_pair).chain(fixed).map(|address| address % ADDRESS_SPACE).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn type_of_any_address_is_that_of_the_model(
        state in state_of(any_pair()),
        addresses in prop::collection::vec(prop_oneof![0..ADDRESS_SPACE, 0..0x200_0000u64, 0..FIXED_END], 32),
    ) {
        for address in addresses.into_iter().chain(edges(&state)) {
            prop_assert!(agrees(&state, address), "{address:#x}: {} in {state:x?}", state.effective(address));
        }
    }

    #[test]
    fn map_covers_all_memory_in_largest_regions_that_agree_with_the_model(
        state in state_of(valid_pair(12, 39)),
        inside in prop::collection::vec(any::<u64>(), 4),
    ) {
        let map = state.map().unwrap();
        prop_assert_eq!((map[0].start, map[map.len() - 1].end), (0, ADDRESS_SPACE));
        for pair in map.windows(2) {
            prop_assert!(pair[0].end == pair[1].start && pair[0].effective != pair[1].effective, "{pair:?}");
        }
        for region in map {
            let within = inside.iter().map(|n| region.start + n % (region.end - region.start));
            for address in within.chain([region.start, region.end - 1]) {
                prop_assert_eq!(region.effective.defined().map(MemoryType::code), model(&state, address), "{:#x}", address);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// A world that is small enough to look at all of its pages: eight ranges in 8 MiB.
    #[test]
    fn map_of_a_small_world_is_right_for_every_page(state in state_of(valid_pair(12, 23))) {
        let map = state.map().unwrap();
        let mut regions = map.iter().peekable();
        for page in (0..0x80_0000u64).step_by(4096) {
            while regions.peek().is_some_and(|region| region.end <= page) {
                regions.next();
            }
            let region = regions.peek().unwrap();
            prop_assert_eq!(region.effective.defined().map(MemoryType::code), model(&state, page), "{:#x}", page);
        }
    }
}
