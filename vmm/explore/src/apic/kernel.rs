//! Local APICs as they are here against those in the kernel: the same operations, and after each the same registers.
//!
//! All that a payload does with its APIC is among them. A host that keeps no ISR (docs/hosts.md) cannot be compared in what that decides.

mod guest;

use std::time::{Duration, Instant};

use stallbench_abi::boot::{BootBlock, MAGIC, Range};
use stallbench_abi::knob::{self, apic};
use stallbench_abi::layout::{ARENA, ARENA_SIZE, GHOST, IMAGE, PAGE, SIPI_VECTOR, TRAMPOLINE, vector};
use stallbench_core::controlled::Controlled;
use stallbench_core::{Capture, HostKvm, Machine, MachineConfig};
use stallbench_state::machine::{MpState, VcpuState};
use stallbench_state::memory::Memory;

use super::{Apic, Message, command};
use crate::arena::{self, Arenas};
use crate::devices::{Devices, Served};
use crate::moment::{self, Moment};
use crate::real_kvm::host;
use crate::settings::Settings;
use crate::stage::Stage;
use crate::start;
use guest::Guest;
use guest::Operation::{self, EndNmi, Read, Send, Take, Write};

/// The class of a priority, which is all that decides. On SVM the rest of a TPR that a vCPU writes is lost: KVM keeps it as CR8 does
/// (docs/hosts.md).
const CLASS: u8 = 0xf0;

const VCPUS: usize = 3;
/// Vectors of two classes, two of each.
const VECTORS: [u8; 4] = [0x41, 0x42, 0x51, 0xfb];
/// Long enough for any host; no test waits so long unless it fails.
const DEADLINE: Duration = Duration::from_secs(60);

const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
/// Of the ICR: an NMI, and the shorthands (SDM 3A 11.6.1).
const ASSERT: u32 = 1 << 14;
const SEND_NMI: u32 = 0b100 << 8 | ASSERT;
const SEND_INIT: u32 = 0b101 << 8 | ASSERT;
const SEND_START_UP: u32 = 0b110 << 8 | ASSERT | SIPI_VECTOR as u32;
/// Of an INIT: that its level is meant.
const LEVEL: u32 = 1 << 15;
const TO_ITSELF: u32 = 0b01 << 18 | ASSERT;
const TO_ALL: u32 = 0b10 << 18 | ASSERT;
const TO_OTHERS: u32 = 0b11 << 18 | ASSERT;
/// The delivery status, which is all that a payload reads of the ICR.
const PENDING: u32 = 1 << 12;

/// APICs as they are here, and processors as far as it takes.
#[derive(Clone, Debug)]
struct Model {
    devices: Vec<Devices>,
    apics: Vec<Apic>,
    nmi_masked: Vec<bool>,
    /// NMIs that were taken.
    nmis: Vec<u32>,
    /// Which of them wait for a start-up interrupt.
    waits: Vec<bool>,
}

/// What a vCPU sees of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    read: Option<u32>,
    taken: Option<u8>,
}

impl Model {
    fn does(&mut self, vcpu: usize, operation: Operation) -> Seen {
        let mut seen = Seen::default();
        match operation {
            Operation::Write(register, value) => match self.devices[vcpu].write_apic(register, value) {
                Served::EndOfInterrupt => self.apics[vcpu].end_of_interrupt(),
                Served::Own => {}
                other => panic!("{other:?}"),
            },
            Operation::Send(low, destination) => {
                let icr = u64::from(destination) << 32 | u64::from(low);
                let x2apic = self.devices[vcpu].x2apic();
                if !x2apic {
                    assert!(matches!(self.devices[vcpu].write_apic(0x310, destination), Served::Own));
                }
                self.send(vcpu, command(icr, x2apic));
            }
            Operation::Read(register) => seen.read = self.devices[vcpu].read_apic(vcpu, register),
            Operation::Take => {
                seen.taken = self.apics[vcpu].deliverable(self.devices[vcpu].tpr);
                seen.taken.into_iter().for_each(|vector| self.apics[vcpu].accept(vector));
            }
            Operation::EndNmi => self.nmi_masked[vcpu] = false,
        }
        self.take_nmis();
        self.restart();
        seen
    }

    fn send(&mut self, sender: usize, (message, target): (Message, super::Target)) {
        assert!(message.is_known(), "{message:?}");
        for vcpu in (0..VCPUS).filter(|&vcpu| target.holds(vcpu, sender)) {
            self.apics[vcpu].receive(message, self.devices[vcpu].svr, self.waits[vcpu]);
        }
    }

