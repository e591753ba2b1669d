//! The register map and its phases, with a device that records what reaches it.

use virtio_queue::Queue;
use vm_memory::GuestAddress;

use super::*;

const FEATURE: u64 = 1 << 5;
const INITIAL_STATUS_STEPS: [u32; 2] = [1, 3];

/// Two queues, eight bytes of configuration space.
#[derive(Debug, Default)]
struct Probe {
    sizes: [u16; 2],
    config: [u8; 8],
    config_writes: usize,
    activated: Option<(u64, Vec<Queue>)>,
    processed: Vec<usize>,
    resets: usize,
    outcome: Option<QueueProgress>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURE | EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let fields = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        for (byte, field) in data.iter_mut().zip(fields.unwrap_or_default()) {
            *byte = *field;
        }
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {
        self.config_writes += 1;
    }

    fn activate(&mut self, features: u64, queues: Vec<Queue>) -> Result<(), VirtioError> {
        if !queues[0].ready() {
            return Err(VirtioError::QueueNotReady { index: 0 });
        }
        self.activated = Some((features, queues));
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        _: &GuestMemoryMmap,
    ) -> Result<QueueProgress, VirtioError> {
        self.processed.push(index);
        self.outcome.ok_or(VirtioError::QueueNotReady { index })
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

struct Machine {
    transport: MmioTransport<Probe>,
    interrupt: EventFd,
}

impl Machine {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let probe = Probe { sizes: [16, 8], config: *b"abcdefgh", ..Probe::default() };
        Self { transport: MmioTransport::new(probe, memory, line).unwrap(), interrupt }
    }

    fn read(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(offset), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.transport.write(u64::from(offset), &value.to_le_bytes());
    }

    fn set_status(&mut self, value: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, value);
        self.read(VIRTIO_MMIO_STATUS)
    }

    fn write_features(&mut self, features: u64) {
        for (select, half) in (0..).zip(halves(features)) {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
    }

    /// Up to settled features.
    fn negotiate(&mut self) {
        for status in INITIAL_STATUS_STEPS {
            assert_eq!(self.set_status(status), status);
        }
        self.write_features(FEATURE | VERSION_1);
        assert_eq!(self.set_status(11), 11);
    }

    fn set_up_queue(&mut self, index: u32, size: u32) -> bool {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.read(VIRTIO_MMIO_QUEUE_READY) == 1
    }

    fn running() -> Self {
        let mut machine = Self::new();
        machine.negotiate();
        assert!(machine.set_up_queue(0, 4));
        assert_eq!(machine.set_status(15), 15);
        machine
    }

    fn probe(&self) -> &Probe {
        self.transport.device()
    }
}

#[test]
fn identity_features_and_queue_sizes_are_told() {
    let mut machine = Machine::new();
    let identity = [0, 4, 8, 12].map(|offset| machine.read(offset));
    assert_eq!(identity, [0x7472_6976, 2, 42, 0]);
    for (select, expected) in [(0, 0x2000_0020), (1, 1), (2, 0), (u32::MAX, 0)] {
        machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_FEATURES), expected);
    }
    for (select, expected) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        machine.write(VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), expected);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn a_driver_that_follows_the_specification_starts_the_device() {
    let machine = Machine::running();
    let (features, queues) = machine.probe().activated.as_ref().unwrap();
    assert_eq!(*features, FEATURE | VERSION_1);
    assert_eq!(queues.len(), 2);
    assert_eq!((queues[0].size(), queues[0].desc_table()), (4, 0x1000));
    assert_eq!((queues[0].avail_ring(), queues[0].used_ring()), (0x2000, 0x3000));
    assert!(queues[0].ready() && !queues[0].event_idx_enabled() && !queues[1].ready());
    assert!(machine.interrupt.read().is_err());
}

#[test]
fn features_must_be_a_subset_with_version_1() {
    for features in [0, FEATURE, VERSION_1 | 1, VERSION_1 | 1 << 63] {
        let mut machine = Machine::new();
        machine.set_status(3);
        machine.write_features(features);
        assert_eq!(machine.set_status(11), 3, "{features:#x}");
        assert_eq!(machine.set_status(0x83), 0x83);
    }
}

#[test]
fn features_count_only_while_they_are_negotiated() {
    let mut machine = Machine::new();
    machine.write_features(VERSION_1);
    assert_eq!(machine.set_status(3), 3);
    assert_eq!(machine.set_status(11), 3);
    machine.write_features(VERSION_1 | EVENT_IDX);
    machine.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    machine.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    assert_eq!(machine.set_status(11), 11);
    machine.write_features(u64::MAX);
    assert!(machine.set_up_queue(0, 4));
    assert_eq!(machine.set_status(15), 15);
    let (features, queues) = machine.probe().activated.as_ref().unwrap();
    assert_eq!(*features, VERSION_1 | EVENT_IDX);
    assert!(queues[0].event_idx_enabled());
}

#[test]
fn a_ready_queue_keeps_its_registers_until_it_is_made_unready() {
    let mut machine = Machine::new();
    assert!(!machine.set_up_queue(0, 4), "before the features are settled");
    machine.negotiate();
    assert!(!machine.set_up_queue(0, 32), "larger than offered");
    assert!(machine.set_up_queue(0, 4));
    assert!(machine.set_up_queue(0, 8), "ready as before");
    assert_eq!(machine.transport.queues[0].size, 4);

    machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(machine.set_up_queue(0, 8));
    assert_eq!(machine.transport.queues[0].size, 8);
    assert!(!machine.set_up_queue(2, 8), "there is no such queue");
}

