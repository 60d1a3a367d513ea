//! Somebody who is in: what is asked for goes to the thread that watches the run, and the answer comes back from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use stallbench_debug::live::{How, Live, LiveError, State, Stop, Until};
use stallbench_state::dump::Dump;
use stallbench_state::machine::Registers;

use super::bench::Bench;
use super::desk::Desk;

/// How long an answer may take. The watching thread may be at a proof of its own when it is asked, which can take half a minute and more.
const ANSWER: Duration = Duration::from_secs(60);

/// Somebody who is in. When it is dropped its stops go, and the machine goes on.
#[derive(Debug)]
pub struct Attached(Arc<Desk>);

impl Attached {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self(desk)
    }

    /// Has the watching thread do something, and waits for what came of it.
    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Bench<'_>) -> Result<T, LiveError> + Send + 'static,
    ) -> Result<T, LiveError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let is_given_up = Arc::new(AtomicBool::new(false));
        let given_up = Arc::clone(&is_given_up);
        let job = move |bench: &mut Bench<'_>| {
            // What somebody was told to have come to nothing is not done later.
            if !given_up.load(Ordering::Acquire) {
                let _ = answer.send(job(bench));
            }
        };
        if !self.0.push(Box::new(job)) {
            return Err(LiveError::Gone);
        }
        match answered.recv_timeout(ANSWER) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(LiveError::Gone),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                is_given_up.store(true, Ordering::Release);
                Err(LiveError::Refused(format!("nothing came of it within {} s", ANSWER.as_secs())))
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Live for Attached {
    fn state(&mut self) -> State {
        self.0.state()
    }

    fn wait(&mut self, timeout: Duration) -> State {
        self.0.wait(timeout)
    }

    fn look(&mut self) -> Result<Dump, LiveError> {
        self.ask(|bench| bench.look())
    }

    fn stop(&mut self) -> Result<(), LiveError> {
        self.ask(|bench| bench.stop())
    }

    fn run(&mut self, until: Until) -> Result<(), LiveError> {
        self.ask(move |bench| bench.run(until))
    }

    fn step(&mut self, vcpu: usize) -> Result<(), LiveError> {
        self.ask(move |bench| bench.step(vcpu))
    }

    fn add(&mut self, stop: Stop) -> Result<(u32, How), LiveError> {
        self.ask(move |bench| bench.add(stop))
    }

    fn remove(&mut self, number: u32) -> Result<bool, LiveError> {
        self.ask(move |bench| bench.remove(number))
    }

    fn stops(&mut self) -> Result<Vec<(u32, Stop, How)>, LiveError> {
        self.ask(|bench| Ok(bench.stops()))
    }

    fn write(&mut self, physical: u64, bytes: &[u8]) -> Result<(), LiveError> {
        let bytes = bytes.to_vec();
        self.ask(move |bench| bench.write(physical, &bytes))
    }

    fn set_registers(&mut self, vcpu: usize, registers: &Registers) -> Result<(), LiveError> {
        let registers = *registers;
        self.ask(move |bench| bench.set_registers(vcpu, &registers))
    }

    fn interrupt(&mut self, vcpu: usize, vector: u8) -> Result<(), LiveError> {
        self.ask(move |bench| bench.interrupt(vcpu, vector))
    }

    fn nmi(&mut self, vcpu: usize) -> Result<(), LiveError> {
        self.ask(move |bench| bench.nmi(vcpu))
    }

    fn release(&mut self, point: &str) -> Result<Vec<usize>, LiveError> {
        let point = point.to_owned();
        self.ask(move |bench| bench.release(&point))
    }

    fn prove(&mut self) -> Result<(String, Value), LiveError> {
        self.ask(|bench| bench.prove())
    }

    fn statistics(&mut self) -> Result<Vec<Vec<(String, u64)>>, LiveError> {
        self.ask(|bench| bench.statistics())
    }

    fn end(&mut self) {
        self.0.end();
    }
}
