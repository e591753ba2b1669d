//! The agent's connection to a VM that may serve endpoints: the guest's commands go there, and answers, events and
//! the identifiers that the network device knows come back.
//!
//! The event loop has it. Nothing is waited for: what the socket does not take now is kept, and an agent that takes
//! nothing for long is cut off. A VM goes on without an agent as it was; only what it asks for fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use control_abi::event::{Event, Kind};
use control_abi::operation::{Buffer, Operation};
use control_abi::status::Error;
use devices::control::Call;
use devices::virtio::net::identifiers::IdentifierTable;

use super::event_loop::lock;
use crate::control::Device;
use crate::endpoint::link::{FromVm, Incoming, ToVm, encode};

/// What waits for the agent to take it, in bytes. More is a sign that it takes nothing.
const MOST_WAITING: usize = 8 << 20;

/// The connection, which there may be, and what waits for it.
pub struct AgentLink {
    device: Arc<Mutex<Device>>,
    identifiers: Option<IdentifierTable>,
    stream: Option<Arc<UnixStream>>,
    incoming: Incoming,
    waiting: Vec<u8>,
    /// Commands that the agent has, and whether they have been answered is not known.
    open: BTreeMap<u64, Operation>,
}

/// What the parts of the event loop share.
pub type SharedLink = Rc<RefCell<AgentLink>>;

impl AgentLink {
    /// None yet.
    pub fn new(device: Arc<Mutex<Device>>, identifiers: Option<IdentifierTable>) -> Self {
        let (incoming, waiting, open) = (Incoming::default(), Vec::new(), BTreeMap::new());
        Self { device, identifiers, stream: None, incoming, waiting, open }
    }

    /// The agent is at the other end of `stream`; a former one is gone. `first` was read of it already.
    pub fn connect(&mut self, stream: Arc<UnixStream>, first: &[u8]) {
        self.disconnect();
        self.stream = Some(stream);
        self.incoming.push(first);
        self.take();
    }

    /// Whether `stream` is the agent's.
    pub fn is(&self, stream: &Arc<UnixStream>) -> bool {
        self.stream.as_ref().is_some_and(|own| Arc::ptr_eq(own, stream))
    }

    /// The agent is gone, or says what it should not: what it was at is answered.
    pub fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.incoming = Incoming::default();
        self.waiting = Vec::new();
        for ticket in std::mem::take(&mut self.open).into_keys() {
            lock(&self.device).complete(ticket, Err(Error::Aborted));
        }
    }

    /// Passes on what the guest asks for.
    pub fn forward(&mut self, call: Call) {
        let Call { ticket, operation, input, buffer_length: room } = call;
        let mut device = lock(&self.device);
        let reads = matches!(operation.buffer(), Buffer::Read);
        let data = if reads { device.buffer(ticket) } else { Ok(Vec::new()) };
        let data = match (data, &self.stream) {
            (Ok(data), Some(_)) => data,
            (Ok(_), None) => return device.complete(ticket, Err(Error::Host)),
            (Err(error), _) => return device.complete(ticket, Err(error)),
        };
        drop(device);
        self.open.insert(ticket, operation);
        self.say(&FromVm::Call { ticket, operation: operation.number(), input, data, room });
    }

    fn say(&mut self, message: &FromVm) {
        match encode(message) {
            Ok(bytes) if self.waiting.len() + bytes.len() <= MOST_WAITING => {
                self.waiting.extend(bytes);
                self.send();
            }
            Ok(_) => self.disconnect(),
            Err(error) => {
                // No command is that long.
                log::warn!("to the agent: {error}");
                self.disconnect();
            }
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) {
        let Some(stream) = self.stream.clone() else { return };
        let mut sent = 0;
        while let Some(rest) = self.waiting.get(sent..).filter(|rest| !rest.is_empty()) {
            match (&*stream).write(rest) {
                Ok(count) if count > 0 => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => return self.disconnect(),
            }
        }
        self.waiting.drain(..sent);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }

    /// The socket is ready for something; both ways until it is not, since it says so only once. Whether the
    /// agent is still there.
    pub fn ready(&mut self) -> bool {
        let mut buffer = vec![0; 16 << 10];
        while let Some(stream) = self.stream.clone() {
            match (&*stream).read(&mut buffer) {
                Ok(0) => self.disconnect(),
                Ok(count) => {
                    self.incoming.push(&buffer[..count]);
                    self.take();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.disconnect(),
            }
        }
        self.send();
        self.stream.is_some()
    }

    /// Does what the messages say that are there in whole.
    fn take(&mut self) {
        loop {
            match self.incoming.message::<ToVm>() {
                Ok(Some(message)) => self.heed(message),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("the agent's connection: {error}");
                    return self.disconnect();
                }
            }
        }
    }

    fn heed(&mut self, message: ToVm) {
        match message {
            ToVm::Done { ticket, output } => self.complete(ticket, Ok(&output)),
            ToVm::Failed { ticket, status } => {
                let error = Error::from_status(status).unwrap_or(Error::Host);
                self.complete(ticket, Err(error));
            }
            ToVm::Raise { value } => {
                lock(&self.device).raise(Event::new(Kind::Endpoint, value));
            }
            ToVm::Set { number, table, valid } => {
                let Some(identifiers) = self.identifiers.clone() else { return };
                identifiers.hold_for(valid);
                identifiers.set(table);
                let counted = identifiers.counters();
                self.say(&FromVm::InForce { number, counted });
            }
            ToVm::Extend { valid } => {
                if let Some(identifiers) = &self.identifiers {
                    identifiers.hold_for(Some(valid));
                }
            }
        }
    }

    /// Ends a command that the agent was given, and no other.
    fn complete(&mut self, ticket: u64, result: Result<&[u8], Error>) {
        if self.open.remove(&ticket).is_some() {
            lock(&self.device).complete(ticket, result);
        }
    }
}
