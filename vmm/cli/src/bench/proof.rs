//! What proofs cost: from a suspicion to a verdict, and a guest that is alive and suspected all the time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use stallbench_core::HostKvm;
use stallbench_runner::dump::Keep;
use stallbench_runner::execute::plain::{PlainPlan, execute};
use stallbench_runner::outcome::{RunOutcome, Verdict};
use stallbench_runner::plain::PlainOptions;
use stallbench_state::program::PlainProgram;

use super::figure::Figure;
use crate::exit::Failure;

/// How often the guest is suspected.
const EVERY: Duration = Duration::from_millis(100);
/// As good as never.
const NEVER: Duration = Duration::from_secs(86_400);
/// What one run may take: far more than it does.
const BUDGET: Duration = Duration::from_secs(3600);
/// Turns of the guest that its speed is told by.
const TRIAL: u32 = 1 << 18;
/// Runs of each kind, in turn.
const RUNS: usize = 3;

/// A guest that counts down for about so long, suspected every 100 ms and left alone.
pub(super) fn suspected(host: &HostKvm, seconds: u64) -> Result<Vec<Figure>, Failure> {
    let trial = counted(host, TRIAL, NEVER)?.wall;
    let turns = u128::from(TRIAL) * u128::from(seconds) * 1_000_000_000 / trial.as_nanos().max(1);
    let turns = u32::try_from(turns).unwrap_or(u32::MAX).min(i32::MAX.cast_unsigned());
    let (mut alone, mut suspected, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        alone.push(counted(host, turns, NEVER)?.wall);
        let outcome = counted(host, turns, EVERY)?;
        suspected.push(outcome.wall);
        stopped.push(outcome.watch.stopped);
    }
    let what = |how: &str| format!("a guest that counts down {turns} times, {how}");
    Ok(vec![
        Figure::times("live-alone", what("left alone"), None, alone),
        Figure::times("live-suspected", what("suspected every 100 ms"), Some("1.02 of it"), suspected),
        Figure::times("live-stopped", "how long it stood still for that", None, stopped),
    ])
}

/// Runs the guest once.
fn counted(host: &HostKvm, turns: u32, every: Duration) -> Result<RunOutcome, Failure> {
    let program = PlainProgram::parse(guest(turns)).map_err(|error| Failure::host(&error))?;
    let options = PlainOptions { suspect_every: Some(every), ..PlainOptions::default() };
    let plan = PlainPlan {
        vcpus: 1,
        options: Arc::new(options),
        alone: Duration::ZERO,
        budget: BUDGET,
        keep: Keep::default(),
        control: None,
    };
    let outcome = execute(host, &program, &plan, &AtomicBool::new(false)).map_err(|error| Failure::host(&error))?;
    match outcome.verdict {
        Verdict::Pass => Ok(outcome),
        other => Err(Failure::usage(format!("the guest that counts down ended with {}", other.word()))),
    }
}

/// A static executable of a few instructions, whole in one segment.
fn guest(turns: u32) -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let code: Vec<u8> = [
        // mov rcx, turns
        &[0x48, 0xc7, 0xc1][..],
        &turns.to_le_bytes(),
        // dec rcx; jnz back to it
        &[0x48, 0xff, 0xc9, 0x75, 0xfb],
        // xor eax, eax; mov edx, 0xf4; out dx, eax: the exit port, with status 0
        &[0x31, 0xc0, 0xba, 0xf4, 0, 0, 0, 0xef],
    ]
    .concat();
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    // Entry, program headers, no sections; flags, sizes and counts.
    [BASE + HEADERS, 64, 0].iter().for_each(|field| elf.extend(field.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    [0, BASE, BASE, size, size, 0x1000].iter().for_each(|field| elf.extend(field.to_le_bytes()));
    elf.extend(code);
    elf
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn guest_is_a_plain_one() {
        let program = PlainProgram::parse(guest(7)).expect("a static executable");
        assert_eq!(program.entry(), 0x10_0078);
    }
}
