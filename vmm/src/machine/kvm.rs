//! The virtual machine as KVM knows it: memory slots and interrupt controllers.
//!
//! The order matters on a fleet host (`scripts/bench kvm`). A memory slot that is added after the
//! interrupt controllers waits for a grace period, so slots come first; and the split interrupt
//! controller (local APICs in the kernel, I/O APIC here) has no timer chip to tear down.

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::layout;
use super::memory::RamRange;
use crate::host;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("KVM: cannot {what}: {source}")]
pub struct KvmError {
    /// What was asked of it.
    pub what: String,
    /// Its reason.
    #[source]
    pub source: kvm_ioctls::Error,
}

impl KvmError {
    /// Names what was asked for, for `map_err`.
    pub fn doing(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        let what = what.into();
        move |source| Self { what, source }
    }
}

/// A VM with all its RAM in slots and its interrupt controllers made, with `gsi_count` lines.
///
/// Whoever runs a vCPU of it keeps `ram` until that has stopped.
///
/// # Errors
/// What KVM refused.
pub fn create_vm(kvm: &Kvm, ram: &[RamRange], gsi_count: u8) -> Result<Arc<VmFd>, KvmError> {
    if let Some(missing) = host::kvm::missing_capabilities(kvm).first() {
        return Err(KvmError {
            what: format!("give this machine its {missing}"),
            source: kvm_ioctls::Error::new(libc::ENOTSUP),
        });
    }
    let vm = kvm.create_vm().map_err(KvmError::doing("create a VM"))?;
    // Intel without unrestricted guests keeps these in guest address space; others ignore them.
    if kvm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(KvmError::doing("place the task state segment"))?;
    }
    if kvm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(KvmError::doing("place the identity map"))?;
    }
    add_slots(&vm, ram)?;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = u64::from(gsi_count);
    vm.enable_cap(&cap).map_err(KvmError::doing("split the interrupt controller"))?;
    Ok(Arc::new(vm))
}

/// Gives `vm` its RAM. Whoever runs a vCPU of it keeps `ram` until that has stopped.
///
/// # Errors
/// What KVM refused.
pub fn add_slots(vm: &VmFd, ram: &[RamRange]) -> Result<(), KvmError> {
    for (slot, range) in (0u32..).zip(ram) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.guest().start,
            memory_size: range.guest().end - range.guest().start,
            userspace_addr: range.host().start,
        };
        // SAFETY: nothing but guest RAM lies in the range, and it is mapped for as long as the
        // range lives: `Processors` and then `Machine` have it, and stop the vCPUs before.
        unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::doing(format!(
            "add the memory slot at {:#x}",
            range.guest().start
        )))?;
    }
    Ok(())
}
