//! A machine made up by hand: captured state and guest memory, no KVM.

use core::mem::offset_of;
use core::time::Duration;

use stallbench_abi::Plain;
use stallbench_abi::boot::BootBlock;
use stallbench_abi::event::{Event, EventKind};
use stallbench_abi::fault::{Fault, FaultKind};
use stallbench_abi::image::SiteKind;
use stallbench_abi::layout::{ARENA, BOOT_BLOCK, PAUSE, private, private_area};
use stallbench_abi::pause::{HoldState, Point};
use stallbench_abi::vcpu::{Context, ContextKind, Frame, Need, Phase, Until, VcpuPage, Wait};
use stallbench_state::apic::LocalApic;
pub(crate) use stallbench_state::machine::RFLAGS_IF as IF;
use stallbench_state::machine::{Events, MachineState, MpState, Registers, VcpuState};
use stallbench_state::memory::Snippet;
use stallbench_state::program::SiteInfo;
use stallbench_state::published::Published;

use crate::analysis::{Analysis, Declared, View};
use crate::code::Code;
use crate::conclude::{Ran, conclude};
use crate::report::Stall;

/// Where [`World::runs`] puts a vCPU.
pub(crate) const ELSEWHERE: u64 = 0x11_8000;
/// As long as any vCPU has to run.
pub(crate) const RAN: Ran = Ran { time: Duration::from_millis(1), entries: 1 };
/// Where pause points lie: memory that nothing else of these machines uses.
const POINTS: u64 = ARENA - 0x10_0000;
const SPINS: u64 = 0x11_0000;
const SITES: u64 = 0x10_0000;

/// Sites of the made-up code, by function and step.
pub(crate) struct Sites(Vec<SiteInfo>);

impl Sites {
    fn new() -> Self {
        let table = [
            ("call_many", "", "flag WAIT of record", SiteKind::COMPLETION),
            ("call_single", "", "flag RELEASE of record", SiteKind::ACCEPTANCE),
            ("csd_lock", "", "flag LOCK of record", SiteKind::RECORD),
            ("set_mtrr", "A3", "count", SiteKind::COUNT),
            ("ipi_handler", "B3", "gate", SiteKind::GATE),
            ("spin_lock", "", "lock", SiteKind::LOCK),
            ("bring_up", "", "vCPUs missing", SiteKind::BRING_UP),
            ("send", "", "delivery status", SiteKind::APIC),
            ("pause_point", "", "leave to go on", SiteKind::HOLD),
        ];
        let site = |(i, (function, step, word, kind)): (usize, (&str, &str, &str, SiteKind))| SiteInfo {
            address: SITES + 96 * i as u64,
            function: function.into(),
            step: step.into(),
            word: word.into(),
            kind,
        };
        Self(table.into_iter().enumerate().map(site).collect())
    }

    fn index(&self, function: &str) -> usize {
        self.0.iter().position(|site| site.function == function).expect("a site of the table")
    }
}

impl Code for Sites {
    fn site_at(&self, descriptor: u64) -> Option<&SiteInfo> {
        self.0.iter().find(|site| site.address == descriptor)
    }

    fn site_of_rip(&self, rip: u64) -> Option<&SiteInfo> {
        self.0.get(usize::try_from(rip.checked_sub(SPINS)? / 0x20).ok()?)
    }

    fn symbol(&self, _: u64) -> Option<(String, u64)> {
        None
    }
}

/// A wait to be set up.
#[derive(Clone, Copy)]
pub(crate) struct Spin<'s> {
    pub(crate) site: &'s str,
    /// Which word of the arena.
    pub(crate) word: u64,
    /// What lies there.
    pub(crate) holds: u32,
    pub(crate) mask: u32,
    pub(crate) until: Until,
    pub(crate) value: u32,
    pub(crate) need: Need,
    pub(crate) awaits: &'s [usize],
    pub(crate) asynchronous: bool,
    pub(crate) call: u64,
    pub(crate) rflags: u64,
    /// The object that the word is part of, as a generation; its address is that of the word.
    pub(crate) generation: u32,
}

