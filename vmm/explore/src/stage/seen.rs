//! What of a passage safety is judged by: looked at whenever the vCPU stops on its way, and in its event ring behind it.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::sync::Arc;

use stallbench_abi::event::{Event, EventKind};
use stallbench_abi::image::SiteKind;
use stallbench_abi::layout::{private, private_area as area};
use stallbench_abi::vcpu::VcpuPage;
use stallbench_state::memory::Memory;
use stallbench_state::published::events;

use super::{Stage, Vcpu, state};
use crate::passage::{Input, Refusal};
use crate::safety::{CACHE_DISABLE, CallEvent, Seen};

impl Stage<'_> {
    /// A passage begins: nothing of it was seen.
    pub(super) fn look_away(&mut self, vcpu: usize) {
        self.caches_off = None;
        self.reset_ghost(vcpu, 0);
    }

    /// Looks at a vCPU that stops. Whoever programs MTRRs stops at each access to one.
    pub(super) fn look(&mut self, vcpu: usize) -> Result<(), Refusal> {
        let here = state(&self.machine, vcpu)?;
        let set_up = private(vcpu) + area::PAGE_PUBLISHED + offset_of!(VcpuPage, set_up) as u64;
        if here.cr0 & CACHE_DISABLE != 0 && self.machine.memory().read_u32(set_up) == Some(0) {
            self.caches_off.get_or_insert(here.general.rip);
        }
        Ok(())
    }

    /// What was seen, where there is something.
    pub(super) fn seen(&self, vcpu: usize) -> Result<Option<Arc<Seen>>, Refusal> {
        let ring = events(self.machine.memory(), vcpu);
        if ring.lost > 0 {
            return Err(
                self.unknown(vcpu, "records more events than its ring holds, without an access to what it shares")
            );
        }
        let is_completion = |site| self.code.site_kind(site) == Some(SiteKind::COMPLETION);
        let call_event = |event: &Event| match event.kind {
            EventKind::CALL if event.arg & 1 == 0 => Some(CallEvent::Begins(event.a)),
            EventKind::CALL_RETURN => Some(CallEvent::Returns(event.a)),
            EventKind::WAIT if event.b != 0 && is_completion(event.a) => Some(CallEvent::Waits(event.b)),
            _ => None,
        };
        let seen = Seen {
            caches_off: self.caches_off,
            uses_the_dead: ring.events.iter().any(|event| event.kind == EventKind::LIFE_BREACH),
            calls: ring.events.iter().filter_map(call_event).collect(),
        };
        Ok((seen != Seen::default()).then(|| Arc::new(seen)))
    }

    /// Whether something can be seen on a passage that leads from a state.
    pub(crate) fn shows(&self, vcpu: usize, from: u32) -> bool {
        self.vcpus[vcpu].shows.contains(&from)
    }

    /// What was seen on a passage that is known.
    pub(crate) fn seen_on(&self, vcpu: usize, from: u32, input: Input) -> Option<&Seen> {
        self.known(vcpu, from, input)?.seen.as_deref()
    }

    /// Calls that begin with wait=0 on some passage and of which some passage waits for their own callback: vCPU and number.
    pub(crate) fn promises(&self) -> Vec<(usize, u64)> {
        let of = |vcpu: &Vcpu, what: fn(&CallEvent) -> Option<u64>| {
            let seen = vcpu.passages.values().filter_map(|passage| passage.seen.as_ref());
            seen.flat_map(|seen| seen.calls.iter().filter_map(what)).collect::<BTreeSet<_>>()
        };
        let mut promises = Vec::new();
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            let begun = of(vcpu, |event| if let CallEvent::Begins(call) = event { Some(*call) } else { None });
            let waits = of(vcpu, |event| if let CallEvent::Waits(call) = event { Some(*call) } else { None });
            promises.extend(begun.intersection(&waits).map(|call| (number, *call)));
        }
        promises
    }

    /// An address, for people.
    pub(crate) fn name_of(&self, address: u64) -> String {
        self.code.place(address)
    }

    /// The address of `function+0x12`.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        self.code.address(name)
    }

    /// The function of an address, for people.
    pub(crate) fn function(&self, address: u64) -> String {
        let place = self.name_of(address);
        place.split('+').next().unwrap_or_default().to_owned()
    }
}
