//! From frame to frame: frame pointers, and the frames that interrupt stubs save.
//!
//! Stacks are the guest's, and it may have written anything: a frame pointer has to go up, a return address has to lie in code.

use stallbench_abi::Plain;
use stallbench_abi::vcpu::Frame as Saved;
use stallbench_state::machine::VcpuState;

use crate::address::Address;
use crate::error::CommandError;
use crate::linear::Linear;
use crate::session::Session;

/// Most frames that are looked for.
const MOST: usize = 128;
/// The label behind which interrupt stubs of the runtime save registers and call their handler.
const STUB: &str = "stallbench_interrupted";
/// `push rbp`, with which functions begin, and `ret`, with which they end.
const PUSH_RBP: u8 = 0x55;
const RET: u8 = 0xc3;

/// How a frame came to be where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The vCPU is here.
    Innermost,
    /// It called the frame before.
    Called,
    /// It was interrupted by what is named.
    Interrupted(String),
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where it is, or where it goes on.
    pub(super) rip: u64,
    pub(super) kind: Kind,
}

/// The frames of a vCPU, the innermost first.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) frames: Vec<Frame>,
    /// Why there is no more, where that is not the proper end.
    pub(super) end: Option<String>,
}

/// The frames of a vCPU.
pub(super) fn trace(session: &Session, vcpu: &VcpuState) -> Result<Trace, CommandError> {
    let unread = |unread: &_| CommandError::Unread { vcpu: vcpu.index, unread: Clone::clone(unread) };
    let registers = vcpu.registers.as_ref().map_err(unread)?;
    let linear = Linear::of(session.memory(), vcpu)?;
    let mut frames = vec![Frame { rip: registers.rip, kind: Kind::Innermost }];
    frames.extend(without_own(session, &linear, registers.rip, registers.rsp));
    let mut rbp = registers.rbp;
    let end = loop {
        if frames.len() == MOST {
            break Some(format!("more than {MOST} frames"));
        }
        match outer(session, &linear, rbp) {
            Ok(Some((frame, outer))) => {
                frames.push(frame);
                rbp = outer;
            }
            Ok(None) => break None,
            Err(end) => break Some(end),
        }
        if let Some(Frame { rip, kind: Kind::Called }) = frames.last()
            && is_in_stub(session, *rip)
        {
            match interrupted(session, &linear, &mut rbp, &frames) {
                Ok((frame, rsp)) => {
                    let caller = without_own(session, &linear, frame.rip, rsp);
                    frames.push(frame);
                    frames.extend(caller);
                }
                Err(end) => break Some(end),
            }
        }
    };
    Ok(Trace { frames, end })
}

/// The caller of a function that is at its very beginning or end, where RBP is the frame pointer of that caller's.
fn without_own(session: &Session, linear: &Linear<'_>, rip: u64, rsp: u64) -> Option<Frame> {
    let (_, offset) = session.symbols().at(rip)?;
    let byte = |at: u64| linear.read_exact(Address::Linear(at), 1).ok()?.first().copied();
    let returns_to = match offset {
        0 => rsp,
        1 if byte(rip - 1) == Some(PUSH_RBP) => rsp.checked_add(8)?,
        _ if byte(rip) == Some(RET) => rsp,
        _ => return None,
    };
    let rip = linear.read_u64(returns_to)?;
    session.symbols().at(rip.wrapping_sub(1)).map(|_| Frame { rip, kind: Kind::Called })
}

/// The caller's frame and its frame pointer; `None` at the proper end, where a frame pointer is 0.
fn outer(session: &Session, linear: &Linear<'_>, rbp: u64) -> Result<Option<(Frame, u64)>, String> {
    if rbp == 0 {
        return Ok(None);
    }
    let read = |at: u64| linear.read_u64(at).ok_or_else(|| format!("the stack at {at:#x} cannot be read"));
    let (outer, rip) = (read(rbp)?, read(rbp.wrapping_add(8))?);
    if session.symbols().at(rip.wrapping_sub(1)).is_none() {
        return Err(format!("{rip:#x} is no code of the guest"));
    }
    // Behind a stub the next frame pointer is what was interrupted's, on whatever stack that was.
    if outer != 0 && outer <= rbp && !is_in_stub(session, rip) {
        return Err(format!("the frame pointer does not go up: {outer:#x} behind {rbp:#x}"));
    }
    let next = if is_in_stub(session, rip) { rbp.wrapping_add(16) } else { outer };
    Ok(Some((Frame { rip, kind: Kind::Called }, next)))
}

fn is_in_stub(session: &Session, rip: u64) -> bool {
    session.symbols().at(rip).is_some_and(|(symbol, _)| symbol.name == STUB)
}

/// What a stub interrupted, and its stack pointer: the frame that it saved lies behind its handler's return address. Leaves its
/// frame pointer.
fn interrupted(
    session: &Session,
    linear: &Linear<'_>,
    rbp: &mut u64,
    frames: &[Frame],
) -> Result<(Frame, u64), String> {
    let at = *rbp;
    let bytes = linear.read_exact(Address::Linear(at), Saved::SIZE);
    let saved = bytes.ok().and_then(|bytes| Saved::read(&bytes));
    let saved = saved.ok_or_else(|| format!("the interrupt frame at {at:#x} cannot be read"))?;
    if frames.iter().filter(|frame| matches!(frame.kind, Kind::Interrupted(_))).count() >= 8 {
        return Err("more than 8 interrupts inside of each other".into());
    }
    *rbp = saved.rbp;
    let what = match saved.vector {
        0..32 => format!("exception {}, error code {:#x}", session.vector(saved.vector), saved.error),
        vector => format!("vector {}", session.vector(vector)),
    };
    Ok((Frame { rip: saved.rip, kind: Kind::Interrupted(what) }, saved.rsp))
}
