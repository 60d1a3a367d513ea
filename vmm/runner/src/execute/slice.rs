//! A short time slice for the thread that watches a machine.
//!
//! It sleeps nearly always and works for microseconds, but where vCPUs spin on every CPU a scheduler may let it wait for a whole
//! slice of theirs, 3 to 4 ms, at each poll. Since Linux 6.12 a thread can ask for slices of its own length
//! (`sched_setattr`(2), `sched_runtime` of SCHED_OTHER); one that asks for short ones is let in early and gets no more CPU
//! time for it. Best effort: where the kernel does not know it, verdicts come later and are the same.
#![expect(unsafe_code, reason = "the system calls have no safe wrapper")]

use std::marker::PhantomData;
use std::mem::{size_of, zeroed};
use std::time::Duration;

/// The shortest that the kernel grants.
const SLICE: Duration = Duration::from_micros(100);
/// And the most weight. At 255 vCPUs each capture costs this thread some milliseconds of CPU time; in a fair share with them it
/// would have to let each vCPU have as much before it runs again (half a second), and nobody would end their turns till then.
const NICE: i32 = -20;

/// A thread with short slices; when it is dropped, the thread has those that it had before.
#[derive(Debug)]
#[must_use]
pub(super) struct Shortened {
    former: Option<libc::sched_attr>,
    /// The attributes are those of one thread.
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Shortened {
    fn drop(&mut self) {
        let Some(former) = &self.former else { return };
        // Only a privileged process may have its threads inherit attributes again.
        let _ = set(former) || set(&not_inherited(*former));
    }
}

/// Asks for short slices for the calling thread. Threads that it makes have the usual ones.
pub(super) fn shorten() -> Shortened {
    // Whoever chose another policy for us knows better.
    let former = get().filter(|former| former.sched_policy == libc::SCHED_OTHER as u32);
    if let Some(former) = former {
        let short = libc::sched_attr { sched_runtime: SLICE.as_nanos() as u64, ..not_inherited(former) };
        let preferred = libc::sched_attr { sched_nice: former.sched_nice.min(NICE), ..short };
        // Only a privileged process may be preferred.
        let _ = set(&preferred) || set(&short);
    }
    Shortened { former, _of_this_thread: PhantomData }
}

/// As these, but not for threads that are made from now on.
fn not_inherited(attributes: libc::sched_attr) -> libc::sched_attr {
    let sched_flags = attributes.sched_flags | libc::SCHED_FLAG_RESET_ON_FORK as u64;
    libc::sched_attr { sched_flags, ..attributes }
}

/// The attributes of the calling thread.
fn get() -> Option<libc::sched_attr> {
    // SAFETY: plain integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most `size` bytes, of this thread's own attributes.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (got == 0).then_some(attributes)
}

fn set(attributes: &libc::sched_attr) -> bool {
    // SAFETY: the kernel reads `attributes.size` bytes, which it filled in itself.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) == 0 }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn thread_with_short_slices_that_are_dropped_has_its_former_ones() {
        let attributes = || get().map(|a| (a.sched_policy, a.sched_nice, a.sched_runtime));
        let former = attributes();
        drop(shorten());
        assert_eq!(attributes(), former);
    }
}
