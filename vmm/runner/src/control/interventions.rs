//! What was done to a machine from outside, for the report of its run.

/// How many are told; the rest is counted.
const MOST: usize = 32;

/// What was done, in the order in which it was.
#[derive(Debug, Default)]
pub(super) struct Interventions {
    told: Vec<String>,
    count: usize,
}

impl Interventions {
    /// Keeps one, a fragment.
    pub(super) fn note(&mut self, what: String) {
        self.count += 1;
        if self.told.len() < MOST {
            self.told.push(what);
        }
    }

    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// A fragment each, as far as they were kept.
    pub(super) fn told(&self) -> Vec<String> {
        let mut told = self.told.clone();
        if self.count > told.len() {
            told.push(format!("{} more by the debugger", self.count - told.len()));
        }
        told
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn endless_interventions_are_counted_and_not_kept() {
        let mut all = Interventions::default();
        (0..1000).for_each(|n| all.note(format!("nmi {n}")));
        let told = all.told();
        assert_eq!((all.count(), told.len(), told[0].as_str()), (1000, MOST + 1, "nmi 0"));
        assert_eq!(told[MOST], "968 more by the debugger");
    }
}
