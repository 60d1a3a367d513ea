//! Dumps of machines that run, when somebody asks for them: each monitor looks at every poll whether that is so.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stallbench_core::Paused;

use super::Moment;

/// How often all running machines have been asked for. Any thread may ask.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<AtomicU64>);

impl Requests {
    /// Asks for a dump of each machine that runs.
    pub fn ask(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who asks for a run's machine, and what becomes of it.
#[derive(Clone)]
pub struct OnRequest {
    /// Who asks.
    pub requests: Requests,
    /// Takes the machine as it stood, on the thread that watches it; the machine runs on meanwhile.
    pub take: Arc<dyn Fn(&Moment) + Send + Sync>,
}

impl fmt::Debug for OnRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnRequest").field("requests", &self.requests).finish_non_exhaustive()
    }
}

/// The requests for one machine, of which it has seen so many.
#[derive(Debug)]
pub(crate) struct Asked<'p> {
    on_request: Option<&'p OnRequest>,
    seen: u64,
}

impl<'p> Asked<'p> {
    /// What is asked for from now on.
    pub(crate) fn of(on_request: Option<&'p OnRequest>) -> Self {
        Self { on_request, seen: on_request.map_or(0, |on_request| on_request.requests.count()) }
    }

    /// Whether somebody has asked since this last said so; several requests are one.
    pub(crate) fn is_due(&mut self) -> bool {
        let count = self.on_request.map_or(0, |on_request| on_request.requests.count());
        std::mem::replace(&mut self.seen, count) != count
    }

    /// Has a machine that was stopped for it stand still for as long as it takes to copy it. One that cannot be stopped is not asked
    /// again.
    pub(crate) fn serve(&self, paused: Option<Paused<'_>>) {
        let (Some(on_request), Some(paused)) = (self.on_request, paused) else { return };
        let moment = Moment::of(&paused);
        paused.resume();
        (on_request.take)(&moment);
    }

    /// The same of one that stands still for somebody else, and goes on doing so.
    pub(crate) fn serve_still(&self, paused: &Paused<'_>) {
        if let Some(on_request) = self.on_request {
            (on_request.take)(&Moment::of(paused));
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn request_is_seen_once_by_each_who_runs_then() {
        let requests = Requests::default();
        requests.ask();
        let on_request = OnRequest { requests: requests.clone(), take: Arc::new(|_| {}) };
        let (mut one, mut other) = (Asked::of(Some(&on_request)), Asked::of(Some(&on_request)));
        assert!(!one.is_due(), "asked before it ran");
        requests.ask();
        requests.ask();
        assert!(one.is_due() && !one.is_due());
        assert!(other.is_due() && !Asked::of(None).is_due());
    }
}
