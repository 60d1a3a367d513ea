//! A story as an SVG, or as a page of HTML with one in it: time goes down, a column a vCPU. Nothing is fetched from anywhere, and what
//! a guest or its file says stands there as text alone.

use std::collections::HashMap;
use std::fmt::Write;

use stallbench_core::controlled::Inject;
use stallbench_explore::{Deed, Event};

use super::{Cell, Story, wrapped};

/// Of a monospaced letter of 12 px, about.
const LETTER: usize = 7;
const LINE: usize = 16;
const PAD: usize = 6;
const MARGIN: usize = 56;
const TOP: usize = 64;
const STYLE: &str = "text{font:12px ui-monospace,monospace;fill:#222}.t{font-weight:bold}.s{fill:#888;text-anchor:end}\
.b{fill:#eef4fb;stroke:#5b84b1}.i{fill:#fdf3dc;stroke:#c8962c}.o{fill:#999}.e{fill:#b3261e}.n{stroke:#b3261e;stroke-dasharray:6 4}\
.l{stroke:#ddd}.m{fill:none;stroke:#c8962c;marker-end:url(#a)}";

/// A cell with its place: top, height, lines.
struct Placed {
    cell: Cell,
    top: usize,
    height: usize,
    lines: Vec<String>,
}

impl Story<'_> {
    /// An SVG file.
    pub fn svg(&self) -> String {
        let placed = self.placed();
        let (column, width) = (self.column(), self.whole_width());
        let bottom = placed.last().map_or(TOP, |last| last.top + last.height + PAD);
        let end: Vec<_> = self.end.iter().flat_map(|line| wrapped(line, fitting(width - MARGIN - PAD))).collect();
        let height = bottom + (end.len() + 1) * LINE + PAD;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n\
             <style>{STYLE}</style>\n<defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
             markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 8 4 0 8z\" fill=\"#c8962c\"/></marker></defs>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        );
        let _ = writeln!(svg, "<text class=\"t\" x=\"{PAD}\" y=\"20\">{}</text>", escaped(&self.title));
        let left = |vcpu: usize| MARGIN + vcpu * (column + PAD);
        for vcpu in 0..self.vcpus {
            let x = left(vcpu);
            let _ = writeln!(svg, "<text class=\"t\" x=\"{x}\" y=\"{}\">vcpu{vcpu}</text>", TOP - 14);
            let _ = writeln!(svg, "<path class=\"l\" d=\"M{0} {TOP}V{bottom}\"/>", x - PAD / 2);
        }
        placed.iter().for_each(|placed| self.draw(&mut svg, placed, left(placed.cell.vcpu), column, width));
        messages(&mut svg, self.events, &placed, &left, column);
        for (number, line) in end.iter().enumerate() {
            let y = bottom + (number + 1) * LINE;
            let _ = writeln!(svg, "<text class=\"e\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escaped(line));
        }
        svg + "</svg>\n"
    }

    fn column(&self) -> usize {
        (self.width() + 2) * LETTER
    }

    fn whole_width(&self) -> usize {
        MARGIN + self.vcpus * (self.column() + PAD) + PAD
    }

    /// Why no schedule leads to the end behind a cell, in lines.
    fn why(&self, cell: &Cell) -> Option<Vec<String>> {
        let (_, why) = self.no_return.as_ref().filter(|(step, _)| *step == cell.step)?;
        Some(wrapped(why, fitting(self.whole_width() - 2 * PAD)))
    }

    /// A page with the picture and the same as text.
    pub fn html(&self) -> String {
        let (title, svg, text) = (escaped(&self.title), self.svg(), escaped(&self.text()));
        format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<body>\n{svg}\
             <details><summary>as text</summary><pre>{text}</pre></details>\n</body></html>\n"
        )
    }

    fn placed(&self) -> Vec<Placed> {
        let mut top = TOP;
        let place = |cell: Cell| {
            top += self.why(&cell).map_or(0, |why| (why.len() + 1) * LINE);
            let lines = wrapped(&cell.text, self.width());
            let placed = Placed { top, height: lines.len() * LINE + PAD, lines, cell };
            top += placed.height + PAD;
            placed
        };
        self.cells().into_iter().map(place).collect()
    }

    fn draw(&self, svg: &mut String, placed: &Placed, x: usize, column: usize, width: usize) {
        let Placed { cell, top, height, lines } = placed;
        if let Some(why) = self.why(cell) {
            let y = top - LINE;
            let _ = writeln!(svg, "<path class=\"n\" d=\"M0 {y}H{width}\"/>");
            for (above, line) in why.iter().rev().enumerate() {
                let y = y - 4 - above * LINE;
                let _ = writeln!(
                    svg,
                    "<text class=\"e\" x=\"{PAD}\" y=\"{y}\" xml:space=\"preserve\">{}</text>",
                    escaped(line)
                );
            }
        }
        if !cell.is_own {
            let class = if self.events[cell.step - 1].takes.is_some() { "i" } else { "b" };
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{top}\" width=\"{column}\" height=\"{height}\" rx=\"3\"/>\
                 <text class=\"s\" x=\"{}\" y=\"{}\">{}</text>",
                MARGIN - PAD - PAD,
                top + LINE - 2,
                cell.step
            );
        }
        let class = if cell.is_own { " class=\"o\"" } else { "" };
        for (number, line) in lines.iter().enumerate() {
            let y = top + (number + 1) * LINE - 2;
            let text = escaped(line);
            let _ = writeln!(svg, "<text{class} x=\"{}\" y=\"{y}\" xml:space=\"preserve\">{text}</text>", x + PAD);
        }
    }
}

