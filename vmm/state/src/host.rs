//! What is known about a KVM host: in every report, so that two results can be compared.

use serde::{Serialize, Serializer};

/// The fingerprint of a KVM host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFingerprint {
    /// Release of the kernel, as `uname -r` shows it.
    pub kernel: String,
    /// The KVM vendor module: `kvm_intel`, `kvm_amd`, `kvm_pvm`, or `unknown`.
    pub vendor_module: String,
    /// Name of the processor.
    pub cpu: String,
    /// CPUs that this process may use.
    pub host_cpus: usize,
    /// What is said of hosts with this vendor module, by its name: nothing of it was asked of this machine.
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "facts")]
    pub known: &'static [Known],
}

/// Something that is said of a vendor module; docs/hosts.md tells how it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What.
    pub fact: &'static str,
    /// The name of the question that asks it of a machine, if one does.
    pub question: Option<&'static str>,
}

fn facts<S: Serializer>(known: &&'static [Known], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(known.iter().map(|known| known.fact))
}

/// What is known of a vendor module that no capability says.
pub fn known_of(vendor_module: &str) -> &'static [Known] {
    match vendor_module {
        "kvm_pvm" => &[
            Known {
                fact: "ring 0 runs in KVM's instruction emulator, at some 1.5 million instructions a second",
                question: None,
            },
            Known {
                fact: "no SSE, x87, popcnt or cmpxchg16b in ring 0: the guest ends with an emulation failure",
                question: Some(BEYOND_PLAIN_INTEGERS.name),
            },
            Known {
                fact: "no store is ever seen late: what the memory model allows beyond that cannot be observed",
                question: None,
            },
            Known {
                fact: "the local APIC's in-service and priority registers stay 0: what a vCPU handles is what it says, confirmed by RIP",
                question: Some(IN_SERVICE.name),
            },
            Known { fact: "breakpoints on reads and writes never fire", question: Some(DATA_BREAKPOINTS.name) },
            Known {
                fact: "with `sti` in a handler, an interrupt of the same class is let in before EOI",
                question: Some(WAITS_FOR_EOI.name),
            },
        ],
        "kvm_amd" => &[Known {
            fact: "a shutdown resets its vCPU: the registers at a triple fault are lost",
            question: Some(SHUTDOWN_KEEPS.name),
        }],
        _ => &[],
    }
}

/// Whether interrupts in service can be read.
pub const IN_SERVICE: Question = Question {
    name: "in-service",
    what: "ISR and PPR of the local APIC show which interrupt a handler has not ended",
    without: "what a vCPU handles is what it says, confirmed by RIP",
};
/// Whether a handler's EOI decides when the next interrupt of its class comes.
pub const WAITS_FOR_EOI: Question = Question {
    name: "waits-for-eoi",
    what: "with `sti` in a handler, an interrupt of the same class waits for its EOI",
    without: "a handler that enables interrupts can be interrupted by its own class",
};
/// Whether ring 0 can use SSE, x87 and the like.
pub const BEYOND_PLAIN_INTEGERS: Question = Question {
    name: "beyond-plain-integers",
    what: "popcnt, SSE and x87 instructions work in ring 0",
    without: "the guest ends with an emulation failure; the image holds none",
};
/// Whether it can be watched who writes a word.
pub const DATA_BREAKPOINTS: Question = Question {
    name: "data-breakpoints",
    what: "a breakpoint on writes stops the vCPU that writes",
    without: "who last wrote what a plain guest waits for is not told",
};
/// Whether a triple fault leaves registers to look at.
pub const SHUTDOWN_KEEPS: Question = Question {
    name: "shutdown-keeps-registers",
    what: "after a triple fault the registers are those at the fault",
    without: "a triple fault is reported without the place where it happened",
};

/// A question that a tiny guest asks its host.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Its name, in kebab-case.
    pub name: &'static str,
    /// What is so where the answer is yes.
    pub what: &'static str,
    /// What a no costs.
    pub without: &'static str,
}

impl Question {
    /// The question with its answer.
    pub fn answered(self, answer: Option<bool>) -> Probed {
        Probed { name: self.name, what: self.what, answer, without: self.without }
    }
}

/// What a machine was asked, and what it said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The question's name, in kebab-case.
    pub name: &'static str,
    /// What is so where the answer is yes.
    pub what: &'static str,
    /// The answer; `None` where the guest that asked came to neither.
    pub answer: Option<bool>,
    /// What a no costs.
    pub without: &'static str,
}

/// A capability of KVM that stallbench asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name in the KVM API, without `KVM_CAP_`, in kebab-case.
    pub name: &'static str,
    /// Whether the host has it.
    pub available: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What a host without it costs.
    pub without: &'static str,
}
