//! The KVM machine: RAM, processors, interrupts, devices, and the state that a kernel starts from.
//!
//! A machine is built in two steps, so that the first can go on while an image is being loaded:
//! [`Processors::create`] needs only where RAM is, [`Machine::assemble`] takes RAM over with the
//! image in it. From then on nothing but the guest and its devices touches guest memory, and
//! [`settle`] while these stand still.

pub mod acpi;
mod agent;
pub mod attach;
pub mod boot;
mod console;
mod control_events;
pub mod cpuid;
pub mod escape;
pub mod event;
mod event_loop;
pub mod kvm;
pub mod layout;
mod mapped;
pub mod mapping;
pub mod memory;
pub mod outcome;
pub mod processors;
pub mod registers;
pub mod routes;
pub mod running;
pub mod settle;
mod signals;
pub mod stats;
pub mod terminal;
mod typed;
pub mod vcpu;
pub mod wiring;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::bus::{Bus, BusError};
use devices::control::ControlDevice;
use devices::interrupt::InterruptLine;
use devices::ioapic::{self, Ioapic};
use devices::serial::{self, SerialConsole};
use devices::virtio::VirtioDevice;
use devices::virtio::mmio::{self, MmioTransport};
use devices::virtio::net::identifiers::IdentifierTable;
use devices::virtio::rng::Rng;
use devices::vmgenid::{GenerationId, VmGenId, VmGenIdError};
use devices::{i8042, power, pvpanic};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use control_abi::register;

use self::acpi::VirtioWindow;
use self::boot::{BootInfo, Protocol};
use self::event::{EventReceiver, event_channel};
use self::kvm::KvmError;
use self::memory::{GuestRam, RamRange};
use self::outcome::Outcome;
use self::processors::Processors;
use self::registers::Entry;
use self::routes::RouteTable;
use self::settle::Settled;
use self::stats::{KvmStats, StatsFile};
use self::vcpu::Platform;
use self::wiring::VirtioWires;
use crate::control;
use crate::host::footprint;

/// Why there is no machine, or it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM's refusal.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel cannot be started this way.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// Two devices in one place; never for a machine's own layout.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// More virtio devices than there is room for.
    #[error("{devices} virtio devices are more than the {most} that a machine can have")]
    TooManyDevices {
        /// How many there would be.
        devices: usize,
        /// How many there can be.
        most: u8,
    },
    /// The identifier of the machine's generation.
    #[error(transparent)]
    Generation(#[from] VmGenIdError),
    /// A virtio device could not be made.
    #[error(transparent)]
    Virtio(#[from] mmio::TransportError),
    /// A thread that is to have few system calls has all of them.
    #[error(transparent)]
    Seal(#[from] crate::jail::seccomp::SealError),
    /// The host's refusal of a thread, an event or a signal.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// A processor stopped for a reason that is not the guest's.
    #[error("{0}")]
    Failed(String),
}

impl MachineError {
    /// Of the host's refusal to do `what`.
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// A guest's life, from its first instruction to its end.
#[derive(Debug)]
pub struct Life {
    /// How it ended.
    pub outcome: Outcome,
    /// How long it was; nothing if it was ended before it began.
    pub ran: Duration,
    /// KVM's counters at its end.
    pub kvm: KvmStats,
    /// What the control device counted.
    pub control: devices::control::Counters,
    /// How far what was mapped became its own memory, if anything was to.
    pub settled: Option<Settled>,
    /// Bytes of memory that this process took beside the guest's while it still ran.
    pub overhead_bytes: Option<u64>,
}

/// A virtio device of a machine, whatever it is.
pub type Virtio = MmioTransport<Box<dyn VirtioDevice>>;
/// One that vCPUs and the event loop reach.
type SharedVirtio = Arc<Mutex<Virtio>>;

/// The virtio devices of a machine, in their order: the entropy device, then `others`.
pub fn virtio_devices(others: Vec<Box<dyn VirtioDevice>>) -> Vec<Box<dyn VirtioDevice>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng::new())];
    devices.extend(others);
    devices
}

/// A machine whose first processor is about to enter the kernel.
#[derive(Debug)]
pub struct Machine {
    // Declared, and so dropped, before the RAM that they run in.
    vcpus: Vec<VcpuFd>,
    platform: Platform,
    serial: Arc<Mutex<SerialConsole>>,
    virtio: Vec<SharedVirtio>,
    generation: VmGenId,
    control: ControlParts,
    identifiers: Option<IdentifierTable>,
    keyboard: Keyboard,
    events: EventReceiver,
    stats: Vec<StatsFile>,
    ram: GuestRam,
    _slots: Vec<RamRange>,
}

