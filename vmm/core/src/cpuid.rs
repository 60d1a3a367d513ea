//! The CPUID model that every guest sees on every host, so that masks, states and traces mean the same everywhere.
//!
//! It is small on purpose: what the payload needs, no hypervisor leaf, no paravirtual feature, no TSC deadline. Vendor and
//! family are those of an Intel Core 2 of 2008, whose manual the payload follows for MTRRs and the local APIC.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use stallbench_abi::layout::MAX_PHYS_ADDR_BITS;
use thiserror::Error;

/// Family 6, model 23, stepping 6.
const SIGNATURE: u32 = 0x0001_0676;
const VENDOR: &[u8; 12] = b"GenuineIntel";
/// Bytes that CLFLUSH flushes, in units of 8.
const CLFLUSH_UNITS: u32 = 8;
/// Linear address bits: four-level paging.
const LINEAR_BITS: u32 = 48;

/// Leaf 1, ECX (SDM 2A table 3-10).
const FEATURES_ECX: &[Feature] = &[Feature(21, "x2apic")];
/// Leaf 1, EDX (SDM 2A table 3-11).
const FEATURES_EDX: &[Feature] = &[
    Feature(0, "fpu"),
    Feature(3, "pse"),
    Feature(5, "msr"),
    Feature(6, "pae"),
    Feature(8, "cx8"),
    Feature(9, "apic"),
    Feature(12, "mtrr"),
    Feature(13, "pge"),
    Feature(15, "cmov"),
    Feature(16, "pat"),
    Feature(19, "clfsh"),
    Feature(23, "mmx"),
    Feature(24, "fxsr"),
    Feature(25, "sse"),
    Feature(26, "sse2"),
];
/// Leaf 0x8000_0001, EDX.
const EXTENDED_EDX: &[Feature] = &[Feature(20, "nx"), Feature(29, "lm")];

/// A feature bit: its place in the register, its name.
#[derive(Clone, Copy, Debug)]
struct Feature(u32, &'static str);

/// What a host lacks for the model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// KVM cannot give a guest these features.
    #[error("kvm does not offer these cpu features: {}", .0.join(", "))]
    Features(Vec<&'static str>),
    /// The processor's physical addresses are narrower.
    #[error("the host has {found} physical address bits, the model has {MAX_PHYS_ADDR_BITS}")]
    PhysicalBits {
        /// What the host has.
        found: u32,
    },
}

/// Checks what `KVM_GET_SUPPORTED_CPUID` says against the model.
pub fn check(supported: &CpuId) -> Result<(), ModelError> {
    let leaf = |function| supported.as_slice().iter().find(|e| e.function == function).copied().unwrap_or_default();
    let (basic, extended) = (leaf(1), leaf(0x8000_0001));
    let missing: Vec<_> = [(FEATURES_ECX, basic.ecx), (FEATURES_EDX, basic.edx), (EXTENDED_EDX, extended.edx)]
        .into_iter()
        .flat_map(|(features, word)| features.iter().filter(move |f| word & 1 << f.0 == 0).map(|f| f.1))
        .collect();
    if !missing.is_empty() {
        return Err(ModelError::Features(missing));
    }
    let found = leaf(0x8000_0008).eax & 0xff;
    if found < u32::from(MAX_PHYS_ADDR_BITS) {
        return Err(ModelError::PhysicalBits { found });
    }
    Ok(())
}

/// The leaves that a vCPU sees.
pub fn entries(vcpu: usize, vcpus: usize) -> Vec<kvm_cpuid_entry2> {
    // Ids and counts are at most 255, see `abi::layout::MAX_VCPUS`.
    let (id, count) = (vcpu as u32, vcpus as u32);
    let mut leaves = vec![identity(), features(id, count)];
    leaves.extend(topology(id, count));
    leaves.extend(extended());
    leaves
}

fn word(features: &[Feature]) -> u32 {
    features.iter().fold(0, |word, feature| word | 1 << feature.0)
}

fn identity() -> kvm_cpuid_entry2 {
    let part = |at: usize| u32::from_le_bytes([VENDOR[at], VENDOR[at + 1], VENDOR[at + 2], VENDOR[at + 3]]);
    kvm_cpuid_entry2 { function: 0, eax: 0xb, ebx: part(0), edx: part(4), ecx: part(8), ..Default::default() }
}

fn features(id: u32, count: u32) -> kvm_cpuid_entry2 {
    let ebx = id << 24 | count << 16 | CLFLUSH_UNITS << 8;
    let (ecx, edx) = (word(FEATURES_ECX), word(FEATURES_EDX));
    kvm_cpuid_entry2 { function: 1, eax: SIGNATURE, ebx, ecx, edx, ..Default::default() }
}

/// Leaf 0xB: one thread a core, all cores in one package, the x2APIC id in EDX of each subleaf (SDM 2A, CPUID).
fn topology(id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, logical: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, 8, count, 2), level(2, 0, 0, 0)]
}

fn extended() -> [kvm_cpuid_entry2; 3] {
    let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
    [
        kvm_cpuid_entry2 { eax: 0x8000_0008, ..leaf(0x8000_0000) },
        kvm_cpuid_entry2 { edx: word(EXTENDED_EDX), ..leaf(0x8000_0001) },
        kvm_cpuid_entry2 { eax: u32::from(MAX_PHYS_ADDR_BITS) | LINEAR_BITS << 8, ..leaf(0x8000_0008) },
    ]
}

#[cfg(test)]
mod test {
    use super::*;

    fn supported(change: impl Fn(&mut kvm_cpuid_entry2)) -> CpuId {
        let mut leaves = entries(0, 1);
        leaves.iter_mut().for_each(change);
        CpuId::from_entries(&leaves).expect("few leaves")
    }

    #[test]
    fn host_that_offers_the_model_is_accepted() {
        assert_eq!(check(&supported(|_| ())), Ok(()));
    }

    #[test]
    fn host_that_lacks_a_feature_is_refused_by_its_name() {
        let without = supported(|leaf| {
            if leaf.function == 1 {
                leaf.edx &= !(1 << 12);
                leaf.ecx = 0;
            }
        });
        assert_eq!(check(&without), Err(ModelError::Features(vec!["x2apic", "mtrr"])));
    }

    #[test]
    fn host_with_narrow_addresses_is_refused() {
        let narrow = supported(|leaf| {
            if leaf.function == 0x8000_0008 {
                leaf.eax = 36;
            }
        });
        assert_eq!(check(&narrow), Err(ModelError::PhysicalBits { found: 36 }));
    }

    #[test]
    fn model_has_no_hypervisor_bit_and_no_paravirtual_leaf() {
        let leaves = entries(3, 4);
        assert!(leaves.iter().all(|leaf| leaf.function & 0xf000_0000 != 0x4000_0000));
        let basic = leaves.iter().find(|leaf| leaf.function == 1).expect("leaf 1");
        assert_eq!((basic.ecx >> 31, basic.ecx >> 24 & 1, basic.ebx >> 24), (0, 0, 3));
    }
}
