//! The guest that a command works on: the built-in image, or a file of the user's, which may be one that keeps no contract.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use stallbench_runner::nearest::did_you_mean_or;
use stallbench_runner::scenario::{Case, Problem};
use stallbench_state::dump::Packed;
use stallbench_state::program::{CaseInfo, Payload, PlainProgram, Program};

use crate::exit::{Exit, Failure};

/// Most bytes of a file that are read: an image has 1 MiB to lie in, and debug information on top.
const MOST_BYTES: u64 = 256 << 20;

/// What `--payload` names.
#[derive(Debug)]
pub(crate) enum Subject {
    /// An image, or none: then it is the built-in one.
    Image(Guest),
    /// A plain guest.
    Plain(Box<PlainProgram>),
}

impl Subject {
    /// What lies in that file, or the built-in image.
    pub(crate) fn open(payload: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = payload else { return Ok(Self::Image(Guest::open(None)?)) };
        let parsed = read(path).and_then(|bytes| Ok(Payload::parse(bytes)?));
        match parsed.map_err(|failure| in_file(failure, path))? {
            Payload::Contract(program) => Ok(Self::Image(Guest::File(program))),
            Payload::Plain(program) => Ok(Self::Plain(program)),
        }
    }
}

fn in_file(failure: Failure, path: &Path) -> Failure {
    failure.context(format_args!("--payload {}", path.display()))
}

/// An image.
#[derive(Debug)]
pub(crate) enum Guest {
    BuiltIn(&'static Program),
    File(Box<Program>),
}

impl Guest {
    /// The image in that file, or the built-in one.
    pub(crate) fn open(payload: Option<&Path>) -> Result<Self, Failure> {
        match payload {
            None => Ok(Self::BuiltIn(stallbench_image::program())),
            Some(path) => image(path).map_err(|failure| in_file(failure, path)),
        }
    }

    pub(crate) fn program(&self) -> &Program {
        match self {
            Self::BuiltIn(program) => program,
            Self::File(program) => program,
        }
    }

    /// Its file, as dumps have it in them.
    pub(crate) fn packed(&self) -> Packed {
        match self {
            Self::BuiltIn(_) => stallbench_image::packed(),
            Self::File(program) => Packed::of(program.bytes()),
        }
    }

    /// Its cases, as scenarios see them.
    pub(crate) fn cases(&self) -> Vec<Case> {
        self.program().cases().iter().enumerate().map(|(index, info)| self.as_case(index, info)).collect()
    }

    fn as_case(&self, index: usize, info: &CaseInfo) -> Case {
        Case { name: info.name.clone(), index, knobs: info.knobs, points: self.program().points().into() }
    }

    fn near_case(&self, name: &str) -> String {
        let cases: Vec<_> = self.program().cases().iter().map(|case| case.name.as_str()).collect();
        did_you_mean_or(name, cases.iter().copied(), || format!("; it has {}", cases.join(", ")))
    }

    /// The case of that name.
    pub(crate) fn case(&self, name: &str) -> Result<Case, Problem> {
        match self.program().case(name) {
            Some((index, info)) => Ok(self.as_case(index, info)),
            None => Err(Problem::UnknownCase { case: name.to_owned(), nearest: self.near_case(name) }),
        }
    }
}

fn image(path: &Path) -> Result<Guest, Failure> {
    Ok(Guest::File(Box::new(Program::parse(Cow::Owned(read(path)?))?)))
}

/// The bytes of a payload.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    read_at_most(MOST_BYTES, "an image", path)
}

/// The bytes of a file of a kind, which cannot have more than this many.
pub(crate) fn read_at_most(most: u64, kind: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: &std::io::Error| Failure::new(Exit::Usage, error);
    let metadata = fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(Failure::usage("not a regular file"));
    }
    if metadata.len() > most {
        return Err(Failure::usage(format!("{} bytes, more than the {most} that {kind} can have", metadata.len())));
    }
    fs::read(path).map_err(|error| unreadable(&error))
}
