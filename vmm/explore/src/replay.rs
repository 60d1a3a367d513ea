//! A trace, followed once more: KVM is asked for every step, and what comes of it has to be what the trace says.

use std::fmt;

use stallbench_state::program::Program;

use crate::early::Foretold;
use crate::event::{Event, Hashes};
use crate::local::Parked;
use crate::reach::Path;
use crate::search::{ExploreError, Search, Way};
use crate::trace::{Step, Trace};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// All of it.
    All,
    /// All but hashes and addresses of instructions: the payload is another one, and places are those of their symbols.
    Symbols,
}

/// A trace that was followed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The way, as far as it is that of the trace.
    pub way: Way,
    /// What happened on it.
    pub events: Vec<Event>,
    /// Where it went another way.
    pub difference: Option<Difference>,
}

/// The first step at which a machine does something else than its trace says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step, from 1 on; 0 is the start line.
    pub step: usize,
    /// What differs.
    pub field: &'static str,
    /// As the trace has it.
    pub recorded: String,
    /// As it is now.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, field, recorded, now } = self;
        write!(f, "step {step}: {field}: the trace has {recorded}, now it is {now}")
    }
}

impl Search<'_> {
    /// Follows a trace from the start line, so many steps at most, up to the first difference; then goes that way once more, each step by
    /// itself: no answer of KVM is taken twice.
    ///
    /// # Errors
    ///
    /// What was started cannot be driven. A step that KVM cannot do is a difference.
    pub fn replay(&mut self, trace: &Trace, against: Against, most: usize) -> Result<Replayed, ExploreError> {
        let mut difference = self.start_differs(trace, against).or_else(|| self.deliver_as(trace, against));
        self.foretold = self.foretold.take().map(|_| Foretold::told(trace.early()));
        let first = self.graph.state(0);
        let mut path = Path { states: vec![0], ..Path::default() };
        let (mut state, mut events, mut hashes) = (first, Vec::new(), Hashes::default());
        for (step, recorded) in (1..).zip(trace.steps.iter().take(most)) {
            if difference.is_some() {
                break;
            }
            let came = self.replay_step(step, recorded, &state, &mut hashes)?;
            match came {
                Ok((next, event)) => {
                    difference = compare(step, recorded, &event, against);
                    path.choices.push(recorded.choice);
                    path.states.push(self.graph.number(&next));
                    (state, _) = (next, events.push(event));
                }
                Err(cannot) => difference = Some(cannot),
            }
        }
        self.stage.machine().rest();
        let way = Way::of(&self.graph, &path);
        self.name(&mut events, &way)?;
        Ok(Replayed { way, events, difference })
    }

    fn start_differs(&self, trace: &Trace, against: Against) -> Option<Difference> {
        let now = self.start_hash();
        let difference = || Difference {
            step: 0,
            field: "state at the start line",
            recorded: trace.start.to_string(),
            now: now.to_string(),
        };
        (against == Against::All && now != trace.start).then(difference)
    }

    /// Has interrupts come between two stops where they did: a place that there is not is a difference.
    fn deliver_as(&mut self, trace: &Trace, against: Against) -> Option<Difference> {
        self.stage.expect_sent(trace.of.sent());
        for (recorded, place) in trace.of.places() {
            let here = place.filter(|(vcpu, ..)| *vcpu < trace.of.vcpus).and_then(|(vcpu, name, address)| {
                let address = if against == Against::All { Some(address) } else { self.stage.address(name) };
                address.map(|address| (vcpu, address))
            });
            let Some((vcpu, address)) = here else {
                let (recorded, now) = (recorded.to_owned(), "no instruction of this guest".to_owned());
                return Some(Difference { step: 0, field: "place of delivery", recorded, now });
            };
            self.stage.deliver_at(vcpu, address);
        }
        None
    }

    /// One step, or why it cannot be done.
    fn replay_step(
        &mut self,
        step: usize,
        recorded: &Step,
        state: &crate::graph::State,
        hashes: &mut Hashes,
    ) -> Result<Result<(crate::graph::State, Event), Difference>, ExploreError> {
        let choices = self.choices(state);
        if !choices.contains(&recorded.choice) && !self.can_be_early(state, recorded.choice) {
            let can: Vec<_> = choices.iter().map(ToString::to_string).collect();
            let now = if can.is_empty() { "nothing that can be chosen".to_owned() } else { can.join(", ") };
            return Ok(Err(Difference { step, field: "choice", recorded: recorded.choice.to_string(), now }));
        }
        match self.step(state, recorded.choice, hashes) {
            Ok(done) => Ok(Ok(done)),
            Err(ExploreError::Refused(refusal)) => {
                let recorded = format!("{}; {}", recorded.choice, recorded.does);
                Ok(Err(Difference { step, field: "what kvm does", recorded, now: refusal.to_string() }))
            }
            Err(error) => Err(error),
        }
    }

    /// How many choices before its end a free machine can go on from a way: none, but a vCPU that has died makes its fault anew, and
    /// what was sent before its time it would send once more.
    pub fn before_fault(&self, way: &Way) -> usize {
        let can_go_on = |number: &Option<u32>| {
            let state = number.map(|number| self.graph.state(number));
            state.is_some_and(|state| !self.is_dead(&state) && !self.buffers.anyone_owes(&state))
        };
        way.states.iter().rev().position(can_go_on).unwrap_or(0)
    }

    /// The vCPU that has died at the end of a way, and what it or KVM said of that.
    pub fn dead(&self, way: &Way) -> Option<(usize, &str)> {
        let last = way.states.last().copied().flatten().map(|state| self.graph.state(state))?;
        let said = |(vcpu, local): (usize, &u32)| match &self.stage.local(vcpu, *local).parked {
            Parked::Dead(said) => Some((vcpu, &**said)),
            _ => None,
        };
        last.locals.iter().enumerate().find_map(said)
    }

    /// Whether the machine at the end of a way is in the state in which it was after so many steps.
    pub fn is_back(&self, way: &Way, steps: usize) -> bool {
        way.states.len() > steps + 1 && way.states.get(steps) == way.states.last()
    }

    /// Where each vCPU stands after so many steps of a way.
    pub fn standing(&self, way: &Way, steps: usize) -> Vec<String> {
        let number = way.states.get(steps).or(way.states.last());
        let state = self.graph.state(number.copied().flatten().unwrap_or(0));
        state.locals.iter().enumerate().map(|(vcpu, local)| self.stage.place(vcpu, *local)).collect()
    }
}

