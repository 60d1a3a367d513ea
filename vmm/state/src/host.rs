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
