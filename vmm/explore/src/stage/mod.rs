//! Passages: what a vCPU does from one stop to the next, asked of KVM once for each state and each value read.
//!
//! A passage depends on nothing but its vCPU's state and what it reads first: private memory of others is not mapped, shared memory is
//! a hole, devices are data here. So it is the same whenever the vCPU goes on from there, whatever the others have done meanwhile.
//!
//! A stop at a read is in front of its instruction, one at a write behind it with the store still to be done (KVM completes registers
//! before it hands out a store). An interrupt can come where the vCPU stands, unless that is inside of an instruction. If it could take
//! one on the way here and cannot any more, the passage ends on the way, at a place where it can ([`Parked::Open`]): what it does between
//! two stops concerns itself alone, so that one place of delivery stands for all between them. An NMI comes with interrupts off too: one
//! that comes behind a store that is still to be done, and whose beginning is not in its registers, comes in front of its instruction, where
//! the vCPU [began](Stage::begin_of) it; one that comes in the shadow of an STI, in front of that.
//!
//! All this holds while a vCPU has nothing in common with its handlers on the way. Where it has, at [places](Private), a passage is no longer
//! one with the access that it begins with: the vCPU parks on the way, so that what others send because they have seen the access comes
//! behind it. Behind a delivery, which nobody sees either, it does not: there it is refused that something could come (`expect_none_behind`).

mod answer;
mod drain;
mod go;
mod restart;
mod seen;
mod stand;
mod steps;
mod watch;
mod window;

use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use stallbench_abi::vcpu::Epitaph;
use stallbench_core::controlled::{Controlled, Inject, ProcessorState};
use stallbench_state::machine::RFLAGS_IF;
use stallbench_state::program::Program;

use crate::ahead::Ahead;
use crate::apic::Message;
use crate::code::{Code, STATUS_FLAGS};
use crate::devices::Devices;
use crate::local::{Base, Local, Locals, Parked};
use crate::passage::{Effect, Input, Passage, Refusal, Sent};
use crate::private::Private;
use crate::settings::{Irq, Model, Passages, Settings};
use crate::start::Standing;
pub(crate) use answer::Answer;
use answer::Came;

/// The machine, and all that is known of what its vCPUs do.
#[derive(Debug)]
pub(crate) struct Stage<'p> {
    machine: Controlled,
    code: Code<'p>,
    vcpus: Vec<Vcpu>,
    /// Passages that KVM was asked for.
    pub(crate) asked: u64,
    /// Where a vCPU waits for its stores is a stop.
    finds_drains: bool,
    /// Those that it has answered, in order.
    log: Vec<Asked>,
    /// How it is asked.
    passages: Passages,
    irq: Irq,
    /// More of those instructions are known than at the last look.
    new_places: bool,
    /// What somebody may send, as far as that is known.
    sent: Sent,
    /// The ghost page at the start line.
    ghost: Vec<u8>,
    /// Where the caches were off on the passage that KVM is asked for.
    caches_off: Option<u64>,
    /// What others have asked for.
    ahead: Option<Arc<Ahead>>,
    /// Passages that others have brought.
    pub(crate) brought: u64,
}

/// What KVM was asked for: the vCPU, its state, what it went on with, and what came of it.
pub(crate) type Asked = (usize, u32, Input, Passage);

/// Instructions, and whether interrupts, and NMIs, can come in front of them.
pub(crate) type Behind = Box<[(u64, [bool; 2])]>;

/// One vCPU.
#[derive(Debug)]
struct Vcpu {
    base: Base,
    locals: Locals,
    passages: FxHashMap<(u32, Input), Passage>,
    /// What of the instructions of a passage [may be met](Private::open), where there is something.
    behind: FxHashMap<(u32, Input), Behind>,
    /// Bytes of that.
    bytes_behind: usize,
    /// States from which a passage leads on which something was seen that safety is judged by.
    shows: FxHashSet<u32>,
    private: Private,
    /// Where the instruction begins of which a state is the store, as a state: where an NMI can come in front of it and nowhere else.
    begins: FxHashMap<u32, u32>,
    /// Instructions between two stops in front of which it matters whether something comes.
    places: Rc<FxHashSet<u64>>,
    /// The state at whose stop KVM's vCPU stands.
    at: Option<u32>,
}