/// The first field of a step that is not as it was.
fn compare(step: usize, recorded: &Step, event: &Event, against: Against) -> Option<Difference> {
    let now = Step::from(event);
    let place =
        |place: &str| if against == Against::All { place.to_owned() } else { without_address(place).to_owned() };
    let of = |step: &Step| {
        let [from, to] = step.places.each_ref().map(|at| place(at));
        let hash = if against == Against::All { step.hash.to_string() } else { String::new() };
        [
            ("from", from),
            ("delivered", step.takes.clone()),
            ("accesses", without_names(&step.does)),
            ("to", to),
            ("state", hash),
        ]
    };
    let pairs = of(recorded).into_iter().zip(of(&now));
    let mut differing = pairs.filter(|((_, recorded), (_, now))| recorded != now);
    differing.next().map(|((field, recorded), (_, now))| Difference { step, field, recorded, now })
}

/// `function+0x12`, of a place with its address behind it.
fn without_address(place: &str) -> &str {
    place.rsplit_once(" (0x").map_or(place, |(place, _)| place)
}

/// Accesses without what the case calls the words: that is for people.
fn without_names(does: &str) -> String {
    let nameless = |deed: &str| {
        let words: Vec<_> = deed.split(' ').collect();
        let is_access = matches!(words.first(), Some(&"read" | &"write" | &"hold" | &"land"));
        words[..if is_access { words.len().min(4) } else { words.len() }].join(" ")
    };
    does.split("; ").map(nameless).collect::<Vec<_>>().join("; ")
}

/// A function that a trace names and a program does not have.
pub fn missing_symbol(trace: &Trace, program: &Program) -> Option<String> {
    let symbols = program.symbols();
    let known: std::collections::HashSet<_> = symbols.iter().map(|symbol| symbol.name.as_str()).collect();
    let steps = trace.steps.iter().flat_map(|step| &step.places).map(String::as_str);
    let mut places = steps.chain(trace.of.places().filter_map(|(_, place)| place.map(|(_, name, _)| name)));
    let function = |place: &str| without_address(place).rsplit_once('+').map(|(function, _)| function.to_owned());
    places.find_map(|place| function(place).filter(|function| !known.contains(function.as_str())))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_and_addresses_are_no_difference_of_their_own() {
        assert_eq!(without_address("<A as B>::f+0x1, halted (0x10001)"), "<A as B>::f+0x1, halted");
        assert_eq!(without_address("off"), "off");
        let does = "read 0x400010 4 =0x1 gate; send vector 0xfb to vcpu0 vcpu1; write 0x400010 4 =0x2";
        let nameless = "read 0x400010 4 =0x1; send vector 0xfb to vcpu0 vcpu1; write 0x400010 4 =0x2";
        assert_eq!(without_names(does), nameless);
    }

    #[test]
    fn difference_says_step_field_and_both_values() {
        let difference =
            Difference { step: 3, field: "choice", recorded: "interrupt 1".to_owned(), now: "run 0".to_owned() };
        assert_eq!(difference.to_string(), "step 3: choice: the trace has interrupt 1, now it is run 0");
    }
}
