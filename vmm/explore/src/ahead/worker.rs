//! A worker: through the states of the guest, where most is new first, for the passages between them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Ahead, Progress};
use crate::graph::Choice;
use crate::search::Search;

/// Bytes of memory that what one worker knows takes at most, about: then it goes.
const MOST_BYTES: usize = 256 << 20;

/// What a worker has before it.
#[derive(Debug, Default)]
struct Before {
    /// States behind passages that were new, and behind others.
    new: VecDeque<u32>,
    known: VecDeque<u32>,
    /// Choices whose passage somebody asks for just now.
    later: Vec<(u32, Choice)>,
}

impl Search<'_> {
    /// From now on passages are asked for together with others: whether their machines begin in the same way.
    pub fn share(&mut self, ahead: &Arc<Ahead>) -> bool {
        self.stage.share(ahead)
    }

    /// Its own machine alone is asked from now on: workers go.
    pub fn end_sharing(&mut self) {
        self.stage.end_sharing();
    }

    /// Passages that others have asked for in its place so far: how many depends on when they come to what.
    pub fn brought(&self) -> u64 {
        self.stage.brought
    }

    /// Asks for passages that nobody has asked for, as long as there are any that this worker comes to; with so many states in a row that tell
    /// nobody anything new, it waits for others.
    pub(super) fn ask_ahead(&mut self, ahead: &Ahead, most_barren: usize) {
        // What is sent early depends on what the search knows.
        self.foretold = None;
        let mut before = Before { new: VecDeque::from([0]), ..Before::default() };
        let (mut told, mut barren) = (0, 0);
        while !ahead.is_over() && self.bytes() <= MOST_BYTES {
            let now = ahead.told();
            barren = if now == told { barren + 1 } else { 0 };
            told = now;
            if barren > most_barren {
                self.wait(ahead, told);
            } else if let Some(number) = before.new.pop_front().or_else(|| before.known.pop_front()) {
                let state = self.graph.state(number);
                for choice in self.look_at(number, &state) {
                    self.try_choice(number, choice, &mut before);
                }
            } else if before.later.is_empty() {
                break;
            } else {
                for (number, choice) in std::mem::take(&mut before.later) {
                    self.try_choice(number, choice, &mut before);
                }
                if before.new.is_empty() && before.known.is_empty() && !before.later.is_empty() {
                    self.wait(ahead, told);
                }
            }
            if self.stage.has_new_places() {
                self.begin_anew();
                before = Before { new: VecDeque::from([0]), ..Before::default() };
            }
        }
        self.rest();
    }

    /// Until somebody is told something more than that.
    fn wait(&mut self, ahead: &Ahead, told: u64) {
        self.rest();
        ahead.wait_for_news(told);
    }

    /// Follows a choice, if nobody else asks for its passage just now.
    fn try_choice(&mut self, number: u32, choice: Choice, before: &mut Before) {
        let state = self.graph.state(number);
        let mut is_new = false;
        if choice.executes() {
            let (vcpu, from, input) = (choice.vcpu(), self.from(&state, choice), self.input(&state, choice));
            match self.stage.progress(vcpu, from, input) {
                Some(Progress::Asked) => return before.later.push((number, choice)),
                Some(Progress::Refused) => return,
                Some(Progress::New | Progress::Answered) => is_new = true,
                None => {}
            }
        }
        // Whether it is refused is for the search to say.
        let Ok(next) = self.follow(&state, choice) else { return };
        let states = self.graph.len();
        let to = self.graph.number(&next);
        if self.graph.len() > states {
            if is_new { &mut before.new } else { &mut before.known }.push_back(to);
        }
    }
}
