//! Searches in files: one that was interrupted, or that came to its limits, goes on from there later.
//!
//! A line of JSON says of what the search is, then come its numbers ([`Search::save`]) and a checksum of all that. A file is there as a
//! whole or not at all, and takes the place of no other but the one that its search went on from.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use stallbench_explore::{Search, Settings};
use stallbench_state::certificate::Certificate;
use stallbench_state::program::Program;
use thiserror::Error;

use crate::dump::as_a_whole;
use crate::execute::{RunPlan, boot_block};
use crate::repeat::file_name;
use crate::scenario::Run;

/// The version of what is written here.
const VERSION: u64 = 6;
/// Bytes of the line at most.
const LONGEST_LINE: usize = 1 << 16;
/// Files at most that nobody asked for and gave no directory for: they lie in the current one.
const MOST_UNASKED: usize = 8;
/// Names that are tried for one.
const MOST_NAMES: usize = 100;
/// Bytes of the checksum.
const SUM: usize = 4;

/// Why a file is no checkpoint to go on from.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: no checkpoint of a search", .0.display())]
    Foreign(PathBuf),
    /// It was written by another version.
    #[error("{}: a checkpoint of version {found}; this is version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It was edited or is not all there.
    #[error("{}: edited or truncated: its checksum does not match", .0.display())]
    Damaged(PathBuf),
    /// It is of another search.
    #[error("{}: of another {what}: {found}, and this search has {wanted}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As the file has it.
        found: String,
        /// As it would have to be.
        wanted: String,
    },
}

/// A checkpoint that could not be written.
#[derive(Debug, Error)]
#[error("write checkpoint {}: {source}", path.display())]
pub struct CheckpointWriteError {
    /// Where it was to lie.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Of what a search is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    stallbench_checkpoint: u64,
    tool: String,
    run: String,
    payload: String,
    guest: String,
    settings: String,
}

/// No more than the version.
#[derive(Deserialize)]
struct Versioned {
    stallbench_checkpoint: u64,
}

impl Identity {
    /// Of a run's search.
    pub fn of(run: &str, program: &Program, plan: &RunPlan, settings: &Settings) -> Self {
        let guest = boot_block(&super::controlled(plan));
        Self {
            stallbench_checkpoint: VERSION,
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            run: run.to_owned(),
            payload: Certificate::digest(program.bytes()),
            guest: Certificate::digest(format!("{guest:?}").as_bytes()),
            settings: settings.to_string(),
        }
    }

    fn check(&self, path: &Path, wanted: &Self) -> Result<(), CheckpointError> {
        let pairs = [
            ("version of stallbench", &self.tool, &wanted.tool),
            ("run", &self.run, &wanted.run),
            ("payload", &self.payload, &wanted.payload),
            ("guest", &self.guest, &wanted.guest),
            ("search", &self.settings, &wanted.settings),
        ];
        match pairs.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(()),
            Some((what, found, wanted)) => {
                let (found, wanted) = (found.clone(), wanted.clone());
                Err(CheckpointError::Other { path: path.to_owned(), what, found, wanted })
            }
        }
    }
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Saved {
    bytes: Vec<u8>,
    /// Where its numbers begin.
    begin: usize,
}

impl Saved {
    /// Reads that of a search.
    pub fn read(path: &Path, wanted: &Identity) -> Result<Self, CheckpointError> {
        let is_file = |path: &Path| {
            fs::metadata(path).and_then(|it| if it.is_file() { Ok(()) } else { Err(io::Error::other(NO_FILE)) })
        };
        let bytes = is_file(path).and_then(|()| fs::read(path));
        let bytes = bytes.map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let foreign = || CheckpointError::Foreign(path.to_owned());
        let line = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n').ok_or_else(foreign)?;
        let Versioned { stallbench_checkpoint: found } =
            serde_json::from_slice(&bytes[..line]).map_err(|_| foreign())?;
        if found != VERSION {
            return Err(CheckpointError::Version { path: path.to_owned(), found });
        }
        let damaged = || CheckpointError::Damaged(path.to_owned());
        let (contents, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(damaged)?;
        if line >= contents.len() || crc32fast::hash(contents) != u32::from_le_bytes(*sum) {
            return Err(damaged());
        }
        let identity: Identity = serde_json::from_slice(&bytes[..line]).map_err(|_| damaged())?;
        identity.check(path, wanted)?;
        Ok(Self { begin: line + 1, bytes })
    }

    /// The numbers of the search.
    pub fn search(&self) -> &[u8] {
        &self.bytes[self.begin..self.bytes.len() - SUM]
    }
}

const NO_FILE: &str = "no regular file";

/// Where the searches of a session leave their checkpoints.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// The file that was asked for.
    file: Option<PathBuf>,
    /// The file from which the search went on.
    resumed: Option<PathBuf>,
    /// The run directory, if there is one.
    out: Option<PathBuf>,
    failures: Mutex<Vec<CheckpointWriteError>>,
    /// Files that nobody asked for so far.
    unasked: AtomicUsize,
}