impl Default for Spin<'_> {
    fn default() -> Self {
        Self {
            site: "ipi_handler",
            word: 0,
            holds: 0,
            mask: !0,
            until: Until::EQUAL,
            value: 1,
            need: Need::ANY,
            awaits: &[],
            asynchronous: false,
            call: 0,
            rflags: 0,
            generation: 0,
        }
    }
}

/// The machine.
pub(crate) struct World {
    pub(crate) code: Sites,
    pub(crate) machine: MachineState,
    pub(crate) memory: Snippet,
    pub(crate) declared: Declared,
    clock: u64,
}

impl World {
    /// All vCPUs have done their part and halt with interrupts on.
    pub(crate) fn new(vcpus: usize) -> Self {
        let size = private(vcpus) - BOOT_BLOCK;
        let mut world = Self {
            code: Sites::new(),
            machine: MachineState { vcpus: (0..vcpus).map(idle).collect() },
            memory: Snippet { base: BOOT_BLOCK, bytes: vec![0; size as usize] },
            declared: Declared::default(),
            clock: 0,
        };
        for vcpu in 0..vcpus {
            world.edit(vcpu, |page| page.phase = Phase::FINISHED);
        }
        world
    }

    pub(crate) fn put(&mut self, address: u64, value: &impl Plain) {
        let at = (address - self.memory.base) as usize;
        value.write(&mut self.memory.bytes[at..]).expect("the arena is large enough");
    }

    pub(crate) fn edit(&mut self, vcpu: usize, change: impl FnOnce(&mut VcpuPage)) {
        let at = (private(vcpu) - self.memory.base) as usize;
        let mut page = VcpuPage::read(&self.memory.bytes[at..]).expect("the page is there");
        change(&mut page);
        self.put(private(vcpu), &page);
    }

    pub(crate) fn state(&mut self, vcpu: usize) -> &mut VcpuState {
        &mut self.machine.vcpus[vcpu]
    }

    /// The vCPU spins in its task.
    pub(crate) fn waits(&mut self, vcpu: usize, spin: Spin<'_>) {
        let wait = self.publish(vcpu, 0, ContextKind::TASK, spin);
        self.spins(vcpu, &wait, spin.rflags);
    }

    /// The vCPU spins in a handler that interrupted its idling.
    pub(crate) fn waits_in_handler(&mut self, vcpu: usize, spin: Spin<'_>) {
        let wait = self.publish(vcpu, 1, ContextKind::IRQ, spin);
        self.spins(vcpu, &wait, spin.rflags);
    }

    /// A handler interrupted the wait of the task that was set up before.
    pub(crate) fn interrupted(&mut self, vcpu: usize) {
        let r = *self.state(vcpu).registers.as_ref().expect("a state that was made up");
        let address = private(vcpu) + private_area::TASK_STACK;
        let (rdi, rsi, r8, rip, rflags) = (r.rdi, r.rsi, r.r8, r.rip, r.rflags);
        self.put(address, &Frame { rdi, rsi, r8, rip, rflags, ..Frame::default() });
        self.edit(vcpu, |page| {
            page.depth = 1;
            page.contexts[1] = Context { kind: ContextKind::IRQ, frame: address, ..Context::default() };
        });
    }

    fn publish(&mut self, vcpu: usize, depth: usize, kind: ContextKind, spin: Spin<'_>) -> Wait {
        let mut awaits = [0; 4];
        spin.awaits.iter().for_each(|&awaited| awaits[awaited / 64] |= 1 << (awaited % 64));
        let wait = Wait {
            active: 1,
            until: spin.until,
            site: self.code.0[self.code.index(spin.site)].address,
            address: ARENA + 4 * spin.word,
            mask: spin.mask,
            value: spin.value,
            need: spin.need,
            asynchronous: u32::from(spin.asynchronous),
            record_call: spin.call,
            call: spin.call,
            awaits,
            record: if spin.generation == 0 { 0 } else { ARENA + 4 * spin.word },
            generation: spin.generation,
            ..Wait::default()
        };
        self.put(wait.address, &spin.holds);
        self.edit(vcpu, |page| {
            page.phase = Phase::CASE;
            page.depth = depth as u32;
            let frame = page.contexts[depth].frame;
            page.contexts[depth] = Context { kind, frame, wait, ..Context::default() };
        });
        wait
    }

