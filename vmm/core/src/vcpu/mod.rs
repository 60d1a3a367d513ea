//! The thread of a vCPU: it alone touches the vCPU's file descriptor.
//!
//! ```text
//!             ┌──── exits, turns ────┐
//!             ▼                      │
//! start ─▶ Running ──────────────────┘
//!           │  ▲ │
//!    attend │  │ └─ fault, epitaph ─▶ Parked ◀─┐ orders
//!           ▼  │ resume                │  └────┘
//!          Attending                   │
//!           │ stop                     │ stop
//!           ▼                          ▼
//!          Stopped ◀───────────────────┘
//! ```
//!
//! A parked vCPU is never entered again, but answers all orders.

mod capture;
mod exit;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use kvm_ioctls::{SyncReg, VcpuFd};
use stallbench_abi::layout::{private, private_area};
use stallbench_abi::port::Doorbell;
use stallbench_abi::text;
use stallbench_abi::vcpu::VcpuPage;
use stallbench_state::machine::{Group, Registers, SystemRegisters, VcpuState};
use stallbench_state::memory::read_plain;

use crate::clock::CpuClock;
use crate::event::{Events, MachineEvent};
use crate::kick::{Link, Requests};
use crate::machine::Capture;
use crate::memory::GuestMemory;
use exit::Exit;

/// Accesses in a row that are completed for a vCPU that is to stand still: an instruction has few, a `rep outs` any number.
const ACCESSES_TO_COMPLETE: usize = 16;

/// RIP and CS base of a processor after reset or INIT (SDM 3A table 10-1).
const RESET: (u64, u64) = (0xfff0, 0xffff_0000);

/// What the thread is told while it attends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Stand still and say so.
    Pause {
        /// A number that the answer repeats.
        question: u64,
    },
    /// Read the state of the vCPU and hand it over.
    Capture {
        /// A number that the answer repeats.
        question: u64,
        /// How much of it.
        what: Capture,
    },
    /// Go on.
    Resume,
    /// End.
    Stop,
}

/// What the thread answers.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The question that it answers: an answer that comes too late is told by it.
    pub(crate) question: u64,
    /// The vCPU.
    pub(crate) vcpu: usize,
    /// Its state, in answer to a capture.
    pub(crate) state: Option<Box<VcpuState>>,
}

/// What the threads of all vCPUs share with the machine.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Guest memory: each thread keeps it alive as long as its vCPU may run.
    pub(crate) memory: GuestMemory,
    /// Where events go.
    pub(crate) events: Events,
    /// Accesses to where nothing is.
    pub(crate) ignored_accesses: AtomicU64,
    /// Whether registers come with `KVM_RUN`.
    pub(crate) sync_registers: bool,
}

/// A vCPU and all that its thread works with.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: usize,
    fd: VcpuFd,
    link: Arc<Link>,
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    answers: Sender<Answer>,
    /// The last `KVM_RUN` was interrupted.
    interrupted: bool,
    /// The last `KVM_RUN` ended with an access that KVM has still to complete.
    access_pending: bool,
    /// `KVM_RUN` has come back at least once, with the registers where the host gives them.
    entered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Attending,
    Parked,
    Stopped,
}

impl Vcpu {
    pub(crate) fn new(
        index: usize,
        mut fd: VcpuFd,
        link: Arc<Link>,
        shared: Arc<Shared>,
        orders: Receiver<Order>,
        answers: Sender<Answer>,
    ) -> Self {
        if shared.sync_registers {
            fd.set_sync_valid_reg(SyncReg::Register);
            fd.set_sync_valid_reg(SyncReg::SystemRegister);
        }
        Self { index, fd, link, shared, orders, answers, interrupted: false, access_pending: false, entered: false }
    }

