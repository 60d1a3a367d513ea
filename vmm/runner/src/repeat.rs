//! The command that repeats a run, and the name under which its files lie.

use crate::scenario::Run;

/// Options that each repeating command needs beside the name of the run: `--payload FILE` and the like, each behind a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    verb: &'static str,
    options: String,
}

impl Default for Repeat {
    fn default() -> Self {
        Self::new("run", String::new())
    }
}

impl Repeat {
    /// By this verb of the command line, with these options.
    pub fn new(verb: &'static str, options: String) -> Self {
        Self { verb, options }
    }

    /// The command that repeats a run.
    pub fn command(&self, run: &Run) -> String {
        let mut command = format!("stallbench {}{}", self.verb, self.options);
        if !run.scenario.starts_with("payload/") {
            command.push_str(&format!(" '{}'", run.name));
        } else {
            let case = if run.is_plain() { String::new() } else { format!(" --case {}", run.case_name) };
            command.push_str(&format!("{case} --vcpus {}", run.vcpus));
        }
        for setting in &run.set {
            command.push_str(&format!(" --set {}={}", setting.knob.name, setting.text));
        }
        if !run.is_plain() {
            command.push_str(&format!(" --seed {}", run.seed));
        }
        command
    }
}

/// The name of a run as a path. Names hold nothing that could leave a directory; ':' is avoided because some stores of CI artifacts
/// refuse it.
pub(crate) fn file_name(run: &Run) -> String {
    let name = run.name.replace(':', "-");
    match run.repetition {
        0 => name,
        again => format!("{name}#{}", again + 1),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    #[test]
    fn command_names_the_run_and_its_seed() {
        let run = Run { seed: 7, ..sample::run(2) };
        assert_eq!(Repeat::default().command(&run), "stallbench run 'call/sample@vcpus=2' --seed 7");
    }

    #[test]
    fn repetitions_have_names_of_their_own() {
        let run = Run { repetition: 2, name: "a/b@x=1:2".into(), ..sample::run(2) };
        assert_eq!(file_name(&run), "a/b@x=1-2#3");
    }
}
