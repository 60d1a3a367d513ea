//! Progress on standard error, where that is a terminal and there is more than a moment to wait.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stallbench_runner::explore::Pace;
use stallbench_runner::result::Summary;

use crate::output;

/// Up to so many runs there is nothing to wait for.
const FEW: usize = 12;

/// How often a search that takes long is heard of where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A progress bar, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

/// That of searches: where there is no terminal, a line now and then.
#[derive(Clone, Debug)]
pub(crate) struct OfSearches {
    progress: Progress,
    last: Arc<Mutex<Instant>>,
}

impl Progress {
    pub(super) fn new(runs: usize) -> Self {
        if runs <= FEW || !io::IsTerminal::is_terminal(&io::stderr()) {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(Some(runs as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} {elapsed}") {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    pub(super) fn advance(&self, so_far: &Summary) {
        let Some(bar) = &self.0 else { return };
        bar.set_position(so_far.done as u64);
        if so_far.unexpected > 0 {
            bar.set_message(format!("{} not as expected", so_far.unexpected));
        }
    }

    /// Does something that may print, with the bar out of the way.
    pub(crate) fn suspend(&self, action: impl FnOnce()) {
        match &self.0 {
            Some(bar) => bar.suspend(action),
            None => action(),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl OfSearches {
    pub(crate) fn new() -> Self {
        let bar = io::IsTerminal::is_terminal(&io::stderr()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar
        });
        Self { progress: Progress(bar), last: Arc::new(Mutex::new(Instant::now())) }
    }

    /// How far a search is.
    pub(crate) fn states(&self, name: &str, pace: &Pace) {
        if let Some(bar) = &self.progress.0 {
            bar.set_message(line(name, pace));
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            output::diagnostic(&line(name, pace));
        }
    }

    /// Does something that may print, with the bar out of the way.
    pub(crate) fn suspend(&self, action: impl FnOnce()) {
        self.progress.suspend(action);
    }

    pub(crate) fn finish(&self) {
        self.progress.finish();
    }
}

fn line(name: &str, Pace { counts, rate, left, walks }: &Pace) -> String {
    let bound = counts.preemptions.map_or_else(String::new, |most| format!(", complete up to preemption {most}"));
    let left = left.map_or_else(String::new, |left| format!(", {} left", HumanDuration(left)));
    if let Some(walks) = walks {
        return format!("{name}: {walks} walks, {rate:.0} a second{left}");
    }
    format!("{name}: {} states, {} to go on from, {rate:.0} a second{bound}{left}", counts.states, counts.frontier)
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_runner::explore::Counts;

    #[test]
    fn line_has_all_that_is_known() {
        let counts = Counts { states: 5000, frontier: 70, preemptions: Some(1), ..Counts::default() };
        let pace = |left| Pace { counts, rate: 1000.4, left, walks: None };
        assert_eq!(
            line("a", &pace(None)),
            "a: 5000 states, 70 to go on from, 1000 a second, complete up to preemption 1"
        );
        assert!(line("a", &pace(Some(Duration::from_secs(20)))).ends_with(", 20 seconds left"));
    }
}
