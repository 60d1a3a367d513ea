//! `stallbench run --payload FILE.elf` with a plain guest: what may be asked for, and what not.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use stallbench_runner::plain::{Aps, GhostSpan, GuestEnd, HostNmi, MEMORY, PlainOptions};
use stallbench_runner::scenario::{Expectation, Selection};
use stallbench_state::program::PlainProgram;

use super::What;
use crate::exit::{Exit, Failure};

/// Options that only a plain guest takes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Plain guests")]
pub(crate) struct Flags {
    /// Memory of a plain guest, in MiB [default: 64]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(MEMORY))]
    memory: Option<u64>,
    /// Who starts the other vCPUs of a plain guest: itself by INIT and SIPI (parked), or the host, at its entry (started) [default: parked]
    #[arg(long, value_name = "HOW", value_parser = str::parse::<Aps>)]
    aps: Option<Aps>,
    /// What ends a plain guest well: status 0 at the exit port (exit-port), a triple fault too (shutdown), or all vCPUs in cli; hlt too (halted) [default: exit-port]
    #[arg(long, value_name = "HOW", value_parser = str::parse::<GuestEnd>)]
    end: Option<GuestEnd>,
    /// What must come of a plain guest: a verdict, or a verdict of a kind, as in stall=livelock [default: pass]
    #[arg(long, value_name = "VERDICT[=KIND]", value_parser = Expectation::asked)]
    expect: Option<Expectation>,
    /// Memory of a plain guest that no decision of it reads: a proof holds whatever lies there; repeatable
    #[arg(long, value_name = "ADDRESS+SIZE", value_parser = str::parse::<GhostSpan>)]
    ghost: Vec<GhostSpan>,
    /// Send that vCPU of a plain guest an NMI, so many milliseconds after the start; repeatable
    #[arg(long, value_name = "VCPU@MS", value_parser = str::parse::<HostNmi>)]
    nmi: Vec<HostNmi>,
    /// Try to prove a stall of a plain guest at this interval, in milliseconds [default: after 1, 2, 4 and so on, up to every 200]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    suspect_every: Option<u64>,
}

impl Flags {
    /// What is asked for beside the guest.
    pub(super) fn options(&self) -> PlainOptions {
        let usual = PlainOptions {
            aps: self.aps.unwrap_or_default(),
            end: self.end.unwrap_or_default(),
            ghost: self.ghost.clone(),
            nmis: self.nmi.clone(),
            suspect_every: self.suspect_every.map(Duration::from_millis),
            ..PlainOptions::default()
        };
        self.memory.map_or(usual.clone(), |memory| usual.with_memory(memory))
    }

    /// Refuses them where the guest is not plain.
    pub(super) fn refuse(&self, payload: Option<&Path>) -> Result<(), Failure> {
        let Some(flag) = self.first() else { return Ok(()) };
        let guest = payload.map_or_else(
            || "without --payload there is none".to_owned(),
            |path| format!("--payload {} keeps the contract", path.display()),
        );
        Err(Failure::usage(format!("{flag}: only a plain guest takes it, and {guest}")))
    }

    /// The first that is there.
    fn first(&self) -> Option<&'static str> {
        let flags = [
            ("--memory", self.memory.is_some()),
            ("--aps", self.aps.is_some()),
            ("--end", self.end.is_some()),
            ("--expect", self.expect.is_some()),
            ("--ghost", !self.ghost.is_empty()),
            ("--nmi", !self.nmi.is_empty()),
            ("--suspect-every", self.suspect_every.is_some()),
        ];
        flags.iter().find(|(_, is_there)| *is_there).map(|(flag, _)| *flag)
    }
}

