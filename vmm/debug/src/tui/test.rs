//! The view on terminals in memory: what is drawn, at what size, and how it ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::*;
use crate::follow::{Lost, Tell};
use crate::sample;

/// What stands on a terminal of that size with this on it.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    terminal.draw(|frame| draw::draw(frame, screen)).expect("memory");
    lines(terminal.backend())
}

fn lines(backend: &TestBackend) -> Vec<String> {
    let buffer = backend.buffer();
    // An empty one has no cells.
    let width = usize::from(buffer.area.width.max(1));
    let line = |cells: &[ratatui::buffer::Cell]| cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    buffer.content.chunks(width).map(|cells| line(cells).trim_end().to_owned()).collect()
}

/// The screen with a frame of the machine made up for unit tests.
fn sampled() -> Screen {
    let mut screen = Screen::default();
    let answer = sample::answer(&mut sample::session(), "view").expect("it has an answer");
    screen.take(Ok(answer.data), false);
    screen
}

#[test]
fn every_vcpu_has_a_line_and_the_one_that_is_looked_at_more() {
    let lines = drawn(&mut sampled(), 120, 20);
    assert!(lines[0].starts_with("sample/deadlock@vcpus=2  dump"), "{lines:#?}");
    assert!(lines[1].starts_with("vcpu  state     IF  progress"), "{lines:#?}");
    assert!(lines[2].starts_with("0     runnable  1") && lines[2].contains("waits in"), "{lines:#?}");
    assert!(lines[3].starts_with("1     runnable  0"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("vcpu0 at ")), "{lines:#?}");
    assert!(lines[19].starts_with("q leave  space run"), "{lines:#?}");
}

#[test]
fn terminal_of_any_size_is_drawn_on() {
    let counters: serde_json::Map<_, _> = (0..40).map(|i| (format!("counter{i}"), json!(i))).collect();
    let vcpu = json!({"vcpu": 0, "state": "runnable", "symbol": "é".repeat(300), "statistics": counters});
    for vcpus in [0, 1, 255] {
        let mut screen = Screen::default();
        assert!(!drawn(&mut screen, 1, 1).is_empty(), "before the first frame");
        screen.take(Ok(json!({"run": "a", "state": "running", "vcpus": vec![vcpu.clone(); vcpus]})), false);
        for (width, height) in [(1, 1), (1, 50), (200, 1), (2, 2), (0, 0), (80, 24), (500, 300), (3, 13)] {
            assert_eq!(drawn(&mut screen, width, height).len(), usize::from(height));
        }
        screen.take(Err("a note that is longer than the line".into()), false);
        drawn(&mut screen, 10, 3);
    }
}

#[test]
fn vcpus_that_do_not_fit_are_scrolled_to() {
    let mut screen = Screen::default();
    let vcpus: Vec<_> = (0..64).map(|vcpu| json!({"vcpu": vcpu})).collect();
    screen.take(Ok(json!({"vcpus": vcpus})), false);
    screen.table.select(Some(63));
    assert!(drawn(&mut screen, 80, 8).iter().any(|line| line.starts_with("63 ")));
}

/// Follows `view` by what it is given, then is lost.
struct Frames(VecDeque<Value>, Vec<String>);

impl Follower for Frames {
    fn follow(&mut self, line: &str, tell: &mut Tell<'_>) -> Result<(), Lost> {
        self.1.push(line.to_owned());
        let data = self.0.pop_front().ok_or_else(|| Lost("the last run is over".into()))?;
        let _ = tell("", Ok(Answer { text: String::new(), data: json!({"state": "stopped"}) }));
        let _ = tell(line, Ok(Answer { text: String::new(), data }));
        Ok(())
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::default()
    }

    fn complete(&self, _: &str) -> (usize, Vec<String>) {
        Default::default()
    }

