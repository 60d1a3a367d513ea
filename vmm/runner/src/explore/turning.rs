//! The choice that decided it, in words.

use stallbench_core::controlled::Inject;
use stallbench_explore::{Choice, Turning};

use crate::outcome::TurningOutcome;

/// What was chosen, and what would have saved the run.
pub(super) fn in_words(turning: &Turning) -> TurningOutcome {
    let took = |(choice, takes): &(Choice, Option<Inject>)| match choice {
        Choice::Run(vcpu) => format!("vcpu{vcpu} goes on"),
        Choice::Interrupt(vcpu) | Choice::Nmi(vcpu) | Choice::Init(vcpu) | Choice::StartUp(vcpu) => {
            format!("vcpu{vcpu} takes {}", what(*takes))
        }
        Choice::Flush(vcpu) => format!("the oldest store of vcpu{vcpu} is seen"),
        Choice::Early(vcpu, _) => format!("vcpu{vcpu} sends before its time"),
    };
    let instead = |(choice, takes): &(Choice, Option<Inject>)| match choice {
        Choice::Run(vcpu) => format!("vcpu{vcpu} went on"),
        Choice::Interrupt(vcpu) | Choice::Nmi(vcpu) | Choice::Init(vcpu) | Choice::StartUp(vcpu) => {
            format!("vcpu{vcpu} took {}", what(*takes))
        }
        Choice::Flush(vcpu) => format!("the oldest store of vcpu{vcpu} were seen"),
        Choice::Early(vcpu, _) => format!("vcpu{vcpu} sent before its time"),
    };
    TurningOutcome { took: took(&turning.took), instead: turning.instead.iter().map(instead).collect() }
}

fn what(takes: Option<Inject>) -> String {
    match takes {
        Some(Inject::Vector(vector)) => format!("vector {vector:#x}"),
        Some(Inject::Nmi) | None => "its NMI".to_owned(),
        Some(Inject::Init) => "its INIT".to_owned(),
        Some(Inject::StartUp(_)) => "its SIPI".to_owned(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn choices_are_told_as_what_was_and_as_what_would_have_been() {
        let turning = Turning {
            took: (Choice::Run(1), None),
            instead: vec![(Choice::Interrupt(1), Some(Inject::Vector(0xfb))), (Choice::Flush(0), None)],
        };
        let TurningOutcome { took, instead } = in_words(&turning);
        assert_eq!(took, "vcpu1 goes on");
        assert_eq!(instead, ["vcpu1 took vector 0xfb", "the oldest store of vcpu0 were seen"]);
    }
}
