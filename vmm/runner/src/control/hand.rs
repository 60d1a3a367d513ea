//! What is done to the machine of a run from outside. The report tells of it.

use std::time::Duration;

use stallbench_abi::layout::PAUSE;
use stallbench_abi::pause::{Hold, PausePage};
use stallbench_core::Capture;
use stallbench_debug::live::{LiveError, Why};
use stallbench_state::machine::Registers;
use stallbench_state::memory::read_plain;
use stallbench_state::program::Program;

use super::bench::{Bench, Done, refused};
use super::guest::Guest;
use crate::execute::released;
use crate::execute::stop::STOP_DEADLINE;
use crate::nearest::did_you_mean;
use crate::scenario::Injected;

/// How long a step may take: an instruction may not end.
const STEP: Duration = Duration::from_secs(5);

impl Bench<'_> {
    /// One instruction of one vCPU. This alone is nothing that the machine could not have done by itself.
    pub(super) fn step(&mut self, vcpu: usize) -> Done<()> {
        self.open()?.step(vcpu, STEP).map_err(refused)?;
        self.still(Why::Stepped { vcpu });
        Ok(())
    }

    /// Writes guest-physical memory.
    pub(super) fn write(&mut self, physical: u64, bytes: &[u8]) -> Done<()> {
        if !self.open()?.write(physical, bytes) {
            let end = physical.saturating_add(bytes.len() as u64);
            return Err(LiveError::Refused(format!("failed to write {physical:#x}-{end:#x}: not all of it is memory")));
        }
        let bytes = bytes.len();
        let unit = if bytes == 1 { "byte" } else { "bytes" };
        self.interventions.note(format!("memory: {bytes} {unit} at {physical:#x} written by the debugger"));
        Ok(())
    }

    /// Gives a vCPU these general registers.
    pub(super) fn set_registers(&mut self, vcpu: usize, registers: &Registers) -> Done<()> {
        let paused = self.open()?;
        let before = paused.capture(Capture::Control).vcpus.get(vcpu).and_then(|vcpu| vcpu.registers.clone().ok());
        paused.set_registers(vcpu, registers).map_err(refused)?;
        let names = before.map_or_else(|| "all".to_owned(), |before| changed(&before, registers));
        if !names.is_empty() {
            self.interventions.note(format!("vcpu{vcpu}: register {names} written by the debugger"));
        }
        Ok(())
    }

    /// Sends a vCPU an NMI.
    pub(super) fn nmi(&mut self, vcpu: usize) -> Done<()> {
        self.open()?.nmi(vcpu, STOP_DEADLINE).map_err(refused)?;
        self.interventions.note(format!("vcpu{vcpu}: an nmi sent by the debugger"));
        Ok(())
    }

    /// Sends a vCPU a fixed interrupt.
    pub(super) fn interrupt(&mut self, vcpu: usize, vector: u8) -> Done<()> {
        self.open()?.interrupt(vcpu, vector).map_err(refused)?;
        self.interventions.note(format!("vcpu{vcpu}: vector {vector:#x} sent by the debugger"));
        Ok(())
    }

    /// Lets go the vCPUs that are held at a pause point.
    pub(super) fn release(&mut self, point: &str) -> Done<Vec<usize>> {
        let paused = self.open()?;
        let Guest::Contract(program, injected) = self.guest else {
            return Err(LiveError::Refused("a plain guest has no pause points".into()));
        };
        let address = address(program, point)?;
        let page: PausePage = read_plain(self.machine.memory(), PAUSE).unwrap_or_default();
        let mut vcpus = Vec::new();
        for (index, vcpu) in held_at(address, injected, &page) {
            if !paused.write_u32(released(index), 1) {
                return Err(LiveError::Refused("the pause page is no guest memory".into()));
            }
            vcpus.push(vcpu);
        }
        let told = vcpus.iter().map(|vcpu| format!("vcpu{vcpu}: let go from {point} by the debugger"));
        told.for_each(|what| self.interventions.note(what));
        Ok(vcpus)
    }
}

/// The names of the registers that differ.
fn changed(before: &Registers, after: &Registers) -> String {
    let both = named(before).into_iter().zip(named(after));
    both.filter(|(before, after)| before != after).map(|(_, (name, _))| name).collect::<Vec<_>>().join(", ")
}

fn named(registers: &Registers) -> [(&'static str, u64); 18] {
    let &Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } =
        registers;
    let first = [("rax", rax), ("rbx", rbx), ("rcx", rcx), ("rdx", rdx), ("rsi", rsi), ("rdi", rdi)];
    let second = [("rsp", rsp), ("rbp", rbp), ("r8", r8), ("r9", r9), ("r10", r10), ("r11", r11)];
    let third = [("r12", r12), ("r13", r13), ("r14", r14), ("r15", r15), ("rip", rip), ("rflags", rflags)];
    let mut all = [("", 0); 18];
    all.iter_mut().zip([first, second, third].into_iter().flatten()).for_each(|(one, named)| *one = named);
    all
}

fn address(program: &Program, point: &str) -> Done<u64> {
    let points = program.points();
    let found = points.iter().find(|known| known.name == point).map(|known| known.address);
    found.ok_or_else(|| {
        let near = did_you_mean(point, points.iter().map(|known| known.name.as_str()));
        LiveError::Refused(format!("the guest has no pause point '{point}'{near}"))
    })
}

/// The holds in force there, with whom each holds.
fn held_at(point: u64, injected: &Injected, page: &PausePage) -> Vec<(usize, usize)> {
    let is_there = |hold: &Hold| hold.at.point == point;
    let holds = injected.holds.iter().zip(&page.holds).enumerate();
    let held = holds.filter(|(_, ((_, hold), state))| is_there(hold) && state.held != 0 && state.released == 0);
    held.map(|(index, (_, state))| (index, state.held as usize - 1)).collect()
}
