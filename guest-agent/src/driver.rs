//! The driver: submits commands, and waits for what is not done at once.
//!
//! A command and what is small of it are in one page, so that one address is all that the device needs.
//! Larger buffers are handed over by address: a page, or 2 MiB in one piece where there is such.

mod error;
mod events;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread::sleep;
use std::time::{Duration, Instant};

use control_abi::command::{
    HEADER_BYTES, Header, MAX_BUFFER, OUTPUT_LENGTH_OFFSET, PAGE_BYTES, Place, STATUS_OFFSET,
};
use control_abi::event::Event;
use control_abi::operation::Operation;
use control_abi::register::Register;
use control_abi::status::{ACCEPTED, DONE, Error, PENDING};
use rustix::rand::{GetRandomFlags, getrandom};

pub use self::error::DriverError;
use self::events::{Announced, Events};
use crate::line;
use crate::lock::Lock;
use crate::memory::{Memory, PAGE};
use crate::pinned;
use crate::registers::Registers;
use crate::ring::halves;

/// Where in the driver's memory things are: the command, the event ring, a buffer of a page.
const COMMAND: usize = 0;
const RING: usize = PAGE;
const BUFFER: usize = 2 * PAGE;
const PAGES: usize = 3;
const _: () = assert!(PAGE_BYTES == PAGE as u64, "a command in a page");

/// How long a command's end is waited for without rest.
const SPIN: Duration = Duration::from_millis(2);
/// Times between looks at something that nothing announces.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(20));
/// Between looks at the status of a command whose end is announced, should that get lost.
const ANNOUNCED: Duration = Duration::from_millis(250);

/// What a driver may do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the locks; where all processes look, if none is given.
    pub locks: Option<PathBuf>,
    /// Whether to use the event ring.
    pub events: bool,
    /// The event line; none to do without it.
    pub line: Option<String>,
    /// How long a command is submitted again that the device has no room for.
    pub patience: Duration,
    /// How long an accepted command may take.
    pub most: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            locks: None,
            events: true,
            line: Some(line::PATH.to_owned()),
            patience: Duration::from_secs(30),
            most: Duration::from_secs(900),
        }
    }
}

/// What a command's buffer is for.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// The device writes to it.
    Output(&'a mut [u8]),
    /// The device reads it.
    Input(&'a [u8]),
}

impl Buffer<'_> {
    fn length(&self) -> usize {
        match self {
            Self::Output(buffer) => buffer.len(),
            Self::Input(buffer) => buffer.len(),
        }
    }
}

/// The memory for large buffers.
#[derive(Debug)]
enum Large {
    NotTried,
    None,
    Some(Memory),
}

/// The driver of one device. It has one command on its way at a time.
#[derive(Debug)]
pub struct Driver {
    registers: Box<dyn Registers>,
    memory: Memory,
    large: Large,
    submit: Lock,
    /// Held by whoever has the ring.
    ring: Lock,
    events: Events,
    pending: VecDeque<Event>,
    sequence: u64,
    generation: u32,
    given_up: bool,
    options: Options,
}

impl Driver {
    /// A driver for the device that these registers are of; it looks that the device sees its memory.
    ///
    /// # Errors
    /// If there is no memory that stays where it is, or the device does not see it.
    pub fn new(registers: Box<dyn Registers>, options: Options) -> Result<Self, DriverError> {
        Self::with_memory(registers, pinned::pages(PAGES)?, options)
    }

    /// The same with at least three pages of memory.
    ///
    /// # Errors
    /// If the device does not see it.
    pub fn with_memory(
        registers: Box<dyn Registers>,
        memory: Memory,
        options: Options,
    ) -> Result<Self, DriverError> {
        let lock = |name: &str| match &options.locks {
            Some(folder) => Lock::at(&folder.join(name)),
            None => Lock::named(name),
        };
        let mut driver = Self {
            submit: lock("guest-agent.submit.lock")?,
            ring: lock("guest-agent.ring.lock")?,
            generation: registers.read(Register::Generation),
            registers,
            memory,
            large: Large::NotTried,
            events: Events::NotTried,
            pending: VecDeque::new(),
            sequence: u64::from_le_bytes(random()),
            given_up: false,
            options,
        };
        driver.check_echo()?;
        Ok(driver)
    }

    /// The registers.
    pub fn registers(&self) -> &dyn Registers {
        self.registers.as_ref()
    }

