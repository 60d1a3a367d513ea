//! Draws the screen, however small the terminal is.

use ratatui::Frame as Canvas;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::frame::{Frame, HEADINGS, Vcpu};
use super::screen::Screen;

/// Rows from which on there is room for what is said of one vCPU.
const ROOMY: u16 = 12;
/// Width of a counter of the kernel: name, value, a second.
const COUNTER: u16 = 44;

const STUCK: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws all of it.
pub(super) fn draw(canvas: &mut Canvas<'_>, screen: &mut Screen) {
    let area = canvas.area();
    let Screen { frame, note, table, .. } = screen;
    let selected = frame.as_ref().and_then(|frame| frame.vcpus.get(table.selected()?));
    let detail = if area.height < ROOMY { 0 } else { selected.map_or(0, |vcpu| rows_of(vcpu, area)) };
    let parts = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(detail), Constraint::Length(1)];
    let [title, rows, below, foot] = Layout::vertical(parts).areas(area);
    canvas.render_widget(title_of(frame.as_ref()), title);
    if let Some(vcpu) = selected {
        canvas.render_widget(Paragraph::new(said_of(vcpu, area.width)), below);
    }
    if let Some(frame) = &*frame {
        canvas.render_stateful_widget(table_of(frame), rows, table);
    }
    canvas.render_widget(foot_of(frame.as_ref(), note.as_deref()), foot);
}

fn title_of(frame: Option<&Frame>) -> Line<'_> {
    let Some(frame) = frame else { return Line::styled("waiting for a machine", DIM) };
    let why = frame.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let mut title = Line::from(vec![Span::styled(&*frame.run, BOLD), Span::raw(format!("  {}{why}", frame.state))]);
    if let Some(verdict) = &frame.verdict {
        title.push_span(Span::styled(format!("  {verdict}"), BOLD));
    }
    title
}

fn table_of(frame: &Frame) -> Table<'_> {
    let width = |column: usize| {
        let cells = frame.vcpus.iter().map(|vcpu| vcpu.cells[column].chars().count());
        cells.max().unwrap_or(0).max(HEADINGS[column].len())
    };
    // No terminal is as wide as a length that does not fit.
    let width = |column| Constraint::Length(u16::try_from(width(column)).unwrap_or(u16::MAX));
    let last = HEADINGS.len() - 1;
    let widths = (0..last).map(width).chain([Constraint::Min(0)]);
    let row = |vcpu: &Vcpu| {
        let style = if vcpu.is_stuck { STUCK } else { Style::new() };
        Row::new(vcpu.cells.iter().map(|cell| Cell::new(cell.clone()))).style(style)
    };
    Table::new(frame.vcpus.iter().map(row), widths)
        .header(Row::new(HEADINGS).style(DIM))
        .column_spacing(2)
        .row_highlight_style(SELECTED)
}

/// How many counters stand beside each other.
fn beside(width: u16) -> usize {
    usize::from((width / COUNTER).max(1))
}

/// How many rows are given to what is said of a vCPU: a line about it and its counters, half of the terminal at most.
fn rows_of(vcpu: &Vcpu, area: Rect) -> u16 {
    let rows = 2 + vcpu.statistics.len().div_ceil(beside(area.width));
    u16::try_from(rows).unwrap_or(u16::MAX).min(area.height / 2)
}

fn said_of(vcpu: &Vcpu, width: u16) -> Vec<Line<'_>> {
    let about = format!("vcpu{} {}", vcpu.cells[0], vcpu.wait.as_deref().unwrap_or_default());
    let counter = |(name, value, rate): &(String, String, String)| format!("{name:<24} {value:>10} {rate:>6}/s  ");
    let counters = vcpu.statistics.chunks(beside(width));
    let counters = counters.map(|beside| Line::raw(beside.iter().map(counter).collect::<String>()));
    [Line::raw(""), Line::styled(about, BOLD)].into_iter().chain(counters).collect()
}

fn foot_of<'a>(frame: Option<&'a Frame>, note: Option<&'a str>) -> Line<'a> {
    if let Some(note) = note {
        return Line::styled(note, STUCK);
    }
    let keys = if frame.is_some_and(Frame::is_running) { "space stop" } else { "space run" };
    let mut foot = Line::styled(format!("q leave  {keys}  arrows select"), DIM);
    if let Some(why) = frame.and_then(|frame| frame.no_statistics.as_ref()) {
        foot.push_span(Span::styled(format!("  no counters of the kernel: {why}"), DIM));
    }
    foot
}