    /// So are INITs and start-up interrupts.
    fn restart(&mut self) {
        for vcpu in 0..VCPUS {
            if self.apics[vcpu].init {
                self.apics[vcpu].reset();
                self.devices[vcpu] = self.devices[vcpu].after_init();
                (self.waits[vcpu], self.nmi_masked[vcpu]) = (true, false);
            }
            if self.waits[vcpu] && self.apics[vcpu].start_up.take().is_some() {
                self.waits[vcpu] = false;
            }
        }
    }

    /// The vCPUs run, so that an NMI is taken at once.
    fn take_nmis(&mut self) {
        for vcpu in 0..VCPUS {
            if self.apics[vcpu].nmi && !self.nmi_masked[vcpu] {
                (self.apics[vcpu].nmi, self.nmi_masked[vcpu]) = (false, true);
                self.nmis[vcpu] += 1;
            }
        }
    }
}

/// The same in a machine with APICs in the kernel.
struct Kernel {
    machine: Machine,
    x2apic: bool,
    code: Vec<u64>,
}

impl Kernel {
    /// A machine in that moment.
    fn at(host: &HostKvm, moment: &Moment, code: Vec<u64>, x2apic: bool) -> Self {
        let config = MachineConfig::new(VCPUS);
        let mut machine = Machine::resumed(host, &config, &moment.machine, &moment.memory).expect("a machine");
        machine.start().expect("threads");
        Self { machine, x2apic, code }
    }

    /// Has a vCPU do the operation of that number; the vCPUs have taken so many NMIs then, and these wait for a start-up interrupt.
    fn does(&self, vcpu: usize, number: usize, nmis: &[u32], waits: &[bool]) -> (Seen, Vec<VcpuState>) {
        let mailbox = guest::mailbox(vcpu);
        let pause = || self.machine.pause(DEADLINE).expect("all stop");
        let paused = pause();
        let words = [(guest::TAKEN, 0), (guest::READ, 0), (guest::COMMAND, self.code[number] as u32)];
        assert!(words.into_iter().all(|(at, word)| paused.write_u32(mailbox + at, word)));
        paused.resume();
        self.wait(|| self.word(mailbox + guest::COMMAND) == 0, &format!("the end of operation {number}"));
        // A vCPU that has nothing to do may not have had the CPU since.
        self.wait(|| self.nmis() == nmis, &format!("the nmis of operation {number}"));
        let is_waiting = |vcpu: &VcpuState| vcpu.mp_state == Ok(MpState::InitReceived);
        self.wait(
            || pause().capture(Capture::Control).vcpus.iter().map(is_waiting).eq(waits.iter().copied()),
            &format!("the restarts of operation {number}"),
        );
        let state = pause().capture(Capture::Control);
        // At most 8 bits.
        let taken = Some(self.word(mailbox + guest::TAKEN) as u8).filter(|taken| *taken != 0);
        (Seen { read: Some(self.word(mailbox + guest::READ)), taken }, state.vcpus)
    }

    fn wait(&self, is_so: impl Fn() -> bool, what: &str) {
        let end = Instant::now() + DEADLINE;
        while !is_so() {
            assert_eq!(self.machine.next_event(Duration::from_micros(200)), None, "no event before {what}");
            assert!(Instant::now() < end, "{what} in time");
            self.machine.enforce_turns();
        }
    }

    /// NMIs that each vCPU has taken.
    fn nmis(&self) -> Vec<u32> {
        (0..VCPUS).map(|vcpu| self.word(guest::mailbox(vcpu) + guest::NMIS)).collect()
    }

    fn word(&self, address: u64) -> u32 {
        self.machine.memory().read_u64(address).expect("the arena is memory") as u32
    }
}

/// Registers of a local APIC and what is pending, as far as both know them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    requested: [u32; 8],
    in_service: Option<[u32; 8]>,
    priority: Option<u8>,
    tpr: u32,
    svr: u32,
    destination: Option<u32>,
    nmi: (bool, bool, u32),
    waits: bool,
    x2apic: bool,
}

/// What of a host's APICs can be compared.
#[derive(Clone, Debug)]
struct Compared {
    /// What is in service: a host may keep no ISR (docs/hosts.md).
    service: bool,
    /// The processor priority, by vCPU. Where a vCPU writes its TPR with no exit (SDM 3C 31.1.2, TPR shadow), KVM keeps the old one until the vCPU takes or ends
    /// an interrupt.
    priority: [bool; VCPUS],
}

