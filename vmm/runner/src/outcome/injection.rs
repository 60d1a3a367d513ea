//! What became of what a scenario injects.

use serde::Serialize;

/// What became of a scenario's holds and faults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InjectionOutcome {
    /// The holds, in the order of the scenario.
    pub holds: Vec<HoldOutcome>,
    /// The faults, in the order of the scenario.
    pub faults: Vec<FaultOutcome>,
}

/// What became of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldOutcome {
    /// As the scenario declares it.
    pub what: String,
    /// The vCPU that was held; `None`: none came there.
    pub vcpu: Option<usize>,
    /// Whether it was let go.
    pub over: bool,
    /// Whether it was to be held to the end.
    #[serde(skip)]
    pub endless: bool,
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultOutcome {
    /// As the scenario declares it.
    pub what: String,
    /// Who did it.
    pub by: InjectedBy,
    /// How often it took effect.
    pub hits: u32,
}

/// Who injected a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum InjectedBy {
    /// The guest's own code.
    #[serde(rename = "guest-injected")]
    Guest,
    /// The VMM.
    #[serde(rename = "host-injected")]
    Host,
}

impl InjectedBy {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest-injected",
            Self::Host => "host-injected",
        }
    }
}

impl InjectionOutcome {
    /// Whether there was nothing to hold and nothing to go wrong.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.faults.is_empty()
    }

    /// The declared that did not come about, a fragment each: with it, a verdict says nothing about the scenario.
    pub fn problems(&self) -> Vec<String> {
        let hold = |hold: &HoldOutcome| match hold.vcpu {
            None => Some(format!("no vCPU was ever held by '{}'", hold.what)),
            Some(vcpu) if !hold.over && !hold.endless => {
                Some(format!("vcpu{vcpu} is still held by '{}': what ends it never came", hold.what))
            }
            Some(_) => None,
        };
        let fault = |fault: &FaultOutcome| {
            (fault.hits == 0).then(|| format!("the fault '{}' found nothing to hit", fault.what))
        };
        self.holds.iter().filter_map(hold).chain(self.faults.iter().filter_map(fault)).collect()
    }
}
