//! A machine, from its creation to its end.

mod error;
mod followed;
mod hands;
mod paused;
mod plain;
#[cfg(test)]
mod test;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use stallbench_abi::boot::BootBlock;
use stallbench_abi::layout::{private, private_area};
use stallbench_state::dump::DumpedMemory;
use stallbench_state::machine::MachineState;
use stallbench_state::memory::Memory;

pub use error::{CreateError, ResumeError, StartError};
pub use hands::VcpuError;
pub use paused::{PauseError, Paused, VisitError};
pub use plain::PlainConfig;

use crate::board::{Board, Order};
use crate::boot::registers::RegisterError;
use crate::boot::{self, moment, registers};
use crate::clock::CpuClock;
use crate::event::{Events, MachineEvent};
use crate::flag::ImmediateExit;
use crate::host::HostKvm;
use crate::kick::{self, KickCounters, Link, Requests};
use crate::memory::GuestMemory;
use crate::mmu;
use crate::serial::Serial;
use crate::statistics::Statistics;
use crate::stop::{Armed, Held};
use crate::vcpu::kept::Kept;
use crate::vcpu::{Shared, Vcpu};

/// Pins of an I/O APIC that user space would emulate; KVM wants to know their number, and there is none.
const IOAPIC_PINS: u64 = 24;
/// Stack of a vCPU's thread: most of its work is done in the kernel.
const THREAD_STACK: usize = 128 << 10;
/// After how many turns in a row a vCPU is taken for one that sets itself no alarm.
const LATE_TURNS: u32 = 2;
/// How long a machine's end waits for its threads.
const END: Duration = Duration::from_secs(5);

/// What a machine is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// CPU time after which a vCPU that waits lets another one have the CPU, where there are more of them than CPUs. One that
    /// works has several times as much.
    pub turn: Duration,
}

impl MachineConfig {
    /// A machine of this many vCPUs, all else as usual.
    pub fn new(vcpus: usize) -> Self {
        Self { vcpus, turn: Duration::from_micros(500) }
    }
}

/// A machine: guest memory, and vCPUs with a thread each.
#[derive(Debug)]
pub struct Machine {
    /// Made, not started: taken by [`Self::start`].
    prepared: Vec<Vcpu>,
    seats: Vec<Seat>,
    shared: Arc<Shared>,
    /// Held while the vCPUs stand still.
    pausing: Mutex<()>,
    turn: Duration,
    /// There are more vCPUs than CPUs, so turns are bounded.
    crowded: bool,
    /// The CPU times of all threads were read since turns were last enforced.
    clocks_read: AtomicBool,
    /// What the vCPUs' breakpoints and steps serve beside stops, if anything.
    debugged_by: Option<&'static str>,
    /// The stops that are in force: several where not all vCPUs were reached by the last change.
    armed: Mutex<Vec<Arc<Armed>>>,
    /// Kept as long as its vCPUs.
    vm: VmFd,
}

/// What the machine keeps of a vCPU whose thread runs.
#[derive(Debug)]
struct Seat {
    link: Arc<Link>,
    thread: Option<Started>,
    statistics: Option<Statistics>,
}

#[derive(Debug)]
struct Started {
    handle: JoinHandle<()>,
    clock: Option<CpuClock>,
}

impl Seat {
    /// The CPU time of its thread.
    fn ran(&self) -> Duration {
        self.read_clock();
        self.link.ran()
    }

    /// Reads the clock of its thread, for the look at its turn too.
    fn read_clock(&self) {
        if let Some(clock) = self.thread.as_ref().and_then(|thread| thread.clock) {
            self.link.keep_ran(clock.now());
        }
    }

    fn kick(&self, what: Requests) {
        if let Some(thread) = &self.thread {
            self.link.kick(&thread.handle, what);
        }
    }
}

impl Machine {
    /// Makes a machine that is ready to start; nothing of it runs yet.
    pub fn new(
        host: &HostKvm,
        config: &MachineConfig,
        image: &[u8],
        boot_block: &BootBlock,
    ) -> Result<Self, CreateError> {
        check_contract(host, config.vcpus, boot_block)?;
        let vm = create_vm(host)?;
        let memory = GuestMemory::new(config.vcpus)?;
        let entry = boot::prepare(&memory, image, boot_block, config.vcpus)?;
        let mut machine = Self::empty(host, vm, memory, config, None)?;
        for vcpu in 0..config.vcpus {
            machine.add_vcpu(host, vcpu, |fd| if vcpu == 0 { registers::enter(fd, entry) } else { Ok(()) })?;
        }
        Ok(machine)
    }

