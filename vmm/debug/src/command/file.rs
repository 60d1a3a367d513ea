//! `dump` and `payload`: files of what is looked at.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Command, Needs, Takes};
use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::session::Session;

pub(super) const DUMP: Command = Command {
    name: "dump",
    usage: "dump FILE",
    summary: "write a dump of this machine as it is now into a new file; the machine goes on as it was",
    details: "`stallbench debug --dump FILE` looks at it, and gdb opens it. A file that is there already is never replaced, and one that \
could\nnot be written as a whole does not stay.\n",
    takes: Takes::File,
    needs: Needs::Machine,
    run: dump,
};

pub(super) const PAYLOAD: Command = Command {
    name: "payload",
    usage: "payload FILE",
    summary: "write the guest's own ELF file into a new file, for gdb",
    details: "`gdb FILE`, or `file FILE` in gdb, has its symbols and lines.\n",
    takes: Takes::File,
    needs: Needs::Machine,
    run: payload,
};

fn dump(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let path = session.path(arguments.word("the file")?);
    arguments.end()?;
    let dump = session.target().dump().ok_or(CommandError::NoDump)?;
    write(&path, |file| dump.write(file))
}

fn payload(session: &mut Session, mut arguments: Arguments<'_>) -> Result<Answer, CommandError> {
    let path = session.path(arguments.word("the file")?);
    arguments.end()?;
    write(&path, |file| file.write_all(session.target().payload()))
}

fn write(path: &Path, content: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<Answer, CommandError> {
    let name = path.display().to_string();
    let written = as_a_new_file(path, content).map_err(|source| CommandError::File { path: name.clone(), source })?;
    Ok(Answer::new(format!("{name}: {written} bytes"), json!({"file": name, "bytes": written})))
}

/// Writes a file under another name first, so that it is there as a whole or not at all; its bytes. What is there already is not
/// replaced, not even when it comes in between.
fn as_a_new_file(path: &Path, content: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<u64> {
    if path.symlink_metadata().is_ok() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and is not replaced"));
    }
    let partial = Partial::of(path)?;
    let file = OpenOptions::new().write(true).create_new(true).open(&partial.0)?;
    let mut out = BufWriter::new(&file);
    content(&mut out)?;
    out.flush()?;
    drop(out);
    // Unlike a rename, a link never replaces what is there.
    fs::hard_link(&partial.0, path)?;
    file.metadata().map(|file| file.len())
}

/// A file under another name, which does not stay.
struct Partial(PathBuf);

impl Partial {
    fn of(path: &Path) -> io::Result<Self> {
        let mut name = path.file_name().map(OsString::from).ok_or(io::ErrorKind::IsADirectory)?;
        name.push(format!(".{}.part", std::process::id()));
        Ok(Self(path.with_file_name(name)))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What matters is whether the file itself could be written.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod test {
    use std::fs;

    use stallbench_state::dump::Dump;

    use super::as_a_new_file;
    use crate::sample::live::Lively;
    use crate::sample::{answer, refusal};

    #[test]
    fn dump_and_payload_of_a_machine_are_written_where_the_session_is() {
        let directory = tempfile::tempdir().expect("it can be made");
        let mut session = Lively::new().session();
        session.set_directory(directory.path());
        let said = answer(&mut session, "dump a.core").expect("it has an answer");
        let bytes = fs::read(directory.path().join("a.core")).expect("it is there");
        assert_eq!(said.data["bytes"], bytes.len());
        let dump = Dump::read(&bytes).expect("it is a dump");
        assert_eq!((dump.about.run.as_str(), dump.machine.vcpus.len()), ("sample/deadlock@vcpus=2", 2));
        assert!(answer(&mut session, "payload guest.elf").is_ok());
        assert_eq!(fs::read(directory.path().join("guest.elf")).expect("it is there"), dump.payload);
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 2, "no other file");
    }

    #[test]
    fn file_that_is_there_is_not_replaced_and_half_a_file_does_not_stay() {
        let directory = tempfile::tempdir().expect("it can be made");
        let path = directory.path().join("a");
        fs::write(&path, "mine").expect("it can be written");
        let mut session = Lively::new().session();
        session.set_directory(directory.path());
        let error = answer(&mut session, "dump a").expect_err("it is there").to_string();
        assert_eq!(error, format!("{}: it is there, and is not replaced", path.display()));
        let full = as_a_new_file(&directory.path().join("b"), |_| Err(std::io::ErrorKind::StorageFull.into()));
        assert!(full.is_err());
        assert!(answer(&mut session, "payload nowhere/b").is_err() && answer(&mut session, "dump .").is_err());
        assert_eq!(fs::read(&path).expect("it is there"), b"mine");
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1);
        // It comes while the other is being written.
        let late = directory.path().join("late");
        let written = as_a_new_file(&late, |_| fs::write(&late, "mine"));
        assert!(written.is_err() && fs::read(&late).expect("it is there") == b"mine");
    }

    #[test]
    fn machine_that_is_no_dump_and_not_live_is_not_written() {
        assert!(refusal("dump").starts_with("the file is missing; usage: dump FILE"));
        assert!(refusal("dump /nonexistent/x").starts_with("this machine is none that can be written"));
    }
}
