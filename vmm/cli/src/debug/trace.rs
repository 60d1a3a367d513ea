//! The machine of a trace, at any of its steps.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use stallbench_core::HostKvm;
use stallbench_debug::steps::Steps;
use stallbench_debug::{Session, Target};
use stallbench_explore::{Event, Step};
use stallbench_runner::dump::Moment;
use stallbench_runner::replay::Replay;
use stallbench_state::dump::{About, Dump};
use stallbench_state::machine::MachineState;
use stallbench_state::memory::Memory;

use crate::exit::Failure;
use crate::replay::once;
use crate::trace::Traced;

/// A trace that was followed, and its machine as it stood at one of its steps.
struct Stepping {
    replay: Replay<'static>,
    at: usize,
    here: Dump,
}

/// Follows a trace, so many steps at most, and looks at its machine as it stands then.
pub(crate) fn stepping(traced: Traced, file: &Path, most: usize) -> Result<Session, Failure> {
    let host = HostKvm::open()?;
    // What looks at it lives as long as the process does.
    let traced: &'static Traced = Box::leak(Box::new(traced));
    let mut replay = once(&host, traced, file, usize::MAX)?;
    let at = most.min(replay.events().len());
    let moment = replay.moment(at).map_err(|error| crate::trace::failure(&error.into(), file))?;
    let about = About {
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        run: traced.run.name.to_string(),
        command: format!("stallbench replay '{}' --stop-at {at}", file.display()),
        host: serde_json::to_value(host.fingerprint()).unwrap_or_default(),
        result: None,
    };
    let payload = traced.program()?.bytes().to_owned();
    let here = Dump { about, machine: moment.machine, memory: moment.memory, payload };
    Ok(Session::new(Box::new(Stepping { replay, at, here })))
}

impl fmt::Debug for Stepping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepping").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Target for Stepping {
    fn about(&self) -> &About {
        self.here.about()
    }

    fn machine(&self) -> &MachineState {
        self.here.machine()
    }

    fn memory(&self) -> &dyn Memory {
        Target::memory(&self.here)
    }

    fn filled(&self) -> Vec<Range<u64>> {
        self.here.filled()
    }

    fn payload(&self) -> &[u8] {
        self.here.payload()
    }

    fn is_live(&self) -> bool {
        false
    }

    fn dump(&self) -> Option<&Dump> {
        Some(&self.here)
    }

    fn steps(&mut self) -> Option<&mut dyn Steps> {
        Some(self)
    }
}

impl Stepping {
    fn event(&self, step: usize) -> Option<&Event> {
        self.replay.events().get(step.checked_sub(1)?)
    }
}

impl Steps for Stepping {
    fn at(&self) -> usize {
        self.at
    }

    fn last(&self) -> usize {
        self.replay.events().len()
    }

    fn go(&mut self, step: usize) -> Result<(), String> {
        let Moment { machine, memory } = self.replay.moment(step).map_err(|error| error.to_string())?;
        (self.here.machine, self.here.memory, self.at) = (machine, memory, step);
        let before = self.here.about.command.rsplit_once(' ').map(|(command, _)| command.to_owned());
        self.here.about.command = format!("{} {step}", before.unwrap_or_default());
        Ok(())
    }

    fn told(&self, step: usize) -> String {
        let Some(event) = self.event(step) else { return String::new() };
        let Step { choice, takes, does, places: [from, to], .. } = Step::from(event);
        let space = if takes.is_empty() { "" } else { " " };
        format!("{choice}{space}{takes}: {does}\n  from {from}\n  to   {to}")
    }

    fn data(&self, step: usize) -> Value {
        let Some(event) = self.event(step) else { return json!({}) };
        let recorded = Step::from(event);
        json!({
            "choice": recorded.choice.to_string(),
            "vcpu": event.choice.vcpu(),
            "takes": recorded.takes,
            "does": event.does.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "from": recorded.places[0],
            "to": recorded.places[1],
            "state": recorded.hash.to_string(),
        })
    }

    fn vcpu(&self, step: usize) -> Option<usize> {
        self.event(step).map(|event| event.choice.vcpu())
    }
}
