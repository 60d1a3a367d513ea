//! The live view: a screen that shows what the command `view` says, again and again.
//!
//! What it looks at may be here, in another process or in a file: a [`Follower`] has it. The screen has a thread of its own, so that keys are
//! heard while a command is followed; the terminal is as it was when this ends, however it does.

mod draw;
mod frame;
mod screen;

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;

use crate::answer::Answer;
use crate::follow::Follower;
use screen::{Deed, Screen};

/// Time from frame to frame.
const FRAME: Duration = Duration::from_millis(200);
/// How long what is new may have to wait.
const SLICE: Duration = Duration::from_millis(25);

/// How a view ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody has left.
    Left,
    /// `terminate` was set.
    Terminated,
}

/// Shows frames on the terminal until somebody leaves, or `terminate` is set.
///
/// # Errors
///
/// What the terminal said.
pub fn show(follower: &mut impl Follower, terminate: &AtomicBool) -> io::Result<Ended> {
    // From here on: also where only half of what is done to the terminal can be done, or there is no thread.
    let restore = Restore;
    let mut terminal = ratatui::try_init()?;
    beside(follower, move |wires| {
        let _restore = restore;
        let show = |screen: &mut Screen| terminal.draw(|frame| draw::draw(frame, screen)).map(drop);
        watch(show, heard, wires, terminate)
    })
}

/// Follows what a screen asks for, which has a thread of its own, until the screen is gone. Then what is followed is interrupted.
fn beside<T: Send>(follower: &mut impl Follower, screen: impl FnOnce(&Wires) -> io::Result<T> + Send) -> io::Result<T> {
    let (wires, ends) = wires();
    let (flag, is_done) = (follower.interrupt(), AtomicBool::new(false));
    let work = || {
        let _interrupt = Interrupt { flag: &flag, is_done: &is_done };
        let wires = wires;
        screen(&wires)
    };
    thread::scope(|scope| {
        // What a thread that cannot be started was to own is dropped with it.
        let screen = thread::Builder::new().name("screen".into()).spawn_scoped(scope, work)?;
        {
            let (_done, ends) = (Done(&is_done), ends);
            follow(follower, &ends);
        }
        screen.join().unwrap_or_else(|_| Err(io::Error::other("its thread died")))
    })
}

/// What the terminal says next, if it does in time.
///
/// Whether it is still there is asked first: crossterm reads one that is gone for ever.
fn heard(timeout: Duration) -> io::Result<Option<Event>> {
    let stdin = io::stdin();
    let mut input = [PollFd::new(&stdin, PollFlags::IN)];
    // The slices of a second that are waited here fit.
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    match poll(&mut input, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if input[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is gone"));
    }
    if event::poll(Duration::ZERO)? { event::read().map(Some) } else { Ok(None) }
}

/// Gives the terminal back as it was.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Interrupts what is followed when the screen is gone, for it may wait for somebody who never answers: again and again, since who
/// begins with a command takes back what was set before.
struct Interrupt<'a> {
    flag: &'a AtomicBool,
    is_done: &'a AtomicBool,
}

impl Drop for Interrupt<'_> {
    fn drop(&mut self) {
        while !self.is_done.load(Ordering::SeqCst) {
            self.flag.store(true, Ordering::SeqCst);
            thread::park_timeout(SLICE);
        }
    }
}

/// Nothing is followed any more.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What came of a line: an answer, or why there is none.
#[derive(Debug)]
struct Told {
    answer: Result<Value, String>,
    /// Nobody follows lines any more.
    is_lost: bool,
}

/// The screen's ends of the wires between the screen and who follows commands.
struct Wires {
    lines: Sender<&'static str>,
    told: Receiver<Told>,
}

/// The other ends.
struct Ends {
    lines: Receiver<&'static str>,
    told: Sender<Told>,
}

fn wires() -> (Wires, Ends) {
    let ((line_in, line_out), (told_in, told_out)) = (mpsc::channel(), mpsc::channel());
    (Wires { lines: line_in, told: told_out }, Ends { lines: line_out, told: told_in })
}

/// Follows what the screen asks for until it is gone.
fn follow(follower: &mut impl Follower, ends: &Ends) {
    for line in &ends.lines {
        let mut answered = Err("no answer".to_owned());
        let followed = follower.follow(line, &mut |command, answer: Result<Answer, String>| {
            // What happened meanwhile is in the next frame.
            if !command.is_empty() {
                answered = answer.map(|answer| answer.data);
            }
            ControlFlow::Continue(())
        });
        let told = match followed {
            Ok(()) => Told { answer: answered, is_lost: false },
            Err(lost) => Told { answer: Err(lost.to_string()), is_lost: true },
        };
        if ends.told.send(told).is_err() {
            break;
        }
    }
}

/// Shows what comes, and hears keys.
fn watch(
    mut show: impl FnMut(&mut Screen) -> io::Result<()>,
    mut poll: impl FnMut(Duration) -> io::Result<Option<Event>>,
    wires: &Wires,
    terminate: &AtomicBool,
) -> io::Result<Ended> {
    let mut screen = Screen::default();
    // Lines whose answers are still to come.
    let mut waits = 0_usize;
    let (mut asked, mut next) = (Instant::now(), Instant::now());
    let mut is_new = true;
    loop {
        for told in wires.told.try_iter() {
            waits = waits.saturating_sub(1);
            // A machine that takes long to be looked at has as long to itself.
            next = next.max(Instant::now() + asked.elapsed());
            screen.take(told.answer, told.is_lost);
            is_new = true;
        }
        if waits == 0 && !screen.is_lost() && Instant::now() >= next {
            asked = Instant::now();
            next = asked + FRAME;
            wires.lines.send("view").map_err(|_| io::Error::other("nobody follows commands any more"))?;
            waits += 1;
        }
        if std::mem::take(&mut is_new) {
            show(&mut screen)?;
        }
        if terminate.load(Ordering::Relaxed) {
            return Ok(Ended::Terminated);
        }
        let Some(event) = poll(SLICE)? else { continue };
        is_new = true;
        match screen.hear(&event) {
            Deed::Nothing => {}
            Deed::Leave => return Ok(Ended::Left),
            Deed::Follow(line) => waits += usize::from(wires.lines.send(line).is_ok()),
        }
    }
}

#[cfg(test)]
mod test;