    fn current(&self) -> usize {
        0
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// Watches with keys that come when the screen shows their text; gives how it ended, and what was asked for.
fn watched(frames: Vec<Value>, keys: Vec<(&'static str, Event)>, terminate: bool) -> (Ended, Vec<String>) {
    let (wires, ends) = wires();
    let mut keys: VecDeque<_> = keys.into();
    let mut frames = Frames(frames.into(), Vec::new());
    let ended = thread::scope(|scope| {
        let screen = scope.spawn(move || {
            let terminal = RefCell::new(Terminal::new(TestBackend::new(100, 6)).expect("memory"));
            let until = Instant::now() + Duration::from_secs(20);
            let show = |screen: &mut Screen| {
                terminal.borrow_mut().draw(|frame| draw::draw(frame, screen)).expect("memory");
                Ok(())
            };
            let poll = |_| {
                let text = lines(terminal.borrow().backend()).join("\n");
                assert!(Instant::now() < until, "{text}");
                let is_due = keys.front().is_some_and(|(wanted, _)| text.contains(wanted));
                Ok(if is_due { keys.pop_front().map(|(_, key)| key) } else { None })
            };
            watch(show, poll, &wires, &AtomicBool::new(terminate)).expect("a terminal in memory")
        });
        follow(&mut frames, &ends);
        screen.join().expect("no panic")
    });
    (ended, frames.1)
}

fn key(code: KeyCode) -> Event {
    Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn keys_are_followed_and_what_is_lost_is_told_until_somebody_leaves() {
    let frame = |state: &str| json!({"run": "a/b", "state": state, "vcpus": [{"vcpu": 0}]});
    let frames = vec![frame("running"), json!({"state": "stopped"}), frame("stopped"), frame("stopped")];
    let space = key(KeyCode::Char(' '));
    let keys = vec![
        ("a/b  running", space),
        ("a/b  stopped", Event::Resize(3, 3)),
        ("the last run is over", key(KeyCode::Char('q'))),
    ];
    let (ended, asked) = watched(frames, keys, false);
    assert_eq!(ended, Ended::Left);
    assert!(asked.contains(&"stop".to_owned()) && asked.last().is_some_and(|last| last == "view"), "{asked:?}");
    assert_eq!(asked.len(), 5, "who is lost is asked no more: {asked:?}");
}

#[test]
fn view_ends_when_it_is_told_to() {
    assert_eq!(watched(vec![json!({"vcpus": []}); 9], Vec::new(), true).0, Ended::Terminated);
}

/// Follows nothing until it is interrupted; an interrupt from before does not count.
struct Deaf(Arc<AtomicBool>);

impl Follower for Deaf {
    fn follow(&mut self, _: &str, _: &mut Tell<'_>) -> Result<(), Lost> {
        let until = Instant::now() + Duration::from_secs(20);
        self.0.store(false, Ordering::SeqCst);
        while !self.0.load(Ordering::SeqCst) {
            assert!(Instant::now() < until, "nobody interrupts it");
            thread::yield_now();
        }
        Err(Lost("the run does not answer".into()))
    }

    fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    fn complete(&self, _: &str) -> (usize, Vec<String>) {
        Default::default()
    }

    fn current(&self) -> usize {
        0
    }

    fn is_over(&self) -> bool {
        false
    }
}

#[test]
fn view_of_who_never_answers_can_be_left() {
    let leave =
        |wires: &Wires| watch(|_| Ok(()), |_| Ok(Some(key(KeyCode::Char('q')))), wires, &AtomicBool::new(false));
    assert_eq!(beside(&mut Deaf(Arc::default()), leave).expect("no terminal"), Ended::Left);
}

#[test]
fn view_ends_where_who_follows_commands_has_panicked() {
    let (wires, ends) = wires();
    drop(ends);
    let error = watch(|_| Ok(()), |_| Ok(None), &wires, &AtomicBool::new(false)).expect_err("nobody is there");
    assert_eq!(error.to_string(), "nobody follows commands any more");
}
