//! What the screen shows now, and what keys do to it.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;
use serde_json::Value;

use super::frame::Frame;

/// What the screen shows.
#[derive(Debug, Default)]
pub(super) struct Screen {
    pub(super) frame: Option<Frame>,
    /// What went wrong with what was asked for last.
    pub(super) note: Option<String>,
    /// The vCPU that is looked at, and the first that is in sight.
    pub(super) table: TableState,
    is_lost: bool,
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// To be drawn again.
    Nothing,
    /// To have this followed.
    Follow(&'static str),
    /// To leave.
    Leave,
}

/// vCPUs that a page is.
const PAGE: u16 = 10;

impl Screen {
    /// Takes what came of a line. A frame is the answer to `view`; what else was asked for shows in the next.
    pub(super) fn take(&mut self, answer: Result<Value, String>, is_lost: bool) {
        self.is_lost |= is_lost;
        match answer {
            Ok(data) if data["vcpus"].is_array() => {
                let frame = Frame::of(&data);
                let last = frame.vcpus.len().saturating_sub(1);
                self.table.select(Some(self.table.selected().unwrap_or(0).min(last)));
                self.frame = Some(frame);
            }
            Ok(_) => {}
            Err(why) => self.note = Some(crate::printable(&why)),
        }
    }

    /// Nobody follows anything any more.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Does what a key says.
    pub(super) fn hear(&mut self, event: &Event) -> Deed {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            _ => Deed::Nothing,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Deed {
        if !self.is_lost {
            self.note = None;
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Deed::Leave,
            KeyCode::Char('q') | KeyCode::Esc => return Deed::Leave,
            KeyCode::Char(' ') if self.is_lost => {}
            KeyCode::Char(' ') if self.frame.as_ref().is_some_and(Frame::is_running) => return Deed::Follow("stop"),
            KeyCode::Char(' ') => return Deed::Follow("run --background"),
            KeyCode::Up => self.table.select_previous(),
            KeyCode::Down => self.table.select_next(),
            KeyCode::PageUp => self.table.scroll_up_by(PAGE),
            KeyCode::PageDown => self.table.scroll_down_by(PAGE),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        Deed::Nothing
    }
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use super::*;

    fn press(screen: &mut Screen, code: KeyCode) -> Deed {
        screen.hear(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    #[test]
    fn space_stops_a_machine_that_runs_and_lets_one_go_that_stands() {
        let mut screen = Screen::default();
        let mut at = |state: &str| {
            screen.take(Ok(json!({"state": state, "vcpus": []})), false);
            press(&mut screen, KeyCode::Char(' '))
        };
        assert_eq!(at("running"), Deed::Follow("stop"));
        assert_eq!(at("stopped"), Deed::Follow("run --background"));
        assert_eq!(at("dump"), Deed::Follow("run --background"), "which says why it cannot");
        screen.take(Err("gone".into()), true);
        assert_eq!(press(&mut screen, KeyCode::Char(' ')), Deed::Nothing, "nobody follows it");
        assert_eq!(screen.note.as_deref(), Some("gone"));
        assert_eq!(press(&mut screen, KeyCode::Char('q')), Deed::Leave);
    }

    #[test]
    fn selection_stays_where_vcpus_are() {
        let mut screen = Screen::default();
        let take = |screen: &mut Screen, vcpus: usize| screen.take(Ok(json!({"vcpus": vec![json!({}); vcpus]})), false);
        take(&mut screen, 4);
        assert_eq!(screen.table.selected(), Some(0));
        for code in [KeyCode::PageDown, KeyCode::End, KeyCode::Down, KeyCode::Down] {
            assert_eq!(press(&mut screen, code), Deed::Nothing);
        }
        take(&mut screen, 4);
        assert_eq!(screen.table.selected(), Some(3));
        take(&mut screen, 2);
        assert_eq!(screen.table.selected(), Some(1));
        assert_eq!(press(&mut screen, KeyCode::PageUp), Deed::Nothing);
        take(&mut screen, 2);
        assert_eq!(screen.table.selected(), Some(0));
    }
}
