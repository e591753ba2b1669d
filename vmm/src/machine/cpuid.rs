//! What each vCPU says of itself.
//!
//! KVM's supported set describes the host's processor that happened to answer; the leaves that
//! hold identity and topology are rewritten for the guest: one thread a core, one package.
//! Leaves: Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::kvm::KvmError;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHE: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const LEAF_AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_MULTITHREADING: u32 = 1 << 28;

/// The CPUID leaves that all vCPUs share, before each gets its own identity.
///
/// # Errors
/// What KVM refused.
pub fn template(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::doing("list the supported CPUID leaves"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == LEAF_FEATURES {
            entry.ecx |= FEATURES_ECX_HYPERVISOR;
            // The kernel's local APIC implements it whatever the processor has, and with it a
            // guest needs no timer to calibrate against.
            if tsc_deadline {
                entry.ecx |= FEATURES_ECX_TSC_DEADLINE;
            }
        }
    }
    // One way to describe the topology is enough, and the older one is known everywhere.
    cpuid.retain(|entry| {
        !matches!(entry.function, LEAF_TOPOLOGY_V2 | LEAF_AMD_TOPOLOGY_V2 | LEAF_TOPOLOGY)
    });
    Ok(cpuid)
}

/// The leaves of vCPU number `cpu` of `count`.
///
/// # Errors
/// Too many leaves for KVM; never on a host whose own set fitted.
pub fn for_vcpu(template: &CpuId, cpu: u8, count: u8) -> Result<CpuId, KvmError> {
    let mut cpuid = template.clone();
    let (cpu, count) = (u32::from(cpu), u32::from(count));
    // Bits of an APIC id that tell cores of the package apart.
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0xffff) | count << 16 | cpu << 24;
                if count > 1 {
                    entry.edx |= FEATURES_EDX_MULTITHREADING;
                } else {
                    entry.edx &= !FEATURES_EDX_MULTITHREADING;
                }
            }
            // Cores of the package less one; the cache is private (levels 1, 2) or shared by all.
            LEAF_CACHE => set_cache_sharing(entry, count, (1 << core_bits) - 1),
            LEAF_AMD_CACHE => set_cache_sharing(entry, count, 0),
            LEAF_AMD_SIZES => entry.ecx = core_bits << 12 | (count - 1),
            LEAF_AMD_TOPOLOGY => {
                entry.eax = cpu;
                entry.ebx = cpu & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    // (level, its type, bits to shift away, processors at it)
    for (index, level_type, shift, processors) in [(0, 1, 0, 1), (1, 2, core_bits, count)] {
        let entry = kvm_cpuid_entry2 {
            function: LEAF_TOPOLOGY,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: level_type << 8 | index,
            edx: cpu,
            ..Default::default()
        };
        cpuid.push(entry).map_err(|_| KvmError {
            what: "add the topology leaves".into(),
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
    }
    Ok(cpuid)
}

fn set_cache_sharing(entry: &mut kvm_cpuid_entry2, count: u32, cores_field: u32) {
    if entry.eax & 0x1f == 0 {
        return; // no more caches
    }
    let level = entry.eax >> 5 & 0x7;
    let sharing = if level >= 3 { count - 1 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores_field << 26;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ..Default::default() }
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_every_leaf() {
        let template =
            CpuId::from_entries(&[leaf(LEAF_FEATURES), leaf(LEAF_AMD_TOPOLOGY)]).unwrap();
        let cpuid = for_vcpu(&template, 5, 6).unwrap();
        let entries = cpuid.as_slice();
        assert_eq!(entries[0].ebx >> 24, 5);
        assert_eq!(entries[0].ebx >> 16 & 0xff, 6);
        assert_eq!(entries[1].eax, 5);
        let cores = entries.iter().find(|e| e.function == LEAF_TOPOLOGY && e.index == 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.edx), (3, 6, 5));
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let cache = |level: u32| kvm_cpuid_entry2 { eax: 1 | level << 5, ..leaf(LEAF_CACHE) };
        let template = CpuId::from_entries(&[cache(1), cache(3)]).unwrap();
        let cpuid = for_vcpu(&template, 0, 4).unwrap();
        assert_eq!(cpuid.as_slice()[0].eax >> 14 & 0xfff, 0);
        assert_eq!(cpuid.as_slice()[1].eax >> 14 & 0xfff, 3);
    }
}
