//! The gate: what may be in a guest image.
//!
//! On kvm_pvm, ring 0 runs in KVM's instruction emulator, which ends a guest at an instruction that it does not know
//! (KVM_EXIT_INTERNAL_ERROR), and a test run meets such an instruction only where data leads to it. So every instruction of
//! the image is decoded and must be on the list. Interrupts run on the stack of what they interrupt, so nothing may lie below
//! the stack pointer. The rules come with images that break them.

mod code;
mod elf;
mod rules;
mod spins;
mod stack;

use stallbench_abi::image::SiteRange;
use stallbench_abi::layout::IMAGE;
use stallbench_image::{PAYLOAD, program};

use elf::image_of;

/// What the gate has against an image: each line an instruction with its address, its function and the reason.
fn findings(image: &[u8]) -> Vec<String> {
    let pieces = code::pieces(image);
    let mut found = code::hidden(image);
    for piece in &pieces {
        let mut frame = stack::Frame::default();
        for instruction in piece.instructions() {
            let reason = rules::objection(&instruction).or_else(|| frame.objection(&instruction));
            found.extend(reason.map(|reason| piece.describe(&instruction, reason)));
        }
    }
    found
}

fn instructions(image: &[u8]) -> usize {
    code::pieces(image).iter().map(|piece| piece.instructions().count()).sum()
}

#[track_caller]
fn assert_refused(what: &str, code: &[u8], reason: &str) {
    let found = findings(&image_of(code));
    assert_eq!(found.len(), 1, "{what}: {found:#?}");
    assert!(found[0].contains(reason), "{what}: {found:#?}");
}

#[test]
fn image_holds_plain_integer_instructions_alone() {
    let found = findings(PAYLOAD);
    let decoded = instructions(PAYLOAD);
    assert!(found.is_empty(), "{} of {decoded} instructions are forbidden:\n{}", found.len(), found.join("\n"));
    assert!(decoded > 100, "only {decoded} instructions were decoded");
}

#[test]
fn image_keeps_the_contract() {
    let program = program();
    assert_eq!(program.bytes(), PAYLOAD);
    assert!(program.segments().iter().any(|segment| segment.executable && segment.address == IMAGE));
    let sites: Vec<_> = program.ranges().iter().map(|range| range.site).collect();
    let unused: Vec<_> = program.sites().iter().filter(|site| !sites.contains(&site.address)).collect();
    assert!(unused.is_empty(), "wait sites without code: {unused:#?}");
}

#[test]
fn image_waits_at_wait_sites_alone() {
    let ranges = program().ranges();
    let mut found = spins::findings(&code::pieces(PAYLOAD), ranges);
    // It publishes a wait that it is not in, to be found out by the host.
    found.retain(|finding| !finding.contains("claim_a_wait"));
    assert!(found.is_empty() && !ranges.is_empty(), "{found:#?}");
}

#[test]
fn spin_that_breaks_its_promise_is_found() {
    let found = |code: &[u8], length| {
        let ranges = [SiteRange { start: IMAGE, end: IMAGE + length, site: 0 }];
        spins::findings(&code::pieces(&image_of(code)), &ranges).join("; ")
    };
    // mov eax, [rdi]; pause; jmp to the start
    assert_eq!(found(&[0x8b, 0x07, 0xf3, 0x90, 0xeb, 0xfa, 0xc3], 6), "");
    assert!(found(&[0x8b, 0x07, 0xf3, 0x90, 0xeb, 0xfa, 0xf3, 0x90], 6).contains("a wait at no wait site"));
    assert!(found(&[0x8b, 0x07, 0xf3, 0x90, 0xeb, 0xfa, 0xc3], 5).contains("no whole number"));
    assert!(found(&[0x8b, 0x07, 0xf3, 0x90, 0xeb, 0xfc, 0xc3], 6).contains("no loop back"));
    assert!(found(&[0x8b, 0x06, 0xf3, 0x90, 0xeb, 0xfa, 0xc3], 6).contains("reads another word"));
    assert!(found(&[0x89, 0x07, 0xf3, 0x90, 0xeb, 0xfa, 0xc3], 6).contains("stores"));
    assert!(found(&[0x8b, 0x37, 0xf3, 0x90, 0xeb, 0xfa, 0xc3], 6).contains("writes RSI"));
}

#[test]
fn image_names_its_functions() {
    let program = program();
    for case in program.cases() {
        let symbol = program.symbol(case.entry);
        assert!(symbol.as_ref().is_some_and(|(_, offset)| *offset == 0), "{}: {symbol:?}", case.name);
    }
}

#[test]
fn image_is_the_same_wherever_it_is_built() {
    let here = env!("CARGO_MANIFEST_DIR").trim_end_matches("/vmm/image").as_bytes();
    let found = PAYLOAD.windows(here.len()).position(|window| window == here);
    assert_eq!(found, None, "the image holds the path of its sources");
}