    /// Makes a machine in the state that another was in, of a guest of the contract; nothing of it runs yet. What was pending at a
    /// local APIC is pending here.
    pub fn resumed(
        host: &HostKvm,
        config: &MachineConfig,
        state: &MachineState,
        memory: &DumpedMemory,
    ) -> Result<Self, ResumeError> {
        check_vcpus(host, config.vcpus)?;
        let vm = create_vm(host)?;
        let guest = GuestMemory::new(config.vcpus).map_err(CreateError::from)?;
        for run in memory.runs() {
            if !guest.write_whole(run.base, &run.bytes) {
                return Err(ResumeError::Memory(run.base));
            }
        }
        let mut machine = Self::empty(host, vm, guest, config, None)?;
        for (vcpu, state) in state.vcpus.iter().enumerate() {
            machine.add_vcpu(host, vcpu, |_| Ok(()))?;
            moment::place(&machine.prepared[vcpu].fd, state).map_err(|source| ResumeError::Place { vcpu, source })?;
        }
        Ok(machine)
    }

    /// A machine without vCPUs; for a plain guest with a serial port.
    fn empty(
        host: &HostKvm,
        vm: VmFd,
        memory: GuestMemory,
        config: &MachineConfig,
        serial: Option<Serial>,
    ) -> Result<Self, CreateError> {
        memory.attach(&vm)?;
        mmu::make_room(&vm, config.vcpus, memory.size()).map_err(CreateError::Mmu)?;
        let crowded = config.vcpus > host.fingerprint().host_cpus;
        let shared = Arc::new(Shared {
            memory,
            board: Board::new(config.vcpus),
            events: Events::new(config.vcpus),
            ignored_accesses: AtomicU64::new(0),
            sync_registers: host.has("sync-regs"),
            turn: crowded.then_some(config.turn),
            kept: (0..config.vcpus).map(|_| Kept::default()).collect(),
            held: (0..config.vcpus).map(|_| Held::default()).collect(),
            visitor: Mutex::new(None),
            serial,
        });
        Ok(Self {
            prepared: Vec::with_capacity(config.vcpus),
            seats: Vec::with_capacity(config.vcpus),
            shared,
            pausing: Mutex::new(()),
            turn: config.turn,
            crowded,
            clocks_read: AtomicBool::new(false),
            debugged_by: None,
            armed: Mutex::default(),
            vm,
        })
    }

    /// Adds the next vCPU, put where it starts by `enter`.
    fn add_vcpu(
        &mut self,
        host: &HostKvm,
        vcpu: usize,
        enter: impl FnOnce(&VcpuFd) -> Result<(), RegisterError>,
    ) -> Result<(), CreateError> {
        let failed = |source| CreateError::Vcpu { vcpu, source };
        let not_prepared = |source| CreateError::Registers { vcpu, source };
        let vcpus = self.shared.kept.len();
        let fd = self.vm.create_vcpu(vcpu as u64).map_err(failed)?;
        registers::configure(&fd, vcpu, vcpus, host.has("enforce-pv-feature-cpuid")).map_err(not_prepared)?;
        enter(&fd).map_err(not_prepared)?;
        let link = Arc::new(Link::new(ImmediateExit::of(&fd).map_err(failed)?));
        self.prepared.push(Vcpu::new(vcpu, fd, Arc::clone(&link), Arc::clone(&self.shared)));
        self.seats.push(Seat { link, thread: None, statistics: None });
        Ok(())
    }

