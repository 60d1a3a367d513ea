//! `stallbench verify`: whether a certificate holds.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use stallbench_core::HostKvm;
use stallbench_state::certificate::Certificate;
use stallbench_verify::{Holds, VerifyError};

use crate::exit::{Exit, Failure};
use crate::guest;
use crate::output;

/// Most bytes of a file that are read: the largest certificates that are made have some MiB.
const MOST_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(after_help = "docs/certificate.md says what such a file holds, and what is checked of it")]
pub(crate) struct Arguments {
    /// The certificate
    file: PathBuf,
    /// The payload that it is about: an ELF file, instead of the built-in image
    #[arg(long, value_name = "ELF")]
    payload: Option<PathBuf>,
}

pub(crate) fn verify(arguments: &Arguments) -> Result<Exit, Failure> {
    let file = arguments.file.display();
    let certificate =
        open(&arguments.file, arguments.payload.as_deref()).map_err(|failure| in_file(failure, arguments))?;
    let host = HostKvm::open()?;
    let began = Instant::now();
    match stallbench_verify::verify(&host, &certificate) {
        Ok(holds) => output::print(&format!("{file}: {} ({} ms)\n", in_words(&holds), began.elapsed().as_millis())),
        Err(error) => Err(in_file(of(&error), arguments)),
    }
}

fn in_file(failure: Failure, arguments: &Arguments) -> Failure {
    failure.context(arguments.file.display())
}

fn in_words(holds: &Holds) -> String {
    let Holds { states, vcpus, transitions, executed, .. } = holds;
    let (states, vcpus) = (count(*states, "state"), count(*vcpus as u128, "vCPU"));
    let (transitions, executed) = (count(*transitions as u128, "transition"), count(*executed as u128, "instruction"));
    format!("holds: {states} of {vcpus}, closed, without progress; {transitions}, {executed} executed")
}

/// `1 state`, `2 states`.
fn count(number: u128, what: &str) -> String {
    match number {
        u128::MAX => format!("more than 10^38 {what}s"),
        number => format!("{number} {what}{}", if number == 1 { "" } else { "s" }),
    }
}

fn of(error: &VerifyError) -> Failure {
    match error {
        VerifyError::Malformed(malformed) => Failure::new(Exit::Usage, malformed),
        VerifyError::False(falsehood) => Failure::new(Exit::Unexpected, falsehood),
        VerifyError::Host(host) => Failure::host(host).attempted(),
        error => Failure::new(Exit::HostUnusable, error).attempted(),
    }
}

/// The certificate in that file, if it is about that payload.
fn open(file: &Path, payload: Option<&Path>) -> Result<Certificate, Failure> {
    let bytes = guest::read_at_most(MOST_BYTES, "a certificate", file)?;
    let certificate = Certificate::parse(&bytes).map_err(|error| Failure::new(Exit::Usage, &error).attempted())?;
    let (digest, what) = match payload {
        None => (Certificate::digest(stallbench_image::PAYLOAD), "the built-in image".to_owned()),
        Some(path) => (digest_of(path)?, format!("{}", path.display())),
    };
    if certificate.payload == digest {
        return Ok(certificate);
    }
    Err(Failure::usage(format!("payload: it is about {}, and {what} is {digest}", quoted(&certificate.payload))))
}

fn digest_of(path: &Path) -> Result<String, Failure> {
    let bytes = guest::read(path).map_err(|failure| failure.context(format_args!("--payload {}", path.display())))?;
    Ok(Certificate::digest(&bytes))
}

/// What a file says, on one line and not too long.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(64).collect();
    if text.chars().all(|c| c.is_ascii_hexdigit()) && text == shown { shown } else { format!("{shown:?}") }
}
