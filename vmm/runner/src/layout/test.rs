//! Layouts of real machines, and what is wrong with those that cannot be.

use stallbench_abi::knob::{self, Values};
use stallbench_state::mtrr::{ENABLED, Register};

use super::*;

fn parse(text: &str) -> Result<Layout, String> {
    Layout::parse("my.toml", text).map_err(|error| error.to_string())
}

fn refused(text: &str, line: usize, parts: &[&str]) {
    let message = parse(text).expect_err("it is refused");
    assert!(message.starts_with(&format!("my.toml:{line}: ")), "{message}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

fn ranges(layout: &Layout) -> Vec<(usize, u64, u64, &'static str)> {
    layout.ranges.iter().map(|range| (range.register, range.base, range.size, range.kind.word())).collect()
}

const TWO: [(usize, u64, u64, &str); 2] =
    [(0, 0, 0x8000_0000, "write-back"), (3, 0xd000_0000, 0x1000_0000, "write-combining")];

#[test]
fn every_built_in_layout_is_valid_has_its_word_and_says_where_it_is_from() {
    let Values::Words(words) = knob::LAYOUT.values else { panic!("words") };
    let names: Vec<_> = words.iter().filter(|word| word.code != knob::layout::OWN).map(|word| word.word).collect();
    assert_eq!(names, BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, text) in BUILT_IN {
        let layout = Layout::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
        assert!(!layout.machine.is_empty() && !layout.source.is_empty() && !layout.ranges.is_empty(), "{name}");
        assert_eq!(layout.state().invalid(), [], "{name}");
        assert_ne!(layout.state(), MtrrState::at_start(), "{name}");
    }
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/layouts"));
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(files.filter(|path| path.extension().is_some_and(|e| e == "toml")).count(), BUILT_IN.len());
}

#[test]
fn map_of_the_text_is_the_map_of_the_registers() {
    for (name, text) in BUILT_IN {
        let layout = Layout::parse(name, text).unwrap();
        assert_eq!(Some(layout.map()), layout.state().map(), "{name}");
    }
}

#[test]
fn map_of_a_thinkpad_is_what_its_table_says() {
    let map = of_word(4).unwrap().map();
    let above: Vec<_> = map.iter().filter(|region| region.end > 0x10_0000).map(ToString::to_string).collect();
    assert_eq!(
        above,
        [
            "0x100000 to 0x1ff7ffff write-back",
            "0x1ff80000 to 0xcfffffff uncachable",
            "0xd0000000 to 0xe7ffffff write-combining",
            "0xe8000000 to 0x7fffffffff uncachable"
        ]
    );
}

#[test]
fn same_layout_can_be_written_in_every_form() {
    let old = "reg00: base=0x00000000 (   0MB), size=2048MB: write-back, count=1\n\
               reg03: base=0xd0000000 (3328MB), size= 256MB: write-combining, count=2\n";
    let new = "reg00: base=0x000000000 (    0MB), size= 2048MB, count=1: write-back\n\
               reg03: base=0x0d0000000 ( 3328MB), size=  256MB, count=1: write-combining\n";
    let tables = "[[range]]\nbase = 0\nsize = '2GB'\ntype = 'write-back'\n\
                  [[range]]\nreg = 3\nbase = 0xd0000000\nsize = '256MB'\ntype = 'write-combining'\n";
    let log = "[    0.000000] MTRR default type: uncachable\n[    0.000000] MTRR variable ranges enabled:\n\
               [    0.000000]   0 base 000000000 mask F80000000 write-back\n[    0.000000]   1 disabled\n\
               [    0.000000]   3 base 0D0000000 mask FF0000000 write-combining\n[    0.1] PAT enabled\n";
    let registers = "[registers]\ndefault-type = 0xc00\nbase0 = 6\nmask0 = 0x7f80000800\n\
                     base3 = '0xd0000001'\nmask3 = 0x7ff0000800\n";
    let embedded = format!("machine = 'x'\nproc-mtrr = '''\n{new}'''\n");
    for text in [old, new, tables, log, registers, &embedded] {
        let layout = parse(text).unwrap();
        assert_eq!(ranges(&layout), TWO, "{text}");
        assert_eq!((layout.default_type, layout.fixed), (0xc00, MtrrState::at_start().fixed), "{text}");
    }
}

#[test]
fn default_type_is_what_is_said_or_what_firmware_that_lists_its_memory_leaves() {
    let range = |kind| format!("[[range]]\nbase = 0xc0000000\nsize = '1GB'\ntype = '{kind}'\n");
    assert_eq!(parse(&range("write-back")).unwrap().default_type, 0xc00);
    assert_eq!(parse(&range("uncachable")).unwrap().default_type, 0xc06);
    let said = format!("default-type = 'write-through'\n{}", range("uncachable"));
    assert_eq!(parse(&said).unwrap().default_type, 0xc04);
}

#[test]
fn fixed_ranges_go_into_their_registers() {
    let layout = parse(
        "[[fixed]]\nfrom = 0\nto = 0x9ffff\ntype = 'write-through'\n\
         [[fixed]]\nfrom = 0xc8000\nto = 0xc8fff\ntype = 'write-combining'\n",
    )
    .unwrap();
    assert_eq!(layout.fixed[..3], [0x0404_0404_0404_0404, 0x0404_0404_0404_0404, 0]);
    assert_eq!(layout.fixed[4], 0x0505_0505_0505_0501);
    let raw = parse("[registers]\nfixed-250 = 0x0101010101010101\nfixed-26f = '0x0'\n").unwrap();
    assert_eq!((raw.fixed[0], raw.fixed[10], raw.fixed[1]), (0x0101_0101_0101_0101, 0, MtrrState::at_start().fixed[1]));
}

#[test]
fn input_of_the_guest_takes_every_other_register_out_of_use() {
    let layout = parse("[[range]]\nreg = 2\nbase = 0x1000000\nsize = '1MB'\ntype = 'write-back'\n").unwrap();
    let input = layout.input();
    assert_eq!(input.count, 8);
    assert!(
        input.ranges.iter().enumerate().all(|(i, range)| range.register == i as u32 && (range.size == 0) == (i != 2))
    );
    let state = layout.state();
    // What clears a range leaves its base.
    assert_eq!(state.ranges[0], (MtrrState::at_start().ranges[0].0, 0));
    assert!(state.registers().any(|pair| pair == (Register::Base(2), 0x100_0006)));
}

#[test]
fn range_that_no_mask_can_say_is_refused_with_its_line() {
    let range = |base: &str, size: &str| format!("\n[[range]]\nbase = {base}\nsize = {size}\ntype = 'write-back'\n");
    refused(&range("0", "'768MB'"), 2, &["range 0: its size 0x30000000 (768 MiB) is no power of two"]);
    refused(&range("0x8000000", "'256MB'"), 2, &["its base 0x8000000 is no multiple of its size 0x10000000 (256 MiB)"]);
    refused(&range("0", "0"), 2, &["its size is 0, expected 4 KiB at least"]);
    refused(&range("0", "2048"), 2, &["its size is 2 KiB, expected 4 KiB at least"]);
}

#[test]
fn more_ranges_than_the_machine_has_are_refused() {
    let line = |n| format!("reg{n:02}: base=0x{:x} (0MB), size=1MB, count=1: write-back\n", n << 20);
    let nine: String = (0..9).map(line).collect();
    refused(&nine, 9, &["range 8: the machine has 8 variable ranges (VCNT), 0 to 7"]);
    refused(&format!("{}{}", line(0), line(0)), 2, &["range 0 is in line 1 already"]);
}

#[test]
fn range_beyond_maxphyaddr_is_refused_with_the_reason() {
    let range = |base: &str, size: &str| format!("[[range]]\nbase = '{base}'\nsize = '{size}'\ntype = 'write-back'\n");
    assert!(parse(&range("0x7fc0000000", "1GB")).is_ok());
    let reason = "the machine has 39 address bits (MAXPHYADDR), up to 0x7fffffffff";
    refused(&range("0x8000000000", "1GB"), 1, &["range 0 reaches 0x803fffffff", reason]);
    refused(&range("0", "1024GB"), 1, &["reaches 0xffffffffff", reason]);
    refused(&range("0xffffffffffff0000", "64KB"), 1, &[reason]);
}

#[test]
fn undefined_overlap_is_refused_with_both_lines() {
    let table = |a: &str, b: &str| {
        parse(&format!(
            "reg00: base=0x0 (0MB), size=1024MB, count=1: {a}\nreg01: base=0x10000000 (256MB), size=256MB, count=1: {b}\n"
        ))
    };
    let message = table("write-back", "write-combining").unwrap_err();
    for part in [
        "my.toml:2: range 1 (write-combining) and range 0 (write-back, line 1) overlap from 0x10000000 to 0x1fffffff",
        "the manual leaves undefined",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(table("write-protect", "write-through").is_err());
    assert!(table("write-through", "write-back").is_ok() && table("write-combining", "uncachable").is_ok());
    // An uncachable range over both, and nothing is undefined.
    let covered = "reg00: base=0x0 (0MB), size=1MB, count=1: write-back\nreg01: base=0x0 (0MB), size=1MB, count=1: write-combining\n\
                   reg02: base=0x0 (0MB), size=2MB, count=1: uncachable\n";
    assert!(parse(covered).is_ok());
}

#[test]
fn unknown_words_and_lines_are_refused_with_what_is_expected() {
    let types = "expected uncachable, write-combining, write-through, write-protect, write-back";
    refused("[[range]]\nbase = 0\nsize = '1MB'\ntype = 'wb'\n", 1, &["unknown memory type 'wb'", types]);
    refused("reg00: base=0x0 (0MB), size=1MB, count=1: write-bak\n", 1, &["'write-bak'", types]);
    refused("reg00: base=0x0 (0MB), size=1MB, count=1: write-back\nhello\n", 2, &["'hello' is no line of /proc/mtrr"]);
    refused("reg00: base=x, size=1MB: write-back\n", 1, &["is no line of /proc/mtrr"]);
    refused(
        "machine = 'x'\nproc-mtrr = '''\nreg00: base=0x0 (0MB), size=3MB: write-back\n'''\n",
        3,
        &["no power of two"],
    );
    refused("machine = 'x'\n\nrang = 1\n", 3, &["unknown field `rang`", "`range`"]);
    refused("[[range]]\nbase = -1\nsize = 1\ntype = ''\n", 2, &["a number from 0 on"]);
    refused("[[range]]\nbase = 0\nsize = '1 MBs'\ntype = ''\n", 3, &["\"512KB\""]);
    refused("[registers]\nbase8 = 0\n", 2, &["unknown register 'base8', expected default-type, base0 to base7"]);
    refused("machine = 'x'\n", 1, &["there is nothing to program"]);
    refused("", 1, &["there is nothing to program"]);
}

#[test]
fn raw_registers_that_the_manual_forbids_are_refused_by_their_rule() {
    refused("[registers]\nbase0 = 7\nmask0 = 0x7ff0000800\n", 2, &["base0 0x7: a reserved memory type"]);
    refused("[registers]\nbase0 = 6\nmask0 = 0x7fd0000800\n", 3, &["mask0 0x7fd0000800: the mask has holes"]);
    refused("[registers]\nbase0 = 0x8000006\nmask0 = 0x7ff0000800\n", 2, &["the base is no multiple of the size"]);
    refused("[registers]\nbase0 = 6\nmask0 = 0xfff0000800\n", 3, &["address bits above MAXPHYADDR are set"]);
    refused("[registers]\ndefault-type = 0x6\n", 2, &["MTRRs are off (E=0)"]);
    refused("[registers]\nfixed-250 = 2\n", 2, &["fixed-250 0x2: a reserved memory type"]);
    let off = parse("[registers]\ndefault-type = 0x806\nbase1 = 0\nmask1 = 0x7fffe00800\n").unwrap();
    assert_eq!((off.default_type, off.at(0xa_0000)), (ENABLED | 6, code(0)));
}

#[test]
fn fixed_range_that_no_register_can_say_is_refused() {
    let fixed = |from: &str, to: &str| format!("[[fixed]]\nfrom = {from}\nto = {to}\ntype = 'write-back'\n");
    refused(&fixed("0x80000", "0x81fff"), 1, &["fixed range 0x80000 to 0x81fff", "16 KiB below 0xc0000"]);
    refused(&fixed("0x100000", "0x10ffff"), 1, &["ends at 0xfffff at most"]);
    refused(&fixed("0x9000", "0x8fff"), 1, &["its last byte included"]);
}

#[test]
fn two_forms_of_the_same_are_refused() {
    let both = "proc-mtrr = 'reg00: base=0 (0MB), size=1MB: write-back'\n[[range]]\nbase = 0\nsize = '1MB'\ntype = 'write-back'\n";
    refused(both, 2, &["ranges are given twice, here and in line 1"]);
    let types = "default-type = 'write-back'\nlog = '''\nMTRR default type: uncachable\n'''\n";
    refused(types, 3, &["default types are given twice, here and in line 1"]);
}

#[test]
fn masks_of_a_log_are_as_wide_as_they_are_printed() {
    let log =
        |base: &str, mask: &str| format!("MTRR variable ranges enabled:\n  0 base {base} mask {mask} write-back\n");
    let size = |base: &str, mask: &str| parse(&log(base, mask)).unwrap().ranges[0].size;
    // 36, 39, 40 and 48 address bits.
    assert_eq!((size("0C0000000", "FC0000000"), size("4000000000", "4000000000")), (0x4000_0000, 0x40_0000_0000));
    assert_eq!((size("0000000000", "FF80000000"), size("000078000000", "FFFFF8000000")), (0x8000_0000, 0x800_0000));
    refused(&log("000000000", "0C0000000"), 2, &["range 0: its mask 0xc0000000 has holes"]);
    refused(&log("000000000", "FD0000000"), 2, &["has holes"]);
    refused(&log("000000000", "xyz"), 2, &["'0 base 000000000 mask xyz write-back' is no variable range of the log"]);
    refused("MTRR fixed ranges enabled:\n  A0000 uncachable\n", 2, &["is no fixed range of the log"]);
}

#[test]
fn published_layouts_that_the_machine_cannot_have_are_refused() {
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/layouts/refused").join(name);
        Layout::read(&path).expect_err(name).to_string()
    };
    assert!(file("nine-ranges.log").contains("nine-ranges.log:15: range 8: the machine has 8 variable ranges"));
    let message = file("no-power-of-two.mtrr");
    assert!(
        message.contains("no-power-of-two.mtrr:2: range 0: its size 0xf020000000 (983552 MiB) is no power of two"),
        "{message}"
    );
}

#[test]
fn anything_at_all_is_a_message_and_never_a_panic() {
    let texts = [
        "\0\u{7f}\u{fffd}",
        "reg",
        "reg0",
        "reg00:",
        "reg00: base=",
        "reg99999999999999999999: base=0x0, size=1MB: x",
        "reg00: base=0xffffffffffffffffff, size=1MB: write-back",
        "MTRR variable ranges enabled:\n 0 base",
        "[registers]\nx = 1",
        "MTRR default type: ",
        "MTRR fixed ranges enabled:\n ffffffffffffffffff-0 uncachable",
        "[[range]]",
        "proc-mtrr = ''",
        "MTRR variable ranges enabled:\n0 base 0 mask 0 write-back",
        "MTRR variable ranges enabled:\n0 base 0 mask ffffffffffffffffffff write-back",
        "[",
        "log = \"\"\"",
        "proc-mtrr = \"reg00\\n\\n\\nx\"",
    ];
    for text in texts {
        assert!(parse(text).is_err(), "{text:?}");
    }
    let long = format!("reg00: {}", "µ".repeat(100_000));
    assert!(parse(&long).unwrap_err().len() < 400);
}