    /// The memory of the commands.
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Sees whether the guest was copied, restored or moved; then that the device still sees this
    /// driver's memory, and sets the ring up again. Returns the generation.
    ///
    /// # Errors
    /// If the device does not see the memory.
    pub fn check_generation(&mut self) -> Result<u32, DriverError> {
        let generation = self.registers.read(Register::Generation);
        if generation != self.generation {
            self.generation = generation;
            // What was on its way is lost, so that nobody writes to the memory any more.
            self.given_up = false;
            if let Events::Some(_, line) = &mut self.events {
                let line = line.take();
                self.events = match self.set_up_ring() {
                    Some(ring) => Events::Some(ring, line),
                    None => Events::None,
                };
            }
            self.check_echo()?;
        }
        Ok(generation)
    }

    /// Sends bytes that nobody can know, and expects them back.
    fn check_echo(&mut self) -> Result<(), DriverError> {
        let (nonce, mut echo): ([u8; 32], _) = (random(), [0; 32]);
        let length = self.call(Operation::Ping, &nonce, Buffer::Output(&mut echo))?;
        if length == nonce.len() && echo == nonce { Ok(()) } else { Err(DriverError::Echo) }
    }

    /// Has an operation carried out, to its end. Returns how many bytes of an output were filled. What
    /// the device has no room for now is submitted again for a while.
    ///
    /// # Errors
    /// What the device says, or that it says nothing.
    pub fn call(
        &mut self,
        operation: Operation,
        input: &[u8],
        mut buffer: Buffer<'_>,
    ) -> Result<usize, DriverError> {
        if self.given_up {
            return Err(DriverError::GivenUp);
        }
        let place = self.place(input.len(), buffer.length())?;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let status = self.submit(operation, input, &buffer, place)?;
            let status = if status == ACCEPTED { self.wait_for_end(operation)? } else { status };
            if status == DONE {
                break;
            }
            let error = Error::from_status(status).ok_or_else(|| DriverError::Malformed {
                operation,
                what: format!("the status is {status:#010x}"),
            })?;
            let again = matches!(error, Error::RateLimited | Error::Busy);
            if !again || begun.elapsed() > self.options.patience {
                return Err(DriverError::Refused { operation, error });
            }
            self.wait_for_credit(&mut pause);
        }
        self.take_output(operation, &mut buffer, place)
    }

    /// Sees to it that a command can have a buffer of so many bytes.
    ///
    /// # Errors
    /// [`DriverError::NoBuffer`], with the reason.
    pub fn need_buffer(&mut self, bytes: usize) -> Result<(), DriverError> {
        self.place(0, bytes).map(drop)
    }

    /// Where a buffer goes: behind the input if there is room, else into the page or the large piece.
    fn place(&mut self, input: usize, buffer: usize) -> Result<Where, DriverError> {
        let behind = usize::from(HEADER_BYTES) + input.next_multiple_of(8);
        if behind + buffer <= PAGE {
            return Ok(Where::Behind(behind));
        }
        let most = if buffer <= PAGE { PAGE } else { self.largest_buffer() };
        if buffer > most {
            // Only to say why not.
            let source = if usize::try_from(MAX_BUFFER).is_ok_and(|most| buffer > most) {
                None
            } else {
                pinned::contiguous().err().map(Box::new)
            };
            return Err(DriverError::NoBuffer { bytes: buffer, source });
        }
        Ok(if buffer <= PAGE { Where::Page } else { Where::Large })
    }

    /// Bytes that a buffer can have: 1 MiB where so much is to be had in one piece, else a page.
    pub fn largest_buffer(&mut self) -> usize {
        if matches!(self.large, Large::NotTried) {
            self.large = pinned::contiguous().map_or(Large::None, Large::Some);
        }
        match &self.large {
            Large::Some(memory) => memory.bytes().min(MAX_BUFFER as usize),
            _ => PAGE,
        }
    }

    /// For tests, whose devices know no other memory than they were given.
    #[cfg(test)]
    pub(crate) fn do_without_large_buffers(&mut self) {
        self.large = Large::None;
    }

    fn piece(&self, place: Where) -> (&Memory, usize) {
        match (place, &self.large) {
            (Where::Behind(offset), _) => (&self.memory, COMMAND + offset),
            (Where::Large, Large::Some(memory)) => (memory, 0),
            _ => (&self.memory, BUFFER),
        }
    }

    /// Writes the command and submits it; its status then.
    fn submit(
        &mut self,
        operation: Operation,
        input: &[u8],
        buffer: &Buffer<'_>,
        place: Where,
    ) -> Result<u32, DriverError> {
        self.sequence = self.sequence.wrapping_add(1);
        let refused = |error| DriverError::Refused { operation, error };
        let inline = if matches!(place, Where::Behind(_)) { buffer.length() } else { 0 };
        let mut header = Header::inline(operation.number(), self.sequence, input.len(), inline)
            .map_err(refused)?;
        let (memory, offset) = self.piece(place);
        let unseen = |address, result| DriverError::Unseen { operation, address, result };
        if !matches!(place, Where::Behind(_)) {
            let length = buffer.length();
            let address = memory.address(offset, length);
            header.buffer = Place::At(address.ok_or_else(|| unseen(0, PENDING))?);
            header.buffer_length = u32::try_from(length).map_err(|_| refused(Error::BadLength))?;
        }
        let address = self.memory.address(COMMAND, PAGE).ok_or_else(|| unseen(0, PENDING))?;
        if let Buffer::Input(bytes) = buffer {
            memory.write(offset, bytes);
        }
        self.memory.write(COMMAND + usize::from(HEADER_BYTES), input);
        self.memory.write(COMMAND, &header.encode());

        let [high, low] = halves(address);
        let held = self.submit.hold()?;
        self.registers.write(Register::CommandHigh, high);
        self.registers.write(Register::CommandLow, low);
        let status = self.status();
        if status != PENDING {
            return Ok(status);
        }
        // The device could not write to the command: only the register says why.
        let result = self.registers.read(Register::Result);
        drop(held);
        match Error::from_status(result) {
            Some(Error::RateLimited | Error::Busy) => Ok(result),
            _ => Err(unseen(address, result)),
        }
    }

    fn status(&self) -> u32 {
        self.memory.load(COMMAND + usize::from(STATUS_OFFSET))
    }

    /// Waits until the device can take more commands, or for a while.
    fn wait_for_credit(&self, pause: &mut Duration) {
        for _ in 0..8 {
            sleep(*pause);
            *pause = (*pause * 2).min(Duration::from_millis(100));
            if self.registers.read(Register::Credit) > 0 {
                break;
            }
        }
    }

    /// Waits for the end of the command that was accepted; its status.
    ///
    /// Most end soon: looking costs no exit, while an event costs about ten, of the ring and of the serial line.
    fn wait_for_end(&mut self, operation: Operation) -> Result<u32, DriverError> {
        let begun = Instant::now();
        while begun.elapsed() < SPIN {
            let status = self.status();
            if status != ACCEPTED {
                return Ok(status);
            }
            std::hint::spin_loop();
        }
        self.announce_completions(true);
        let ended = self.wait_for_event_of(operation, begun);
        self.announce_completions(false);
        ended
    }

    fn wait_for_event_of(
        &mut self,
        operation: Operation,
        begun: Instant,
    ) -> Result<u32, DriverError> {
        let mut pause = LOOKS.0;
        loop {
            let status = self.status();
            if status != ACCEPTED {
                return Ok(status);
            }
            let announced = self.look_for_events(ANNOUNCED);
            if announced == Announced::Yes {
                continue;
            }
            if announced == Announced::Never {
                sleep(pause);
                pause = (pause * 2).min(LOOKS.1);
            }
            let generation = self.registers.read(Register::Generation);
            if generation != self.generation && self.status() == ACCEPTED {
                self.check_generation()?;
                return Err(DriverError::Lost { operation, generation });
            }
            if begun.elapsed() > self.options.most {
                self.given_up = true;
                return Err(DriverError::NoAnswer { operation, waited: begun.elapsed() });
            }
        }
    }

    fn take_output(
        &self,
        operation: Operation,
        buffer: &mut Buffer<'_>,
        place: Where,
    ) -> Result<usize, DriverError> {
        let length = self.memory.load(COMMAND + usize::from(OUTPUT_LENGTH_OFFSET));
        let Buffer::Output(output) = buffer else { return Ok(0) };
        let room = output.len();
        let filled = usize::try_from(length).ok().and_then(|length| output.get_mut(..length));
        let filled = filled.ok_or_else(|| DriverError::Malformed {
            operation,
            what: format!("{length} bytes in a buffer of {room}"),
        })?;
        let (memory, offset) = self.piece(place);
        memory.read(offset, filled);
        Ok(filled.len())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nothing may be left that the device writes to when the memory is somebody else's.
        if let Events::Some(ring, _) = std::mem::replace(&mut self.events, Events::None) {
            ring.take_down(self.registers.as_ref());
        }
        if self.given_up {
            // Held until the process ends.
            let nothing =
                Memory::new(Box::new(Arc::<[AtomicU32]>::default()), Vec::new(), "nothing");
            std::mem::forget(std::mem::replace(&mut self.memory, nothing));
            std::mem::forget(std::mem::replace(&mut self.large, Large::None));
        }
    }
}

/// Where a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// So many bytes behind the start of the command.
    Behind(usize),
    Page,
    Large,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Before the kernel has entropy, and where it is refused, a number that differs from the last.
    if getrandom(&mut bytes, GetRandomFlags::NONBLOCK) != Ok(N) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let seed = time.tv_sec.wrapping_shl(30) ^ time.tv_nsec;
        for (byte, value) in bytes.iter_mut().zip(seed.to_le_bytes().iter().cycle()) {
            *byte = *value;
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
