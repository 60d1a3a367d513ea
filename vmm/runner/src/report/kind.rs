//! The value of `--report`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::pipe::Pipe;
use super::{JUnit, JsonLines, Report};
use crate::nearest::did_you_mean;

/// A report, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For people, on standard output.
    Human,
    /// One JSON object a line.
    JsonLines(PathBuf),
    /// JUnit XML.
    JUnit(PathBuf),
}

/// Why a text is no report.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KindError {
    /// No such report.
    #[error("no report '{kind}', expected human, jsonl=FILE or junit=FILE{nearest}")]
    Unknown {
        /// Its name.
        kind: String,
        /// Those nearest.
        nearest: String,
    },
    /// The report goes to a file, and none is named.
    #[error("{0} needs a file, as in {0}=FILE ('-' for standard output)")]
    FileMissing(&'static str),
    /// The report goes to standard output only.
    #[error("human takes no file: it goes to standard output")]
    FileUnexpected,
}

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, KindError> {
        let (kind, file) = match text.split_once('=') {
            Some((kind, file)) => (kind, Some(file).filter(|file| !file.is_empty())),
            None => (text, None),
        };
        match (kind, file) {
            ("human", None) if !text.contains('=') => Ok(Self::Human),
            ("human", _) => Err(KindError::FileUnexpected),
            ("jsonl", Some(file)) => Ok(Self::JsonLines(file.into())),
            ("jsonl", None) => Err(KindError::FileMissing("jsonl")),
            ("junit", Some(file)) => Ok(Self::JUnit(file.into())),
            ("junit", None) => Err(KindError::FileMissing("junit")),
            _ => Err(KindError::Unknown {
                kind: kind.to_owned(),
                nearest: did_you_mean(kind, ["human", "jsonl", "junit"]),
            }),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Human => f.write_str("human"),
            Self::JsonLines(path) => write!(f, "jsonl={}", path.display()),
            Self::JUnit(path) => write!(f, "junit={}", path.display()),
        }
    }
}

impl Kind {
    /// Whether it is written to standard output.
    pub fn is_on_stdout(&self) -> bool {
        self.file().is_none()
    }

    /// The file that it is written to, if it is not standard output.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Human => None,
            Self::JsonLines(path) | Self::JUnit(path) => Some(path.as_path()).filter(|path| path.as_os_str() != "-"),
        }
    }

    /// Whether both would be written over each other in one file, however it is named.
    pub fn shares_file_with(&self, other: &Self) -> bool {
        match (self.file(), other.file()) {
            (Some(one), Some(other)) => !is_device(one) && resolved(one) == resolved(other),
            _ => false,
        }
    }

    /// Opens a report that goes to a file or, as `-`, to `stdout`. The human report is made by [`super::Human::new`].
    ///
    /// # Errors
    ///
    /// The file cannot be created.
    pub fn open(&self, stdout: impl Write + 'static) -> io::Result<Option<Box<dyn Report>>> {
        let sink = |path: &PathBuf| -> io::Result<Box<dyn Write>> {
            if path.as_os_str() == "-" { Ok(Box::new(Pipe::new(stdout))) } else { Ok(Box::new(File::create(path)?)) }
        };
        Ok(match self {
            Self::Human => None,
            Self::JsonLines(path) => Some(Box::new(JsonLines::new(sink(path)?))),
            Self::JUnit(path) => Some(Box::new(JUnit::new(sink(path)?))),
        })
    }
}

/// A device or a pipe takes what several write to it.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// One path for all that name the same file, which need not be there yet.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let in_directory = || Some(fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?));
    fs::canonicalize(&absolute).ok().or_else(in_directory).unwrap_or(absolute)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn reports_parse_and_print_as_they_are_written() {
        for text in ["human", "jsonl=a.jsonl", "junit=-", "jsonl=a=b"] {
            assert_eq!(text.parse::<Kind>().unwrap().to_string(), text);
        }
        assert!("junit=-".parse::<Kind>().unwrap().is_on_stdout());
    }

    #[test]
    fn same_file_by_another_path_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let kind =
            |kind: &str, file: &str| format!("{kind}={}/{file}", directory.path().display()).parse::<Kind>().unwrap();
        assert!(kind("jsonl", "a").shares_file_with(&kind("junit", "./a")));
        fs::write(directory.path().join("there"), "").unwrap();
        std::os::unix::fs::symlink("there", directory.path().join("link")).unwrap();
        assert!(kind("jsonl", "there").shares_file_with(&kind("jsonl", "link")));
        assert!(!kind("jsonl", "a").shares_file_with(&kind("jsonl", "b")));
        assert!(kind("jsonl", "no/a").shares_file_with(&kind("jsonl", "no/./a")));
    }

    #[test]
    fn devices_take_several_reports() {
        let kind = |text: &str| text.parse::<Kind>().unwrap();
        assert!(!kind("jsonl=/dev/null").shares_file_with(&kind("junit=/dev/null")));
        assert!(!kind("jsonl=-").shares_file_with(&kind("human")));
    }

    #[test]
    fn wrong_reports_say_what_is_wrong() {
        let error = |text: &str| text.parse::<Kind>().unwrap_err().to_string();
        assert!(error("json=x").contains("did you mean jsonl"));
        assert!(error("jsonl").contains("needs a file"));
        assert!(error("jsonl=").contains("needs a file"));
        assert!(error("human=x").contains("takes no file"));
    }
}