/// A way that a vCPU goes on KVM.
struct Way {
    effects: Vec<Effect>,
    devices: Devices,
}

impl<'p> Stage<'p> {
    /// Takes a machine that was brought to the start line, and where its vCPUs stand there. Gives the numbers of their states, too.
    pub(crate) fn new(
        mut machine: Controlled,
        program: &'p Program,
        standing: Vec<Standing>,
        settings: &Settings,
    ) -> Result<(Self, Vec<u32>), Refusal> {
        let code = Code::of(program);
        for (vcpu, Standing { local, .. }) in standing.iter().enumerate() {
            if local.parked != Parked::Off {
                machine.keep_tables(vcpu);
            }
        }
        let finds_drains = settings.model != Model::Sc;
        if let Some((at, what, why)) = code.unexplored(machine.memory(), finds_drains) {
            let what = format!("can execute {}, {why},", format!("{what:?}").to_lowercase());
            return Err(Refusal::Unknown { vcpu: 0, what, place: code.place(at) });
        }
        let vcpu = |(vcpu, Standing { base, .. }): (usize, &Standing)| Vcpu {
            private: Private::of(vcpu),
            begins: FxHashMap::default(),
            places: Rc::default(),
            base: base.clone(),
            locals: Locals::default(),
            passages: FxHashMap::default(),
            behind: FxHashMap::default(),
            bytes_behind: 0,
            shows: FxHashSet::default(),
            at: None,
        };
        let ghost = stand::ghost_page(machine.memory());
        let mut stage = Self {
            machine,
            ghost,
            code,
            vcpus: standing.iter().enumerate().map(vcpu).collect(),
            asked: 0,
            caches_off: None,
            ahead: None,
            brought: 0,
            finds_drains,
            log: Vec::new(),
            passages: settings.passages,
            irq: settings.irq,
            new_places: false,
            sent: Sent::default(),
        };
        let first =
            standing.into_iter().enumerate().map(|(vcpu, Standing { local, .. })| stage.number(vcpu, Arc::new(local)));
        let first = first.collect();
        Ok((stage, first))
    }

    pub(crate) fn local(&self, vcpu: usize, number: u32) -> &Local {
        self.vcpus[vcpu].locals.get(number)
    }

    /// The instruction that a vCPU executes next in that state; none of one that is off, or waits for a start-up interrupt.
    pub(crate) fn next(&self, vcpu: usize, number: u32) -> Option<u64> {
        let local = self.local(vcpu, number);
        match local.parked {
            Parked::Off | Parked::Waits => None,
            Parked::Write { before: Some(before), .. } => Some(before),
            _ => Some(local.processor.general.rip),
        }
    }

    /// Where a vCPU stands in that state, for people.
    pub(crate) fn place(&self, vcpu: usize, number: u32) -> String {
        let parked = &self.local(vcpu, number).parked;
        match (self.next(vcpu, number).map(|rip| self.code.place(rip)), parked) {
            (Some(place), Parked::Halted) => format!("{place}, halted"),
            (Some(place), _) => place,
            (None, Parked::Waits) => WAITS.to_owned(),
            (None, _) => "off".to_owned(),
        }
    }

    /// Bytes of memory that they take, about.
    pub(crate) fn bytes(&self) -> usize {
        // Each passage is in a table that is between half and fully used, and in the list of those that were asked for.
        const PASSAGE: usize =
            3 * size_of::<((u32, Input), Passage)>() / 2 + size_of::<Asked>() + 2 * size_of::<Effect>();
        let bytes = |vcpu: &Vcpu| vcpu.locals.bytes + vcpu.passages.len() * PASSAGE + vcpu.bytes_behind;
        self.vcpus.iter().map(bytes).sum()
    }

