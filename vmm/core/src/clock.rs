//! The CPU time of a thread, read from any thread, and of the process.
#![expect(unsafe_code, reason = "the clock of another thread has no safe wrapper")]

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// The clock of the CPU time that one thread has had. Reading it costs one system call and does not disturb the thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuClock(libc::clockid_t);

/// The CPU time that all threads of this process have had: it stands still while the process is stopped.
pub fn process_cpu_time() -> Duration {
    CpuClock(libc::CLOCK_PROCESS_CPUTIME_ID).now()
}

impl CpuClock {
    /// The clock of the calling thread.
    pub(crate) const OWN: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    /// The clock of another thread.
    pub(crate) fn of<T>(thread: &JoinHandle<T>) -> Option<Self> {
        let mut clock = 0;
        // SAFETY: the handle is borrowed, so the thread is neither joined nor detached and its id is valid; `clock` is ours.
        let status = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
        (status == 0).then_some(Self(clock))
    }

    /// The CPU time so far; zero when the thread has ended.
    pub(crate) fn now(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is ours; a clock that does not exist any more is refused with EINVAL and leaves it untouched.
        unsafe { libc::clock_gettime(self.0, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
    }
}
