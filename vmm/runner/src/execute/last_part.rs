//! The last part of a budget: who gets no CPU time in it is starved.

use std::time::Duration;

/// Where the last part begins, of the budget.
const BEGINS: f64 = 0.75;
/// What must be left of it for anything to be said: a machine that stood still for a long look at it had no CPU time either.
const LEAST: f64 = 0.125;

/// The last part of a budget.
#[derive(Clone, Debug)]
pub(super) struct LastPart {
    budget: Duration,
    /// When it was first noticed to have begun, and the CPU time of each vCPU then.
    began: Option<(Duration, Vec<Duration>)>,
}

impl LastPart {
    /// Of this budget; it has not begun.
    pub(super) fn of(budget: Duration) -> Self {
        Self { budget, began: None }
    }

    /// To be called at every poll.
    pub(super) fn note(&mut self, now: Duration, ran: &[Duration]) {
        if self.began.is_none() && now >= self.budget.mul_f64(BEGINS) {
            self.began = Some((now, ran.to_vec()));
        }
    }

    /// The CPU times at its beginning, where enough of it has passed.
    pub(super) fn ran_before(&self, now: Duration) -> Option<&[Duration]> {
        let (began, ran) = self.began.as_ref()?;
        (now.saturating_sub(*began) >= self.budget.mul_f64(LEAST)).then_some(ran)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn last_part_says_something_once_half_of_it_was_watched() {
        let at = Duration::from_millis;
        let mut part = LastPart::of(at(1000));
        part.note(at(700), &[at(1)]);
        part.note(at(800), &[at(2)]);
        part.note(at(900), &[at(3)]);
        assert_eq!(part.ran_before(at(900)), None);
        assert_eq!(part.ran_before(at(930)), Some(&[at(2)][..]));
    }
}
