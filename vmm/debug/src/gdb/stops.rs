//! Breakpoints and watchpoints of gdb as stops of the machine.

use gdbstub::target::TargetError;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};

use super::machine::Machine;
use crate::live::{How, LiveError, Stop};

/// Most bytes that one watchpoint of gdb may have: what four breakpoints of a processor see.
const MOST_WATCHED: u64 = 32;

/// What gdb calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `break`: by a breakpoint of the processor too, for few hosts stop at an `int3`.
    Software,
    /// `hbreak`.
    Hardware,
    /// `watch`, `rwatch`, `awatch`.
    Watch(WatchKind),
}

/// A breakpoint or watchpoint of gdb's, and the numbers of its stops.
#[derive(Clone, Debug)]
pub(super) struct Planted {
    pub(super) kind: Kind,
    pub(super) address: u64,
    length: u64,
    pub(super) numbers: Vec<u32>,
}

impl Machine<'_> {
    fn plant(&mut self, kind: Kind, address: u64, length: u64) -> TargetResult<bool, Self> {
        if self.planted.iter().any(|planted| planted.is(kind, address, length)) {
            return Ok(true);
        }
        let mut planted = Planted { kind, address, length, numbers: Vec::new() };
        for stop in stops(kind, address, length) {
            match self.live().and_then(|live| live.add(stop)) {
                Ok((number, how)) => {
                    planted.numbers.push(number);
                    self.tell(kind, address, how);
                }
                Err(error) => {
                    self.uproot(&planted);
                    self.refuse_stop(error.to_string());
                    return Err(TargetError::Errno(super::machine::INVALID));
                }
            }
        }
        let is_any = !planted.numbers.is_empty();
        self.planted.extend(is_any.then_some(planted));
        Ok(is_any)
    }

    fn pull(&mut self, kind: Kind, address: u64, length: u64) -> TargetResult<bool, Self> {
        let Some(at) = self.planted.iter().position(|planted| planted.is(kind, address, length)) else {
            return Ok(false);
        };
        let planted = self.planted.remove(at);
        self.uproot(&planted);
        Ok(true)
    }

    /// Takes its stops away; a machine that is gone has none.
    fn uproot(&mut self, planted: &Planted) {
        for number in &planted.numbers {
            let removed = self.live().and_then(|live| live.remove(*number));
            if let Err(error @ LiveError::Refused(_)) = removed {
                self.note_refusal(&error.to_string());
            }
        }
    }

    /// gdb does not show why a breakpoint was refused: it is told so as soon as it listens.
    fn refuse_stop(&mut self, why: String) {
        self.note_refusal(&why);
        self.refusal = Some(why);
    }

    /// Says once that a stop makes the machine slow.
    fn tell(&mut self, kind: Kind, address: u64, how: How) {
        if how == How::Stepping && matches!(kind, Kind::Watch(_)) && self.resume.is_news(address) {
            self.note(&format!("{address:#x} is watched {how}: the machine takes some tens of times as long"));
        }
    }
}

impl Planted {
    /// Whether it is a breakpoint at that address.
    pub(super) fn is_at(&self, address: u64) -> bool {
        !matches!(self.kind, Kind::Watch(_)) && self.address == address
    }

    fn is(&self, kind: Kind, address: u64, length: u64) -> bool {
        (self.kind, self.address, self.length) == (kind, address, length)
    }
}

/// The stops of a breakpoint, one, or of a watchpoint: pieces of 1, 2, 4 or 8 bytes that lie where such words do.
fn stops(kind: Kind, address: u64, length: u64) -> Vec<Stop> {
    let Kind::Watch(watched) = kind else { return vec![Stop::Execute { linear: address, vcpu: None }] };
    let (mut all, mut done) = (Vec::new(), 0);
    while done < length && length <= MOST_WATCHED {
        let here = address.wrapping_add(done);
        let fits = |size: &u64| here.is_multiple_of(*size) && *size <= length - done;
        let size = [8, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
        all.push(Stop::Access { linear: here, size: size as usize, reads: watched != WatchKind::Write });
        done += size;
    }
    all
}

impl Breakpoints for Machine<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Machine<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.plant(Kind::Software, address, 1)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.pull(Kind::Software, address, 1)
    }
}

impl HwBreakpoint for Machine<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.plant(Kind::Hardware, address, 1)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.pull(Kind::Hardware, address, 1)
    }
}

impl HwWatchpoint for Machine<'_> {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.plant(Kind::Watch(kind), address, length)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        self.pull(Kind::Watch(kind), address, length)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn watchpoint_falls_into_words_that_processors_watch() {
        let of = |address, length| {
            let size = |stop: Stop| match stop {
                Stop::Access { linear, size, reads: false } => (linear, size),
                other => panic!("{other:?}"),
            };
            stops(Kind::Watch(WatchKind::Write), address, length).into_iter().map(size).collect::<Vec<_>>()
        };
        assert_eq!(of(0x1000, 8), [(0x1000, 8)]);
        assert_eq!(of(0x1001, 8), [(0x1001, 1), (0x1002, 2), (0x1004, 4), (0x1008, 1)]);
        assert_eq!(of(u64::MAX, 2), [(u64::MAX, 1), (0, 1)]);
        assert_eq!(of(0x1000, 33), []);
        assert_eq!(of(0x1000, u64::MAX), []);
    }
}
