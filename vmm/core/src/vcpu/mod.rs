//! The thread of a vCPU: it alone touches the vCPU's file descriptor.
//!
//! ```text
//!             ┌──── exits, turns ────┐
//!             ▼                      │
//! start ─▶ Running ──────────────────┘
//!   attend, │  ▲ │
//!   came to │  │ └─ fault, epitaph ─▶ Parked ◀─┐ any order
//!   a stop  ▼  │ run                   │  └────┘
//!          Attending                   │
//!           │ stop                     │ stop
//!           ▼                          ▼
//!          Stopped ◀───────────────────┘
//! ```
//!
//! A parked vCPU is never entered again, but answers all orders ([`crate::board`]). One that is kept out ([`kept`]) is in that state
//! until it is let in.

pub(crate) mod alarm;
pub(crate) mod capture;
mod debugged;
pub(crate) mod exit;
mod halt;
pub(crate) mod kept;
mod stepping;
mod turns;
pub(crate) mod visit;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_bindings::kvm_guest_debug;
use kvm_ioctls::{SyncReg, VcpuFd};
use stallbench_abi::layout::{private, private_area};
use stallbench_abi::port::Doorbell;
use stallbench_abi::text;
use stallbench_abi::vcpu::VcpuPage;
use stallbench_state::machine::{Group, Registers, SystemRegisters, VcpuState};
use stallbench_state::memory::read_plain;

use crate::board::{Board, Capture, Order, Posted};
use crate::clock::CpuClock;
use crate::event::{Events, Fault, MachineEvent};
use crate::host::HostKvm;
use crate::kick::{Link, Requests};
use crate::memory::GuestMemory;
use crate::observe::Telling;
use crate::serial::Serial;
use crate::statistics::Statistics;
use crate::stop::Held;
use crate::watch::Watching;
use debugged::Stopping;
use exit::Exit;
use kept::Kept;
use turns::Turns;
use visit::Visiting;

/// Accesses in a row that are completed for a vCPU that is to stand still: an instruction has few, a `rep outs` any number.
const ACCESSES_TO_COMPLETE: usize = 16;

/// RIP and CS base of a processor after reset or INIT (SDM 3A table 10-1).
const RESET: (u64, u64) = (0xfff0, 0xffff_0000);

/// What the threads of all vCPUs share with the machine.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Guest memory: each thread keeps it alive as long as its vCPU may run.
    pub(crate) memory: GuestMemory,
    /// Where orders come from and answers go.
    pub(crate) board: Board,
    /// Where events go.
    pub(crate) events: Events,
    /// Accesses to where nothing is.
    pub(crate) ignored_accesses: AtomicU64,
    /// Whether registers come with `KVM_RUN`.
    pub(crate) sync_registers: bool,
    /// The length of a turn, where vCPUs outnumber CPUs.
    pub(crate) turn: Option<Duration>,
    /// Which vCPUs are kept out of the guest.
    pub(crate) kept: Vec<Kept>,
    /// Which vCPUs stand still at a stop.
    pub(crate) held: Vec<Held>,
    /// The serial port of a plain guest; one of the contract has none.
    pub(crate) serial: Option<Serial>,
    /// Who is to be let in at a visit.
    pub(crate) visitor: Mutex<Option<Visiting>>,
}

/// A vCPU and all that its thread works with.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: usize,
    pub(crate) fd: VcpuFd,
    link: Arc<Link>,
    shared: Arc<Shared>,
    /// The last `KVM_RUN` was interrupted.
    interrupted: bool,
    /// The last `KVM_RUN` ended with an access that KVM has still to complete.
    access_pending: bool,
    /// `KVM_RUN` has come back at least once, with the registers where the host gives them.
    entered: bool,
    /// Whom it tells of accesses and steps, where somebody wants to know.
    telling: Option<Telling>,
    /// Who keeps what it writes, where somebody wants to know.
    watching: Option<Watching>,
    /// What it knows of stops.
    stopping: Stopping,
    /// How it is debugged while it runs.
    debug: kvm_guest_debug,
    /// It was to execute single instructions at least once.
    has_stepped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Attending,
    KeptOut,
    Parked,
    Stopped,
}

impl Vcpu {
    pub(crate) fn new(index: usize, mut fd: VcpuFd, link: Arc<Link>, shared: Arc<Shared>) -> Self {
        if shared.sync_registers {
            fd.set_sync_valid_reg(SyncReg::Register);
            fd.set_sync_valid_reg(SyncReg::SystemRegister);
        }
        Self {
            index,
            fd,
            link,
            shared,
            interrupted: false,
            access_pending: false,
            entered: false,
            telling: None,
            watching: None,
            stopping: Stopping::default(),
            debug: kvm_guest_debug::default(),
            has_stepped: false,
        }
    }

