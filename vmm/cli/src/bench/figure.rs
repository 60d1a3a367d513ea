//! A measured figure: its samples, and the aim that stands beside it.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

/// Something measured.
#[derive(Debug)]
pub(super) struct Figure {
    /// In kebab-case.
    pub(super) name: String,
    /// A fragment.
    pub(super) what: String,
    /// What was aimed at on an idle machine, if anything.
    pub(super) aim: Option<&'static str>,
    pub(super) samples: Samples,
}

/// The values, in the unit of the figure.
#[derive(Debug)]
pub(super) enum Samples {
    Times(Vec<Duration>),
    Bytes(u64),
}

impl Figure {
    /// Times of the same thing.
    pub(super) fn times(
        name: impl Into<String>,
        what: impl Into<String>,
        aim: Option<&'static str>,
        mut times: Vec<Duration>,
    ) -> Self {
        times.sort();
        Self { name: name.into(), what: what.into(), aim, samples: Samples::Times(times) }
    }

    /// An amount of memory.
    pub(super) fn bytes(name: &str, what: &str, aim: Option<&'static str>, bytes: u64) -> Self {
        Self { name: name.into(), what: what.into(), aim, samples: Samples::Bytes(bytes) }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value =
            json!({ "figure": self.name, "what": self.what, "aim": self.aim.map(|aim| format!("<= {aim}")) });
        match &self.samples {
            Samples::Times(times) => {
                let nanos =
                    |time: Option<Duration>| time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                value["samples"] = times.len().into();
                value["median_ns"] = nanos(median(times)).into();
                value["min_ns"] = nanos(times.first().copied()).into();
                value["max_ns"] = nanos(times.last().copied()).into();
            }
            Samples::Bytes(bytes) => value["bytes"] = (*bytes).into(),
        }
        value
    }

    fn row(&self) -> [String; 5] {
        let time = |time: Option<Duration>| time.map_or_else(String::new, in_words);
        let (middle, range) = match &self.samples {
            Samples::Times(times) if times.len() == 1 => (time(median(times)), String::new()),
            Samples::Times(times) => {
                (time(median(times)), format!("{} – {}", time(times.first().copied()), time(times.last().copied())))
            }
            Samples::Bytes(bytes @ ..10_000) => (format!("{bytes} B"), String::new()),
            Samples::Bytes(bytes) => (format!("{:.1} MB", *bytes as f64 / 1e6), String::new()),
        };
        let aim = self.aim.map_or_else(String::new, |aim| format!("≤ {aim}"));
        [self.name.clone(), middle, range, aim, self.what.clone()]
    }
}

/// The middle of sorted times.
fn median(times: &[Duration]) -> Option<Duration> {
    times.get(times.len() / 2).copied()
}

fn in_words(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..100.0 => format!("{micros:.1} µs"),
        100.0..1e3 => format!("{micros:.0} µs"),
        1e3..1e6 => format!("{:.1} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// The figures as a table.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["figure", "median", "min – max", "aim", "what"]);
    for figure in figures {
        table.add_row(figure.row());
    }
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn figure_shows_median_and_range() {
        let times = [3, 1, 200].map(Duration::from_millis).to_vec();
        let figure = Figure::times("x", "y", Some("5 ms"), times);
        assert_eq!(figure.row(), ["x", "3.0 ms", "1.0 ms – 200.0 ms", "≤ 5 ms", "y"]);
        let json = figure.to_json();
        assert_eq!(
            (&json["median_ns"], &json["samples"], &json["aim"]),
            (&3_000_000.into(), &3.into(), &"<= 5 ms".into())
        );
    }
}