/// The control device, and what the event loop has of it.
#[derive(Debug)]
struct ControlParts {
    device: Arc<Mutex<control::Device>>,
    /// Signalled by the device when there are events.
    raised: EventFd,
    /// The line on which the guest hears of that.
    line: Arc<Mutex<SerialConsole>>,
    end: control::WorkerEnd,
}

impl Machine {
    /// Puts devices around `processors`, takes over `ram` with the image in it, and writes what
    /// the kernel finds in memory.
    ///
    /// # Errors
    /// KVM's or the host's refusal, or a kernel that cannot be started this way.
    pub fn assemble(
        processors: Processors,
        ram: GuestRam,
        entry: (Protocol, Entry),
        boot: &BootSpec<'_>,
        around: Around,
    ) -> Result<Self, MachineError> {
        let Around { console, control, virtio: devices, identifiers } = around;
        let Processors { vm, vcpus, stats, wiring, ram: slots } = processors;
        let (sender, events) = event_channel().map_err(MachineError::system("make an eventfd"))?;
        let (mut ports, mut memory) = (Bus::default(), Bus::default());

        let gsi_count = layout::gsi_count(u8::try_from(devices.len()).unwrap_or(u8::MAX));
        let ioapic =
            Arc::new(Mutex::new(Ioapic::new(RouteTable::new(vm.clone(), gsi_count), gsi_count)));
        memory.insert("I/O APIC", ioapic::IOAPIC_BASE, ioapic::IOAPIC_LENGTH, ioapic.clone())?;

        let serial = Arc::new(Mutex::new(SerialConsole::new(wiring.serial, console.output)));
        ports.insert("serial", serial::COM1_BASE, serial::COM1_LENGTH, serial.clone())?;
        let line = SerialConsole::new(wiring.event_line, Box::new(std::io::sink()));
        let line = Arc::new(Mutex::new(line));
        ports.insert("event line", serial::COM2_BASE, serial::COM2_LENGTH, line.clone())?;
        let control = ControlParts::new(control, &ram, line)?;
        let (base, length) = (register::PORT_BASE.into(), register::WINDOW_BYTES.into());
        ports.insert("control", base, length, control.device.clone())?;
        let (base, length) = (layout::CONTROL_MMIO, register::MMIO_BYTES);
        memory.insert("control", base, length, control.device.clone())?;
        let i8042 = Arc::new(Mutex::new(i8042::I8042::new(sender.sink())));
        ports.insert("i8042", i8042::I8042_BASE, i8042::I8042_LENGTH, i8042)?;
        let pvpanic = Arc::new(Mutex::new(pvpanic::Pvpanic::new(sender.sink())));
        ports.insert("pvpanic", pvpanic::PVPANIC_PORT, pvpanic::PVPANIC_LENGTH, pvpanic)?;
        let power = Arc::new(Mutex::new(power::Power::new(sender.sink())));
        ports.insert("power", layout::POWER_PORTS, power::WINDOW_LENGTH, power)?;

        let windows: Vec<_> = wiring.virtio.iter().map(|wires| wires.window).collect();
        let mut virtio = Vec::with_capacity(devices.len());
        // As many wires as devices: they were counted from these.
        for (device, wires) in devices.into_iter().zip(wiring.virtio) {
            let VirtioWires { window, line, queues } = wires;
            let guest = ram.memory().clone();
            let device = MmioTransport::with_queue_events(device, guest, line, queues)?;
            let device = Arc::new(Mutex::new(device));
            memory.insert("virtio", window.base, mmio::MMIO_LENGTH, device.clone())?;
            virtio.push(device);
        }

        let generation =
            VmGenId::new(ram.memory().clone(), layout::GENERATION_ID, wiring.generation)?;
        write_boot_structures(&ram, entry, boot, vcpus.len(), &windows)?;
        if let Some(first) = vcpus.first() {
            registers::set_entry(first, entry.1)?;
        }
        let platform =
            Platform { ports: Arc::new(ports), mmio: Arc::new(memory), ioapic, events: sender };
        let keyboard = console.keyboard;
        Ok(Self {
            vcpus,
            platform,
            serial,
            virtio,
            generation,
            control,
            identifiers,
            keyboard,
            events,
            stats,
            ram,
            _slots: slots,
        })
    }

    /// The identifier of this start of the machine.
    pub fn generation_id(&self) -> GenerationId {
        self.generation.id()
    }

