//! A machine made up by hand, for unit tests: two vCPUs of the built-in image, each in a spin for a word that the other owes it.

pub(crate) mod live;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use stallbench_abi::Plain;
use stallbench_abi::boot::{BootBlock, MAGIC};
use stallbench_abi::event::{Event, EventKind};
use stallbench_abi::layout::{self, ARENA, BOOT_BLOCK, GHOST, PAGE, private, private_area};
use stallbench_abi::shared::GhostPage;
use stallbench_abi::vcpu::{Context, ContextKind, Need, Phase, Until, VcpuPage, Wait};
use stallbench_state::apic::LocalApic;
use stallbench_state::dump::About;
use stallbench_state::machine::{
    DescriptorTable, Events, MachineState, MpState, RFLAGS_IF, Registers, Segment, SystemRegisters, Unread, VcpuState,
};
use stallbench_state::memory::Memory;
use stallbench_state::mtrr::MtrrState;

use crate::answer::Answer;
use crate::error::CommandError;
use crate::session::Session;
pub(crate) use crate::style::plain;
use crate::target::Target;

/// The words that the vCPUs wait for, by vCPU: to become 0, each in the arena.
pub(crate) const WORDS: [u64; 2] = [ARENA + 0xe0, ARENA + 0x100];

/// Where vCPU 0 is.
pub(crate) fn rip() -> u64 {
    stallbench_image::program().ranges()[0].start
}

/// A machine in memory.
pub(crate) struct Machine {
    about: About,
    pub(crate) machine: MachineState,
    pub(crate) memory: Pages,
    pub(crate) payload: Vec<u8>,
}

/// Guest memory by pages; those that were never written are there, and zero, up to the end of the machine.
#[derive(Default)]
pub(crate) struct Pages(BTreeMap<u64, Vec<u8>>);

impl Pages {
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            self.0.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize])[(at % PAGE) as usize] = *byte;
        }
    }

    pub(crate) fn put<T: Plain>(&mut self, address: u64, value: &T) {
        let mut bytes = vec![0; T::SIZE];
        value.write(&mut bytes).expect("as long as it is");
        self.write(address, &bytes);
    }
}

impl Memory for Pages {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let ends = address.checked_add(bytes.len() as u64).is_some_and(|end| end <= layout::memory_end(2));
        let mut done = 0;
        while ends && done < bytes.len() {
            let (page, within) = ((address + done as u64) / PAGE, ((address + done as u64) % PAGE) as usize);
            let length = (PAGE as usize - within).min(bytes.len() - done);
            match self.0.get(&page) {
                Some(page) => bytes[done..done + length].copy_from_slice(&page[within..within + length]),
                None => bytes[done..done + length].fill(0),
            }
            done += length;
        }
        ends
    }
}

impl Target for Machine {
    fn about(&self) -> &About {
        &self.about
    }

