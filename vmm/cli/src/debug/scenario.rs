//! One run of this process, looked into from before its first instruction on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use stallbench_core::HostKvm;
use stallbench_debug::follow::{Follower, Lost, Tell};
use stallbench_debug::gdb::Listener;
use stallbench_debug::live::LiveTarget;
use stallbench_debug::{Ask, Session};
use stallbench_runner::control::{Attached, Control};
use stallbench_runner::dump::{Keep, Requests};
use stallbench_runner::execute::ExecuteError;
use stallbench_runner::scenario::Run;

use crate::exit::{Exit, Failure};
use crate::interrupt::{self, OfCommands};
use crate::run::{Common, MACHINE, Running, What, dumps_on_request, on_request};
use crate::{gdb, output};

/// Names of runs that a message tells.
const NAMES: usize = 4;

/// Has `talk` follow commands on the one run that is asked for. The run is over when `talk` is.
pub(super) fn look_into(what: &What, talk: impl FnOnce(OneRun) -> Result<Exit, Failure>) -> Result<Exit, Failure> {
    let (subject, selection) = what.select()?;
    let run = only(&selection.cells)?;
    let host = HostKvm::open()?;
    selection.check_host(host.max_vcpus())?;
    let interrupts = OfCommands::watch()?;
    let control = Control::new();
    let attached = control.attach(true).map_err(|taken| Failure::usage(taken.to_string()))?;
    let (requests, dumps) = (Requests::default(), Arc::new(dumps_on_request(what, &host, subject.packed())));
    interrupt::ask_on_quit(&requests)?;
    let plan = Common {
        budget: what.budget(),
        keep: Keep { on_request: Some(on_request(&requests, &dumps, run)), ..Keep::default() },
        control: Some(control.of(run, dumps.about(run))),
    };
    let is_over = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let running = scope.spawn(|| execute(&subject, &host, run, plan, &control, &is_over));
        let one = OneRun::enter(&control, attached, interrupts, &is_over);
        let talked = one.map(|one| one.map(talk));
        is_over.store(true, Ordering::Relaxed);
        // A thread that panicked has said so.
        let ran = running.join().unwrap_or(Ok(()));
        dumps.failures().iter().for_each(|error| output::diagnostic(&format!("error: {error}")));
        match (talked, ran) {
            (Ok(Some(exit)), Ok(())) => exit,
            (_, Err(error)) => Err(Failure::host(&error)),
            (Err(failure), _) => Err(failure),
            (Ok(None), Ok(())) => Err(Failure::usage("the run was over before anybody could look into it")),
        }
    })
}

/// The run, where one is asked for.
fn only(cells: &[Run]) -> Result<&Run, Failure> {
    match cells {
        [run] => Ok(run),
        [] => Err(Failure::usage("nothing is selected: one run is looked into")),
        many => {
            let names: Vec<_> = many.iter().take(NAMES).map(|run| format!("'{}'", run.name)).collect();
            let more = if many.len() > NAMES { ", …" } else { "" };
            let (count, names) = (many.len(), names.join(", "));
            Err(Failure::usage(format!("{count} runs are selected, and one can be looked into: {names}{more}")))
        }
    }
}

fn execute(
    subject: &Running,
    host: &HostKvm,
    run: &Run,
    plan: Common,
    control: &Control,
    is_over: &AtomicBool,
) -> Result<(), ExecuteError> {
    let ended = subject.execute(host, run, plan, is_over);
    control.close();
    ended.map(drop)
}

/// Who follows commands on the run.
#[derive(Debug)]
pub(super) struct OneRun {
    session: Session,
    interrupts: OfCommands,
    is_over: Arc<AtomicBool>,
}

impl OneRun {
    /// Comes in, once the machine is there; `None` where there is none.
    fn enter(
        control: &Control,
        attached: Attached,
        interrupts: OfCommands,
        is_over: &Arc<AtomicBool>,
    ) -> Result<Option<Self>, Failure> {
        if !control.wait_for_machine(MACHINE) {
            return Ok(None);
        }
        let target = LiveTarget::new(Box::new(attached)).map_err(|error| Failure::usage(error.to_string()))?;
        let mut session = Session::new(Box::new(target));
        session.set_interrupt(Arc::clone(&interrupts.flag));
        Ok(Some(Self { session, interrupts, is_over: Arc::clone(is_over) }))
    }

    /// Lets gdb at it, in the place of commands.
    pub(super) fn with_gdb(mut self, listener: &Listener) -> Result<Exit, Failure> {
        let Self { session, interrupts, .. } = &mut self;
        let interrupted = Arc::clone(&interrupts.flag);
        Ok(gdb::exit(interrupts.during(|| gdb::serve(listener, session, &interrupted))))
    }
}

impl Drop for OneRun {
    /// Nobody looks any more: the run is over, before its machine goes on.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Follower for OneRun {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        let Self { session, interrupts, .. } = self;
        interrupts.during(|| session.follow(line, tell))
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupts.flag)
    }

    fn complete(&self, line: &str) -> (usize, Vec<String>) {
        self.session.complete(line)
    }

    fn current(&self) -> usize {
        self.session.current()
    }

    fn is_over(&self) -> bool {
        self.session.is_over()
    }

    fn set_ask(&mut self, ask: Ask) {
        self.session.set_ask(ask);
    }
}
