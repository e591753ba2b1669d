//! The virtual machine as KVM knows it: slots, interrupt controllers, routes.
//!
//! The order matters on a fleet host. A memory slot that is added after the interrupt controllers
//! waits for a grace period of the bus lock (7 ms measured), so slots come first; and the split
//! interrupt controller (local APICs in the kernel, I/O APIC here) has no timer chip to tear down.

use std::sync::Arc;

use devices::ioapic::{MsiMessage, MsiRouter};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::layout;
use super::memory::RamRange;

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

/// A VM with all its RAM in slots and its interrupt controllers made.
///
/// Whoever runs a vCPU of it keeps `ram` until that has stopped.
///
/// # Errors
/// What KVM refused.
pub fn create_vm(kvm: &Kvm, ram: &[RamRange]) -> Result<Arc<VmFd>, KvmError> {
    for (cap, name) in [
        (Cap::SplitIrqchip, "split interrupt controller"),
        (Cap::Irqfd, "interrupts by eventfd"),
        (Cap::Ioeventfd, "notifications by eventfd"),
        (Cap::ImmediateExit, "prompt exits"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError {
                what: format!("give this machine its {name}"),
                source: kvm_ioctls::Error::new(libc::ENOTSUP),
            });
        }
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
    cap.args[0] = u64::from(layout::GSI_COUNT);
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

/// Keeps KVM's routes from interrupt lines to messages equal to the I/O APIC's table.
pub struct RouteTable {
    vm: Arc<VmFd>,
    routes: [Option<MsiMessage>; layout::GSI_COUNT as usize],
}

impl RouteTable {
    /// A table without routes.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: [None; layout::GSI_COUNT as usize] }
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        (0u32..)
            .zip(&self.routes)
            .filter_map(|(gsi, route)| route.map(|message| routing_entry(gsi, message)))
            .collect()
    }
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteTable").field("routes", &self.routes).finish_non_exhaustive()
    }
}

impl MsiRouter for RouteTable {
    fn route(&mut self, pin: u8, message: Option<MsiMessage>) {
        let Some(route) = self.routes.get_mut(usize::from(pin)) else { return };
        *route = message;
        let routing = match KvmIrqRouting::from_entries(&self.entries()) {
            Ok(routing) => routing,
            Err(error) => {
                log::error!("interrupt routes: {error:?}");
                return;
            }
        };
        // The guest can provoke this, but not more often than it exits.
        if let Err(error) = self.vm.set_gsi_routing(&routing) {
            log::debug!("interrupt route of line {pin}: {error}");
        }
    }
}

fn routing_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [low, high] = split(message.address);
    entry.u.msi.address_lo = low;
    entry.u.msi.address_hi = high;
    entry.u.msi.data = message.data;
    entry
}

/// The low and the high half.
fn split(value: u64) -> [u32; 2] {
    let bytes = value.to_le_bytes();
    let half =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [half(0), half(4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_low_then_high() {
        assert_eq!(split(0x1122_3344_5566_7788), [0x5566_7788, 0x1122_3344]);
    }
}
