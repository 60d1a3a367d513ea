//! `stallbench verify`: what it says to files, and with which exit code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use stallbench_state::certificate::{Certificate, Word};
use tempfile::TempDir;

/// Files of one test.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn certificate(&self, certificate: &Certificate) -> PathBuf {
        self.write("certificate.json", certificate.to_json().as_bytes())
    }
}

fn verify(file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stallbench"));
    command.arg("verify").arg(file).args(more).stdin(Stdio::null()).output().unwrap()
}

/// One line on standard error that says all of this, nothing on standard output, and this exit code.
#[track_caller]
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

/// A vCPU that executes a nop and jumps back, with interrupts enabled.
fn spin() -> Certificate {
    let certificate = Certificate::parse(include_bytes!("../fixtures/certificates/spin.json")).unwrap();
    Certificate { payload: Certificate::digest(stallbench_image::PAYLOAD), ..certificate }
}

#[test]
fn certificate_that_holds_is_said_to_hold() {
    let files = Files::new();
    let file = files.certificate(&spin());
    let output = verify(&file, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = format!("{}: holds: 2 states of 1 vCPU, closed, ", file.display());
    assert!(text.starts_with(&expected) && text.ends_with(" ms)\n"), "{text}");
}

#[test]
fn false_certificate_is_told_by_state_and_transition() {
    let files = Files::new();
    let expect = |change: fn(&mut Certificate), parts: &[&str]| {
        let mut certificate = spin();
        change(&mut certificate);
        refused(&verify(&files.certificate(&certificate), &[]), 100, parts);
    };
    expect(
        |c| c.components[0].states.truncate(1),
        &["certificate.json: state 0 of vcpu0: the edge to state 1 does not exist: there is no such state"],
    );
    expect(
        |c| c.components[0].edges.truncate(1),
        &["certificate.json: state 1 of vcpu0: no edge says that executing one instruction leads to state 0"],
    );
    expect(|c| c.vcpus[0].irr[7] = Word(1 << 28), &["state 0 of vcpu0: vector 0xfc is deliverable"]);
    expect(
        |c| c.components[0].states[1].vcpus[0].registers[3] = Word(7),
        &["state 0 of vcpu0: ", "leads to rip 0x8001, which is no state of the set: rdx is 0x0, not 0x7 as in state 1"],
    );
}

#[test]
fn file_that_is_no_certificate_is_refused() {
    let files = Files::new();
    let json = spin().to_json();
    for end in [0, 1, json.len() / 2, json.len() - 2] {
        let file = files.write("cut.json", &json.as_bytes()[..end]);
        refused(&verify(&file, &[]), 2, &["cut.json: failed to read it: EOF while parsing"]);
    }
    let other = files
        .write("other.json", json.replace("\"stallbench_certificate\":1", "\"stallbench_certificate\":2").as_bytes());
    refused(&verify(&other, &[]), 2, &["other.json: failed to read version 2 of the format: this is version 1"]);
    refused(&verify(&files.directory.path().join("none"), &[]), 2, &["none: No such file"]);
    refused(&verify(files.directory.path(), &[]), 2, &["not a regular file"]);
    let mut malformed = spin();
    malformed.components[0].vcpus = vec![3];
    refused(&verify(&files.certificate(&malformed), &[]), 2, &["components: one names vcpus [3], of 1"]);
}

#[test]
fn file_that_is_too_large_is_not_read() {
    let files = Files::new();
    let file = files.write("large.json", b"{");
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 40).unwrap();
    refused(&verify(&file, &[]), 2, &["1099511627776 bytes, more than the 67108864 that a certificate can have"]);
}

#[test]
fn certificate_of_another_payload_is_refused_with_both() {
    let files = Files::new();
    let payload = files.write("guest.elf", b"an elf file");
    let payload = payload.to_str().unwrap();
    let (own, built_in) = (Certificate::digest(b"an elf file"), Certificate::digest(stallbench_image::PAYLOAD));
    let mut certificate = spin();
    let file = files.certificate(&certificate);
    refused(&verify(&file, &["--payload", payload]), 2, &["payload: it is about ", &built_in, "guest.elf is ", &own]);
    certificate.payload = own.clone();
    let file = files.certificate(&certificate);
    assert_eq!(verify(&file, &["--payload", payload]).status.code(), Some(0));
    refused(&verify(&file, &[]), 2, &["payload: it is about ", &own, "the built-in image is ", &built_in]);
    certificate.payload = "new\nline".into();
    refused(&verify(&files.certificate(&certificate), &[]), 2, &[r#"it is about "new\nline""#]);
    refused(&verify(&file, &["--payload", "nowhere"]), 2, &["--payload nowhere: No such file"]);
}
