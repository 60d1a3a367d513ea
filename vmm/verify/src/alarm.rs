//! A timer that ends `KVM_RUN` of the thread that made it, again and again, so that no instruction keeps the thread for ever. A
//! signal that comes in user space is lost, and the next one is not.
#![expect(unsafe_code, reason = "posix timers have no safe wrapper")]

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::Once;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::HostFailure;

/// Time between two signals, in nanoseconds.
const PERIOD: i64 = 100_000_000;

/// Signals to one thread, as long as it is kept.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: libc::timer_t,
}

impl Alarm {
    /// Signals to the calling thread.
    pub(crate) fn new() -> Result<Self, HostFailure> {
        install_handler();
        // SAFETY: plain integers and pointers, for which zero is a value.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: no arguments, cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = null_mut();
        // SAFETY: both pointers are to values of ours.
        let status = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if status != 0 {
            return Err(HostFailure::Timer(io::Error::last_os_error()));
        }
        let alarm = Self { timer };
        let period = libc::timespec { tv_sec: 0, tv_nsec: PERIOD };
        let time = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was made above; `time` is ours.
        match unsafe { libc::timer_settime(alarm.timer, 0, &raw const time, null_mut()) } {
            0 => Ok(alarm),
            _ => Err(HostFailure::Timer(io::Error::last_os_error())),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is not used any more.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// Installs a handler that does nothing, once in the process: that of whoever else uses the signal does nothing either.
fn install_handler() {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        register_signal_handler(SIGRTMIN(), nothing)
            .expect("SIGRTMIN is a valid signal and sigaction takes any handler");
    });
}
