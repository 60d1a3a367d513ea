//! What is known about a KVM host: in every report, so that two results can be compared.

use serde::Serialize;

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
    /// What is known of this vendor module and cannot be asked of it; docs/hosts.md tells how it was found.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub known: &'static [&'static str],
}

/// What is known of a vendor module that no capability says.
pub fn known_of(vendor_module: &str) -> &'static [&'static str] {
    match vendor_module {
        "kvm_pvm" => &[
            "ring 0 runs in KVM's instruction emulator, at some 1.5 million instructions a second",
            "no SSE, x87, popcnt or cmpxchg16b in ring 0: the guest ends with an emulation failure",
            "no store is ever seen late: what the memory model allows beyond that cannot be observed",
            "the local APIC's in-service and priority registers stay 0: what a vCPU handles is what it says, confirmed by RIP",
        ],
        "kvm_amd" => &["a shutdown resets its vCPU: the registers at a triple fault are lost"],
        _ => &[],
    }
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
