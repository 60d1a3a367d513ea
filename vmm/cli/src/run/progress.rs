//! Progress on standard error, where that is a terminal and there is more than a moment to wait.

use std::io;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use stallbench_runner::result::Summary;

/// Up to so many runs there is nothing to wait for.
const FEW: usize = 12;

/// A progress bar, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Option<ProgressBar>);

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

    /// Of a search: how far it is.
    pub(crate) fn exploring() -> Self {
        if !io::IsTerminal::is_terminal(&io::stderr()) {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    /// A search knows so many states, and has not gone on from so many of them.
    pub(crate) fn states(&self, name: &str, states: usize, frontier: usize) {
        if let Some(bar) = &self.0 {
            let rate = states as f64 / bar.elapsed().as_secs_f64().max(0.001);
            bar.set_message(format!("{name}: {states} states, {frontier} to go on from, {rate:.0} a second"));
        }
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
