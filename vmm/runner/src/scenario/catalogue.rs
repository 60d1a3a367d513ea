//! Where scenarios come from: those inside the binary, and files and directories named by the user.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{Problem, Scenario, ScenarioError, Subject, read};

macro_rules! built_in {
    ($($subject:literal),* $(,)?) => {
        /// The scenario files inside the binary: subject and text. A file is named after its subject.
        pub static BUILT_IN: &[(&str, &str)] = &[$((
            $subject,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/scenarios/", $subject, ".toml")),
        )),*];
    };
}

built_in![
    "acceptance",
    "call",
    "crash",
    "litmus",
    "mtrr",
    "nmi",
    "records",
    "rendezvous",
    "rounds",
    "scale",
    "slow",
    "table"
];

/// Most bytes of a scenario file.
const MOST_BYTES: u64 = 4 << 20;
/// What ELF files begin with.
const ELF: &[u8] = b"\x7fELF";

/// All scenarios that can be named. Files of the user's come before built-in ones of the same subject and hide them.
#[derive(Debug)]
pub struct Catalogue {
    given: Vec<Subject>,
    /// The files that they came from.
    files: HashSet<PathBuf>,
    built_in: Vec<(&'static str, &'static str, OnceLock<Subject>)>,
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::new(BUILT_IN)
    }
}

impl Catalogue {
    /// A catalogue of built-in files. They are parsed when they are asked for.
    pub fn new(built_in: &[(&'static str, &'static str)]) -> Self {
        let built_in = built_in.iter().map(|(name, text)| (*name, *text, OnceLock::new())).collect();
        Self { given: Vec::new(), files: HashSet::new(), built_in }
    }

    /// Adds a file, or the `*.toml` files of a directory.
    pub fn add(&mut self, path: &Path) -> Result<(), ScenarioError> {
        let files = if path.is_dir() { toml_files(path)? } else { vec![path.to_owned()] };
        for file in files {
            self.add_file(&file)?;
        }
        Ok(())
    }

    fn add_file(&mut self, file: &Path) -> Result<(), ScenarioError> {
        let text = read_text(file)?;
        // Only what can be read has such a path; the same file by another path is the same file.
        let identity = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        if !self.files.insert(identity) {
            return Ok(());
        }
        let subject = read(file.display().to_string(), text.into())?;
        self.check_new(&subject)?;
        self.given.push(subject);
        Ok(())
    }

    /// A name that two files declare names neither.
    fn check_new(&self, subject: &Subject) -> Result<(), ScenarioError> {
        let others = || self.given.iter().filter(|given| given.name == subject.name).flat_map(|given| &given.scenarios);
        for scenario in &subject.scenarios {
            if let Some(other) = others().find(|other| other.name() == scenario.name()) {
                let problem = Problem::DeclaredElsewhere {
                    what: "scenario",
                    name: scenario.name(),
                    place: Box::new(other.place()),
                };
                return Err(scenario.problem(scenario.entry.name.span(), problem));
            }
        }
        Ok(())
    }

    /// The subjects that the user brought.
    pub fn given(&self) -> &[Subject] {
        &self.given
    }

    /// The subject of that name: the user's files if there are any, else the built-in one.
    pub fn subject(&self, name: &str) -> Result<Vec<&Subject>, ScenarioError> {
        let given: Vec<_> = self.given.iter().filter(|subject| subject.name == name).collect();
        if !given.is_empty() {
            return Ok(given);
        }
        let built_in = self.built_in.iter().filter(|(subject, ..)| *subject == name);
        built_in.map(|(name, text, cell)| parsed(name, text, cell)).collect()
    }

    /// Every subject, the user's first.
    pub fn subjects(&self) -> Result<Vec<&Subject>, ScenarioError> {
        let mut subjects: Vec<_> = self.given.iter().collect();
        for (name, text, cell) in &self.built_in {
            if self.given.iter().all(|given| given.name != *name) {
                subjects.push(parsed(name, text, cell)?);
            }
        }
        Ok(subjects)
    }

    /// Every scenario.
    pub fn scenarios(&self) -> Result<Vec<&Arc<Scenario>>, ScenarioError> {
        Ok(self.subjects()?.into_iter().flat_map(|subject| &subject.scenarios).collect())
    }
}

fn parsed<'a>(name: &str, text: &'static str, cell: &'a OnceLock<Subject>) -> Result<&'a Subject, ScenarioError> {
    if let Some(subject) = cell.get() {
        return Ok(subject);
    }
    let subject = read(format!("built-in/{name}.toml"), text.into())?;
    Ok(cell.get_or_init(|| subject))
}

