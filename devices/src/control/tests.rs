//! The device as a guest meets it.

mod accesses;
mod commands;
mod events;
mod hostile;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control_abi::command::Header;
use control_abi::field::{Encoder, Tag};
use control_abi::operation::Operation;
use control_abi::register::Register;
use control_abi::rights;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// RAM of two pieces of 64 KiB.
pub const HIGH: u64 = 0x10_0000;
pub const PIECE: u64 = 0x1_0000;
/// Where commands are, unless said otherwise.
pub const COMMAND: u64 = 0x3000;
pub const RING: u64 = 0x5000;

/// Guest memory that notes what was written.
pub struct Noting {
    pub memory: GuestMemoryMmap<()>,
    pub writes: RefCell<Vec<Range<u64>>>,
}

impl Noting {
    fn note(&self, address: u64, length: usize) {
        self.writes.borrow_mut().push(address..address + length as u64);
    }
}

impl CommandMemory for Noting {
    fn has(&self, address: u64, length: u64) -> bool {
        self.memory.has(address, length)
    }

    fn read_bytes(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read_bytes(address, data)
    }

    fn write_bytes(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.memory.write_bytes(address, data)?;
        self.note(address, data.len());
        Ok(())
    }

    fn store_word(&self, address: u64, value: u32) -> Result<(), MemoryError> {
        self.memory.store_word(address, value)?;
        self.note(address, 4);
        Ok(())
    }
}

/// Answers as it was told to, and notes what it was asked.
#[derive(Default)]
pub struct Script {
    pub answer: Option<Answer>,
    pub calls: Vec<Call>,
    pub marks: Vec<u32>,
}

impl Operations for Script {
    fn call(&mut self, call: Call) -> Answer {
        self.calls.push(call);
        self.answer.clone().unwrap_or(Answer::Accepted)
    }

    fn mark(&mut self, number: u32) {
        self.marks.push(number);
    }
}

pub type Device = ControlDevice<Noting, Script>;

/// A guest and its device.
pub struct Guest {
    pub device: Device,
    pub line: EventFd,
    milliseconds: Arc<AtomicU64>,
}

pub fn identity() -> Identity {
    Identity {
        name: "vm1".into(),
        image: "debian:12".into(),
        manifest: [7; 32],
        cpus: 2,
        memory_bytes: 512 << 20,
        rights: rights::MANAGER | rights::BOOT,
        features: register::feature::EVENTS,
        commands: Rate { per_second: 1000, burst: 256 },
        boots: Rate { per_second: 16, burst: 64 },
    }
}

impl Guest {
    pub fn new(identity: Identity) -> Self {
        let piece = |at| (GuestAddress(at), usize::try_from(PIECE).unwrap());
        let memory = GuestMemoryMmap::from_ranges(&[piece(0), piece(HIGH)]).unwrap();
        let memory = Noting { memory, writes: RefCell::default() };
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = InterruptLine::new(line.try_clone().unwrap());
        let milliseconds = Arc::new(AtomicU64::new(0));
        let time = milliseconds.clone();
        let clock = Box::new(move || Duration::from_millis(time.load(Ordering::Relaxed)));
        let device = Device::new(identity, memory, Script::default(), interrupt, clock);
        Self { device, line, milliseconds }
    }

    pub fn manager() -> Self {
        Self::new(identity())
    }

    pub fn pass_time(&self, milliseconds: u64) {
        self.milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
    }

    pub fn get(&mut self, register: Register) -> u32 {
        let mut data = [0; 4];
        self.device.read(register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&mut self, register: Register, value: u32) {
        self.device.write(register as u64, &value.to_le_bytes());
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.device.memory.memory.write_bytes(address, bytes).unwrap();
    }

    pub fn bytes<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.memory.read_bytes(address, &mut bytes).unwrap();
        bytes
    }

    pub fn word(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address))
    }

    /// Writes a command's address into its registers; returns the result.
    pub fn submit_at(&mut self, address: u64) -> u32 {
        let bytes = address.to_le_bytes();
        let half = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        self.set(Register::CommandHigh, half(4));
        self.set(Register::CommandLow, half(0));
        self.get(Register::Result)
    }

    /// Puts a command in place, with its input and 512 bytes of buffer behind it.
    pub fn prepare(&self, operation: u16, input: &[u8]) -> Header {
        let header = Header::inline(operation, 77, input.len(), 512).unwrap();
        self.put(COMMAND, &header.encode());
        self.put(COMMAND + 64, input);
        header
    }

    /// The same, submitted; returns the status word, which is the result.
    pub fn command(&mut self, operation: Operation, input: &[u8]) -> u32 {
        self.prepare(operation.number(), input);
        let result = self.submit_at(COMMAND);
        assert_eq!(self.word(COMMAND + 12), result);
        result
    }

    /// What the command put into the buffer behind an input of this length.
    pub fn output(&self, input_length: usize) -> Vec<u8> {
        let length = usize::try_from(self.word(COMMAND + 56)).unwrap();
        let at = COMMAND + 64 + input_length.next_multiple_of(8) as u64;
        self.bytes::<512>(at)[..length].to_vec()
    }

    pub fn raise_ring(&mut self) {
        self.set(Register::RingHigh, 0);
        self.set(Register::RingLow, u32::try_from(RING).unwrap());
        assert_eq!(self.get(Register::Result), status::DONE);
        self.set(Register::EventEnable, ALL_KINDS);
    }
}

/// Fields, each a text.
pub fn fields(list: &[(Tag, &str)]) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let mut encoder = Encoder::new(&mut buffer);
    for (tag, text) in list {
        encoder.text(*tag, text).unwrap();
    }
    let length = encoder.length();
    buffer.truncate(length);
    buffer
}