#[test]
fn queue_registers_of_a_running_device_are_frozen() {
    let mut machine = Machine::running();
    machine.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 1);
    assert!(machine.set_up_queue(0, 8));
    assert!(!machine.set_up_queue(1, 8));
    assert_eq!(machine.transport.queues[0].size, 4);
}

#[test]
fn high_halves_of_queue_addresses_count() {
    for register in
        [VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_USED_HIGH]
    {
        let mut machine = Machine::new();
        machine.negotiate();
        machine.write(register, 1);
        assert!(!machine.set_up_queue(0, 4));
        machine.write(register, 0);
        assert!(machine.set_up_queue(0, 4));
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut machine = Machine::new();
    machine.negotiate();
    assert_eq!(machine.set_status(15), 0x4b);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(machine.interrupt.read().unwrap(), 1);
    assert_eq!(machine.set_status(0x4f), 0x4b);
    assert_eq!(machine.set_status(0), 0);
    machine.negotiate();
    assert_eq!(machine.set_status(15), 0x4b);
    assert_eq!(machine.transport.failures, 2);
}

#[test]
fn notifications_signal_the_queue_and_serving_it_interrupts() {
    let mut machine = Machine::running();
    for value in [1 << 16, 2, u32::MAX] {
        machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, value);
    }
    assert!(machine.transport.queue_events().iter().all(|event| event.read().is_err()));
    machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.transport.queue_event(0).read().unwrap(), 1);

    machine.transport.device.outcome =
        Some(QueueProgress { interrupt: true, more: true, config: false });
    machine.transport.handle_queue_event(0);
    assert_eq!(machine.transport.queue_event(0).read().unwrap(), 1);
    assert_eq!(machine.interrupt.read().unwrap(), 1);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    machine.transport.device.outcome = Some(QueueProgress::default());
    machine.transport.handle_queue_event(0);
    assert!(machine.interrupt.read().is_err());

    let changed = QueueProgress { config: true, ..QueueProgress::default() };
    machine.transport.device.outcome = Some(changed);
    let generation = machine.read(VIRTIO_MMIO_CONFIG_GENERATION);
    machine.transport.handle_queue_event(0);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_ne!(machine.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(machine.interrupt.read().unwrap(), 1);
    machine.transport.handle_queue_event(1);
    machine.transport.handle_queue_event(2);
    assert_eq!(machine.probe().processed, [0, 0, 0]);
}

#[test]
fn a_device_that_fails_is_not_called_before_its_reset() {
    let mut machine = Machine::running();
    machine.transport.handle_queue_event(0);
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0x4f);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    machine.transport.handle_queue_event(0);
    machine.transport.config_changed();
    assert_eq!(machine.probe().processed, [0]);
    assert_eq!(machine.interrupt.read().unwrap(), 1);

    assert_eq!(machine.set_status(0x8f), 0xcf);
    assert_eq!(machine.set_status(0), 0);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(machine.probe().resets, 1);
    assert_eq!(machine.set_status(3), 3);
    assert_eq!(machine.set_status(11), 3, "features are negotiated anew");
}

#[test]
fn configuration_space_is_read_at_any_width_and_written_once_features_are_settled() {
    let mut machine = Machine::new();
    for (offset, expected) in
        [(0x100, &b"a"[..]), (0x101, b"bc"), (0x104, b"efgh"), (0x100, b"abcdefgh")]
    {
        let mut data = vec![0; expected.len()];
        machine.transport.read(offset, &mut data);
        assert_eq!(data, expected);
    }
    for (offset, expected) in [(0x106, *b"gh\xff\xff"), (0xffc, [0xff; 4])] {
        let mut data = [0; 4];
        machine.transport.read(offset, &mut data);
        assert_eq!(data, expected);
    }

    machine.set_status(3);
    machine.write(VIRTIO_MMIO_CONFIG, 0);
    assert_eq!(machine.probe().config_writes, 0);
    machine.set_status(0);
    machine.negotiate();
    machine.write(VIRTIO_MMIO_CONFIG, 0);
    assert_eq!(machine.probe().config_writes, 1);
}

#[test]
fn a_change_of_the_configuration_counts_and_interrupts_a_running_driver() {
    let mut machine = Machine::new();
    machine.transport.config_changed();
    assert_eq!(machine.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert!(machine.interrupt.read().is_err());

    let mut machine = Machine::running();
    machine.transport.config_changed();
    assert_eq!(machine.read(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(machine.interrupt.read().unwrap(), 1);
}

#[test]
fn full_counters_disturb_nobody() {
    let mut machine = Machine::running();
    machine.interrupt.write(u64::MAX - 1).unwrap();
    machine.transport.queue_event(0).write(u64::MAX - 1).unwrap();
    machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    machine.transport.config_changed();
    assert_eq!(machine.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}

#[test]
fn queue_sizes_virtio_does_not_have_are_refused() {
    let new = |sizes| {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let line = InterruptLine::new(EventFd::new(EFD_NONBLOCK).unwrap());
        MmioTransport::new(Probe { sizes, ..Probe::default() }, memory, line)
    };
    for size in [0, 3, u16::MAX] {
        let error = new([1, size]).unwrap_err();
        assert!(matches!(error, TransportError::QueueSize { index: 1, size: s } if s == size));
    }
    assert!(new([1, 32768]).is_ok());
}