impl Checkpoints {
    /// In the file that was asked for; else in the one that was gone on from, in the run directory, or in the current one.
    pub fn new(file: Option<PathBuf>, resumed: Option<PathBuf>, out: Option<PathBuf>) -> Self {
        Self { file, resumed, out, ..Self::default() }
    }

    /// Writes a search of a run: where it lies, if it lies anywhere.
    pub fn write(&self, run: &Run, identity: &Identity, search: &Search<'_>) -> Option<PathBuf> {
        let asked = self.file.as_ref().or(self.resumed.as_ref());
        if asked.is_none() && self.out.is_none() && self.unasked.fetch_add(1, Ordering::Relaxed) >= MOST_UNASKED {
            return None;
        }
        let replaces = asked.is_some() && asked == self.resumed.as_ref();
        let path = match (asked, &self.out) {
            (Some(path), _) => path.clone(),
            (None, Some(out)) => out.join(file_name(run)).join("search.explore"),
            (None, None) => PathBuf::from(format!("stallbench-{}.explore", file_name(run).replace('/', "_"))),
        };
        if let (None, Some(Err(source))) = (asked, path.parent().map(fs::create_dir_all)) {
            self.note(CheckpointWriteError { path, source });
            return None;
        }
        let names = if asked.is_some() { 1 } else { MOST_NAMES };
        let written = write(&path, names, replaces, |file| {
            serde_json::to_writer(&mut *file, identity)?;
            file.write_all(b"\n")?;
            search.save(file)
        });
        written.map_err(|source| self.note(CheckpointWriteError { path, source })).ok()
    }

    fn note(&self, failure: CheckpointWriteError) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// What could not be written so far.
    pub fn failures(&self) -> Vec<CheckpointWriteError> {
        std::mem::take(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes a file with the sum of what is in it at its end, under the first of so many names that is free: `x.explore`, `x-2.explore`.
fn write(
    path: &Path,
    names: usize,
    replaces: bool,
    contents: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let mut lies = None;
    as_a_whole(
        path,
        |file| {
            let mut summed = Summed { file, sum: crc32fast::Hasher::new() };
            contents(&mut summed)?;
            let sum = summed.sum.finalize();
            file.write_all(&sum.to_le_bytes())?;
            file.flush()?;
            file.get_ref().sync_all()
        },
        |partial| {
            if replaces {
                lies = Some(path.to_owned());
                return fs::rename(partial, path);
            }
            let free =
                (1..=names).map(|number| numbered(path, number)).find_map(|path| match fs::hard_link(partial, &path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    linked => Some(linked.map(|()| path)),
                });
            lies = Some(free.unwrap_or(Err(io::ErrorKind::AlreadyExists.into()))?);
            fs::remove_file(partial)
        },
    )?;
    Ok(lies.unwrap_or_else(|| path.to_owned()))
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    if number == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number}.explore"))
}

/// Sums up what goes through.
struct Summed<'f, W> {
    file: &'f mut W,
    sum: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn identity() -> Identity {
        let text = |text: &str| text.to_owned();
        Identity {
            stallbench_checkpoint: VERSION,
            tool: text("1.0"),
            run: text("a/b@vcpus=2"),
            payload: text("p"),
            guest: text("g"),
            settings: text("s"),
        }
    }

    fn written(path: &Path, names: usize, replaces: bool) -> io::Result<PathBuf> {
        write(path, names, replaces, |file| {
            serde_json::to_writer(&mut *file, &identity())?;
            file.write_all(b"\nnumbers")
        })
    }

    #[test]
    fn checkpoint_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(&directory.path().join("x.explore"), 1, false).unwrap();
        assert_eq!(Saved::read(&path, &identity()).unwrap().search(), b"numbers");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no other file");
    }

    #[test]
    fn every_byte_of_it_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(&directory.path().join("x.explore"), 1, false).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut edited = whole.clone();
            edited[at] ^= 1;
            fs::write(&path, &edited).unwrap();
            assert!(Saved::read(&path, &identity()).is_err(), "byte {at} edited");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(Saved::read(&path, &identity()).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn what_is_of_another_search_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(&directory.path().join("x.explore"), 1, false).unwrap();
        let wanted = Identity { payload: "q".to_owned(), ..identity() };
        let error = Saved::read(&path, &wanted).unwrap_err().to_string();
        assert!(error.ends_with("x.explore: of another payload: p, and this search has q"), "{error}");
        fs::write(&path, "{\"stallbench_checkpoint\":7}\n").unwrap();
        assert!(Saved::read(&path, &wanted).unwrap_err().to_string().contains("version 7"));
        fs::write(&path, "something else\n").unwrap();
        assert!(Saved::read(&path, &wanted).unwrap_err().to_string().contains("no checkpoint"));
        assert!(Saved::read(directory.path(), &wanted).is_err());
    }

    #[test]
    fn file_of_another_search_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.explore");
        let paths = [1, 2, 3].map(|_| written(&path, MOST_NAMES, false).unwrap());
        assert_eq!(paths, ["x", "x-2", "x-3"].map(|name| directory.path().join(format!("{name}.explore"))));
        assert_eq!(written(&path, 1, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(written(&path, 1, true).unwrap(), path, "its own");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn full_disk_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let full = write(&directory.path().join("x"), 1, false, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
