//! Virtual machine generation identifier: by which a guest knows that it is not the only one that
//! remembers what it remembers.
//!
//! 128 random bits in guest memory (Microsoft, "Virtual Machine Generation ID", 2012; Linux,
//! `drivers/virt/vmgenid.c`). They are new with each start of a machine. When a machine goes on from a
//! state that others may go on from too, they change, and the guest is notified: its kernel then reseeds
//! its random number generator at once. What the guest is told of where they are, and the way by which
//! the interrupt becomes a notification, is in the machine's ACPI tables.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Serialize, Serializer};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::interrupt::InterruptLine;

/// How the guest's ACPI knows the device: as Linux' driver does.
pub const ACPI_ID: &str = "VMGENCTR";
/// How the specification has it known.
pub const COMPATIBLE_ID: &str = "VM_Gen_Counter";
/// What the guest is notified with (section 3 of the specification).
pub const NOTIFICATION: u8 = 0x80;
/// Bytes of an identifier. In guest memory it is aligned to 8 bytes.
pub const LENGTH: usize = 16;

/// An identifier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GenerationId([u8; LENGTH]);

impl GenerationId {
    /// A new one, from the host's kernel.
    fn random() -> io::Result<Self> {
        let mut id = [0; LENGTH];
        // Up to 256 bytes come at once (getrandom(2)).
        rustix::io::retry_on_intr(|| getrandom(&mut id, GetRandomFlags::empty()))?;
        Ok(Self(id))
    }

    /// Its bytes, as they are in guest memory.
    pub fn bytes(&self) -> [u8; LENGTH] {
        self.0
    }
}

impl fmt::Display for GenerationId {
    /// Its bytes in their order, in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for GenerationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why there is no identifier.
#[derive(Debug, Error)]
pub enum VmGenIdError {
    /// The host gives no random numbers.
    #[error("The host gives no random generation identifier: {0}")]
    Random(#[source] io::Error),
    /// There is no memory for it; never for a machine's own layout.
    #[error("No generation identifier can be at {address:#x}: {error}")]
    Memory {
        /// Where it was to be.
        address: u64,
        /// What is wrong with that.
        error: GuestMemoryError,
    },
    /// The guest could not be notified.
    #[error("The guest cannot be notified of its new generation: {0}")]
    Notify(#[source] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct VmGenId {
    memory: GuestMemoryMmap,
    address: GuestAddress,
    line: InterruptLine,
    id: GenerationId,
}

impl VmGenId {
    /// Puts a fresh identifier to `address`; `line` is that of the notification.
    ///
    /// # Errors
    /// No random numbers, or no memory there.
    pub fn new(
        memory: GuestMemoryMmap,
        address: u64,
        line: InterruptLine,
    ) -> Result<Self, VmGenIdError> {
        let id = GenerationId::random().map_err(VmGenIdError::Random)?;
        let device = Self { memory, address: GuestAddress(address), line, id };
        device.write()?;
        Ok(device)
    }

    /// The identifier, as it was written. A guest may have written over it, which is its own affair.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Where it is in guest memory.
    pub fn address(&self) -> u64 {
        self.address.0
    }

    /// Begins a new generation, before the guest goes on from a state that is not its alone: another
    /// identifier, and then the notification.
    ///
    /// # Errors
    /// No random numbers, or the guest cannot be notified: it must not go on then.
    pub fn renew(&mut self) -> Result<GenerationId, VmGenIdError> {
        self.id = GenerationId::random().map_err(VmGenIdError::Random)?;
        self.write()?;
        self.line.trigger().map_err(VmGenIdError::Notify)?;
        Ok(self.id)
    }

    fn write(&self) -> Result<(), VmGenIdError> {
        self.memory
            .write_slice(&self.id.0, self.address)
            .map_err(|error| VmGenIdError::Memory { address: self.address.0, error })
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    const ADDRESS: u64 = 0xf_f000;

    fn device(address: u64) -> Result<(VmGenId, EventFd), VmGenIdError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(event.try_clone().unwrap());
        Ok((VmGenId::new(memory, address, line)?, event))
    }

    fn in_memory(device: &VmGenId) -> [u8; LENGTH] {
        device.memory.read_obj(GuestAddress(device.address())).unwrap()
    }

    #[test]
    fn each_machine_has_an_identifier_of_its_own_and_no_notification() {
        let (first, event) = device(ADDRESS).unwrap();
        let (second, _) = device(ADDRESS).unwrap();
        assert_eq!(in_memory(&first), first.id().bytes());
        assert_ne!(first.id(), second.id());
        assert!(event.read().is_err());
    }

    #[test]
    fn a_new_generation_is_in_memory_before_the_guest_is_notified() {
        let (mut device, event) = device(ADDRESS).unwrap();
        let before = device.id();
        let after = device.renew().unwrap();
        assert_ne!(before, after);
        assert_eq!((in_memory(&device), device.id()), (after.bytes(), after));
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn an_identifier_outside_of_memory_is_refused() {
        let error = device((1 << 20) - 8).unwrap_err();
        assert!(error.to_string().contains("0xffff8"), "{error}");
    }

    #[test]
    fn it_is_shown_in_the_order_of_memory() {
        let id = GenerationId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
    }
}
