//! The KVM host: `/dev/kvm`, what it can do, and what it is.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VmFd};
use stallbench_abi::layout::MAX_VCPUS;
use stallbench_state::host::{Capability, HostFingerprint, known_of};
use thiserror::Error as ThisError;

use crate::cpuid::{self, ModelError};
use crate::probe::Driving;

/// A capability to ask for: name, number, whether it is required, what a host without it costs.
struct Wanted(&'static str, u32, bool, &'static str);

/// Everything that stallbench asks of KVM.
const WANTED: &[Wanted] = &[
    Wanted("user-memory", kvm::KVM_CAP_USER_MEMORY, true, "guests have no memory"),
    Wanted("ext-cpuid", kvm::KVM_CAP_EXT_CPUID, true, "guests see whatever processor the host has"),
    Wanted(
        "split-irqchip",
        kvm::KVM_CAP_SPLIT_IRQCHIP,
        true,
        "no local APICs in the kernel: no real interrupts between vCPUs",
    ),
    Wanted("immediate-exit", kvm::KVM_CAP_IMMEDIATE_EXIT, true, "no vCPU can be stopped without a race"),
    Wanted("mp-state", kvm::KVM_CAP_MP_STATE, true, "a halted vCPU cannot be told from one that runs"),
    Wanted("vcpu-events", kvm::KVM_CAP_VCPU_EVENTS, true, "pending interrupts and NMIs cannot be seen"),
    Wanted("sync-regs", kvm::KVM_CAP_SYNC_REGS, false, "a capture takes two more ioctls a vCPU"),
    Wanted(
        "enforce-pv-feature-cpuid",
        kvm::KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        false,
        "a guest that guesses the MSRs of KVM's paravirtual features finds them",
    ),
    Wanted(
        "x86-triple-fault-event",
        kvm::KVM_CAP_X86_TRIPLE_FAULT_EVENT,
        false,
        "a triple fault shows only once its vCPU has left the guest",
    ),
    Wanted("x86-user-space-msr", kvm::KVM_CAP_X86_USER_SPACE_MSR, false, "--order filter and --order step are refused"),
    Wanted("x86-msr-filter", kvm::KVM_CAP_X86_MSR_FILTER, false, "--order filter and --order step are refused"),
    Wanted("set-guest-debug", kvm::KVM_CAP_SET_GUEST_DEBUG, false, "--order step is refused"),
];

/// The version of KVM's API, frozen since Linux 2.6.22 (KVM api.rst 4.1).
const API_VERSION: i32 = 12;

/// How often signals may interrupt the making of a VM.
const MOST_INTERRUPTED: usize = 100;

/// An opened `/dev/kvm` that has everything that is required.
#[derive(Debug)]
pub struct HostKvm {
    kvm: Kvm,
    capabilities: Vec<Capability>,
    fingerprint: HostFingerprint,
    /// What it has answered.
    pub(crate) driving: OnceLock<Driving>,
}

/// Why this host cannot be used.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum HostError {
    /// There is no `/dev/kvm`.
    #[error("/dev/kvm does not exist")]
    Absent,
    /// It may not be opened.
    #[error("/dev/kvm may not be opened: permission denied")]
    Denied,
    /// It cannot be opened for another reason.
    #[error("/dev/kvm cannot be opened")]
    Open(#[source] kvm_ioctls::Error),
    /// It speaks another version of the API.
    #[error("/dev/kvm speaks version {found} of its api, not {API_VERSION}")]
    ApiVersion {
        /// The version.
        found: i32,
    },
    /// Capabilities are missing without which nothing works.
    #[error("kvm lacks {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// `KVM_GET_SUPPORTED_CPUID` failed.
    #[error("kvm does not tell what processor it can give")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    /// The fixed CPUID model is not available.
    #[error("the guest's processor is not available")]
    Model(#[source] ModelError),
}

impl HostError {
    /// What a user can do about it.
    pub fn remedy(&self) -> &'static str {
        self.source().and_then(remedy_of_exhaustion).unwrap_or_else(|| self.usual_remedy())
    }

    fn usual_remedy(&self) -> &'static str {
        match self {
            Self::Absent => {
                "enable virtualization in the firmware and load kvm_intel or kvm_amd; in a container or a VM, pass /dev/kvm through"
            }
            Self::Denied => "add your user to the group that owns /dev/kvm (often `kvm`), or run as root",
            Self::Open(_) => "look at the permissions of /dev/kvm and at the kernel's log",
            Self::ApiVersion { .. } | Self::Missing(_) => "use Linux 5.10 or newer",
            Self::SupportedCpuid(_) | Self::Model(_) => "use a 64-bit x86 host whose kvm offers them to guests",
        }
    }
}

/// What a user can do where an error, or a cause of it, is that the host has run out of something.
pub fn remedy_of_exhaustion(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let remedy = errno_of(error).and_then(remedy_of_errno);
        if remedy.is_some() {
            return remedy;
        }
        cause = error.source();
    }
    None
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    let of_kvm = || error.downcast_ref::<kvm_ioctls::Error>().map(|error| error.errno());
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or_else(of_kvm)
}

