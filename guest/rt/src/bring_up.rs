//! From one vCPU to all, to the start line, to the case, to idling.

use core::sync::atomic::Ordering;

use stallbench_abi::boot::MAGIC;
use stallbench_abi::knob;
use stallbench_abi::layout::SIPI_VECTOR;
use stallbench_abi::port::{DOORBELL, Doorbell};
use stallbench_abi::vcpu::Phase;

use crate::mask::Mask;
use crate::wait::Condition;
use crate::{apic, arena, boot, cpu, fault, this, wait_until};

/// What a payload does on each vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// Places what vCPUs share. vCPU 0, before the others are up.
    pub place: fn(),
    /// Sets the handlers of this vCPU.
    pub handlers: fn(),
    /// Whether interrupts can be sent to this vCPU.
    pub online: fn(usize) -> bool,
    /// This vCPU's part of the case. It begins with interrupts off, but for the initiator's and that of vCPU 0: [`take_part`].
    pub case: fn(),
    /// Work that this vCPU has when it idles, with interrupts off: whether there may be more.
    pub idle: fn() -> bool,
}

/// The life of a vCPU.
pub fn run(vcpu: usize, payload: &Payload) -> ! {
    this::enter_phase(Phase::BOOTING);
    apic::enable();
    (payload.handlers)();
    if vcpu == 0 {
        check_boot_block();
        arena::set_up();
        (payload.place)();
    }
    come_online(vcpu, payload);
    if vcpu == 0 {
        cpu::enable_interrupts();
        start_others();
    }
    this::enter_phase(Phase::ONLINE);
    if this::is_initiator() {
        take_part();
        wait_for_start();
    }
    this::enter_phase(Phase::CASE);
    (payload.case)();
    this::enter_phase(Phase::FINISHED);
    if this::is_initiator() {
        cpu::out(DOORBELL, Doorbell::DONE.0);
    }
    idle(payload)
}

fn check_boot_block() {
    let block = boot::block();
    assert!(block.magic == MAGIC, "no boot block");
    assert!(block.version == stallbench_abi::VERSION, "the boot block is of contract version {}", block.version);
}

fn come_online(vcpu: usize, payload: &Payload) {
    let root = arena::root();
    if (payload.online)(vcpu) {
        root.online.insert(vcpu);
    }
    if vcpu != 0 {
        root.missing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All of the others, and the start line once the last of them is up.
fn start_others() {
    let mut started = Mask::default();
    (1..boot::vcpus()).filter(|&vcpu| !fault::keeps_from_starting(vcpu)).for_each(|vcpu| started.insert(vcpu));
    start(started);
    cpu::out(DOORBELL, Doorbell::START_LINE.0);
    arena::root().started.store(1, Ordering::SeqCst);
}

/// INIT, SIPI, SIPI to each of them (SDM 3A 9.4.4), without the delays that hardware of the 1990s needed, and waits until the last
/// of them is up.
fn start(vcpus: Mask) {
    let root = arena::root();
    root.missing.store(vcpus.count(), Ordering::SeqCst);
    for vcpu in vcpus.iter() {
        apic::send_init(vcpu);
        apic::send_startup(vcpu, SIPI_VECTOR);
        if boot::word(&knob::SIPIS) == knob::sipis::TWO {
            apic::send_startup(vcpu, SIPI_VECTOR);
        }
    }
    wait_until!("bring_up", "", "vCPUs missing", BRING_UP, Condition::of(&root.missing, 0).count(vcpus), equal);
}

/// Starts a vCPU that is up, and has nothing to do, once more: it comes to its case again.
pub fn start_again(vcpu: usize) {
    arena::root().online.remove(vcpu);
    start(Mask::one(vcpu));
}

/// Takes interrupts from here on, as whoever has a part of the case does first. One that has none takes its first where it halts, of
/// which there is one place: what comes to it on its way there would be another schedule for each instruction, and none that differs
/// in what it shows.
pub fn take_part() {
    // Behind an STI that changes nothing a processor holds back no interrupt (SDM 2B, STI), and KVM's emulator does.
    if !cpu::takes_interrupts() {
        cpu::enable_interrupts();
    }
}

/// Waits until all vCPUs are up. The initiator has done so when its case begins; the others, that begin when they are up
/// themselves, do it where they are about to reach all.
pub fn wait_for_start() {
    let started = Condition::of(&arena::root().started, 1).any(Mask::one(0));
    wait_until!("start_line", "", "start", BRING_UP, started, equal);
}

/// Halts whenever there is nothing to do; interrupts do the rest.
fn idle(payload: &Payload) -> ! {
    loop {
        // Both ways on from here turn them on.
        let _ = cpu::disable_interrupts();
        if (payload.idle)() {
            cpu::enable_interrupts();
            continue;
        }
        this::set_idle(true);
        cpu::enable_interrupts_and_halt();
        this::set_idle(false);
    }
}
