//! Devices of the microVM: pure register machines, without KVM.
//!
//! A device sees accesses as an offset and bytes through [`bus::BusDevice`] and speaks to the
//! outside through what it was given: an [`interrupt::InterruptLine`], an [`event::EventSink`],
//! a writer, guest memory. The owner of the machine decides what is behind them, so every device
//! here runs as well in a unit test or a fuzzer as under a hypervisor.
//!
//! Everything a guest writes is hostile input: no access of any offset, width, value or order
//! panics, allocates without bound or loops without bound.
//!
//! | Module | Device |
//! |---|---|
//! | [`control`] | the guest's way to ask its VMM for something |
//! | [`serial`] | 16550A at COM1: the console |
//! | [`i8042`] | keyboard controller, as far as it resets the machine |
//! | [`power`] | ACPI sleep and reset registers of a hardware-reduced platform |
//! | [`pvpanic`] | a guest's word that its kernel panicked |
//! | [`ioapic`] | 82093AA I/O APIC that turns pins into messages, for a split irqchip |
//! | [`vmgenid`] | the identifier of this start of the machine |
//! | [`virtio::mmio`] | virtio over MMIO, version 2 |
//! | [`virtio::net`] | virtio network device |
//! | [`virtio::rng`] | virtio entropy device |
//! | [`virtio::vsock`] | virtio socket device, behind unix sockets |

#![forbid(unsafe_code)]

pub mod bus;
pub mod control;
pub mod event;
pub mod i8042;
pub mod interrupt;
pub mod ioapic;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod virtio;
pub mod vmgenid;