impl Compared {
    fn behind(&mut self, vcpu: usize, operation: Operation, seen: Seen) {
        match operation {
            Operation::Write(TPR, _) => self.priority[vcpu] = false,
            Operation::Write(EOI, _) => self.priority[vcpu] = true,
            _ => self.priority[vcpu] |= seen.taken.is_some(),
        }
    }
}

fn modelled(model: &Model, vcpu: usize, compared: &Compared) -> Known {
    let (apic, devices) = (&model.apics[vcpu], &model.devices[vcpu]);
    // The higher class wins, with the low half of the TPR where that has it (SDM 3A 11.8.3.1).
    let in_service = super::highest(&apic.isr).unwrap_or(0) & 0xf0;
    let priority = if devices.tpr >> 4 >= in_service >> 4 { devices.tpr } else { in_service };
    Known {
        requested: apic.irr,
        in_service: compared.service.then_some(apic.isr),
        priority: (compared.service && compared.priority[vcpu]).then_some(priority & CLASS),
        tpr: (devices.tpr & CLASS).into(),
        svr: devices.svr,
        destination: (!devices.x2apic()).then_some(devices.icr_high),
        nmi: (apic.nmi, model.nmi_masked[vcpu], model.nmis[vcpu]),
        waits: model.waits[vcpu],
        x2apic: devices.x2apic(),
    }
}

fn real(kernel: &Kernel, vcpu: &VcpuState, compared: &Compared) -> Known {
    let apic = vcpu.apic.as_ref().expect("its local APIC");
    let events = vcpu.events.as_ref().expect("its events");
    Known {
        requested: apic.irr,
        in_service: compared.service.then_some(apic.isr),
        // 8 bits.
        priority: (compared.service && compared.priority[vcpu.index]).then_some(apic.ppr as u8 & CLASS),
        tpr: apic.tpr & u32::from(CLASS),
        svr: apic.svr,
        destination: (!kernel.x2apic).then_some((apic.icr >> 32) as u32),
        nmi: (events.nmi_pending > 0, events.nmi_masked, kernel.word(guest::mailbox(vcpu.index) + guest::NMIS)),
        waits: vcpu.mp_state == Ok(MpState::InitReceived),
        x2apic: vcpu.system.as_ref().expect("its system registers").apic_base & 1 << 10 != 0,
    }
}

/// A machine that was brought up, with another guest in the place of its own.
fn moment(host: &HostKvm, x2apic: bool, guest: &Guest, table: &[u8]) -> (Moment, Vec<Devices>) {
    let program = stallbench_image::program();
    let mut machine = Controlled::new(host, VCPUS, program.bytes(), &boot_block(x2apic)).expect("a machine");
    let standing = start::bring_up(&mut machine).expect("the start line");
    let arenas = Arenas::new(arena::copy(machine.memory()));
    let (mut stage, locals) = Stage::new(machine, program, standing, &Settings::default()).expect("a stage");
    let pieces = [(IMAGE, guest.code()), (guest::TABLE, table), (TRAMPOLINE, guest::STARTED)];
    assert!(pieces.into_iter().all(|(at, bytes)| stage.machine().write(at, bytes)));
    for vcpu in 0..VCPUS {
        assert!(stage.machine().write(guest::mailbox(vcpu), &guest::empty_mailbox(vcpu)));
    }
    let mut moment = moment::moment(&mut stage, &locals, &[Apic::default(); VCPUS], &arenas, 0);
    for (vcpu, state) in moment.machine.vcpus.iter_mut().enumerate() {
        state.registers = Ok(guest::registers(vcpu));
        state.mp_state = Ok(MpState::Runnable);
    }
    let devices = locals.iter().enumerate().map(|(vcpu, number)| stage.local(vcpu, *number).devices.clone());
    (moment, devices.collect())
}

fn boot_block(x2apic: bool) -> BootBlock {
    let mut block = BootBlock {
        magic: MAGIC,
        version: stallbench_abi::VERSION,
        vcpus: VCPUS as u32,
        arena: Range { base: ARENA, size: ARENA_SIZE },
        ghost: Range { base: GHOST, size: PAGE },
        ..BootBlock::default()
    };
    block.knobs[knob::APIC.number as usize] = u64::from(if x2apic { apic::X2APIC } else { apic::XAPIC });
    block
}