    fn machine(&self) -> &MachineState {
        &self.machine
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn filled(&self) -> Vec<Range<u64>> {
        self.memory.0.keys().map(|page| page * PAGE..(page + 1) * PAGE).collect()
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn is_live(&self) -> bool {
        false
    }
}

/// The machine.
pub(crate) fn machine() -> Machine {
    let program = stallbench_image::program();
    let mut memory = Pages::default();
    for segment in program.segments() {
        memory.write(segment.address, &program.bytes()[segment.file.clone()]);
    }
    memory.put(BOOT_BLOCK, &BootBlock { magic: MAGIC, version: 2, vcpus: 2, seed: 7, ..BootBlock::default() });
    memory.put(GHOST, &GhostPage { event_clock: 2, calls: 1, ..GhostPage::default() });
    let vcpus = (0..2).map(|index| vcpu(index, &mut memory)).collect();
    let about = About { tool: "0.0.0".into(), run: "sample/deadlock@vcpus=2".into(), ..About::default() };
    Machine { about, machine: MachineState { vcpus }, memory, payload: program.bytes().to_vec() }
}

/// A session on it.
pub(crate) fn session() -> Session {
    Session::new(Box::new(machine()))
}

/// What the commands of a line answer, the last of them.
pub(crate) fn answer(session: &mut Session, line: &str) -> Result<Answer, CommandError> {
    let mut last = Err(CommandError::OpenQuote { line: "nothing was asked".into() });
    for words in crate::line::commands(line)? {
        last = session.run(&words);
    }
    last
}

/// The text that a line leads to on the machine made up here, without colours.
pub(crate) fn text(line: &str) -> String {
    plain(&answer(&mut session(), line).expect("it has an answer").text)
}

/// The one line that it leads to where it has no answer.
pub(crate) fn refusal(line: &str) -> String {
    answer(&mut session(), line).expect_err("it has no answer").to_string()
}

/// A session on that machine after something was done to it.
pub(crate) fn session_with(change: impl FnOnce(&mut Machine)) -> Session {
    let mut machine = machine();
    change(&mut machine);
    Session::new(Box::new(machine))
}

/// A group that could not be read.
pub(crate) fn unread<T>(what: &'static str) -> Result<T, Unread> {
    Err(Unread { what: what.into(), reason: "EIO".into() })
}

fn vcpu(index: usize, memory: &mut Pages) -> VcpuState {
    let range = stallbench_image::program().ranges()[index];
    let word = WORDS[index];
    memory.put(word, &1_u32);
    publish(index, range.site, word, memory);
    tables(index, memory);
    let stack = private(index) + private_area::TASK_STACK_TOP - 0x80;
    let rflags = if index == 0 { RFLAGS_IF | 2 } else { 2 };
    let registers = Registers {
        rip: range.start,
        rdi: word,
        rsi: 1,
        r8: 0,
        rsp: stack,
        rbp: stack + 0x20,
        rflags,
        ..Registers::default()
    };
    let mut apic = LocalApic { svr: 0x1ff, lvt_timer: 1 << 16, id: index as u32, x2apic: true, ..LocalApic::default() };
    if index == 1 {
        apic.irr[7] = 1 << 28;
    }
    VcpuState {
        index,
        registers: Ok(registers),
        system: Ok(system(index)),
        apic: Ok(apic),
        events: Ok(Events::default()),
        mp_state: Ok(MpState::Runnable),
        mtrr: Some(Ok(MtrrState::at_start())),
        msrs: Some(Ok(vec![(0x277, 0x0007_0406_0007_0406), (0xc000_0080, 0xd00)])),
        ran: Duration::from_millis(5),
    }
}

fn publish(index: usize, site: u64, word: u64, memory: &mut Pages) {
    let awaits = [1 << (1 - index), 0, 0, 0];
    let wait = Wait {
        active: 1,
        until: Until::EQUAL,
        site,
        address: word,
        mask: 1,
        need: Need::ALL,
        awaits,
        ..Wait::default()
    };
    let mut page =
        VcpuPage { phase: Phase::CASE, events: 1, progress: 3, apic_id: index as u32, ..VcpuPage::default() };
    page.contexts[0] = Context { kind: ContextKind::TASK, wait, ..Context::default() };
    memory.put(private(index), &page);
    let event = Event { clock: 1 - index as u64, kind: EventKind::WAIT, a: site, ..Event::default() };
    memory.put(private(index) + private_area::RING, &event);
}

/// Identity, in large pages up to the end of memory.
fn tables(index: usize, memory: &mut Pages) {
    let root = layout::cr3(index);
    memory.put(root, &((root + PAGE) | 0x63));
    memory.put(root + PAGE, &((root + 2 * PAGE) | 0x63));
    for page in 0..layout::memory_end(2).div_ceil(1 << 21) {
        memory.put(root + 2 * PAGE + 8 * page, &(page << 21 | 0xe3));
    }
}

fn system(index: usize) -> SystemRegisters {
    SystemRegisters {
        cr0: layout::CR0,
        cr3: layout::cr3(index),
        cr4: layout::CR4,
        efer: layout::EFER | layout::EFER_LMA,
        apic_base: 0xfee0_0d00,
        cs: Segment { selector: layout::CODE_SELECTOR, limit: u32::MAX, access: 0xa09b, base: 0 },
        gdt: DescriptorTable { base: private(index) + private_area::GDT, limit: private_area::GDT_LIMIT },
        idt: DescriptorTable { base: layout::IDT, limit: layout::IDT_LIMIT },
        ..SystemRegisters::default()
    }
}