    /// Runs the guest until its life ends. What is mapped from files becomes memory of the guest's own
    /// meanwhile, if it was mapped to do so. A machine that is to be held waits for its socket's word
    /// before its first instruction.
    ///
    /// # Errors
    /// A processor that cannot go on for a reason that is not the guest's, or the host's refusal.
    pub fn run(mut self, hold: bool) -> Result<Life, MachineError> {
        let vcpus = std::mem::take(&mut self.vcpus);
        let mapped = self.ram.take_settling();
        let keyboard = std::mem::replace(&mut self.keyboard, Keyboard::None);
        event_loop::run(&self, event_loop::Beginning { vcpus, mapped, keyboard, hold })
    }

    /// What running has cost so far; `outcome` is how it ended.
    fn account(&self, outcome: Outcome, ran: Duration, settled: Option<Settled>) -> Life {
        let mut kvm = KvmStats::default();
        for file in &self.stats {
            if let Err(error) = file.add_to(&mut kvm) {
                log::warn!("KVM's statistics: {error}");
            }
        }
        let guest: Vec<_> = self.ram.ranges().iter().map(RamRange::host).collect();
        let control = event_loop::lock(&self.control.device).counters();
        let overhead_bytes = footprint::resident_except(&guest);
        Life { outcome, ran, kvm, control, settled, overhead_bytes }
    }
}

impl ControlParts {
    fn new(
        end: control::MachineEnd,
        ram: &GuestRam,
        line: Arc<Mutex<SerialConsole>>,
    ) -> Result<Self, MachineError> {
        let make = || {
            let raised = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            Ok((InterruptLine::new(raised.try_clone()?), raised))
        };
        let (trigger, raised) = make().map_err(MachineError::system("make an eventfd"))?;
        let control::MachineEnd { identity, desk, clock, worker } = end;
        let memory = ram.memory().clone();
        let time = move || clock.elapsed();
        let device = ControlDevice::new(identity, memory, desk, trigger, Box::new(time));
        Ok(Self { device: Arc::new(Mutex::new(device)), raised, line, end: worker })
    }
}

/// What a machine is connected to.
#[derive(Debug)]
pub struct Around {
    /// Its console.
    pub console: Console,
    /// What is behind its control device.
    pub control: control::MachineEnd,
    /// Its virtio devices ([`virtio_devices`]), those that its processors were wired for.
    pub virtio: Vec<Box<dyn VirtioDevice>>,
    /// What its network device knows of virtual endpoints, if it has one.
    pub identifiers: Option<IdentifierTable>,
}

/// Where the console is.
pub struct Console {
    /// Where it writes.
    pub output: Box<dyn std::io::Write + Send>,
    /// Where its input comes from.
    pub keyboard: Keyboard,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("keyboard", &self.keyboard).finish_non_exhaustive()
    }
}

/// Where a console's input comes from.
#[derive(Debug)]
pub enum Keyboard {
    /// There is none.
    None,
    /// Standard input.
    Terminal,
    /// Who connects to the VM's socket.
    Socket(attach::Socket),
}

/// What the kernel is told beyond where its RAM is.
#[derive(Debug)]
pub struct BootSpec<'a> {
    /// What the image says of its kernel.
    pub kernel: &'a imgcache::image::manifest::KernelInfo,
    /// Where the ramdisk is, if there is one.
    pub initrd: Option<std::ops::Range<u64>>,
    /// The whole command line.
    pub command_line: &'a str,
}

fn write_boot_structures(
    ram: &GuestRam,
    (protocol, entry): (Protocol, Entry),
    boot: &BootSpec<'_>,
    cpus: usize,
    virtio: &[VirtioWindow],
) -> Result<(), MachineError> {
    let memory = ram.memory();
    let cpus = u8::try_from(cpus).unwrap_or(layout::MAX_CPUS);
    let rsdp = acpi::write_tables(memory, cpus, virtio)?;
    let info = BootInfo {
        kernel: boot.kernel,
        initrd: boot.initrd.clone(),
        command_line: boot.command_line,
        ram_size: ram.size(),
        rsdp,
    };
    match protocol {
        Protocol::Linux64 => boot::linux64::write(memory, &info)?,
        Protocol::Pvh => boot::pvh::write(memory, &info)?,
    }
    registers::write_gdt(memory, entry).map_err(boot::BootError::from)?;
    registers::write_page_tables(memory).map_err(boot::BootError::from)?;
    Ok(())
}
