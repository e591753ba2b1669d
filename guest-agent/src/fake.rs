//! A control device over memory, for tests: it takes commands as the real one does, and answers what
//! the test says.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use control_abi::command::{
    HEADER_BYTES, Header, OUTPUT_LENGTH_OFFSET, Place, STATUS_OFFSET, TICKET_OFFSET,
};
use control_abi::event::{Event, RING_DOWN, event_offset};
use control_abi::register::{MAGIC, Register, version};
use control_abi::status::{ACCEPTED, Error};
use control_abi::{VERSION_MAJOR, VERSION_MINOR};

use crate::memory::{Memory, PAGE};
use crate::registers::Registers;

/// Pages of the memory, at `FIRST` and on with a hole between each two.
const PAGES: usize = 4;
const FIRST: u64 = 0x7_0000_0000;
/// Where a ring can be.
pub const RING_PAGE: usize = PAGE;

/// What a command gets: its status, and what is put into its buffer.
type Answer = (u32, Vec<u8>);
type Handler = dyn FnMut(u16, &[u8]) -> Answer;

/// The device. What a test wants to see of it, it keeps a clone of.
#[derive(Clone)]
pub struct FakeDevice(Rc<State>);

struct State {
    memory: Memory,
    handler: RefCell<Box<Handler>>,
    values: RefCell<HashMap<u16, u32>>,
    ring: Cell<Option<(u64, u32)>>,
    /// Commands that wait for their end: where they are, and what they get.
    accepted: RefCell<Vec<(u64, Header, Answer)>>,
    /// Commands end this many reads of a register after they were accepted.
    delay: Cell<Option<u32>>,
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeDevice")
    }
}

fn words() -> Arc<[AtomicU32]> {
    (0..PAGES * PAGE / 4).map(|_| AtomicU32::new(0)).collect()
}

fn addresses() -> Vec<u64> {
    (0..PAGES as u64).map(|page| FIRST + page * 2 * PAGE as u64).collect()
}

impl FakeDevice {
    /// A device that answers commands, known by operation and input, as `handler` says; and the memory
    /// that it knows.
    pub fn new(handler: impl FnMut(u16, &[u8]) -> Answer + 'static) -> (Self, Memory) {
        let words = words();
        let memory = |words| Memory::new(Box::new(words), addresses(), "a test");
        let values = HashMap::from([
            (Register::Magic as u16, MAGIC),
            (Register::Version as u16, version(VERSION_MAJOR, VERSION_MINOR)),
            (Register::Generation as u16, 1),
            (Register::Credit as u16, 256),
        ]);
        let state = State {
            memory: memory(Arc::clone(&words)),
            handler: RefCell::new(Box::new(handler)),
            values: RefCell::new(values),
            ring: Cell::new(None),
            accepted: RefCell::default(),
            delay: Cell::new(None),
        };
        (Self(Rc::new(state)), memory(words))
    }

    /// A register reads as `value` from now on.
    pub fn set(&self, register: Register, value: u32) {
        self.0.values.borrow_mut().insert(register as u16, value);
    }

    /// Commands are accepted from now on, and end after so many accesses to registers.
    pub fn delay(&self, accesses: u32) {
        self.0.delay.set(Some(accesses));
    }

    /// Puts an event into the ring, if there is one.
    pub fn announce(&self, event: Event) {
        let Some((address, head)) = self.0.ring.get() else { return };
        let offset = self.offset(address).unwrap();
        self.0.memory.write(offset + usize::from(event_offset(head)), &event.encode());
        self.0.memory.store(offset, head + 1);
        self.0.ring.set(Some((address, head + 1)));
    }

    fn offset(&self, address: u64) -> Option<usize> {
        let pages = self.0.memory.pages();
        let page = pages.iter().position(|page| *page == address & !(PAGE as u64 - 1))?;
        Some(page * PAGE + usize::try_from(address % PAGE as u64).unwrap())
    }

    fn bytes(&self, address: u64, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        if !bytes.is_empty() {
            self.0.memory.read(self.offset(address).unwrap(), &mut bytes);
        }
        bytes
    }

    fn submit(&self, address: u64) {
        let Some(offset) = self.offset(address) else {
            return self.set(Register::Result, Error::BadAddress.status());
        };
        let mut header = [0; HEADER_BYTES as usize];
        self.0.memory.read(offset, &mut header);
        let header = match Header::decode(&header) {
            Ok(header) => header,
            Err(error) => return self.finish(address, None, error.status(), &[]),
        };
        let at = match header.input {
            Place::Inline(at) => address + u64::from(at),
            Place::At(at) => at,
        };
        let input = self.bytes(at, header.input_length);
        let answer = self.0.handler.borrow_mut()(header.operation, &input);
        if self.0.delay.get().is_some() {
            self.0.memory.store(offset + usize::from(TICKET_OFFSET), 77);
            self.0.memory.store(offset + usize::from(STATUS_OFFSET), ACCEPTED);
            self.set(Register::Result, ACCEPTED);
            self.0.accepted.borrow_mut().push((address, header, answer));
        } else {
            self.finish(address, Some(&header), answer.0, &answer.1);
        }
    }

    fn finish(&self, address: u64, header: Option<&Header>, status: u32, output: &[u8]) {
        let offset = self.offset(address).unwrap();
        if let Some(header) = header {
            let at = match header.buffer {
                Place::Inline(at) => offset + usize::from(at),
                Place::At(at) => self.offset(at).unwrap(),
            };
            assert!(output.len() <= usize::try_from(header.buffer_length).unwrap());
            self.0.memory.write(at, output);
        }
        let length = u32::try_from(output.len()).unwrap();
        self.0.memory.store(offset + usize::from(OUTPUT_LENGTH_OFFSET), length);
        self.0.memory.store(offset + usize::from(STATUS_OFFSET), status);
        self.set(Register::Result, status);
    }

    /// Lets time go on by an access.
    fn tick(&self) {
        let Some(left) = self.0.delay.get() else { return };
        if self.0.accepted.borrow().is_empty() {
            return;
        }
        if left > 0 {
            return self.0.delay.set(Some(left - 1));
        }
        let accepted = self.0.accepted.take();
        for (address, header, (status, output)) in accepted {
            self.finish(address, Some(&header), status, &output);
        }
    }
}

impl Registers for FakeDevice {
    fn read(&self, register: Register) -> u32 {
        self.tick();
        self.0.values.borrow().get(&(register as u16)).copied().unwrap_or(0)
    }

    fn write(&self, register: Register, value: u32) {
        let high = |register| u64::from(self.read(register)) << 32;
        match register {
            Register::CommandLow => self.submit(high(Register::CommandHigh) | u64::from(value)),
            Register::RingLow if value == RING_DOWN => self.0.ring.set(None),
            Register::RingLow => {
                self.set(register, value);
                self.0.ring.set(Some((high(Register::RingHigh) | u64::from(value), 0)));
            }
            register => self.set(register, value),
        }
    }

    fn way(&self) -> String {
        "a test's memory".to_owned()
    }
}
