//! How schedules are tried, as the command line names it.

use clap::{Args, ValueEnum};
use stallbench_runner::explore::{Strategy, Walking};

use crate::exit::Failure;

/// Walks that are made if nothing else is said.
const WALKS: u64 = 10_000;
/// Depth of the bugs that they are to find.
const DEPTH: u32 = 3;

#[derive(Debug, Args)]
pub(super) struct Schedules {
    /// All schedules; or walks, one schedule after another, with priorities that change at random (pct) or choosing each step at random. Walks are beyond what all schedules can be tried of: they find, and complete nothing. --seed makes others
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Name::Exhaustive)]
    strategy: Name,
    /// Walks at most [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    walks: Option<u64>,
    /// Of pct: of how many steps the order is to be met; priorities change once less [default: 3]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=16))]
    depth: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    Exhaustive,
    Pct,
    Random,
}

impl Schedules {
    /// Refuses what says nothing.
    pub(super) fn check(&self, keeps: bool) -> Result<(), Failure> {
        let why = match self {
            Self { strategy: Name::Exhaustive, walks: Some(_), .. } => {
                "--walks: all schedules are tried; give --strategy pct or random"
            }
            Self { strategy: Name::Exhaustive | Name::Random, depth: Some(_), .. } => {
                "--depth: priorities change with --strategy pct alone"
            }
            Self { strategy: Name::Pct | Name::Random, .. } if keeps => {
                "--checkpoint and --resume: walks keep nothing to go on from; --seed makes others"
            }
            _ => return Ok(()),
        };
        Err(Failure::usage(why))
    }

    /// Whether all schedules are tried.
    pub(super) fn is_exhaustive(&self) -> bool {
        self.strategy == Name::Exhaustive
    }

    pub(super) fn strategy(&self, seed: u64) -> Strategy {
        let most = self.walks.unwrap_or(WALKS);
        match self.strategy {
            Name::Exhaustive => Strategy::Exhaustive,
            Name::Pct => Strategy::Walks { walking: Walking::Pct { depth: self.depth.unwrap_or(DEPTH) }, most, seed },
            Name::Random => Strategy::Walks { walking: Walking::Random, most, seed },
        }
    }

    /// The options that ask for it again, each behind a space.
    pub(super) fn options(&self) -> String {
        match self.strategy(0) {
            Strategy::Exhaustive => String::new(),
            Strategy::Walks { walking: Walking::Random, most, .. } => format!(" --strategy random --walks {most}"),
            Strategy::Walks { walking: Walking::Pct { depth }, most, .. } => {
                format!(" --strategy pct --depth {depth} --walks {most}")
            }
        }
    }
}
