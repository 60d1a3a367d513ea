//! The memory model of a search, as the command line names it.

use clap::{Args, ValueEnum};
use stallbench_explore::{Icr, Model};

use crate::exit::Failure;

#[derive(Debug, Args)]
pub(super) struct MemoryModel {
    /// Memory model: in program order (sc), or with stores that others see later (x86-TSO)
    #[arg(long, value_enum, value_name = "MODEL", default_value_t = Name::Sc)]
    model: Name,
    /// Under tso, when a write to the x2APIC's ICR is seen: behind the stores before it; before those that are held back (the default); or early, before all since the last serialising instruction or MFENCE with LFENCE
    #[arg(long, value_enum, value_name = "WHEN")]
    icr: Option<When>,
    /// Under tso, stores that a vCPU holds back at most; where it could hold back more, no search is complete [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    buffer: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    Sc,
    Tso,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    Ordered,
    Buffer,
    Early,
}

impl MemoryModel {
    /// The model; an error where something is said of a store buffer that no vCPU has.
    pub(super) fn model(&self) -> Result<Model, Failure> {
        let Model::Tso { icr, buffer } = Model::tso() else { return Ok(Model::Sc) };
        if self.model == Name::Tso {
            let icr = self.icr.map_or(icr, When::icr);
            return Ok(Model::Tso { icr, buffer: self.buffer.map_or(buffer, usize::from) });
        }
        match (self.icr, self.buffer) {
            (None, None) => Ok(Model::Sc),
            (Some(_), _) => Err(Failure::usage("--icr: nothing comes later than its turn under sc; give --model tso")),
            (None, Some(_)) => Err(Failure::usage("--buffer: no store is held back under sc; give --model tso")),
        }
    }

    /// The options that ask for it again, each behind a space.
    pub(super) fn options(model: Model) -> String {
        match model {
            Model::Sc => String::new(),
            Model::Tso { icr, buffer } => format!(" --model tso --icr {icr} --buffer {buffer}"),
        }
    }
}

impl When {
    fn icr(self) -> Icr {
        match self {
            Self::Ordered => Icr::Ordered,
            Self::Buffer => Icr::Buffer,
            Self::Early => Icr::Early,
        }
    }
}
