//! What vCPUs tell the outside: doorbells, and that they cannot go on.
//!
//! The queue is bounded for each vCPU: a guest that floods doorbells fills its own share of it, costs the host no more memory
//! than that, and takes nothing from the other vCPUs. Its last event, an epitaph or a fault, always fits: whoever waits for it
//! would wait in vain, since the vCPU is parked by then. So does a stop, in the place of an earlier one of that vCPU that nobody has
//! taken: it stands still until then.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stallbench_abi::port::Doorbell;

use crate::stop::Hit;

/// Doorbells of one vCPU that wait to be looked at; any more are dropped and counted.
const DOORBELLS: usize = 32;

/// Something that a vCPU's thread tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest rang a doorbell.
    Doorbell {
        /// The vCPU.
        vcpu: usize,
        /// The value that it wrote; any number.
        doorbell: Doorbell,
    },
    /// The guest rang [`Doorbell::LOG`]; the text is what its log field held then.
    Log {
        /// The vCPU.
        vcpu: usize,
        /// The line, whatever the guest wrote.
        text: String,
    },
    /// The vCPU came to a stop ([`crate::stop`]). It stands still until this has been taken and the machine goes on from a pause.
    Stopped {
        /// The vCPU.
        vcpu: usize,
        /// What it came to.
        at: Hit,
    },
    /// A plain guest ended its run by the exit port. The vCPU is parked for good.
    Ended {
        /// The vCPU.
        vcpu: usize,
        /// What it wrote.
        status: u32,
    },
    /// The vCPU cannot go on. It is parked for good.
    Fault {
        /// The vCPU.
        vcpu: usize,
        /// Why.
        fault: Fault,
    },
    /// The thread of a vCPU has died, by a bug of ours.
    ThreadDied {
        /// The vCPU.
        vcpu: usize,
    },
}

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A triple fault, which shuts a processor down.
    Shutdown,
    /// KVM gave up (`KVM_EXIT_INTERNAL_ERROR`).
    Internal {
        /// Its suberror: 1 is an instruction that it cannot emulate.
        suberror: u32,
        /// Bytes of the instruction, where it tells them.
        instruction: Vec<u8>,
        /// What it tells beside that.
        data: Vec<u64>,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// Its reason.
        reason: u64,
        /// The CPU that it happened on.
        cpu: u32,
    },
    /// The guest's memory is not what KVM expects.
    Memory {
        /// Guest-physical address.
        address: u64,
    },
    /// An exit that no guest of ours can cause.
    Unexpected {
        /// Its name.
        exit: String,
    },
    /// KVM refused what it takes to debug the vCPU: `KVM_SET_GUEST_DEBUG`, or to do a `hlt` in its place.
    Debug {
        /// The error number.
        errno: i32,
    },
    /// `KVM_RUN` itself failed.
    Run {
        /// The error number.
        errno: i32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("triple fault"),
            Self::Internal { suberror, instruction, .. } if !instruction.is_empty() => {
                write!(f, "kvm internal error, suberror {suberror}: instruction{}", Hex(instruction))
            }
            Self::Internal { suberror, .. } => write!(f, "kvm internal error, suberror {suberror}"),
            Self::FailEntry { reason, cpu } => write!(f, "guest entry failed on cpu {cpu}, reason {reason:#x}"),
            Self::Memory { address } => write!(f, "memory fault at guest-physical address {address:#x}"),
            Self::Unexpected { exit } => write!(f, "unexpected exit {exit}"),
            Self::Debug { errno } => {
                write!(f, "kvm refused to debug it: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Run { errno } => write!(f, "KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// The events that wait to be looked at.
#[derive(Debug)]
pub(crate) struct Events {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<MachineEvent>,
    /// Doorbells among them, by vCPU.
    doorbells: Vec<usize>,
    dropped: u64,
}

impl Events {
    pub(crate) fn new(vcpus: usize) -> Self {
        let queue = Queue { waiting: VecDeque::new(), doorbells: vec![0; vcpus], dropped: 0 };
        Self { queue: Mutex::new(queue), arrived: Condvar::new() }
    }

    /// Whether a doorbell of this vCPU would be taken: a log line that would be dropped need not be copied.
    pub(crate) fn has_room(&self, vcpu: usize) -> bool {
        self.lock().doorbells[vcpu] < DOORBELLS
    }

    /// Adds an event; a doorbell too many of one vCPU is dropped, its last event never.
    pub(crate) fn send(&self, event: MachineEvent) {
        let mut queue = self.lock();
        if let Some(vcpu) = ringer(&event) {
            if queue.doorbells[vcpu] >= DOORBELLS {
                queue.dropped += 1;
                return;
            }
            queue.doorbells[vcpu] += 1;
        }
        if let MachineEvent::Stopped { vcpu, .. } = event {
            // A visit has stepped it on since: what counts is where it stands now.
            let same =
                |waiting: &MachineEvent| matches!(waiting, MachineEvent::Stopped { vcpu: of, .. } if *of == vcpu);
            queue.waiting.retain(|waiting| !same(waiting));
        }
        queue.waiting.push_back(event);
        drop(queue);
        self.arrived.notify_one();
    }

    /// The next event, waiting for it no longer than `timeout`.
    pub(crate) fn next(&self, timeout: Duration) -> Option<MachineEvent> {
        let empty = |queue: &mut Queue| queue.waiting.is_empty();
        let waited = self.arrived.wait_timeout_while(self.lock(), timeout, empty);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let event = queue.waiting.pop_front()?;
        if let Some(vcpu) = ringer(&event) {
            queue.doorbells[vcpu] -= 1;
        }
        Some(event)
    }

    /// Takes back all stops that were told and not taken yet.
    pub(crate) fn forget_stops(&self) {
        self.lock().waiting.retain(|event| !matches!(event, MachineEvent::Stopped { .. }));
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// A thread that panicked while it held the lock left the queue whole: each change of it is complete.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPU that rang, where the event is a doorbell that others may follow.
fn ringer(event: &MachineEvent) -> Option<usize> {
    match event {
        MachineEvent::Doorbell { doorbell: Doorbell::EPITAPH, .. } => None,
        MachineEvent::Doorbell { vcpu, .. } | MachineEvent::Log { vcpu, .. } => Some(*vcpu),
        MachineEvent::Stopped { .. } | MachineEvent::Ended { .. } => None,
        MachineEvent::Fault { .. } | MachineEvent::ThreadDied { .. } => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn ring(vcpu: usize) -> MachineEvent {
        MachineEvent::Doorbell { vcpu, doorbell: Doorbell::DONE }
    }

    #[test]
    fn flood_of_one_vcpu_is_dropped_and_takes_nothing_from_another() {
        let events = Events::new(2);
        (0..10 * DOORBELLS).for_each(|_| events.send(ring(0)));
        assert!(!events.has_room(0) && events.has_room(1));
        events.send(ring(1));
        events.send(MachineEvent::Fault { vcpu: 0, fault: Fault::Shutdown });
        assert_eq!(events.dropped(), 9 * DOORBELLS as u64);
        let received: Vec<_> = std::iter::from_fn(|| events.next(Duration::ZERO)).collect();
        assert_eq!(received.len(), DOORBELLS + 2);
        assert_eq!(received[DOORBELLS], ring(1));
        assert!(events.has_room(0));
    }

    #[test]
    fn epitaph_after_a_flood_is_kept_and_takes_no_room() {
        let events = Events::new(1);
        let epitaph = MachineEvent::Doorbell { vcpu: 0, doorbell: Doorbell::EPITAPH };
        (0..DOORBELLS).for_each(|_| events.send(ring(0)));
        events.send(epitaph.clone());
        assert_eq!(events.dropped(), 0);
        let received: Vec<_> = std::iter::from_fn(|| events.next(Duration::ZERO)).collect();
        assert_eq!(received.last(), Some(&epitaph));
        assert!(events.has_room(0));
    }

    #[test]
    fn later_stop_of_a_vcpu_takes_the_place_of_one_that_nobody_took() {
        let events = Events::new(2);
        let stop = |vcpu, rip| MachineEvent::Stopped { vcpu, at: Hit::Execute { rip } };
        [stop(0, 1), stop(1, 2), ring(0), stop(0, 3)].into_iter().for_each(|event| events.send(event));
        let received: Vec<_> = std::iter::from_fn(|| events.next(Duration::ZERO)).collect();
        assert_eq!(received, [stop(1, 2), ring(0), stop(0, 3)]);
    }

    #[test]
    fn fault_is_told_with_its_instruction() {
        let fault = Fault::Internal { suberror: 1, instruction: vec![0x0f, 0x57], data: Vec::new() };
        assert_eq!(fault.to_string(), "kvm internal error, suberror 1: instruction 0f 57");
    }
}