impl fmt::Display for Flags {
    /// As they are written, each behind a space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.iter().try_for_each(|memory| write!(f, " --memory {memory}"))?;
        self.aps.iter().try_for_each(|aps| write!(f, " --aps {aps}"))?;
        self.end.iter().try_for_each(|end| write!(f, " --end {end}"))?;
        if let Some(Expectation { verdict, kind, .. }) = &self.expect {
            write!(f, " --expect {verdict}")?;
            kind.iter().try_for_each(|kind| write!(f, "={kind}"))?;
        }
        self.ghost.iter().try_for_each(|ghost| write!(f, " --ghost {ghost}"))?;
        self.nmi.iter().try_for_each(|nmi| write!(f, " --nmi {nmi}"))?;
        self.suspect_every.iter().try_for_each(|every| write!(f, " --suspect-every {every}"))
    }
}

/// The runs of a plain guest, with everything checked that can be checked without the host.
pub(super) fn selection(what: &What, program: &PlainProgram, options: &PlainOptions) -> Result<Selection, Failure> {
    let payload = what.payload.as_deref().unwrap_or_else(|| Path::new(""));
    refuse_others(what, payload)?;
    let name = name_of(payload);
    let vcpus = vcpus(what, &name, payload)?;
    let expectation = what.plain.expect.clone();
    let expectation = expectation.unwrap_or_else(|| Expectation::pass("nothing else is asked for by --expect"));
    let selection = Selection::of_plain(&name, &vcpus, 1, &Arc::new(expectation))?;
    for vcpus in vcpus {
        options.check(program, vcpus).map_err(|error| {
            Failure::new(Exit::Usage, &error).context(format_args!("--payload {}", payload.display()))
        })?;
    }
    Ok(selection)
}

/// Refuses what only a guest of the contract has.
fn refuse_others(what: &What, payload: &Path) -> Result<(), Failure> {
    let others = [
        ("--case", "cases", what.case.is_some()),
        ("--set", "knobs", !what.set.is_empty()),
        ("--layout", "layouts", what.layout.is_some()),
        ("--order", "procedure that is known to program MTRRs", what.order.is_some()),
        ("--seed", "seed", what.seed != 0),
    ];
    match others.iter().find(|(_, _, is_there)| *is_there) {
        Some((flag, what, _)) => {
            let payload = payload.display();
            Err(Failure::usage(format!("{flag}: --payload {payload} is a plain guest, it has no {what}")))
        }
        None => Ok(()),
    }
}

/// The name of a file without its extension, fit for names of runs.
fn name_of(payload: &Path) -> String {
    let stem = payload.file_stem().unwrap_or_default().to_string_lossy();
    stem.chars().map(|c| if c.is_control() || c == '@' || c == '/' { '_' } else { c }).collect()
}

/// The numbers of vCPUs: those of the names that reports print, where there are any.
fn vcpus(what: &What, name: &str, payload: &Path) -> Result<Vec<usize>, Failure> {
    let usual = if what.vcpus.is_empty() { vec![1] } else { what.vcpus.clone() };
    if what.names.is_empty() {
        return Ok(usual);
    }
    let mut vcpus = Vec::new();
    for asked in &what.names {
        let of_this = asked.strip_prefix("payload/").and_then(|rest| rest.strip_prefix(name));
        match of_this.map(|rest| rest.strip_prefix("@vcpus=").map_or((rest, None), |number| ("", Some(number)))) {
            Some(("", None)) => vcpus.extend(&usual),
            Some(("", Some(number))) if number.parse::<usize>().is_ok() => vcpus.extend(number.parse::<usize>()),
            _ => {
                return Err(Failure::usage(format!(
                    "'{asked}': --payload {} is a plain guest, its only run is payload/{name}",
                    payload.display()
                )));
            }
        }
    }
    Ok(vcpus)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn name_of_a_guest_is_that_of_its_file_and_can_be_asked_for() {
        let name = |path: &str| name_of(Path::new(path));
        assert_eq!(name("/tmp/spin.elf"), "spin");
        assert_eq!(name("a b@c\n.elf"), "a b_c_");
        assert_eq!(name("kernel"), "kernel");
    }
}
