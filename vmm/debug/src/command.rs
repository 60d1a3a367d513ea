//! The commands, a file each: what they are called, what they take, what they answer.

mod about;
mod backtrace;
mod control;
mod diff;
mod disas;
mod events;
mod file;
mod gdt;
mod help;
mod idt;
mod lapic;
mod live;
mod memory;
mod msr;
mod mtrr;
mod paging;
mod print;
mod quit;
mod regs;
mod steps;
mod symbols;
mod vcpu;
mod vcpus;
mod verdict;
mod view;
mod waits;

use serde_json::{Value, json};
use stallbench_state::machine::VcpuState;

use crate::answer::Answer;
use crate::arguments::Arguments;
use crate::error::CommandError;
use crate::nearest::did_you_mean;
use crate::session::Session;

pub(crate) use live::stopped;
pub(crate) use print::names as structures;
pub(crate) use view::Frame;

/// A command.
#[derive(Debug)]
pub struct Command {
    /// What it is called.
    pub name: &'static str,
    /// How it is used.
    pub usage: &'static str,
    /// What it tells, one line.
    pub summary: &'static str,
    /// More of it, where there is more to say: whole lines.
    pub details: &'static str,
    /// What can stand behind it, for completion.
    pub(crate) takes: Takes,
    pub(crate) needs: Needs,
    pub(crate) run: fn(&mut Session, Arguments<'_>) -> Result<Answer, CommandError>,
}

/// What can stand behind a command's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing that could be completed.
    Nothing,
    /// A vCPU.
    Vcpu,
    /// An address: a symbol or a register.
    Address,
    /// A structure.
    Structure,
    /// A command.
    Command,
    /// A file.
    File,
    /// `progress`.
    Progress,
    /// A number, or `all`.
    All,
    /// A pause point.
    Point,
}

/// What a command needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// A look at it, as it is now.
    Machine,
    /// That it can run on. It looks by itself.
    Live,
    /// That it stands at a step of a trace.
    Trace,
}

/// Every command, in the order of use to somebody with a stall.
pub static ALL: &[Command] = &[
    vcpus::COMMAND,
    waits::COMMAND,
    verdict::COMMAND,
    backtrace::COMMAND,
    events::COMMAND,
    regs::COMMAND,
    control::COMMAND,
    control::SREGS,
    lapic::COMMAND,
    mtrr::COMMAND,
    msr::COMMAND,
    print::COMMAND,
    memory::COMMAND,
    disas::COMMAND,
    paging::COMMAND,
    idt::COMMAND,
    gdt::COMMAND,
    symbols::COMMAND,
    memory::SEARCH,
    diff::COMMAND,
    file::DUMP,
    file::PAYLOAD,
    view::COMMAND,
    steps::FORWARD,
    steps::BACK,
    steps::GOTO,
    live::run::COMMAND,
    live::run::STOP,
    live::step::COMMAND,
    live::run::UNTIL,
    live::stops::BREAK,
    live::stops::WATCH,
    live::stops::DELETE,
    live::inject::RELEASE,
    live::inject::IRQ,
    live::inject::NMI,
    live::write::COMMAND,
    live::run::END,
    about::COMMAND,
    vcpu::COMMAND,
    help::COMMAND,
    quit::COMMAND,
];

/// What a command says of each vCPU that it was asked about: one, or all of them.
fn of_each(
    session: &Session,
    mut arguments: Arguments<'_>,
    text: impl Fn(&Session, &VcpuState) -> String,
    data: impl Fn(&Session, &VcpuState) -> Value,
) -> Result<Answer, CommandError> {
    let vcpus = session.vcpus_of(arguments.next())?;
    arguments.end()?;
    let text: String = vcpus.iter().map(|vcpu| text(session, vcpu)).collect();
    let data: Vec<Value> = vcpus.iter().map(|vcpu| data(session, vcpu)).collect();
    Ok(Answer::new(text, json!(data)))
}

/// The command of that name.
pub(crate) fn named(name: &str) -> Result<&'static Command, CommandError> {
    let unknown = || {
        let near = did_you_mean(name, ALL.iter().map(|command| command.name));
        CommandError::UnknownCommand { name: name.to_owned(), near }
    };
    ALL.iter().find(|command| command.name == name).ok_or_else(unknown)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample::{refusal, text};

    #[test]
    fn usage_of_every_command_begins_with_its_name() {
        for command in ALL {
            assert!(command.usage.split(' ').next() == Some(command.name), "{}", command.usage);
            assert!(!command.summary.ends_with('.'), "{}", command.summary);
            assert!(command.details.is_empty() || command.details.ends_with('\n'), "{}", command.name);
        }
    }

    #[test]
    fn unknown_command_gets_the_nearest_names() {
        assert_eq!(refusal("wiats"), "no command wiats; did you mean waits?; `help` lists them");
        assert_eq!(refusal("vcpus 1"), "vcpus takes no 1; usage: vcpus");
    }

    #[test]
    fn help_lists_every_command_and_tells_of_each() {
        let list = text("help");
        for command in ALL {
            assert!(list.contains(command.summary), "{}", command.name);
            assert!(text(&format!("help {}", command.name)).starts_with(command.usage));
        }
    }
}
