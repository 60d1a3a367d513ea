//! A machine stopped for a look: what was captured, owned, so that it outlives the stop.

use std::time::Duration;

use stallbench_core::{Capture, Machine, Paused};
use stallbench_stall::set::VcpuSet;
use stallbench_stall::{Analysis, Declared, View};
use stallbench_state::machine::MachineState;
use stallbench_state::program::Program;
use stallbench_state::published::Published;

use crate::oracle::cache_off;
use crate::outcome::{Breach, BreachKind};

/// What all vCPUs were and published at one stop.
pub(crate) struct Captured {
    pub(crate) machine: MachineState,
    pub(super) published: Published,
    /// The vCPUs that the host kept out of the guest, as declared.
    pub(super) kept_out: VcpuSet,
    /// Those from which it took an INIT away, as declared.
    pub(super) init_lost: VcpuSet,
}

impl Captured {
    /// Captures a machine that is stopped.
    pub(crate) fn of(paused: &Paused<'_>, machine: &Machine, what: Capture, kept_out: VcpuSet) -> Self {
        let state = paused.capture(what);
        let published = Published::read(machine.memory(), state.vcpus.len());
        let init_lost = (0..state.vcpus.len()).filter(|&vcpu| machine.init_lost(vcpu)).collect();
        Self { machine: state, published, kept_out, init_lost }
    }

    /// The vCPU whose caches are off while another is elsewhere, if there is one, and whether it is at a wait site.
    pub(super) fn cache_off(&self, machine: &Machine, program: &Program) -> Option<(Breach, bool)> {
        let found = cache_off::find(&self.machine, &self.published)?;
        let analysis = self.analysis(machine, program);
        let site = analysis.site(found.vcpu);
        let breach = Breach { kind: BreachKind::CacheOff, vcpu: found.vcpu, site, reason: found.reason() };
        Some((breach, analysis.wait(found.vcpu).is_some()))
    }

    /// Looks at what was captured; the words that waits look at are read now.
    pub(crate) fn analysis<'a>(&'a self, machine: &'a Machine, program: &'a Program) -> Analysis<'a> {
        Analysis::of(View {
            code: program,
            machine: &self.machine,
            memory: machine.memory(),
            published: &self.published,
            declared: Declared { kept_out: self.kept_out, init_lost: self.init_lost },
        })
    }
}

/// How long a stop may take. Long: a vCPU thread that gets no CPU cannot stop, and what gives up here is a busy host.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(2);
