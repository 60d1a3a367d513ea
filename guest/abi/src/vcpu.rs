//! What each vCPU publishes about itself, in its own page, by plain stores.

use crate::layout::MASK_WORDS;

/// Contexts that can be nested in one vCPU: its task, interrupts that interrupt each other, an NMI.
pub const CONTEXTS: usize = 8;

open_enum! {
    /// Where a vCPU is in its life.
    pub enum Phase: u32 {
        /// It has not reached the runtime.
        OFF = 0 => "off",
        /// Its APIC and its tables are being set up.
        BOOTING = 1 => "booting",
        /// It waits at the start line, or brings up the others.
        ONLINE = 2 => "online",
        /// It runs its part of the case.
        CASE = 3 => "case",
        /// Its part is done; it idles and serves interrupts.
        FINISHED = 4 => "finished",
    }
}

open_enum! {
    /// What kind of context a vCPU is in.
    pub enum ContextKind: u32 {
        /// No interrupt: the case itself, or idling.
        TASK = 0 => "task",
        /// An interrupt handler.
        IRQ = 1 => "irq",
        /// The NMI handler.
        NMI = 2 => "nmi",
        /// An exception handler.
        EXCEPTION = 3 => "exception",
    }
}

open_enum! {
    /// When a wait ends: a comparison of `word & mask` with `value`.
    pub enum Until: u32 {
        /// When they are equal.
        EQUAL = 0 => "equal",
        /// When they differ.
        DIFFERENT = 1 => "different",
    }
}

open_enum! {
    /// How many of the awaited vCPUs must act before the wait can end.
    pub enum Need: u32 {
        /// Each of them.
        ALL = 0 => "all",
        /// Any of them.
        ANY = 1 => "any",
        /// As many as the waited word counts, when it counts down to zero.
        COUNT = 2 => "count",
        /// The vCPU whose number plus one is the value of the waited word: the holder of a lock.
        HOLDER = 3 => "holder",
    }
}

plain_struct! {
    /// A wait, as its vCPU publishes it.
    pub struct Wait: 112 {
        /// 1 while the wait lasts. Written last when it begins, first when it ends.
        pub active: u32,
        /// When it ends.
        pub until: Until,
        /// Address of the site's [descriptor](crate::image::Site) in the image.
        pub site: u64,
        /// Guest-physical address of the 32-bit word that is looked at.
        pub address: u64,
        /// Bits of the word that matter.
        pub mask: u32,
        /// What they are compared with.
        pub value: u32,
        /// How many of the awaited must act.
        pub need: Need,
        /// 1 when the wait happens in a call whose wait argument is 0.
        pub asynchronous: u32,
        /// Address of the record that the word belongs to; 0 for none.
        pub record: u64,
        /// Number of the call whose record it is; 0 for none.
        pub record_call: u64,
        /// Number of the call that waits; 0 when it is no call.
        pub call: u64,
        /// Where a set of vCPUs lies that is narrowed as they act, `MASK_WORDS` words: it replaces `awaits`. 0 for none.
        pub awaits_at: u64,
        /// The awaited vCPUs, a bit each.
        pub awaits: [u64; MASK_WORDS],
        /// 1 when the wait gives up after a number of turns: then it is no stall, whatever it waits for.
        pub bounded: u32,
        /// Generation of the record that the waiter holds, see [`crate::arena::Mark`]; 0 where it knows of none.
        pub generation: u32,
    }
}

plain_struct! {
    /// A context: the task, or a handler that interrupted the context below.
    pub struct Context: 128 {
        /// What kind it is.
        pub kind: ContextKind,
        /// Vector of the interrupt or exception.
        pub vector: u32,
        /// Address of the [`Frame`] of what it interrupted; 0 for the task.
        pub frame: u64,
        /// What it waits for.
        pub wait: Wait,
    }
}

plain_struct! {
    /// Registers that an interrupt stub saves, lowest address first; the last five are the processor's own.
    pub struct Frame: 176 {
        /// General registers.
        pub r15: u64,
        /// General register.
        pub r14: u64,
        /// General register.
        pub r13: u64,
        /// General register.
        pub r12: u64,
        /// General register.
        pub r11: u64,
        /// General register.
        pub r10: u64,
        /// General register.
        pub r9: u64,
        /// General register.
        pub r8: u64,
        /// General register.
        pub rbp: u64,
        /// General register.
        pub rdi: u64,
        /// General register.
        pub rsi: u64,
        /// General register.
        pub rdx: u64,
        /// General register.
        pub rcx: u64,
        /// General register.
        pub rbx: u64,
        /// General register.
        pub rax: u64,
        /// Vector.
        pub vector: u64,
        /// Error code, 0 where the processor pushes none.
        pub error: u64,
        /// Where the context was interrupted.
        pub rip: u64,
        /// Code segment.
        pub cs: u64,
        /// Flags, with IF as it was.
        pub rflags: u64,
        /// Stack pointer.
        pub rsp: u64,
        /// Stack segment.
        pub ss: u64,
    }
}

open_enum! {
    /// Why a vCPU wrote an epitaph.
    pub enum Death: u32 {
        /// It has not.
        NONE = 0 => "none",
        /// A panic, of the protocol or of the runtime.
        PANIC = 1 => "panic",
        /// An exception that no handler expected.
        EXCEPTION = 2 => "exception",
    }
}

plain_struct! {
    /// The last words of a vCPU.
    pub struct Epitaph: 320 {
        /// Why.
        pub death: Death,
        /// Vector of the exception.
        pub vector: u32,
        /// Its error code.
        pub error: u64,
        /// Where it happened.
        pub rip: u64,
        /// CR2, for a page fault.
        pub cr2: u64,
        /// Line of the panic.
        pub line: u32,
        /// Zero.
        pub reserved: u32,
        /// File of the panic, its end where it is too long; zero-padded.
        pub file: [u8; 88],
        /// Text of the panic; zero-padded.
        pub text: [u8; 192],
    }
}

plain_struct! {
    /// The publication page of a vCPU, at the start of its private area.
    pub struct VcpuPage: 1728 {
        /// Counts what the vCPU has got done: waits that ended, callbacks, steps of its case.
        pub progress: u64,
        /// Where it is in its life.
        pub phase: Phase,
        /// Depth of the innermost context; 0 is the task.
        pub depth: u32,
        /// Its local APIC id, as the processor says.
        pub apic_id: u32,
        /// 1 while it is about to halt or halted, for want of anything to do.
        pub idle: u32,
        /// Events recorded; the next goes to this number modulo [`crate::event::RING_EVENTS`].
        pub events: u64,
        /// Interrupts and NMIs taken.
        pub interrupts: u64,
        /// NMIs taken.
        pub nmis: u64,
        /// How many rendezvous it is inside of: its caches may be off while all others are inside too.
        pub rendezvous: u32,
        /// 1 while its case sets up what its protocol will find: no invariant of the protocol is asked of it.
        pub set_up: u32,
        /// Zero.
        pub reserved: u64,
        /// Contexts, the task first.
        pub contexts: [Context; CONTEXTS],
        /// Last words.
        pub epitaph: Epitaph,
        /// A line for the host, see [`crate::port::Doorbell::LOG`].
        pub log: [u8; 320],
    }
}

const _: () = {
    assert!(size_of::<VcpuPage>() as u64 <= crate::layout::PAGE);
    assert!(core::mem::offset_of!(VcpuPage, contexts) == 64, "progress and phase share a cache line of their own");
};