    /// States of all vCPUs that were met.
    pub(crate) fn locals(&self) -> usize {
        self.vcpus.iter().map(|vcpu| vcpu.locals.len()).sum()
    }

    /// How many vCPUs there are.
    pub(crate) fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// States of one vCPU that were met.
    pub(crate) fn locals_of(&self, vcpu: usize) -> usize {
        self.vcpus[vcpu].locals.len()
    }

    /// The passages that KVM was asked for, in that order: vCPU, the number of its state, what it went on with.
    pub(crate) fn log(&self) -> &[Asked] {
        &self.log
    }

    /// A passage that KVM was asked for.
    pub(crate) fn known(&self, vcpu: usize, from: u32, input: Input) -> Option<&Passage> {
        self.vcpus[vcpu].passages.get(&(from, input))
    }

    pub(crate) fn machine(&mut self) -> &mut Controlled {
        &mut self.machine
    }

    /// What a vCPU does from that state on.
    pub(crate) fn passage(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Passage, Refusal> {
        if let Some(known) = self.vcpus[vcpu].passages.get(&(from, input)) {
            return Ok(known.clone());
        }
        if let Some(whole) = self.needs(vcpu, from, input) {
            // To its stop first: that has its own number, whoever brings this one.
            self.passage(vcpu, from, whole)?;
        }
        self.asked += 1;
        let answer = self.answer(vcpu, from, input)?;
        self.keep(vcpu, from, input, &answer)
    }

    /// Has KVM do once more what it did, and compares all of the state that it comes to.
    pub(crate) fn once_more(&mut self, vcpu: usize, from: u32, input: Input, known: &Passage) -> Result<(), Refusal> {
        let now = self.come(vcpu, from, input)?;
        let was = self.local(vcpu, known.to);
        if now.here.identity() == was.identity() && now.effects[..] == known.effects[..] {
            if now.stands {
                self.vcpus[vcpu].at = Some(known.to);
            }
            return Ok(());
        }
        let difference = format!("{:?}, {:?}; {}", known.effects, now.effects, was.difference(&now.here));
        Err(Refusal::Differs { vcpu, place: self.place(vcpu, from), difference })
    }

    /// What KVM says to it, in the way in which it is asked.
    fn come(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Came, Refusal> {
        match (input, self.passages) {
            (Input::Deliver(inject @ (Inject::Init | Inject::StartUp(_))), _) => self.restart(vcpu, from, inject),
            (Input::Enter(inject, comes), _) => self.enter(vcpu, from, inject, comes),
            (Input::Creep(read, comes), _) => self.creep(vcpu, from, read, comes),
            _ if self.finds_drains => self.ask_to_drain(vcpu, from, input),
            (_, Passages::Free) => self.ask(vcpu, from, input),
            (_, Passages::Stepped) => self.ask_by_steps(vcpu, from, input),
            (_, Passages::Compared) => self.compare(vcpu, from, input),
        }
    }

    /// The same, from KVM.
    fn ask(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Came, Refusal> {
        let start = self.local(vcpu, from).clone();
        if let (Parked::Halting, Input::Go(_)) = (&start.parked, input) {
            return Ok(Came::elsewhere(start.halted(), Vec::new()));
        }
        self.stand(vcpu, from, &start, input);
        let mut way = Way { effects: Vec::new(), devices: start.devices.clone() };
        let parked = self.go(vcpu, &start, input, &mut way)?;
        let here = self.here_in(vcpu, parked, way.devices.clone())?;
        if !here.has_stack() {
            return Err(self.unknown(vcpu, "uses memory as a stack that is none of its stacks"));
        }
        if !self.is_missed(&start, input, &here) {
            return Ok(Came::there(here, way.effects));
        }
        self.vcpus[vcpu].at = None;
        let mut on_the_way = Way { effects: Vec::new(), devices: start.devices.clone() };
        self.stand(vcpu, from, &start, input);
        Ok(match self.go_to_open(vcpu, &start, input, &mut on_the_way)? {
            Some(open) => Came::there(open, on_the_way.effects),
            None => Came::elsewhere(here, way.effects),
        })
    }

    /// The same, in both ways.
    fn compare(&mut self, vcpu: usize, from: u32, input: Input) -> Result<Came, Refusal> {
        let stepped = self.ask_by_steps(vcpu, from, input)?;
        let free = self.ask(vcpu, from, input)?;
        if free.is_as(&stepped) {
            return Ok(free);
        }
        let (ran, came) = (&free.here, &stepped.here);
        let effects = (free.effects != stepped.effects).then(|| format!("{:?}, {:?}", free.effects, stepped.effects));
        let difference = effects.unwrap_or_else(|| ran.difference(came));
        let difference = format!("running and by single steps it came to different ends: {difference}");
        Err(Refusal::Differs { vcpu, place: self.place(vcpu, from), difference })
    }

    /// The state of a vCPU that has come to a stop.
    fn here_in(&self, vcpu: usize, parked: Parked, devices: Devices) -> Result<Local, Refusal> {
        let mut processor = state(&self.machine, vcpu)?;
        if parked == Parked::Halting {
            let memory = self.machine.memory();
            processor.general.rip = processor.general.rip.wrapping_sub(1);
            if !self.code.is_hlt(memory, processor.general.rip) {
                return Err(self.unknown(vcpu, "halts by an instruction that is not the one before"));
            }
            // A jump to it has no shadow; then it could take an interrupt on its way.
            processor.shadow = self.code.follows_sti(memory, processor.general.rip);
        }
        Ok(self.leave(vcpu, parked, processor, devices))
    }

    /// The state of a vCPU that stands there.
    fn leave(&self, vcpu: usize, parked: Parked, mut processor: ProcessorState, mut devices: Devices) -> Local {
        let live = self.code.live_flags(self.machine.memory(), processor.general.rip);
        processor.general.rflags &= !STATUS_FLAGS | live;
        devices.calls = self.calls(vcpu);
        Local::of(&self.vcpus[vcpu].base, self.machine.memory(), parked, processor, devices)
    }

    /// The number of a state.
    fn number(&mut self, vcpu: usize, local: Arc<Local>) -> u32 {
        if let Some(message) = local.parked.message() {
            self.expect_sent(Sent { nmi: message == Message::Nmi, init: message == Message::Init });
        }
        self.vcpus[vcpu].locals.number(local)
    }

    /// What a vCPU says of its end.
    fn last_words(&self, vcpu: usize) -> Arc<str> {
        let published = stallbench_state::published::Published::read(self.machine.memory(), self.vcpus.len());
        let epitaph = published.vcpus.get(vcpu).map(|page| page.epitaph);
        let words = |epitaph: Epitaph| match stallbench_abi::text::of(&epitaph.text) {
            "" => format!("exception {} at {}", epitaph.vector, self.code.place(epitaph.rip)),
            text => text.to_owned(),
        };
        epitaph.map_or_else(String::new, words).into()
    }

    fn here(&self, vcpu: usize) -> String {
        let rip = self.machine.state(vcpu).map_or(0, |state| state.general.rip);
        self.code.place(rip)
    }

    fn unknown(&self, vcpu: usize, what: &str) -> Refusal {
        Refusal::Unknown { vcpu, what: what.to_owned(), place: self.here(vcpu) }
    }
}

/// Where a vCPU stands that has got an INIT.
pub const WAITS: &str = "waits for SIPI";

/// Whether an interrupt can come in front of the next instruction.
pub(crate) fn is_open(state: &ProcessorState) -> bool {
    state.general.rflags & RFLAGS_IF != 0 && !state.shadow
}

fn state(machine: &Controlled, vcpu: usize) -> Result<ProcessorState, Refusal> {
    machine.state(vcpu).map_err(|moved| Refusal::Moved { vcpu, moved })
}