/// The text of a file that may be anything.
fn read_text(path: &Path) -> Result<String, ScenarioError> {
    let unreadable = |source| ScenarioError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.starts_with(ELF) {
        return Err(ScenarioError::Elf { path: path.to_owned() });
    }
    if bytes.len() as u64 > MOST_BYTES {
        return Err(ScenarioError::TooLarge { path: path.to_owned(), most: MOST_BYTES });
    }
    String::from_utf8(bytes).map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))
}

fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    let unreadable = |source| ScenarioError::Read { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() { Err(ScenarioError::EmptyDirectory { path: directory.to_owned() }) } else { Ok(files) }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::scenario::{Case, Checked};

    #[test]
    fn every_built_in_file_has_the_name_of_its_subject_and_every_file_is_built_in() {
        for subject in Catalogue::default().subjects().unwrap() {
            assert!(BUILT_IN.iter().any(|(name, _)| *name == subject.name), "{}", subject.name);
        }
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/scenarios"));
        let mut files: Vec<_> =
            toml_files(directory).unwrap().iter().map(|p| p.file_stem().unwrap().to_owned()).collect();
        files.retain(|file| BUILT_IN.iter().all(|(name, _)| file.as_os_str() != *name));
        assert!(files.is_empty(), "not in the list of built-in files: {files:?}");
    }

    #[test]
    fn group_with_the_name_of_a_subject_is_that_subject() {
        let catalogue = Catalogue::default();
        for scenario in catalogue.scenarios().unwrap() {
            for group in scenario.groups().filter(|group| BUILT_IN.iter().any(|(subject, _)| subject == group)) {
                assert_eq!(scenario.subject(), group, "a name must not mean two things");
            }
        }
    }

    #[test]
    fn file_of_the_users_hides_the_built_in_subject_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mine.toml"), "subject = 'mtrr'\nabout = 'mine'\n").unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.add(directory.path()).unwrap();
        assert_eq!(catalogue.subject("mtrr").unwrap()[0].about, "mine");
        assert_eq!(catalogue.subjects().unwrap().iter().filter(|subject| subject.name == "mtrr").count(), 1);
    }

    const SAME: &str = "subject = 'mine'\nabout = ''\n[[scenario]]\nname = 'one'\ncase = 'c'\nstory = ''\nvcpus = [2]\n\
        [[scenario.expect]]\nverdict = 'pass'\nbecause = ''\n";

    #[test]
    fn name_that_two_files_declare_is_refused_with_both_places() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a.toml", "b.toml"].map(|name| directory.path().join(name));
        fs::write(&a, SAME).unwrap();
        fs::write(&b, SAME).unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.add(&a).unwrap();
        let message = catalogue.add(&b).unwrap_err().to_string();
        assert!(message.contains("b.toml:4:8: a second scenario 'mine/one'; the first is at "), "{message}");
        assert!(message.ends_with("a.toml:4:8"), "{message}");
    }

    #[test]
    fn file_that_is_named_twice_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.toml"), SAME).unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.add(&directory.path().join("a.toml")).unwrap();
        catalogue.add(&directory.path().join("./a.toml")).unwrap();
        catalogue.add(directory.path()).unwrap();
        assert_eq!(catalogue.given().len(), 1);
    }

    #[test]
    fn missing_file_and_empty_directory_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut catalogue = Catalogue::default();
        assert!(catalogue.add(directory.path()).unwrap_err().to_string().ends_with("no *.toml file in this directory"));
        assert!(catalogue.add(Path::new("/dev/zero")).unwrap_err().to_string().contains("larger than 4194304 bytes"));
        let missing = directory.path().join("x.toml");
        assert!(catalogue.add(&missing).unwrap_err().to_string().contains("x.toml: No such file"));
    }

    /// Reads, checks and expands a file, as a run of its subject would.
    fn expand(text: String) -> Result<usize, ScenarioError> {
        let case = |name: &str| Ok(Case { name: name.to_owned(), index: 0, knobs: u64::MAX, points: Arc::default() });
        let mut cells = 0;
        for scenario in read("x.toml".to_owned(), text.into())?.scenarios {
            cells += Checked::new(&scenario, &case)?.cells()?.len();
        }
        Ok(cells)
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let (_, text) = BUILT_IN.iter().find(|(subject, _)| *subject == "nmi").unwrap();
        assert!(expand((*text).to_owned()).unwrap() > 0);
        let mut random = 1_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        let mut refused = 0;
        for _ in 0..400 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=next(3) {
                let (at, from) = (next(bytes.len()), next(bytes.len()));
                match next(3) {
                    0 => bytes[at] = bytes[from],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            if let Err(error) = expand(String::from_utf8_lossy(&bytes).into_owned()) {
                assert!(error.to_string().starts_with("x.toml:"), "{error}");
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
