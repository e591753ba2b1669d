//! The control device: a bank of registers by which a guest asks its VMM for something.
//!
//! What it looks like from the guest is [`control_abi`]'s to say, and `docs/control-device.md`'s. Here
//! is the machine behind it: registers, the copying and checking of commands, rates, the event ring.
//! What a command does is the business of [`Operations`], except for those that concern the device
//! alone.
//!
//! The guest is hostile. A command is copied once and then never looked at again; all addresses are
//! checked before anything is read or written, and again when a command that took time is completed; the
//! only memory that is written to is that of the command's own words, its buffer, and the ring. What an
//! access costs is bounded by a page that is copied: everything that takes longer is accepted here, and
//! completed by the owner with [`ControlDevice::complete`].

mod bucket;
mod memory;
mod request;
mod ring;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use control_abi::event::{ALL_KINDS, Event, Kind};
use control_abi::field::{Arguments, Encoder, Tag};
use control_abi::operation::Operation;
use control_abi::register::{self, Register};
use control_abi::status::{self, Error};
use control_abi::{VERSION_MAJOR, VERSION_MINOR, command};

pub use self::bucket::{Rate, TokenBucket};
pub use self::memory::CommandMemory;
use self::memory::{MemoryError, joined};
use self::request::{Request, Target};
use self::ring::Ring;
pub use self::state::{ControlState, StateError};
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Commands of a guest that are worked at, at most.
pub const MAX_ACCEPTED: usize = 64;

/// Who the guest is, and what it may do. Its VMM says so when it is started, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The VM's name.
    pub name: String,
    /// The image that it was booted from.
    pub image: String,
    /// That image's identifier.
    pub manifest: [u8; 32],
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Bits of [`control_abi::rights`].
    pub rights: u32,
    /// Bits of [`control_abi::register::feature`].
    pub features: u32,
    /// How many commands it may submit.
    pub commands: Rate,
    /// How often it may boot VMs.
    pub boots: Rate,
}

/// A command that was checked, for who carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Names the command in [`ControlDevice::complete`].
    pub ticket: u64,
    /// What is asked for; the guest has the right to.
    pub operation: Operation,
    /// The arguments, which are what the operation takes.
    pub input: Vec<u8>,
    /// How many bytes of output there is room for.
    pub buffer_length: u32,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and this is its output.
    Done(Vec<u8>),
    /// It cannot be done.
    Failed(Error),
    /// It takes time; [`ControlDevice::complete`] follows.
    Accepted,
}

/// Carries out what guests ask for.
///
/// It is called on the thread of the vCPU, with the device's lock held: what takes more than some 50
/// microseconds is passed on, and nothing is waited for.
pub trait Operations: Send {
    /// A command.
    fn call(&mut self, call: Call) -> Answer;
    /// The guest wrote this number to the register for marks.
    fn mark(&mut self, number: u32);
}

/// What has happened, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands submitted.
    pub commands: u64,
    /// Those of them that were refused or failed, at once or later.
    pub failed: u64,
    /// Accesses that were none of a register, or of another width.
    pub ignored_accesses: u64,
    /// Events put into the ring.
    pub events: u64,
    /// Events that found the ring full.
    pub events_lost: u64,
}

/// A command that is being worked at.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    /// None if the guest has given it up. It counts until it has ended all the same: somebody is at it.
    target: Option<Target>,
    sequence: u64,
}

/// The device.
pub struct ControlDevice<M, O> {
    identity: Identity,
    memory: M,
    operations: O,
    line: InterruptLine,
    clock: Box<dyn Fn() -> Duration + Send>,
    commands: TokenBucket,
    boots: TokenBucket,
    accepted: BTreeMap<u64, Accepted>,
    next_ticket: u64,
    ring: Ring,
    counters: Counters,
    command_high: u32,
    ring_high: u32,
    result: u32,
    event_enable: u32,
    event_status: u32,
    generation: u32,
}

