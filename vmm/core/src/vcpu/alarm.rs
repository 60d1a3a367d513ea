//! A timer that interrupts the thread that made it, with the signal of kicks.
#![expect(unsafe_code, reason = "posix timers have no safe wrapper")]

use std::mem::zeroed;
use std::ptr::null_mut;
use std::time::Duration;

use vmm_sys_util::signal::SIGRTMIN;

/// A timer of one thread.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: libc::timer_t,
}

impl Alarm {
    /// An alarm for the calling thread; none where the system gives no more of them.
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: plain integers and pointers, for which zero is a value.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: no arguments, cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = null_mut();
        // SAFETY: both pointers are to values of ours.
        let status = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        (status == 0).then_some(Self { timer })
    }

    /// Interrupts the thread once, after this time.
    pub(crate) fn set(&self, after: Duration) {
        self.start(after, Duration::ZERO);
    }

    /// Interrupts the thread every so often, until it is set anew; never where the time is 0.
    pub(crate) fn repeat(&self, every: Duration) {
        self.start(every, every);
    }

    fn start(&self, after: Duration, every: Duration) {
        let spec =
            |time: Duration| libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let time = libc::itimerspec { it_interval: spec(every), it_value: spec(after) };
        // SAFETY: the timer lives as long as `self`; `time` is ours. It cannot fail for a valid time.
        unsafe { libc::timer_settime(self.timer, 0, &raw const time, null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is not used any more.
        unsafe { libc::timer_delete(self.timer) };
    }
}
