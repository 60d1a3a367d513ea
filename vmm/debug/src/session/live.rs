//! A session on a machine that can run on: what happened to it meanwhile, and who may be asked or may interrupt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Session;
use crate::answer::Answer;
use crate::command::{Frame, stopped};
use crate::error::CommandError;
use crate::guest::Guest;
use crate::live::{Live, LiveError, State, Why};

/// How long an interrupt may have to wait.
const SLICE: Duration = Duration::from_millis(20);

/// Who says yes or no to a question of one line.
pub type Ask = Box<dyn FnMut(&str) -> bool>;

/// What a session on a live machine keeps.
pub(super) struct Watching {
    interrupt: Arc<AtomicBool>,
    ask: Option<Ask>,
    /// What was last said of whether the machine runs.
    told: State,
    viewed: Option<Frame>,
}

impl Default for Watching {
    fn default() -> Self {
        Self { interrupt: Arc::default(), ask: None, told: State::Running, viewed: None }
    }
}

impl Session {
    /// A command that waits for the machine ends, and the machine stands still, once this is set by another thread or a signal. It is
    /// taken back by the command, and at the end of a line of commands.
    pub fn set_interrupt(&mut self, interrupt: Arc<AtomicBool>) {
        self.watching.interrupt = interrupt;
    }

    /// What interrupts it.
    pub(crate) fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.watching.interrupt)
    }

    /// Has `ask` say yes or no where a command is about to change the guest. Without, such commands want `--yes`.
    pub fn set_ask(&mut self, ask: Ask) {
        self.watching.ask = Some(ask);
    }

    /// What happened to the machine since something was last said of it: that it came to a stop, to its end, or that it is gone.
    pub fn news(&mut self) -> Option<Answer> {
        let state = self.target.state()?;
        let is_another = self.watching.told == State::Gone && state != State::Gone;
        let is_asked_for =
            matches!(state, State::Running | State::Stopped(Why::Start | Why::Asked | Why::Stepped { .. }));
        if !is_another && (is_asked_for || state == self.watching.told) {
            return None;
        }
        Some(stopped(self, state))
    }

    /// Looks again where the machine may have changed. One that is gone is looked at as it was last.
    ///
    /// # Errors
    ///
    /// What the machine said where it does not let itself be looked at; what was last seen of it stays.
    pub fn refresh(&mut self) -> Result<(), CommandError> {
        match self.target.refresh() {
            Ok(()) | Err(LiveError::Gone) => {}
            Err(error) => return Err(error.into()),
        }
        // The next run of a selection may be of another guest.
        if self.target.is_live() && self.guest.bytes().is_some_and(|bytes| bytes != self.target.payload()) {
            self.guest = Guest::of(self.target.payload());
            (self.symbols, self.source, self.types) = Default::default();
        }
        self.current = self.current.min(self.vcpus().len().saturating_sub(1));
        Ok(())
    }

    /// The machine itself, where it can run on. What was seen of it before is taken to be old.
    pub fn live(&mut self) -> Option<&mut dyn Live> {
        self.target.live()
    }

    /// The machine itself, for a command that needs one.
    pub(crate) fn machine(&mut self) -> Result<&mut dyn Live, CommandError> {
        self.target.live().ok_or(CommandError::NotLive)
    }

    /// Waits until the machine stands still or is gone. One that does not within that time, or until somebody interrupts, is stopped.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<State, CommandError> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = until.map_or(SLICE, |until| until.saturating_duration_since(Instant::now()).min(SLICE));
            let is_over = self.is_interrupted() || left.is_zero();
            let live = self.machine()?;
            if is_over {
                live.stop()?;
                return Ok(live.state());
            }
            match live.wait(left) {
                State::Running => {}
                state => return Ok(state),
            }
        }
    }

    /// Takes back an interrupt that came too late for what was asked before.
    pub(crate) fn forget_interrupt(&self) {
        self.watching.interrupt.store(false, Ordering::Relaxed);
    }

    /// Whether somebody has interrupted; that is then taken back.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.watching.interrupt.swap(false, Ordering::Relaxed)
    }

    /// Keeps what is said of the machine now; gives what was said before.
    pub(crate) fn has_told(&mut self, state: State) -> State {
        std::mem::replace(&mut self.watching.told, state)
    }

    /// Whether the machine runs, where it can.
    pub(crate) fn state(&mut self) -> Option<State> {
        self.target.state()
    }

    /// Keeps what a view saw; gives what the view before it did.
    pub(crate) fn viewed(&mut self, frame: Frame) -> Option<Frame> {
        self.watching.viewed.replace(frame)
    }

    /// Has somebody say yes, or a word on the line.
    pub(crate) fn confirm(&mut self, question: &str, is_said: bool) -> Result<(), CommandError> {
        let Some(ask) = self.watching.ask.as_mut().filter(|_| !is_said) else {
            let unconfirmed = || CommandError::Unconfirmed { question: question.to_owned() };
            return is_said.then_some(()).ok_or_else(unconfirmed);
        };
        if ask(question) { Ok(()) } else { Err(CommandError::Declined) }
    }
}

#[cfg(test)]
mod test {
    use std::ops::ControlFlow;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::answer::Answer;
    use crate::command::ALL;
    use crate::follow::Follower;
    use crate::sample::live::Lively;

    /// Words that stand behind commands, and should not.
    const WORDS: &[&str] = &[
        "0",
        "1",
        "2",
        "7",
        "255",
        "256",
        "all",
        "vcpu1",
        "--yes",
        "--reads",
        "--background",
        "progress",
        "$rip",
        "$rsp-8",
        "$cr3",
        "$xyz",
        "0x4000e0",
        "phys:0x4000e0",
        "0xffffffffffffffff",
        "0x8000000000000000+8",
        "18446744073709551616",
        "-1",
        "",
        "_start",
        "kmalloc.rs:60",
        ":::1",
        "gate",
        "q",
        "b",
        "8",
        "mark",
        "record::CallSingle",
        "call_many/sent",
        "/dev/null",
    ];

    #[test]
    fn any_words_are_answered_or_refused_in_one_line() {
        let lively = Lively::new();
        let mut session = lively.session();
        session.set_directory("/nonexistent".as_ref());
        let interrupt = Arc::new(AtomicBool::new(false));
        session.set_interrupt(Arc::clone(&interrupt));
        // splitmix64
        let mut seed = 5_u64;
        let mut below = |end: usize| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ mixed >> 27) as usize % end
        };
        for _ in 0..2000 {
            let name = ALL[below(ALL.len())].name;
            if matches!(name, "quit" | "end") {
                continue;
            }
            let words: Vec<_> = (0..below(4)).map(|_| format!("'{}'", WORDS[below(WORDS.len())])).collect();
            let line = format!("{name} {}", words.join(" "));
            // Nothing else stops this machine.
            interrupt.store(true, Ordering::Relaxed);
            let mut told = 0;
            let mut tell = |_: &str, came: Result<Answer, String>| {
                told += 1;
                assert!(came.as_ref().err().is_none_or(|error| error.lines().count() == 1), "{line}: {came:?}");
                ControlFlow::Continue(())
            };
            Follower::follow(&mut session, &line, &mut tell).expect("it is here");
            assert!(told > 0, "{line}");
        }
    }
}
