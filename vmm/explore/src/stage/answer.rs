//! What KVM says to a passage, and what is made of it.
//!
//! An answer is content: it has no number of whoever asked, and depends on nothing that was asked before. So it is the same for all who ask,
//! and one that [others have asked for](crate::ahead) is as good as one of the own machine. It gets its numbers when it is kept.

use std::sync::Arc;

use super::{Stage, Vcpu};
use crate::ahead::{Ahead, Claim, Key, Origin, Progress};
use crate::local::{Local, Parked};
use crate::passage::{Effect, Input, Passage, Refusal};
use crate::private::Looked;
use crate::safety::Seen;
use crate::settings::Irq;

/// Where a vCPU came to, and what it did on its way that others can see.
#[derive(Debug)]
pub(super) struct Came {
    pub(super) here: Local,
    pub(super) effects: Vec<Effect>,
    /// KVM's vCPU stands there.
    pub(super) stands: bool,
    /// What safety is judged by, if it is all of a passage that was known.
    seen: Option<Option<Arc<Seen>>>,
    /// What its instructions access that no other passage was looked at for, where it was looked at already.
    looked: Option<Looked>,
}

/// All that KVM says to a passage.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The state in which it ends.
    pub(crate) end: Arc<Local>,
    effects: Arc<[Effect]>,
    seen: Option<Arc<Seen>>,
    /// What each of its instructions accesses.
    pub(super) looked: Looked,
    /// Where its last instruction begins, if it is a store in front of which an NMI can come.
    pub(super) begins: Option<Arc<Local>>,
}

impl Came {
    pub(super) fn there(here: Local, effects: Vec<Effect>) -> Self {
        Self { here, effects, stands: true, seen: None, looked: None }
    }

    /// KVM's vCPU has to be put there.
    pub(super) fn elsewhere(here: Local, effects: Vec<Effect>) -> Self {
        Self { here, effects, stands: false, seen: None, looked: None }
    }

    /// To a place on its way.
    pub(super) fn part((here, effects): (Local, Vec<Effect>), looked: Looked) -> Self {
        Self { looked: Some(looked), ..Self::elsewhere(here, effects) }
    }

    /// All of a passage that is known, which ends there with those handlers.
    pub(super) fn whole(here: Local, whole: &Passage, handlers: Looked) -> Self {
        Self { seen: Some(whole.seen.clone()), ..Self::part((here, whole.effects.to_vec()), handlers) }
    }

    /// Whether it is the same passage.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.here.identity() == other.here.identity() && self.effects == other.effects
    }
}

impl Answer {
    /// Bytes of memory that it takes beside its end, about.
    pub(crate) fn bytes(&self) -> usize {
        let begins = self.begins.as_ref().map_or(0, |begins| begins.bytes());
        size_of::<Self>() + self.effects.len() * size_of::<Effect>() + self.looked.bytes() + begins
    }
}

impl Stage<'_> {
    /// What is said to it: what others were told, or the own machine says.
    pub(super) fn answer(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Arc<Answer>, Refusal> {
        let key = self.key(vcpu, from, input);
        let claim = self.ahead.as_ref().zip(key).map(|(ahead, key)| Ahead::claim(ahead, key));
        match claim {
            Some(Claim::Told(answer)) => {
                self.brought += 1;
                Ok(answer)
            }
            Some(Claim::Ours(asking)) => {
                let answer = Arc::new(self.ask_kvm(vcpu, from, input)?);
                asking.tell(&answer);
                Ok(answer)
            }
            Some(Claim::Refused) | None => self.ask_kvm(vcpu, from, input).map(Arc::new),
        }
    }

    /// All that an answer depends on. None where there is nothing to ask KVM for.
    fn key(&self, vcpu: usize, from: u32, input: Input) -> Option<Key> {
        let Vcpu { locals, private, places, .. } = &self.vcpus[vcpu];
        let start = locals.get(from);
        if start.parked == Parked::Halting && input.delivered().is_none() {
            return None;
        }
        let mut places: Box<[u64]> = match (input, self.irq) {
            (Input::Creep(..) | Input::Enter(..), Irq::Visible) => places.iter().copied().collect(),
            _ => Box::default(),
        };
        places.sort_unstable();
        Some(Key { vcpu, input, start: Arc::clone(start), frames: private.frames(from).into(), places })
    }

    /// How far others are with a passage; none where it is known here, or nobody else can know it.
    pub(crate) fn progress(&self, vcpu: usize, from: u32, input: Input) -> Option<Progress> {
        if self.known(vcpu, from, input).is_some() {
            return None;
        }
        self.ahead.as_ref().zip(self.key(vcpu, from, input)).map(|(ahead, key)| ahead.progress(&key))
    }

    /// The own machine alone is asked from now on, and whoever asked for others has nothing more to do.
    pub(crate) fn end_sharing(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.end();
        }
    }

    /// From now on passages are asked for together with others: whether they say the same to all.
    pub(crate) fn share(&mut self, ahead: &Arc<Ahead>) -> bool {
        let bases = self.vcpus.iter().map(|vcpu| vcpu.base.clone()).collect();
        let (ghost, finds_drains) = (self.ghost.clone(), self.finds_drains);
        let begins_as_others =
            ahead.is_origin(Origin { bases, ghost, finds_drains, passages: self.passages, irq: self.irq });
        self.ahead = begins_as_others.then(|| Arc::clone(ahead));
        begins_as_others
    }

    /// Has the own machine say it: by nothing but the state as it is kept, wherever KVM's vCPU stands.
    pub(super) fn ask_kvm(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Answer, Refusal> {
        self.vcpus[vcpu].at = None;
        self.look_away(vcpu);
        let came = self.come(vcpu, from, input)?;
        let seen = match came.seen {
            Some(seen) => seen,
            None => self.seen(vcpu)?,
        };
        let (looked, begins) = match came.looked {
            Some(looked) => (looked, None),
            None if input.restarts() => Default::default(),
            None => self.watch(vcpu, from, input, &came.here)?,
        };
        self.vcpus[vcpu].at = None;
        Ok(Answer {
            end: Arc::new(came.here),
            effects: came.effects.into(),
            seen,
            looked,
            begins: begins.map(Arc::new),
        })
    }

    /// Keeps what was said.
    pub(super) fn keep(&mut self, vcpu: usize, from: u32, input: Input, answer: &Answer) -> Result<Passage, Refusal> {
        let known = self.locals_of(vcpu);
        let to = self.number(vcpu, Arc::clone(&answer.end));
        let is_new = to as usize == known;
        let passage = Passage { to, effects: Arc::clone(&answer.effects), seen: answer.seen.clone() };
        if passage.seen.is_some() {
            self.vcpus[vcpu].shows.insert(from);
        }
        if input.whole().is_none() {
            let of = &mut self.vcpus[vcpu];
            let behind = of.private.open(&answer.looked);
            if !behind.is_empty() {
                of.bytes_behind += size_of_val(&*behind);
                of.behind.insert((from, input), behind);
            }
        }
        let places = self.vcpus[vcpu].places.len();
        self.meet(vcpu, answer, to, is_new)?;
        if input.whole().is_some() && self.vcpus[vcpu].places.len() > places {
            // It was asked with fewer places, and is asked for once more.
            self.asked -= 1;
            return Ok(passage);
        }
        self.vcpus[vcpu].passages.insert((from, input), passage.clone());
        self.log.push((vcpu, from, input, passage.clone()));
        Ok(passage)
    }
}