impl<M: CommandMemory, O: Operations> ControlDevice<M, O> {
    /// Makes a device for a guest that runs for the first time. `clock` says how long it has run; an
    /// edge on `line` says that there are events.
    pub fn new(
        identity: Identity,
        memory: M,
        operations: O,
        line: InterruptLine,
        clock: Box<dyn Fn() -> Duration + Send>,
    ) -> Self {
        let (commands, boots) =
            (TokenBucket::new(identity.commands), TokenBucket::new(identity.boots));
        Self {
            identity,
            memory,
            operations,
            line,
            clock,
            commands,
            boots,
            accepted: BTreeMap::new(),
            next_ticket: 1,
            ring: Ring::default(),
            counters: Counters::default(),
            command_high: 0,
            ring_high: 0,
            result: status::PENDING,
            event_enable: 0,
            event_status: 0,
            generation: 1,
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        Counters { events: self.ring.put(), events_lost: self.ring.lost(), ..self.counters }
    }

    /// Who carries commands out.
    pub fn operations(&mut self) -> &mut O {
        &mut self.operations
    }

    /// Ends a command that was [accepted](Answer::Accepted). One that is not known is none of this
    /// generation, and nobody waits for it.
    pub fn complete(&mut self, ticket: u64, result: Result<&[u8], Error>) {
        let Some(Accepted { target, sequence }) = self.accepted.remove(&ticket) else { return };
        let Some(target) = target else { return };
        let status = self.finish(target, result);
        let kind = Kind::Completion;
        self.raise(Event { kind, status, sequence, ticket, value: 0 });
    }

    /// A copy of the buffer of a command that was accepted.
    ///
    /// # Errors
    /// [`Error::Aborted`] if there is no such command any more, [`Error::BadAddress`] if the buffer is
    /// not in RAM.
    pub fn buffer(&self, ticket: u64) -> Result<Vec<u8>, Error> {
        let target = self.accepted.get(&ticket).and_then(|accepted| accepted.target);
        target
            .ok_or(Error::Aborted)?
            .read_buffer(&self.memory)
            .map_err(|MemoryError| Error::BadAddress)
    }

    /// Tells the guest of something.
    pub fn raise(&mut self, event: Event) {
        self.event_status |= event.kind.bit();
        if self.event_enable & event.kind.bit() != 0 && self.ring.push(&self.memory, &event) {
            // A counter that is full has been signalled already.
            if let Err(error) = self.line.trigger() {
                log::debug!("control device: event line: {error}");
            }
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> ControlState {
        ControlState {
            version: state::VERSION,
            generation: self.generation,
            next_ticket: self.next_ticket,
            command_high: self.command_high,
            ring_high: self.ring_high,
            event_enable: self.event_enable,
        }
    }

    /// Goes on from a snapshot, in a new generation: the ring is down, and commands that were being
    /// worked at are lost, as the guest sees by the number.
    ///
    /// # Errors
    /// The state is of another version or cannot be; nothing is changed then.
    pub fn restore(&mut self, state: &ControlState) -> Result<(), StateError> {
        state.check()?;
        self.generation = state.generation.checked_add(1).ok_or(StateError::Generation)?;
        self.next_ticket = state.next_ticket;
        self.command_high = state.command_high;
        self.ring_high = state.ring_high;
        self.event_enable = state.event_enable;
        self.accepted.clear();
        self.ring = Ring::default();
        self.result = status::PENDING;
        self.event_status = Kind::Generation.bit();
        Ok(())
    }

    /// Carries a command out, or begins to. Returns its status, which is in guest memory too if the
    /// command is one.
    fn submit(&mut self, address: u64) -> u32 {
        self.counters.commands = self.counters.commands.saturating_add(1);
        let copied = Request::copy(&self.memory, address);
        let (request, target) = match copied {
            Ok(copied) => copied,
            Err(refused) => {
                self.counters.failed = self.counters.failed.saturating_add(1);
                let status = refused.error.status();
                if let Some(target) = refused.target {
                    let _ = target.write_status(&self.memory, status);
                }
                return status;
            }
        };
        match self.execute(request, target) {
            Ok(Answer::Done(output)) => self.finish(target, Ok(&output)),
            Ok(Answer::Failed(error)) | Err(error) => self.finish(target, Err(error)),
            Ok(Answer::Accepted) => status::ACCEPTED,
        }
    }

    fn execute(&mut self, request: Request, target: Target) -> Result<Answer, Error> {
        let now = (self.clock)();
        if !self.commands.take(now) {
            return Err(Error::RateLimited);
        }
        let operation = request.check(self.identity.rights)?;
        if matches!(operation, Operation::VmBoot | Operation::VmPrepare) && !self.boots.take(now) {
            return Err(Error::RateLimited);
        }
        match operation {
            Operation::Ping => Ok(Answer::Done(request.input)),
            Operation::Identify => self.identify(now).map(Answer::Done),
            Operation::Cancel => Ok(self.cancel(&request.input)),
            _ => self.pass_on(operation, request, target),
        }
    }

    /// Forgets commands that were accepted; whoever ends them finds them gone.
    fn cancel(&mut self, input: &[u8]) -> Answer {
        let arguments = Arguments::of_result(input);
        match arguments.u64(Tag::Ticket) {
            Some(ticket) => {
                if let Some(accepted) = self.accepted.get_mut(&ticket) {
                    accepted.target = None;
                }
            }
            None => self.accepted.values_mut().for_each(|accepted| accepted.target = None),
        }
        Answer::Done(Vec::new())
    }

    fn pass_on(
        &mut self,
        operation: Operation,
        request: Request,
        target: Target,
    ) -> Result<Answer, Error> {
        if self.accepted.len() >= MAX_ACCEPTED {
            return Err(Error::Busy);
        }
        let ticket = self.next_ticket;
        let Request { sequence, input, buffer_length, .. } = request;
        let answer = self.operations.call(Call { ticket, operation, input, buffer_length });
        if answer == Answer::Accepted {
            self.next_ticket = self.next_ticket.wrapping_add(1);
            // Before anybody can complete it: that needs the lock that is held here.
            target.write_accepted(&self.memory, ticket).map_err(|MemoryError| Error::BadAddress)?;
            self.accepted.insert(ticket, Accepted { target: Some(target), sequence });
        }
        Ok(answer)
    }

    /// Writes the outcome of a command into it, the status last; returns the status.
    fn finish(&mut self, target: Target, result: Result<&[u8], Error>) -> u32 {
        let written = result.and_then(|output| target.write_output(&self.memory, output));
        let status = written.map_or_else(Error::status, |()| status::DONE);
        if status != status::DONE {
            self.counters.failed = self.counters.failed.saturating_add(1);
        }
        let _ = target.write_status(&self.memory, status);
        status
    }

    fn identify(&self, now: Duration) -> Result<Vec<u8>, Error> {
        let identity = &self.identity;
        let mut output = vec![0; command::MAX_INPUT as usize];
        let mut fields = Encoder::new(&mut output);
        fields
            .text(Tag::VmName, &identity.name)?
            .text(Tag::Image, &identity.image)?
            .bytes(Tag::Manifest, &identity.manifest)?
            .u32(Tag::Rights, identity.rights)?
            .u32(Tag::Generation, self.generation)?
            .u32(Tag::Cpus, identity.cpus)?
            .u64(Tag::Memory, identity.memory_bytes)?
            .u64(Tag::Milliseconds, u64::try_from(now.as_millis()).unwrap_or(u64::MAX))?;
        let length = fields.length();
        output.truncate(length);
        Ok(output)
    }

    fn get(&mut self, register: Register) -> u32 {
        match register {
            Register::Magic => register::MAGIC,
            Register::Version => register::version(VERSION_MAJOR, VERSION_MINOR),
            Register::Features => self.identity.features,
            Register::CommandHigh => self.command_high,
            Register::Result => self.result,
            Register::RingHigh => self.ring_high,
            Register::RingLow => self.ring.low_half(),
            Register::RingHead => self.ring.head(),
            Register::RingTail => self.ring.tail(),
            Register::EventEnable => self.event_enable,
            Register::EventStatus => self.event_status,
            Register::Rights => self.identity.rights,
            Register::Generation => self.generation,
            Register::Credit => self.commands.left((self.clock)()),
            Register::CommandLow | Register::Mark => 0,
        }
    }

    fn set(&mut self, register: Register, value: u32) {
        match register {
            Register::CommandHigh => self.command_high = value,
            Register::CommandLow => self.result = self.submit(joined(self.command_high, value)),
            Register::RingHigh => self.ring_high = value,
            Register::RingLow => {
                let placed = self.ring.place(&self.memory, self.ring_high, value);
                self.result = placed.map_or_else(Error::status, |()| status::DONE);
            }
            Register::RingTail => self.ring.take_to(value),
            Register::EventEnable => self.event_enable = value & ALL_KINDS,
            Register::EventStatus => self.event_status &= !value,
            Register::Mark => {
                if self.commands.take((self.clock)()) {
                    self.operations.mark(value);
                }
            }
            Register::Magic
            | Register::Version
            | Register::Features
            | Register::Result
            | Register::RingHead
            | Register::Rights
            | Register::Generation
            | Register::Credit => {}
        }
    }

    fn ignore(&mut self) {
        self.counters.ignored_accesses = self.counters.ignored_accesses.saturating_add(1);
    }
}

impl<M: CommandMemory, O: Operations> BusDevice for ControlDevice<M, O> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Some(register), 4) = (Register::at(offset), data.len()) {
            data.copy_from_slice(&self.get(register).to_le_bytes());
        } else {
            self.ignore();
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (Register::at(offset), data) {
            (Some(register), &[a, b, c, d]) => self.set(register, u32::from_le_bytes([a, b, c, d])),
            _ => self.ignore(),
        }
    }
}

impl<M, O> fmt::Debug for ControlDevice<M, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlDevice")
            .field("identity", &self.identity)
            .field("generation", &self.generation)
            .field("accepted", &self.accepted.len())
            .field("ring", &self.ring)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