/// What vCPUs do, one after the other: which vCPU, and what.
type Way = Vec<(usize, Operation)>;

/// How a mode writes destinations: of one vCPU.
fn to(x2apic: bool, vcpu: u32) -> u32 {
    if x2apic { vcpu } else { vcpu << 24 }
}

/// The lower half of an ICR that sends that vector.
fn fixed(vector: u8) -> u32 {
    ASSERT | u32::from(vector)
}

/// Requests merge, and the highest comes first; a class that is in service waits, a higher one does not, and the end is that of the highest.
fn requests(x2apic: bool) -> Way {
    let mut way = vec![
        (0, Send(fixed(0x41), to(x2apic, 1))),
        (2, Send(fixed(0x41), to(x2apic, 1))),
        (0, Send(fixed(0x42), to(x2apic, 1))),
        (1, Send(TO_ITSELF | 0x51, 0)),
        (1, Take),
        (0, Send(fixed(0x51), to(x2apic, 1))),
        (0, Send(fixed(0xfb), to(x2apic, 1))),
        (1, Take),
        (1, Write(EOI, 0)),
    ];
    way.extend([(1, Write(EOI, 0)), (1, Take)].repeat(4));
    // One that ends where none is in service.
    way.push((1, Write(EOI, 0)));
    way
}

/// All, all others, everybody by number, and nobody.
fn shorthands(x2apic: bool) -> Way {
    let everybody = if x2apic { u32::MAX } else { 0xff << 24 };
    vec![
        (2, Send(TO_ALL | 0x41, 0)),
        (2, Send(TO_OTHERS | 0xfb, 0)),
        (0, Send(fixed(0x42), everybody)),
        (0, Send(fixed(0x42), to(x2apic, 7))),
        (0, Take),
        (1, Take),
        (2, Take),
    ]
}

/// The priority of the task holds back its class.
fn task_priority(x2apic: bool) -> Way {
    vec![
        (1, Send(fixed(0x41), to(x2apic, 0))),
        (1, Send(fixed(0x42), to(x2apic, 0))),
        (1, Send(fixed(0xfb), to(x2apic, 0))),
        (0, Write(TPR, 0x40)),
        (0, Read(TPR)),
        (0, Take),
        (0, Write(EOI, 0)),
        (0, Take),
        (0, Write(TPR, 0x3f)),
        (0, Take),
        (0, Write(EOI, 0)),
        (0, Write(TPR, 0)),
        (0, Take),
        (0, Write(EOI, 0)),
    ]
}

/// An APIC that is off takes nothing new.
fn off(x2apic: bool) -> Way {
    vec![
        (0, Send(fixed(0x41), to(x2apic, 2))),
        (2, Read(SVR)),
        (2, Write(SVR, 0xff)),
        (0, Send(fixed(0x51), to(x2apic, 2))),
        (2, Write(SVR, 0x1ff)),
        (2, Take),
        (2, Write(EOI, 0)),
        (2, Take),
    ]
}

/// One NMI is handled, one more is kept.
fn nmis(x2apic: bool) -> Way {
    vec![
        (0, Send(SEND_NMI, to(x2apic, 1))),
        (2, Send(SEND_NMI, to(x2apic, 1))),
        (0, Send(SEND_NMI, to(x2apic, 1))),
        (1, EndNmi),
        (1, EndNmi),
        (1, Send(TO_ALL | SEND_NMI, 0)),
        (0, EndNmi),
        (2, EndNmi),
        (1, EndNmi),
    ]
}

/// What is read of an APIC in its page.
fn registers(x2apic: bool) -> Way {
    if x2apic {
        return vec![(1, Read(TPR)), (1, Read(SVR))];
    }
    vec![(1, Read(0x20)), (1, Read(ICR_LOW)), (1, Read(0x310)), (2, Write(0x310, 1 << 24))]
}

/// Nor is a priority left by an INIT.
fn restart_with_priority(x2apic: bool) -> Way {
    vec![
        (2, Write(TPR, 0x60)),
        (0, Send(fixed(0x51), to(x2apic, 2))),
        (0, Send(SEND_INIT, to(x2apic, 2))),
        (0, Send(SEND_START_UP, to(x2apic, 2))),
    ]
}