fn remedy_of_errno(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EMFILE => "too many open files: raise `ulimit -n`, or run fewer guests at a time (--jobs)",
        libc::ENFILE => "too many open files on this host: raise fs.file-max, or close some",
        libc::ENOMEM => {
            "out of memory: free some or raise `ulimit -v` or the container's limit, or run fewer guests at a time (--jobs)"
        }
        libc::EAGAIN => {
            "too many threads: raise `ulimit -u` or the container's limit of pids, or run fewer guests at a time (--jobs)"
        }
        _ => return None,
    })
}

impl HostKvm {
    /// Opens `/dev/kvm` and checks all that is required of it.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(open_error)?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(HostError::ApiVersion { found });
        }
        let capabilities = probe(&kvm);
        let missing: Vec<_> = capabilities.iter().filter(|c| c.required && !c.available).map(|c| c.name).collect();
        if !missing.is_empty() {
            return Err(HostError::Missing(missing));
        }
        let supported = kvm.get_supported_cpuid(kvm::KVM_MAX_CPUID_ENTRIES).map_err(HostError::SupportedCpuid)?;
        cpuid::check(&supported).map_err(HostError::Model)?;
        Ok(Self { kvm, capabilities, fingerprint: fingerprint(), driving: OnceLock::new() })
    }

    /// What was asked of KVM, what it has, and what each missing thing costs.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// What this host is.
    pub fn fingerprint(&self) -> &HostFingerprint {
        &self.fingerprint
    }

    /// Most vCPUs that a machine can have here.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus().min(MAX_VCPUS)
    }

    /// Whether it has the capability of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.capabilities.iter().any(|c| c.name == name && c.available)
    }

    /// The same host without anything that is not required.
    #[cfg(test)]
    pub(crate) fn bare(mut self) -> Self {
        self.capabilities.iter_mut().filter(|c| !c.required).for_each(|c| c.available = false);
        self
    }

    /// The same host without registers that come with `KVM_RUN`.
    #[cfg(test)]
    pub(crate) fn without_registers(mut self) -> Self {
        self.capabilities.iter_mut().filter(|c| c.name == "sync-regs").for_each(|c| c.available = false);
        self
    }

    /// The device, for VMs that are no [`crate::Machine`].
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// A VM with nothing in it.
    ///
    /// `KVM_CREATE_VM` gives up with EINTR where a signal is pending (`mm_take_all_locks` of Linux, by which KVM registers with the
    /// memory of its process). Ours ask nothing of it, and one that comes again and again leaves time between two of them.
    ///
    /// # Errors
    ///
    /// That of KVM; EINTR where signals leave no time for it.
    pub fn create_vm(&self) -> Result<VmFd, kvm_ioctls::Error> {
        for _ in 1..MOST_INTERRUPTED {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                done => return done,
            }
        }
        self.kvm.create_vm()
    }
}

fn open_error(error: kvm_ioctls::Error) -> HostError {
    match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Absent,
        libc::EACCES | libc::EPERM => HostError::Denied,
        _ => HostError::Open(error),
    }
}

fn probe(kvm: &Kvm) -> Vec<Capability> {
    let ask = |&Wanted(name, number, required, without): &Wanted| {
        let available = kvm.check_extension_raw(number.into()) > 0;
        Capability { name, available, required, without }
    };
    WANTED.iter().map(ask).collect()
}

fn fingerprint() -> HostFingerprint {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let vendor_module = vendor_module();
    HostFingerprint {
        kernel: kernel.trim().to_owned(),
        vendor_module: vendor_module.to_owned(),
        known: known_of(vendor_module),
        cpu: cpu_name(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()).to_owned(),
        host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn vendor_module() -> &'static str {
    let modules = ["kvm_pvm", "kvm_amd", "kvm_intel"];
    let loaded = |name: &&str| Path::new("/sys/module").join(name).exists();
    modules.into_iter().find(loaded).unwrap_or("unknown")
}

/// The name of the first processor of a `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> &str {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    name.and_then(|rest| rest.split_once(':')).map_or("unknown", |(_, name)| name.trim())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn processor_is_named_by_its_first_model_name() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n"), "AMD EPYC");
        assert_eq!(cpu_name(""), "unknown");
    }

    #[test]
    fn device_that_is_not_there_is_told_from_one_that_is_closed() {
        assert!(matches!(open_error(kvm_ioctls::Error::new(libc::ENOENT)), HostError::Absent));
        assert!(matches!(open_error(kvm_ioctls::Error::new(libc::EACCES)), HostError::Denied));
        assert!(matches!(open_error(kvm_ioctls::Error::new(libc::EBUSY)), HostError::Open(_)));
    }

    #[test]
    fn device_without_a_free_descriptor_advises_no_permissions() {
        let remedy = open_error(kvm_ioctls::Error::new(libc::EMFILE)).remedy();
        assert!(remedy.starts_with("too many open files: raise `ulimit -n`"), "{remedy}");
        assert!(open_error(kvm_ioctls::Error::new(libc::EBUSY)).remedy().contains("permissions"));
    }

    #[test]
    fn exhaustion_is_found_among_the_causes() {
        let errno = io::Error::from_raw_os_error;
        assert!(remedy_of_exhaustion(&errno(libc::ENOMEM)).is_some_and(|remedy| remedy.starts_with("out of memory")));
        let start = crate::StartError::Thread { vcpu: 1, source: errno(libc::EAGAIN) };
        assert!(remedy_of_exhaustion(&start).is_some_and(|remedy| remedy.starts_with("too many threads")));
        assert_eq!(remedy_of_exhaustion(&errno(libc::EPERM)), None);
    }
}