    /// Has somebody told of its accesses and steps from its first instruction on.
    pub(crate) fn tell(&mut self, telling: Telling) -> Result<(), kvm_ioctls::Error> {
        if let Some(debug) = telling.at_first() {
            self.debug_as(&debug)?;
            self.debug = debug;
        }
        self.telling = Some(telling);
        Ok(())
    }

    /// Has its writes watched from its first instruction on.
    pub(crate) fn watch(&mut self, watching: Watching) -> Result<(), kvm_ioctls::Error> {
        self.debug = watching.debug();
        self.debug_as(&self.debug.clone())?;
        self.watching = Some(watching);
        Ok(())
    }

    /// What KVM counts of it, where the host says.
    pub(crate) fn statistics(&self, host: &HostKvm) -> io::Result<Option<Statistics>> {
        Statistics::of(host, &self.fd)
    }

    /// The thread: runs the vCPU until it is told to stop.
    pub(crate) fn run(mut self) {
        let _obituary = Obituary { vcpu: self.index, shared: Arc::clone(&self.shared) };
        // Made here: its alarm is for the calling thread.
        let mut turns = Turns::new(self.shared.turn, self.shared.serial.is_none());
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running(&mut turns),
                State::Attending => self.attending(&mut turns),
                State::KeptOut => self.kept_out(),
                State::Parked => self.parked(),
                State::Stopped => return,
            }
        }
    }

    /// One entry into the guest. The requests are taken right before it, see [`crate::kick`].
    fn running(&mut self, turns: &mut Turns) -> State {
        let turn_over = self.interrupted && turns.is_over(&self.shared.memory, self.index);
        let requests = self.link.take(self.interrupted && !turn_over);
        self.interrupted = false;
        // First of all: whoever waits for this vCPU to attend would wait for all that have the CPU before it again. It gives up
        // its turn when it has attended.
        if requests.contains(Requests::ATTEND) {
            return State::Attending;
        }
        if self.is_kept_out() {
            return State::KeptOut;
        }
        if turn_over || requests.contains(Requests::TURN) {
            turns.give_up(&self.link);
        }
        self.go_on(turns)
    }

    fn enter(&mut self, turns: &mut Turns) -> State {
        self.link.count_entry();
        let exit = exit::run(&mut self.fd, self.shared.serial.as_ref());
        self.access_pending = exit.is_access();
        self.entered = true;
        match exit {
            Exit::Interrupted => self.interrupted = true,
            Exit::Again => {}
            Exit::Halted => return self.halted(),
            Exit::Yield => turns.give_up(&self.link),
            access @ (Exit::Serial | Exit::Nothing | Exit::Msr(_)) => self.serve(access),
            Exit::Debug { dr6 } => return self.debugged(dr6),
            Exit::Doorbell(doorbell) => return self.rung(doorbell),
            Exit::Ended(status) => return self.ended(status),
            Exit::Fault(fault) => return self.failed(fault),
        }
        State::Running
    }

    /// `hlt` ended `KVM_RUN`. One that was stepped does that, on some hosts later than that (docs/hosts.md); any other would wait in
    /// the kernel, which has the local APIC.
    fn halted(&self) -> State {
        match self.has_stepped {
            true => State::Running,
            false => self.failed(Fault::Unexpected { exit: "Hlt".to_owned() }),
        }
    }

    /// Does what is to be done at an access that concerns nobody else.
    fn serve(&mut self, access: Exit) {
        match access {
            Exit::Msr(msr) => self.accessed(msr),
            Exit::Nothing => _ = self.shared.ignored_accesses.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }

    fn rung(&self, doorbell: Doorbell) -> State {
        match doorbell {
            Doorbell::LOG => self.log(),
            doorbell => self.shared.events.send(MachineEvent::Doorbell { vcpu: self.index, doorbell }),
        }
        if doorbell == Doorbell::EPITAPH { State::Parked } else { State::Running }
    }

    fn log(&self) {
        if self.shared.events.has_room(self.index) {
            let address = private(self.index) + private_area::PAGE_PUBLISHED;
            let page: VcpuPage = read_plain(&self.shared.memory, address).unwrap_or_default();
            let text = text::of(&page.log).to_owned();
            self.shared.events.send(MachineEvent::Log { vcpu: self.index, text });
        }
    }

    /// Follows what the board says, until it says to run. That may be at once, where a request outlived its order. Where the vCPU
    /// came to a stop of its own it goes on only by an order that follows when the stop was taken notice of ([`Held`]).
    fn attending(&mut self, turns: &mut Turns) -> State {
        if self.complete_access() == State::Parked {
            return State::Parked;
        }
        let mut posted = self.shared.board.current();
        while posted.order != Order::Run || self.shared.held[self.index].is_held(posted.number) {
            if posted.order == Order::Stop {
                return State::Stopped;
            }
            let died = posted.order == Order::Visit && self.visited(State::Attending) == State::Parked;
            posted = self.answer(posted);
            if died {
                return State::Parked;
            }
        }
        // All vCPUs wake at once, each with a claim to a CPU saved up. Whoever woke them has to come first: it takes the turns.
        turns.give_up(&self.link);
        State::Running
    }

    /// Follows what the board says, for good.
    fn parked(&mut self) -> State {
        self.complete_access();
        let mut posted = self.shared.board.current();
        while posted.order != Order::Stop {
            if posted.order == Order::Visit {
                self.visited(State::Parked);
            }
            posted = self.answer(posted);
        }
        State::Stopped
    }

    /// Answers an order, and waits for the next.
    fn answer(&mut self, posted: Posted) -> Posted {
        let board = &self.shared.board;
        match posted.order {
            Order::Pause | Order::Visit => board.answer(posted.number, self.index, None),
            Order::Capture(what) => board.answer(posted.number, self.index, Some(Box::new(self.capture(what)))),
            Order::Run | Order::Stop => {}
        }
        board.after(posted.number)
    }

    /// Lets KVM complete an access that ended `KVM_RUN`: before, the state of the vCPU is not consistent (KVM api.rst 5). Gives what
    /// the thread is to do then: attend, or park a vCPU that did not survive it.
    fn complete_access(&mut self) -> State {
        for _ in 0..ACCESSES_TO_COMPLETE {
            if !self.access_pending {
                break;
            }
            self.link.hold_back();
            // A second access of the same instruction is dropped: a vCPU that is to stand still rings no doorbell. One to a
            // register is another instruction's.
            let exit = exit::run(&mut self.fd, self.shared.serial.as_ref());
            self.access_pending = exit.is_access();
            match exit {
                Exit::Fault(fault) => return self.failed(fault),
                Exit::Ended(status) => return self.ended(status),
                Exit::Msr(msr) => self.accessed(msr),
                Exit::Debug { dr6 } if self.debugged(dr6) == State::Parked => return State::Parked,
                Exit::Halted if self.halted() == State::Parked => return State::Parked,
                _ => {}
            }
        }
        State::Attending
    }

    fn ended(&self, status: u32) -> State {
        self.shared.events.send(MachineEvent::Ended { vcpu: self.index, status });
        State::Parked
    }

    fn failed(&self, fault: Fault) -> State {
        self.shared.events.send(MachineEvent::Fault { vcpu: self.index, fault });
        State::Parked
    }

    fn capture(&self, what: Capture) -> VcpuState {
        self.lose_init();
        let mp_state = capture::mp_state(&self.fd);
        let (registers, system) = self.registers();
        let x2apic = system.as_ref().is_ok_and(SystemRegisters::is_x2apic);
        VcpuState {
            index: self.index,
            registers,
            system,
            apic: capture::apic(&self.fd, x2apic),
            events: capture::events(&self.fd),
            mp_state,
            mtrr: (what == Capture::Full).then(|| capture::mtrr(&self.fd)),
            msrs: (what == Capture::Full).then(|| capture::msrs(&self.fd)),
            ran: CpuClock::OWN.now(),
        }
    }
}

impl Vcpu {
    /// General and system registers, those that came with `KVM_RUN` where they are up to date.
    ///
    /// An application processor that had not started when it stopped may have been started since, by a SIPI that took effect
    /// a moment ago: the registers that it stopped with are those of a reset, and are asked for anew.
    fn registers(&self) -> (Group<Registers>, Group<SystemRegisters>) {
        if self.entered && self.shared.sync_registers {
            let synchronized = self.fd.sync_regs();
            if (synchronized.regs.rip, synchronized.sregs.cs.base) != RESET {
                let registers = capture::general(&synchronized.regs);
                return (Ok(registers), Ok(capture::system_registers(&synchronized.sregs)));
            }
        }
        (capture::registers(&self.fd), capture::system(&self.fd))
    }
}

/// Tells that the thread has ended, and of a bug of ours if it is one that ends it.
struct Obituary {
    vcpu: usize,
    shared: Arc<Shared>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.events.send(MachineEvent::ThreadDied { vcpu: self.vcpu });
        }
        self.shared.board.leave();
    }
}
