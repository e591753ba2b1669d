//! The wires between KVM and the devices: interrupt lines and queue notifications, each an event.
//!
//! KVM waits for a grace period of its bus when a notification is connected (6 ms at times), so it
//! is done beside the load, before there are devices.

use devices::interrupt::InterruptLine;
use devices::serial;
use devices::virtio::mmio;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::acpi::VirtioWindow;
use super::kvm::KvmError;
use super::{MachineError, layout};

/// The devices' ends of the wires.
#[derive(Debug)]
pub struct Wiring {
    /// The serial port's interrupt.
    pub serial: InterruptLine,
    /// The event line's interrupt: a second serial port.
    pub event_line: InterruptLine,
    /// The notification of a new generation.
    pub generation: InterruptLine,
    /// Those of the virtio devices, in their order.
    pub virtio: Vec<VirtioWires>,
}

/// The wires of one virtio device.
#[derive(Debug)]
pub struct VirtioWires {
    /// Where the guest finds it.
    pub window: VirtioWindow,
    /// Its interrupt.
    pub line: InterruptLine,
    /// The notifications of its queues.
    pub queues: Vec<EventFd>,
}

impl Wiring {
    /// Connects all of them; `virtio` says how many queues each virtio device has.
    ///
    /// # Errors
    /// KVM's refusal, or no more file descriptors.
    pub fn connect(vm: &VmFd, virtio: &[usize]) -> Result<Self, MachineError> {
        let wires = |(index, queues): (u8, &usize)| {
            let window = layout::virtio_window(index);
            Ok(VirtioWires {
                window,
                line: interrupt_line(vm, window.gsi)?,
                queues: queue_events(vm, window, *queues)?,
            })
        };
        Ok(Self {
            serial: interrupt_line(vm, serial::COM1_IRQ)?,
            event_line: interrupt_line(vm, serial::COM2_IRQ)?,
            generation: interrupt_line(vm, layout::GENERATION_GSI)?,
            virtio: (0u8..).zip(virtio).map(wires).collect::<Result<_, MachineError>>()?,
        })
    }
}

fn event_fd() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(MachineError::system("make an eventfd"))
}

/// An interrupt line that goes straight from its event into the guest.
fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<InterruptLine, MachineError> {
    let event = event_fd()?;
    vm.register_irqfd(&event, gsi)
        .map_err(KvmError::doing(format!("connect interrupt line {gsi}")))?;
    Ok(InterruptLine::new(event))
}

/// Events that the guest's notifications of queues signal without an exit to this process.
fn queue_events(
    vm: &VmFd,
    window: VirtioWindow,
    queues: usize,
) -> Result<Vec<EventFd>, MachineError> {
    let address = IoEventAddress::Mmio(window.base + mmio::QUEUE_NOTIFY_OFFSET);
    let connect = |(queue, _)| {
        let event = event_fd()?;
        vm.register_ioevent(&event, &address, queue)
            .map_err(KvmError::doing("connect a virtio queue"))?;
        Ok(event)
    };
    (0u32..).zip(0..queues).map(connect).collect()
}
