//! A short time slice for the thread that watches a machine.
//!
//! It sleeps nearly always and works for microseconds, but where vCPUs spin on every CPU a scheduler may let it wait for a whole
//! slice of theirs, 3 to 4 ms, at each poll. Since Linux 6.12 a thread can ask for slices of its own length
//! (`sched_setattr`(2), `sched_runtime` of SCHED_OTHER); one that asks for short ones is let in early and gets no more CPU
//! time for it. Best effort: where the kernel does not know it, verdicts come later and are the same.
#![expect(unsafe_code, reason = "the system calls have no safe wrapper")]

use std::mem::{size_of, zeroed};
use std::time::Duration;

/// The shortest that the kernel grants.
const SLICE: Duration = Duration::from_micros(100);
/// And the most weight. At 255 vCPUs each capture costs this thread some milliseconds of CPU time; in a fair share with them it
/// would have to let each vCPU have as much before it runs again (half a second), and nobody would end their turns till then.
const NICE: i32 = -20;

/// Asks for short slices for the calling thread. Threads that it makes have the usual ones.
pub(super) fn shorten() {
    // SAFETY: plain integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes, of this thread's own attributes.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    // Whoever chose another policy for us knows better.
    if got != 0 || attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = SLICE.as_nanos() as u64;
    attributes.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    let preferred = libc::sched_attr { sched_nice: attributes.sched_nice.min(NICE), ..attributes };
    // Only a privileged process may be preferred.
    let _ = set(&preferred) || set(&attributes);
}

fn set(attributes: &libc::sched_attr) -> bool {
    // SAFETY: the kernel reads `attributes.size` bytes, which it filled in itself.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) == 0 }
}