#[test]
fn image_of_integer_instructions_passes() {
    let code = [
        &[0x55, 0x48, 0x89, 0xe5][..],         // push rbp; mov rbp, rsp
        &[0x48, 0x83, 0xec, 0x10],             // sub rsp, 16
        &[0x48, 0x89, 0x7d, 0xf8],             // mov [rbp - 8], rdi
        &[0xf0, 0x48, 0x0f, 0xc1, 0x07],       // lock xadd [rdi], rax
        &[0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8], // mfence; lfence
        &[0xf3, 0x48, 0x0f, 0xbc, 0xc7],       // tzcnt rax, rdi: bsf with a prefix
        &[0xf3, 0x90, 0xfb, 0xf4],             // pause; sti; hlt
        &[0x0f, 0x30, 0x0f, 0x09],             // wrmsr; wbinvd
        &[0x48, 0x8d, 0x64, 0x24, 0xf8],       // lea rsp, [rsp - 8]
        &[0x0f, 0x0b, 0xcc, 0xcc],             // ud2; padding
    ]
    .concat();
    assert_eq!(findings(&image_of(&code)), Vec::<String>::new());
    assert_eq!(instructions(&image_of(&code)), 17);
}

#[test]
fn image_with_one_sse_instruction_is_refused() {
    assert_refused("xorps xmm0, xmm0", &[0x0f, 0x57, 0xc0], "SSE");
    assert_refused("movups [rdi], xmm0", &[0x0f, 0x11, 0x07], "SSE");
    assert_refused("movq xmm0, rax", &[0x66, 0x48, 0x0f, 0x6e, 0xc0], "SSE2");
}

#[test]
fn image_with_one_popcnt_instruction_is_refused() {
    assert_refused("popcnt eax, eax", &[0xf3, 0x0f, 0xb8, 0xc0], "POPCNT");
}

#[test]
fn image_with_an_instruction_of_another_extension_is_refused() {
    assert_refused("fld1", &[0xd9, 0xe8], "FPU");
    assert_refused("fninit", &[0xdb, 0xe3], "FPU");
    assert_refused("paddd mm0, mm0", &[0x0f, 0xfe, 0xc0], "MMX");
    assert_refused("cmpxchg16b [rdi]", &[0x48, 0x0f, 0xc7, 0x0f], "CMPXCHG16B");
    assert_refused("mulx rax, rax, rax", &[0xc4, 0xe2, 0xfb, 0xf6, 0xc0], "BMI2");
    assert_refused("andn eax, eax, eax", &[0xc4, 0xe2, 0x78, 0xf2, 0xc0], "BMI1");
    assert_refused("lzcnt eax, eax", &[0xf3, 0x0f, 0xbd, 0xc0], "LZCNT");
    assert_refused("vzeroupper", &[0xc5, 0xf8, 0x77], "AVX");
}

#[test]
fn image_that_reads_time_or_chance_is_refused() {
    assert_refused("rdtsc", &[0x0f, 0x31], "TSC");
    assert_refused("rdtscp", &[0x0f, 0x01, 0xf9], "RDTSCP");
    assert_refused("rdrand eax", &[0x0f, 0xc7, 0xf0], "RDRAND");
}

#[test]
fn image_with_an_instruction_that_the_emulator_lacks_is_refused() {
    assert_refused("int 0x80", &[0xcd, 0x80], "emulator");
    assert_refused("swapgs", &[0x0f, 0x01, 0xf8], "emulator");
    assert_refused("lar eax, ax", &[0x0f, 0x02, 0xc0], "emulator");
    assert_refused("sysretq", &[0x48, 0x0f, 0x07], "SYSCALL");
}

#[test]
fn image_that_uses_the_red_zone_is_refused() {
    assert_refused("mov [rsp - 8], rdi", &[0x48, 0x89, 0x7c, 0x24, 0xf8], "below the stack pointer");
    let leaf = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x7d, 0xf8]; // push rbp; mov rbp, rsp; mov [rbp - 8], rdi
    assert_refused("mov [rbp - 8], rdi in a frame of nothing", &leaf, "below the stack pointer");
}

#[test]
fn image_with_bytes_that_are_no_instruction_is_refused() {
    assert_refused("an opcode that 64-bit mode lacks", &[0x06, 0x90], "no instruction");
}

#[test]
fn image_with_bytes_in_no_section_is_refused() {
    let mut image = image_of(&[0x90, 0x0f, 0x57, 0xc0]);
    elf::shrink_section(&mut image, 1);
    let found = findings(&image);
    assert!(found.len() == 1 && found[0].contains("in no section"), "{found:#?}");
}