    fn spins(&mut self, vcpu: usize, wait: &Wait, rflags: u64) {
        let rip = SPINS + 0x20 * ((wait.site - SITES) / 96) + 4;
        let (rdi, rsi, r8) = (wait.address, u64::from(wait.mask), u64::from(wait.value));
        self.state(vcpu).mp_state = Ok(MpState::Runnable);
        self.state(vcpu).registers = Ok(Registers { rip, rdi, rsi, r8, rflags, ..Registers::default() });
    }

    /// The vCPU runs outside any wait.
    pub(crate) fn runs(&mut self, vcpu: usize) {
        self.state(vcpu).mp_state = Ok(MpState::Runnable);
        self.state(vcpu).registers = Ok(Registers { rip: ELSEWHERE, rflags: IF, ..Registers::default() });
    }

    pub(crate) fn pending(&mut self, vcpu: usize, vector: u8) {
        let apic = self.state(vcpu).apic.as_mut().expect("a state that was made up");
        apic.irr[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    pub(crate) fn event(&mut self, vcpu: usize, kind: EventKind, arg: u32, a: u64, b: u64) {
        self.clock += 1;
        let event = Event { clock: self.clock, kind, arg, a, b, ..Event::default() };
        let mut number = 0;
        self.edit(vcpu, |page| {
            number = page.events;
            page.events += 1;
        });
        self.put(private(vcpu) + private_area::RING + 32 * number, &event);
    }

    /// A fault of the scenario, as the host declares it to the guest.
    pub(crate) fn fault(&mut self, kind: FaultKind, to: u32) {
        let mut block = BootBlock::read(&self.memory.bytes).expect("the boot block comes first");
        block.faults[block.fault_count as usize] = Fault { kind, to, ..Fault::default() };
        block.fault_count += 1;
        self.put(BOOT_BLOCK, &block);
    }

    /// The vCPU is held at a pause point of that name.
    pub(crate) fn held(&mut self, vcpu: usize, name: &str) {
        let point = POINTS + 0x40 * vcpu as u64;
        let mut block = BootBlock::read(&self.memory.bytes).expect("the boot block comes first");
        block.holds[0].at.point = point;
        self.put(BOOT_BLOCK, &block);
        let mut field = Point::default();
        field.name[..name.len()].copy_from_slice(name.as_bytes());
        self.put(point, &field);
        self.waits(vcpu, Spin { site: "pause_point", word: 0, value: 1, ..Spin::default() });
        let word = PAUSE + offset_of!(HoldState, released) as u64;
        self.edit(vcpu, |page| page.contexts[0].wait.address = word);
        self.state(vcpu).registers.as_mut().expect("a state that was made up").rdi = word;
    }

    pub(crate) fn published(&self) -> Published {
        Published::read(&self.memory, self.machine.vcpus.len())
    }

    pub(crate) fn analysis<'w>(&'w self, published: &'w Published) -> Analysis<'w> {
        Analysis::of(View {
            code: &self.code,
            machine: &self.machine,
            memory: &self.memory,
            published,
            declared: self.declared,
        })
    }

    /// The verdict of two captures that show this machine.
    pub(crate) fn stall(&self) -> Option<Stall> {
        let published = self.published();
        let ran = vec![RAN; self.machine.vcpus.len()];
        conclude(&self.analysis(&published), &self.analysis(&published), &ran, Duration::from_micros(200))
    }
}

fn idle(index: usize) -> VcpuState {
    VcpuState {
        index,
        registers: Ok(Registers { rip: ELSEWHERE, rflags: IF, ..Registers::default() }),
        system: Ok(Default::default()),
        apic: Ok(LocalApic { id: index as u32, svr: 0x1ff, lvt_timer: 1 << 16, ..LocalApic::default() }),
        events: Ok(Events::default()),
        mp_state: Ok(MpState::Halted),
        mtrr: None,
        msrs: None,
        ran: Duration::ZERO,
    }
}