/// How many letters there is room for. One of ui-monospace has 7.2 px, one of others somewhat more.
fn fitting(width: usize) -> usize {
    width * 10 / 75
}

/// An arrow from where an interrupt is sent to where it is taken.
fn messages(svg: &mut String, events: &[Event], placed: &[Placed], left: &dyn Fn(usize) -> usize, column: usize) {
    // Who sent what to whom last: column and height.
    let mut sent: HashMap<(usize, String), (usize, usize)> = HashMap::new();
    for Placed { cell, top, height, .. } in placed.iter().filter(|placed| !placed.cell.is_own) {
        let event = &events[cell.step - 1];
        let takes = event.takes.map(|takes| match takes {
            Inject::Vector(vector) => format!("vector {vector:#x}"),
            Inject::Nmi => "nmi".to_owned(),
            Inject::Init => "init".to_owned(),
            Inject::StartUp(vector) => format!("sipi {vector:#x}"),
        });
        if let Some((from, y)) = takes.and_then(|what| sent.get(&(cell.vcpu, what)).copied()) {
            let (begin, end) = if from < cell.vcpu {
                (left(from) + column, left(cell.vcpu))
            } else {
                (left(from), left(cell.vcpu) + column)
            };
            let _ = writeln!(svg, "<path class=\"m\" d=\"M{begin} {y}L{end} {}\"/>", top + height / 2);
        }
        for deed in &event.does {
            if let Deed::Send { what, to } | Deed::Early { what, to, .. } = deed {
                to.iter().for_each(|to| _ = sent.insert((*to, what.clone()), (cell.vcpu, top + height / 2)));
            }
        }
    }
}

/// As the text of an element.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // No character of XML (XML 1.0, 2.2).
            c if c.is_control() && c != '\n' => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::story::test::{event, events, lock, story};
    use stallbench_explore::Choice;

    #[test]
    fn picture_is_whole_and_what_others_wrote_is_text() {
        let mut events = events();
        events.push(event(Choice::Run(1), "<script>alert(1)</script>\u{7}+0x2", vec![Deed::Read(lock(1))]));
        for text in [story(&events).svg(), story(&events).html()] {
            assert!(!text.contains("<script") && text.contains("&lt;script&gt;alert(1)&lt;/script&gt;?+0x2"), "{text}");
            assert!(!text.contains("href") && !text.contains("src="), "nothing comes from elsewhere");
            assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
            assert!(text.contains("no way back") && text.contains("class=\"m\""), "the interrupt has an arrow: {text}");
        }
    }

    #[test]
    fn no_line_is_longer_than_the_picture_is_wide() {
        let (events, long) = (events(), "a line that nothing stops from being long ".repeat(9));
        let story = Story { no_return: Some((4, long.clone())), end: vec![long], ..story(&events) };
        let svg = story.svg();
        assert_eq!(svg.matches("nothing").count(), 18, "all of it is there");
        let texts = svg.split("<text").skip(1).filter_map(|text| text.split_once('>')?.1.split("</text>").next());
        let longest = texts.map(|text| text.chars().count()).max();
        assert!(longest <= Some(fitting(story.whole_width())), "{longest:?}: {svg}");
    }
}