    /// The vCPU, as long as its thread does not run.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The thread: runs the vCPU until it is told to stop.
    pub(crate) fn run(mut self) {
        let _obituary = Obituary { vcpu: self.index, shared: Arc::clone(&self.shared) };
        let mut state = State::Running;
        loop {
            state = match state {
                State::Running => self.running(),
                State::Attending => self.attending(),
                State::Parked => self.parked(),
                State::Stopped => return,
            }
        }
    }

    /// One entry into the guest. The requests are taken right before it, see [`crate::kick`].
    fn running(&mut self) -> State {
        let requests = self.link.take(self.interrupted);
        self.interrupted = false;
        if requests.contains(Requests::ATTEND) {
            return State::Attending;
        }
        if requests.contains(Requests::TURN) {
            self.give_up_turn();
        }
        self.enter()
    }

    fn enter(&mut self) -> State {
        let exit = exit::run(&mut self.fd);
        self.access_pending = exit.is_access();
        self.entered = true;
        match exit {
            Exit::Interrupted => self.interrupted = true,
            Exit::Again => {}
            Exit::Yield => self.give_up_turn(),
            Exit::Nothing => self.count_ignored(),
            Exit::Doorbell(doorbell) => return self.rung(doorbell),
            Exit::Fault(fault) => {
                self.shared.events.send(MachineEvent::Fault { vcpu: self.index, fault });
                return State::Parked;
            }
        }
        State::Running
    }

    fn give_up_turn(&self) {
        std::thread::yield_now();
        self.link.begin_turn(CpuClock::OWN.now());
    }

    fn count_ignored(&self) {
        self.shared.ignored_accesses.fetch_add(1, Ordering::Relaxed);
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

    /// The request to attend comes after its order was sent, so that the order is found. It may have been followed already, with
    /// those that came before it: then nothing is left to do.
    fn attending(&mut self) -> State {
        self.complete_access();
        let first = self.orders.try_recv();
        self.follow(first, State::Running)
    }

    fn parked(&mut self) -> State {
        self.complete_access();
        let first = self.wait();
        self.follow(first, State::Parked)
    }

    /// Follows orders until one says to end, or to go on and none is left: an order left behind would find no request any more.
    fn follow(&mut self, mut next: Result<Order, TryRecvError>, after: State) -> State {
        loop {
            next = match next {
                Ok(Order::Pause { question }) => self.answer(question, None),
                Ok(Order::Capture { question, what }) => {
                    let state = Box::new(self.capture(what));
                    self.answer(question, Some(state))
                }
                Ok(Order::Resume) => self.orders.try_recv(),
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return State::Stopped,
                Err(TryRecvError::Empty) => return after,
            }
        }
    }

    /// Answers, and waits for the next order.
    fn answer(&self, question: u64, state: Option<Box<VcpuState>>) -> Result<Order, TryRecvError> {
        // Fails when the machine is gone, as the wait then does.
        let _ = self.answers.send(Answer { question, vcpu: self.index, state });
        self.wait()
    }

    /// Waits for an order. The machine's end of the channel goes with the machine: this wait cannot outlast it.
    fn wait(&self) -> Result<Order, TryRecvError> {
        self.orders.recv().map_err(|_| TryRecvError::Disconnected)
    }

    /// Lets KVM complete an access that ended `KVM_RUN`: before, the state of the vCPU is not consistent (KVM api.rst 5).
    fn complete_access(&mut self) {
        for _ in 0..ACCESSES_TO_COMPLETE {
            if !self.access_pending {
                return;
            }
            self.link.hold_back();
            // A second access of the same instruction is dropped: a vCPU that is to stand still rings no doorbell.
            self.access_pending = exit::run(&mut self.fd).is_access();
        }
    }

    fn capture(&mut self, what: Capture) -> VcpuState {
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

/// Tells of a thread that dies by a bug of ours.
struct Obituary {
    vcpu: usize,
    shared: Arc<Shared>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.events.send(MachineEvent::ThreadDied { vcpu: self.vcpu });
        }
    }
}
