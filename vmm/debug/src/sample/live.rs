//! The machine made up by hand as one that can run on, for unit tests: it does what a test says that it does when it runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use stallbench_abi::layout;
use stallbench_state::dump::{Dump, DumpedMemory};
use stallbench_state::machine::Registers;

use super::{Machine, machine};
use crate::live::{How, Live, LiveError, LiveTarget, State, Stop, Until, Why};
use crate::session::Session;
use crate::target::Target;

/// A machine that can run on; clones are of the same.
#[derive(Clone)]
pub(crate) struct Lively(Arc<Mutex<Inner>>);

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    pub(crate) state: State,
    /// What it comes to when it runs, each time the next; without, it runs on.
    pub(crate) comes: VecDeque<State>,
    pub(crate) stops: Vec<(u32, Stop, How)>,
    /// What was asked of it that changes it.
    pub(crate) asked: Vec<String>,
    pub(crate) statistics: Option<Vec<Vec<(String, u64)>>>,
}

impl Lively {
    pub(crate) fn new() -> Self {
        let (machine, state) = (machine(), State::Stopped(Why::Start));
        let (comes, stops, asked) = Default::default();
        Self(Arc::new(Mutex::new(Inner { machine, state, comes, stops, asked, statistics: None })))
    }

    pub(crate) fn session(&self) -> Session {
        Session::new(Box::new(LiveTarget::new(Box::new(self.clone())).expect("it lets itself be looked at")))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panicked")
    }

    /// What it comes to when it runs next.
    pub(crate) fn comes_to(&self, why: Why) {
        self.inner().comes.push_back(State::Stopped(why));
    }
}

impl Inner {
    fn asked(&mut self, what: String) -> Result<(), LiveError> {
        if self.state == State::Gone {
            return Err(LiveError::Gone);
        }
        self.asked.push(what);
        Ok(())
    }

    fn held(&mut self, what: String) -> Result<(), LiveError> {
        if self.state == State::Running {
            return Err(LiveError::Running);
        }
        self.asked(what)
    }

    fn dump(&self) -> Dump {
        let filled = || Target::filled(&self.machine);
        let mut memory = DumpedMemory::zeroed(std::iter::once(0..layout::memory_end(2)));
        filled().into_iter().for_each(|part| memory.copy(&self.machine.memory, part));
        let Machine { about, machine, payload, .. } = &self.machine;
        Dump { about: about.clone(), machine: machine.clone(), memory, payload: payload.clone() }
    }
}

impl Live for Lively {
    fn state(&mut self) -> State {
        self.inner().state.clone()
    }

    fn wait(&mut self, _: Duration) -> State {
        let mut inner = self.inner();
        if inner.state == State::Running
            && let Some(next) = inner.comes.pop_front()
        {
            inner.state = next;
        }
        inner.state.clone()
    }

    fn look(&mut self) -> Result<Dump, LiveError> {
        let inner = self.inner();
        if inner.state == State::Gone { Err(LiveError::Gone) } else { Ok(inner.dump()) }
    }

    fn stop(&mut self) -> Result<(), LiveError> {
        let mut inner = self.inner();
        inner.asked("stop".into())?;
        if inner.state == State::Running {
            inner.state = State::Stopped(Why::Asked);
        }
        Ok(())
    }

    fn run(&mut self, until: Until) -> Result<(), LiveError> {
        let mut inner = self.inner();
        inner.asked(format!("run{}", if until.progress { " until progress" } else { "" }))?;
        let is_over = matches!(inner.state, State::Stopped(Why::End { .. }));
        inner.state = if is_over { State::Gone } else { State::Running };
        Ok(())
    }

    fn step(&mut self, vcpu: usize) -> Result<(), LiveError> {
        let mut inner = self.inner();
        inner.held(format!("step {vcpu}"))?;
        let registers = inner.machine.machine.vcpus[vcpu].registers.as_mut().expect("made so");
        if registers.rax == 3 {
            return Err(LiveError::Refused("waits for an interrupt".into()));
        }
        (registers.rip, registers.rax) = (registers.rip + 2, registers.rax + 1);
        inner.state = State::Stopped(Why::Stepped { vcpu });
        Ok(())
    }

    fn add(&mut self, stop: Stop) -> Result<(u32, How), LiveError> {
        let mut inner = self.inner();
        inner.asked(format!("{stop:?}"))?;
        if inner.stops.len() == 4 {
            return Err(LiveError::Refused("a processor has four breakpoints, and all are taken".into()));
        }
        let number = inner.stops.last().map_or(1, |(number, ..)| number + 1);
        let how = if matches!(stop, Stop::Execute { .. }) { How::Breakpoint } else { How::Stepping };
        inner.stops.push((number, stop, how));
        Ok((number, how))
    }

    fn remove(&mut self, number: u32) -> Result<bool, LiveError> {
        let mut inner = self.inner();
        inner.asked(format!("remove {number}"))?;
        let before = inner.stops.len();
        inner.stops.retain(|(other, ..)| *other != number);
        Ok(inner.stops.len() < before)
    }

    fn stops(&mut self) -> Result<Vec<(u32, Stop, How)>, LiveError> {
        Ok(self.inner().stops.clone())
    }

    fn write(&mut self, physical: u64, bytes: &[u8]) -> Result<(), LiveError> {
        let mut inner = self.inner();
        inner.held(format!("write {physical:#x} {bytes:?}"))?;
        inner.machine.memory.write(physical, bytes);
        Ok(())
    }

    fn set_registers(&mut self, vcpu: usize, registers: &Registers) -> Result<(), LiveError> {
        let mut inner = self.inner();
        inner.held(format!("registers {vcpu}"))?;
        inner.machine.machine.vcpus[vcpu].registers = Ok(*registers);
        Ok(())
    }

    fn interrupt(&mut self, vcpu: usize, vector: u8) -> Result<(), LiveError> {
        self.inner().asked(format!("interrupt {vcpu} {vector:#x}"))
    }

    fn nmi(&mut self, vcpu: usize) -> Result<(), LiveError> {
        self.inner().asked(format!("nmi {vcpu}"))
    }

    fn release(&mut self, point: &str) -> Result<Vec<usize>, LiveError> {
        self.inner().asked(format!("release {point}"))?;
        if point == "call_many/sent" {
            Ok(vec![1])
        } else {
            Err(LiveError::Refused(format!("nobody is held at {point}")))
        }
    }

    fn prove(&mut self) -> Result<(String, Value), LiveError> {
        self.inner().asked("prove".into())?;
        Ok(("4 states, closed".into(), json!({"states": 4})))
    }

    fn statistics(&mut self) -> Result<Vec<Vec<(String, u64)>>, LiveError> {
        let statistics = self.inner().statistics.clone();
        statistics.ok_or_else(|| LiveError::Refused("this host keeps none".into()))
    }

    fn end(&mut self) {
        let mut inner = self.inner();
        inner.asked.push("end".into());
        inner.state = State::Gone;
    }
}