    /// Starts the threads of all vCPUs, and keeps these standing still: none has executed an instruction when this gives the
    /// machine, and none does before it goes on from that pause.
    pub fn start_paused(&mut self, deadline: Duration) -> Result<Paused<'_>, StartError> {
        self.start_held()?;
        self.pause(deadline).map_err(StartError::Pause)
    }

    /// As [`Self::start_paused`], for whoever pauses the machine afterwards: no vCPU runs before the first pause has ended.
    pub fn start_held(&mut self) -> Result<(), StartError> {
        if self.prepared.is_empty() {
            return Err(StartError::Started);
        }
        self.shared.board.post(Order::Pause);
        // There is no thread yet that a signal could reach.
        self.seats.iter().for_each(|seat| seat.link.ask(Requests::ATTEND));
        self.start()
    }

    /// Starts all vCPUs.
    pub fn start(&mut self) -> Result<(), StartError> {
        kick::install_handler();
        if self.prepared.is_empty() {
            return Err(StartError::Started);
        }
        // vCPU 0 last: the others wait for an INIT, whereas it would have them compete with us for the CPUs.
        for (index, vcpu) in self.prepared.drain(..).enumerate().rev() {
            let thread = thread::Builder::new().name(format!("vcpu-{index}")).stack_size(THREAD_STACK);
            let failed = |source| StartError::Thread { vcpu: index, source };
            let handle = thread.spawn(move || vcpu.run()).map_err(failed)?;
            self.seats[index].thread = Some(Started { clock: CpuClock::of(&handle), handle });
        }
        Ok(())
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> usize {
        self.seats.len()
    }

    /// The next thing that a vCPU has to tell, waiting for it no longer than `timeout`.
    pub fn next_event(&self, timeout: Duration) -> Option<MachineEvent> {
        let event = self.shared.events.next(timeout);
        if let Some(MachineEvent::Stopped { vcpu, .. }) = event {
            self.shared.held[vcpu].told(self.shared.board.current().number);
        }
        event
    }

    /// Doorbells that were dropped, since one vCPU rang too often.
    pub fn dropped_doorbells(&self) -> u64 {
        self.shared.events.dropped()
    }

    /// Accesses to ports and addresses where nothing is.
    pub fn ignored_accesses(&self) -> u64 {
        self.shared.ignored_accesses.load(Ordering::Relaxed)
    }

    /// Guest memory. The guest writes it while it is read.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// CPU time that the thread of each vCPU has had.
    pub fn ran(&self) -> Vec<Duration> {
        self.seats.iter().map(Seat::ran).collect()
    }

    /// As [`Self::ran`], into `ran`, as far as it reaches.
    pub fn ran_into(&self, ran: &mut [Duration]) {
        self.clocks_read.store(ran.len() >= self.vcpus(), Ordering::Relaxed);
        ran.iter_mut().zip(&self.seats).for_each(|(ran, seat)| *ran = seat.ran());
    }

    /// How often each vCPU was let into the guest: the calls of `KVM_RUN` that were made with no kick pending. CPU time alone
    /// does not say that a vCPU ran, since its thread may spend it on the way.
    pub fn entries(&self) -> Vec<u64> {
        self.seats.iter().map(|seat| seat.link.entries()).collect()
    }

    /// The progress word of each vCPU, into `progress`, as far as it reaches.
    pub fn progress_into(&self, progress: &mut [u64]) {
        for (vcpu, word) in progress.iter_mut().enumerate().take(self.vcpus()) {
            let page = private(vcpu) + private_area::PAGE_PUBLISHED;
            *word = self.shared.memory.read_u64(page).unwrap_or_default();
        }
    }

    /// Makes each vCPU that has had the CPU for a whole turn let another one have it. To be called at every poll; does nothing
    /// where every vCPU has a CPU to itself, and reads no clock where [`Self::ran_into`] has just read them all.
    pub fn enforce_turns(&self) {
        if !self.crowded {
            return;
        }
        if !self.clocks_read.swap(false, Ordering::Relaxed) {
            self.seats.iter().for_each(Seat::read_clock);
        }
        // As a rule the threads end their turns themselves.
        let over = |seat: &&Seat| seat.link.ends_turn(LATE_TURNS * self.turn);
        self.seats.iter().filter(over).for_each(|seat| seat.kick(Requests::TURN));
    }

    /// Stops all vCPUs; fails, and lets them go on, when one does not come within the deadline.
    pub fn pause(&self, deadline: Duration) -> Result<Paused<'_>, PauseError> {
        Paused::stop(self, deadline)
    }

    /// Whether an INIT was taken away from a vCPU that was kept out of the guest.
    pub fn init_lost(&self, vcpu: usize) -> bool {
        self.shared.kept.get(vcpu).is_some_and(Kept::init_lost)
    }

    /// How often vCPUs were kicked.
    pub fn kicks(&self) -> KickCounters {
        self.seats.iter().map(|seat| seat.link.counters()).fold(KickCounters::default(), |sum, one| KickCounters {
            sent: sum.sent + one.sent,
            acknowledged: sum.acknowledged + one.acknowledged,
            stale: sum.stale + one.stale,
        })
    }
}

impl Drop for Machine {
    /// Ends all threads. One that does not come in time is left behind with its vCPU and the guest's memory, both its own.
    fn drop(&mut self) {
        self.shared.board.post(Order::Stop);
        self.seats.iter().for_each(|seat| seat.kick(Requests::ATTEND));
        let threads: Vec<_> = self.seats.iter_mut().filter_map(|seat| seat.thread.take()).collect();
        if self.shared.board.ended(threads.len(), END) {
            for thread in threads {
                // A thread that panicked has told so by an event.
                let _ = thread.handle.join();
            }
        }
    }
}

/// A machine of so many vCPUs can be made, and the boot block is one for it.
pub(crate) fn check_contract(host: &HostKvm, vcpus: usize, boot_block: &BootBlock) -> Result<(), CreateError> {
    check_vcpus(host, vcpus)?;
    match boot_block.vcpus {
        told if told as usize != vcpus => Err(CreateError::BootBlock { asked: vcpus, told }),
        _ => Ok(()),
    }
}

fn check_vcpus(host: &HostKvm, asked: usize) -> Result<(), CreateError> {
    let most = host.max_vcpus();
    if asked == 0 || asked > most { Err(CreateError::Vcpus { asked, most }) } else { Ok(()) }
}

/// A VM with local APICs in the kernel and nothing else of an irqchip: the whole one costs 6 to 12 ms (KVM api.rst 7.5).
pub(crate) fn create_vm(host: &HostKvm) -> Result<VmFd, CreateError> {
    let vm = host.create_vm().map_err(CreateError::Vm)?;
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&split).map_err(CreateError::Irqchip)?;
    Ok(vm)
}
