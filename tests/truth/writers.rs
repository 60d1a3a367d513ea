//! Who last wrote what a dead guest waits for: told where the host can watch writes, and where it cannot, that.

use std::process::Command;

use iced_x86::code_asm::*;
use serde_json::Value;

use crate::binary::binary;
use crate::code::word;
use crate::guest::{Guest, Truth};
use crate::run::Bench;

/// What the host says of breakpoints on writes.
fn host_watches_writes() -> bool {
    let output = Command::new(binary()).args(["host", "--json"]).output().unwrap();
    let host: Value = serde_json::from_slice(&output.stdout).unwrap();
    let probed = host["probed"].as_array().unwrap();
    let answer = probed.iter().find(|probed| probed["name"] == "data-breakpoints").unwrap();
    answer["answer"].as_bool().unwrap()
}

/// vCPU 0 waits for a word that vCPU 1 writes twice, both times in vain; vCPU 1 for one that nobody writes.
fn guest() -> Guest {
    Guest::new("writes-in-vain", 2, Truth::Dead(None), "neither gets what it waits for", |c| {
        c.on(1, |c| {
            c.mov(dword_ptr(word(1)), 1)?;
            c.mov(dword_ptr(word(1)), 2)?;
            // What is there already: no change.
            c.mov(dword_ptr(word(2)), 0)?;
            c.wait_for_value(word(2), 1)
        })?;
        c.wait_for_value(word(1), 3)?;
        c.pass()
    })
}

#[test]
fn who_last_wrote_what_a_vcpu_waits_for_is_told() {
    if crate::kvm_is_missing() {
        return;
    }
    let ran = Bench::new().run(&guest(), 0, &[]);
    assert_eq!(ran.lie(&guest()), None);
    let writers: Vec<_> = (0..2).map(|vcpu| &ran.result()["loops"][vcpu]["reads"][0]["last_writer"]).collect();
    if host_watches_writes() {
        assert!(writers[0].as_str().is_some_and(|writer| writer.starts_with("vcpu1 ")), "{:?}", ran.result());
        assert_eq!(writers[1], "nobody since the start", "{:?}", ran.result());
    } else {
        assert_eq!(writers, [&Value::Null; 2]);
        assert_eq!(ran.result()["unwatched"], "data breakpoints never fire on this host");
    }
}