/// An INIT leaves nothing of what was requested, and an APIC that is off. Nobody does anything else from there.
fn restarts(x2apic: bool) -> Way {
    vec![
        (0, Send(fixed(0x51), to(x2apic, 2))),
        (0, Send(SEND_INIT, to(x2apic, 2))),
        (0, Send(fixed(0x51), to(x2apic, 2))),
        (1, Send(SEND_INIT | LEVEL, to(x2apic, 2))),
        // The end of that level is nothing.
        (1, Send(SEND_INIT & !ASSERT | LEVEL, to(x2apic, 2))),
        (0, Send(SEND_START_UP, to(x2apic, 2))),
        // One more is lost, and no INIT behind it finds it.
        (0, Send(SEND_START_UP, to(x2apic, 2))),
        (0, Send(SEND_INIT, to(x2apic, 2))),
        (0, Send(SEND_INIT | TO_OTHERS, 0)),
        (0, Send(SEND_START_UP | TO_OTHERS, 0)),
    ]
}

/// In both modes.
fn assert_agrees(way: fn(bool) -> Way) {
    let Some(host) = host() else { return };
    [false, true].into_iter().for_each(|x2apic| assert_agrees_in(&host, x2apic, &way(x2apic)));
}

fn assert_agrees_in(host: &HostKvm, x2apic: bool, operations: &[(usize, Operation)]) {
    let vectors: Vec<_> = VECTORS.into_iter().chain([vector::NMI]).collect();
    let (mut guest, table) = Guest::new(x2apic, &vectors);
    let code: Vec<_> = operations.iter().map(|(_, operation)| guest.operation(*operation)).collect();
    let (moment, devices) = moment(host, x2apic, &guest, &table);
    assert!(devices.iter().all(|devices| devices.x2apic() == x2apic && devices.svr == 0x1ff), "{devices:?}");
    let kernel = Kernel::at(host, &moment, code, x2apic);
    let mut model = Model {
        devices,
        apics: vec![Apic::default(); VCPUS],
        nmi_masked: vec![false; VCPUS],
        nmis: vec![0; VCPUS],
        waits: vec![false; VCPUS],
    };
    let mut compared = Compared { service: true, priority: [true; VCPUS] };
    for (number, &(vcpu, operation)) in operations.iter().enumerate() {
        let before = model.clone();
        let expected = model.does(vcpu, operation);
        let (seen, state) = kernel.does(vcpu, number, &model.nmis, &model.waits);
        let what = format!("{number}: {operation:?} of vcpu {vcpu}, x2apic {x2apic}, before: {:x?}", before.apics);
        compared.service &= expected.taken.is_none() || state[vcpu].apic.as_ref().expect("its APIC").isr != [0; 8];
        if operation == Operation::Take && !compared.service && before.apics[vcpu].isr != [0; 8] {
            // What comes before the EOI is that host's own: here as if it had not been in service.
            model.apics[vcpu] = Apic { isr: [0; 8], ..before.apics[vcpu] };
            model.does(vcpu, operation);
            model.apics[vcpu].isr.iter_mut().zip(before.apics[vcpu].isr).for_each(|(now, was)| *now |= was);
        } else {
            assert_eq!(seen.taken, expected.taken, "{what}");
        }
        if let Operation::Read(register) = operation {
            let of_interest = if register == ICR_LOW { PENDING } else { u32::MAX };
            assert_eq!(seen.read.map(|it| it & of_interest), expected.read.map(|it| it & of_interest), "{what}");
        }
        compared.behind(vcpu, operation, seen);
        for (vcpu, state) in state.iter().enumerate() {
            let [model, real] = [modelled(&model, vcpu, &compared), real(&kernel, state, &compared)];
            assert_eq!(model, real, "vcpu {vcpu} behind {what}");
        }
    }
    if !compared.service {
        eprintln!("this host keeps no ISR: interrupts in service were not compared");
    }
}

#[test]
fn requests_are_those_of_the_kernel() {
    assert_agrees(requests);
}

#[test]
fn shorthands_are_those_of_the_kernel() {
    assert_agrees(shorthands);
}

#[test]
fn task_priority_is_that_of_the_kernel() {
    assert_agrees(task_priority);
}

#[test]
fn apic_that_is_off_is_that_of_the_kernel() {
    assert_agrees(off);
}

#[test]
fn nmis_are_those_of_the_kernel() {
    assert_agrees(nmis);
}

#[test]
fn registers_are_those_of_the_kernel() {
    assert_agrees(registers);
}

#[test]
fn restarts_are_those_of_the_kernel() {
    assert_agrees(restarts);
}

#[test]
fn restart_with_priority_is_that_of_the_kernel() {
    assert_agrees(restart_with_priority);
}
