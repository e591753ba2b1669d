//! Routes from interrupt lines to messages: KVM's table, kept equal to the I/O APIC's.

use std::sync::Arc;

use devices::ioapic::{MsiMessage, MsiRouter};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;

/// Keeps KVM's routes from interrupt lines to messages equal to the I/O APIC's table.
pub struct RouteTable {
    vm: Arc<VmFd>,
    routes: Vec<Option<MsiMessage>>,
}

impl RouteTable {
    /// A table without routes, for so many lines.
    pub fn new(vm: Arc<VmFd>, gsi_count: u8) -> Self {
        Self { vm, routes: vec![None; usize::from(gsi_count)] }
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
