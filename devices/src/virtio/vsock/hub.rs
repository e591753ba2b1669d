//! All connections of a guest: who they belong to, whose turn it is, and when they have waited too long.
//!
//! It knows packets and sockets, and nothing of queues.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, accept_with};

use super::connection::{Connection, Outgoing, Ports, Violation};
use super::counters::Counters;
use super::host::{Dialer, LISTENER, Occurrence, Poller, Received, Stream, TIMER};
use super::packet::{HOST_CID, Header, Operation, STREAM};
use super::{Settings, handshake};

/// Host ports of connections that programs of the host ask for: from here, half of all numbers.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// Answers without a connection that may wait for room in the guest; beyond that no packet is taken from it.
const MAX_REPLIES: usize = 256;

/// What a place in the table is used for.
#[derive(Debug)]
enum Use {
    Free,
    /// A program of the host that has yet to say where it wants to.
    Handshake(Stream),
    Connection(Connection),
    /// The guest's part is over; what it sent is still on its way.
    Draining(Stream),
}

/// A place in the table.
#[derive(Debug)]
struct Slot {
    /// So that what comes up late is not taken for something of the next use.
    generation: u32,
    deadline: Option<Instant>,
    /// It is among those that wait for their turn.
    queued: bool,
    content: Use,
}

/// The connections.
#[derive(Debug)]
pub struct Hub {
    cid: u64,
    settings: Settings,
    listener: UnixListener,
    dialer: Box<dyn Dialer>,
    poller: Poller,
    occurrences: Vec<Occurrence>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    handshakes: usize,
    connections: BTreeMap<Ports, usize>,
    /// Places whose connections have a packet for the guest, in turn.
    ready: VecDeque<usize>,
    replies: VecDeque<Header>,
    next_port: u32,
    /// Somebody may wait to be accepted.
    acceptable: bool,
    counters: Arc<Counters>,
}

impl Hub {
    pub fn new(
        cid: u32,
        listener: UnixListener,
        dialer: Box<dyn Dialer>,
        settings: Settings,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            cid: cid.into(),
            settings,
            poller: Poller::new(&listener)?,
            listener,
            dialer,
            occurrences: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            handshakes: 0,
            connections: BTreeMap::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            next_port: FIRST_PORT,
            acceptable: true,
            counters: Arc::default(),
        })
    }

    pub fn cid(&self) -> u64 {
        self.cid
    }

    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Ends all connections, without a word to the guest.
    pub fn clear(&mut self) {
        for index in 0..self.slots.len() {
            self.release(index);
            self.slots[index].queued = false;
        }
        self.ready.clear();
        self.replies.clear();
    }

    /// Whether a packet of the guest can be taken: there is room for an answer.
    pub fn takes_packets(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Whether there may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet from the guest; `content` is `None` where it is not as long as its header says.
    pub fn take(&mut self, header: &Header, content: Option<&[u8]>) {
        Counters::add(&self.counters.packets_from_guest, 1);
        if header.source_cid != self.cid {
            // Who could be told?
            Counters::add(&self.counters.malformed, 1);
            return;
        }
        let operation = Operation::of(header.operation);
        let (Some(operation), STREAM, HOST_CID) = (operation, header.kind, header.destination_cid)
        else {
            if operation != Some(Operation::Reset) {
                self.reply_reset(header);
            }
            return;
        };
        let ports = Ports { host: header.destination_port, guest: header.source_port };
        match (self.connections.get(&ports).copied(), operation) {
            (Some(index), operation) => {
                if self.take_for(index, operation, header, content) == Err(Violation) {
                    Counters::add(&self.counters.violations, 1);
                    self.end(index);
                    self.reply_reset(header);
                }
                self.queue(index);
            }
            (None, Operation::Request) => {
                if self.dial(ports, header).is_err() {
                    Counters::add(&self.counters.refused, 1);
                    self.reply_reset(header);
                }
            }
            (None, Operation::Reset) => {}
            (None, _) => self.reply_reset(header),
        }
    }

    fn take_for(
        &mut self,
        index: usize,
        operation: Operation,
        header: &Header,
        content: Option<&[u8]>,
    ) -> Result<(), Violation> {
        let slot = &mut self.slots[index];
        let Use::Connection(connection) = &mut slot.content else { return Err(Violation) };
        connection.credit(header);
        match operation {
            Operation::Request => return Err(Violation),
            Operation::Response => {
                let welcome = format!("OK {}\n", connection.ports.host);
                connection.accept(welcome.as_bytes(), &self.poller)?;
                slot.deadline = None;
                Counters::add(&self.counters.accepted, 1);
            }
            Operation::Reset => {
                if connection.is_requested() {
                    Counters::add(&self.counters.refused, 1);
                }
                self.end(index);
            }
            Operation::Shutdown => {
                if connection.shut_down(header.flags) {
                    self.end(index);
                    self.reply_reset(header);
                }
            }
            Operation::Data => {
                let content = content.ok_or(Violation)?;
                connection.deliver(content, &self.poller)?;
                Counters::add(&self.counters.bytes_from_guest, content.len() as u64);
            }
            Operation::CreditUpdate => {}
            Operation::CreditRequest => connection.asked_for_credit(),
        }
        Ok(())
    }

    /// Connects the guest to who listens for it.
    fn dial(&mut self, ports: Ports, header: &Header) -> io::Result<()> {
        let index = self.place().ok_or(io::ErrorKind::QuotaExceeded)?;
        let stream = self.dialer.dial(ports.host).and_then(|socket| self.stream(index, socket));
        match stream {
            Ok(stream) => {
                let room = self.settings.buffer_bytes;
                let connection = Connection::accepted(ports, stream, room, header);
                self.install(index, Use::Connection(connection), None);
                self.connections.insert(ports, index);
                self.queue(index);
                Counters::add(&self.counters.dialled, 1);
                Ok(())
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }

    fn stream(&self, index: usize, socket: UnixStream) -> io::Result<Stream> {
        Stream::new(socket, self.token(index), &self.poller)
    }

    /// The next packet for the guest, with content up to the length of `content` put there.
    pub fn next_packet(&mut self, content: &mut [u8]) -> Option<Header> {
        let header = self.replies.pop_front().or_else(|| self.next_of_connections(content))?;
        Counters::add(&self.counters.packets_to_guest, 1);
        Counters::add(&self.counters.bytes_to_guest, header.length.into());
        Some(header)
    }

    fn next_of_connections(&mut self, content: &mut [u8]) -> Option<Header> {
        while let Some(index) = self.ready.pop_front() {
            let slot = &mut self.slots[index];
            slot.queued = false;
            let Use::Connection(connection) = &mut slot.content else { continue };
            let Some(Outgoing { operation, length, flags }) = connection.next_packet(content)
            else {
                continue;
            };
            let ports = connection.ports;
            let (room, forwarded) = connection.tell();
            if connection.awaits_reset() && slot.deadline.is_none() {
                self.set_deadline(index, self.settings.close_timeout);
            }
            self.queue(index);
            return Some(Header {
                length,
                flags,
                room,
                forwarded,
                ..self.header(ports, operation)
            });
        }
        None
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.cid,
            source_port: ports.host,
            destination_port: ports.guest,
            kind: STREAM,
            operation: operation as u16,
            ..Header::default()
        }
    }

    /// Answers that there is no such connection.
    fn reply_reset(&mut self, to: &Header) {
        self.replies.push_back(Header {
            source_cid: to.destination_cid,
            destination_cid: self.cid,
            source_port: to.destination_port,
            destination_port: to.source_port,
            kind: to.kind,
            operation: Operation::Reset as u16,
            ..Header::default()
        });
    }

    /// Tells the guest that a connection is over.
    fn send_reset(&mut self, ports: Ports) {
        self.replies.push_back(self.header(ports, Operation::Reset));
    }

    /// Takes up what has come up on the host's side.
    ///
    /// # Errors
    /// None that could be helped.
    pub fn take_occurrences(&mut self) -> io::Result<()> {
        let mut occurrences = std::mem::take(&mut self.occurrences);
        occurrences.clear();
        self.poller.take(&mut occurrences)?;
        for occurrence in &occurrences {
            match occurrence.token {
                LISTENER => self.acceptable = true,
                TIMER => self.expire()?,
                _ => self.came_up(occurrence),
            }
        }
        self.occurrences = occurrences;
        Ok(())
    }

    fn came_up(&mut self, occurrence: &Occurrence) {
        let Some(index) = self.slot_of(occurrence.token) else { return };
        match &mut self.slots[index].content {
            Use::Free => {}
            // Nobody is there any more who could be answered.
            Use::Handshake(_) if occurrence.hung_up => {
                Counters::add(&self.counters.refused, 1);
                self.release(index);
            }
            Use::Handshake(_) => self.shake_hands(index, occurrence.ended),
            Use::Connection(connection) => {
                if occurrence.hung_up && connection.is_requested() {
                    let ports = connection.ports;
                    self.end(index);
                    self.send_reset(ports);
                    return;
                }
                let Occurrence { readable, writable, hung_up, .. } = *occurrence;
                connection.came_up(readable, writable, hung_up, &self.poller);
                self.queue(index);
            }
            Use::Draining(stream) => match stream.flush(&self.poller) {
                Ok(_) if stream.waiting() > 0 && !occurrence.hung_up => {
                    self.set_deadline(index, self.settings.drain_timeout);
                }
                _ => self.release(index),
            },
        }
    }

    /// Accepts programs of the host, as many as there is room for.
    pub fn accept(&mut self) {
        while self.acceptable && self.handshakes < self.settings.max_handshakes {
            let Some(index) = self.place() else { return };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let accepted = accept_with(&self.listener, flags).map_err(io::Error::from);
            match accepted.and_then(|socket| self.stream(index, socket.into())) {
                Ok(stream) => {
                    self.handshakes += 1;
                    self.install(
                        index,
                        Use::Handshake(stream),
                        Some(self.settings.handshake_timeout),
                    );
                }
                Err(error) => {
                    self.free.push(index);
                    // Nobody is there, or the host is out of something: then it is tried again when
                    // a connection ends, or another one comes.
                    self.acceptable = error.kind() == io::ErrorKind::ConnectionAborted;
                }
            }
        }
    }

    /// Reads what a program of the host asks for, if it is there; `ended` says that no more comes.
    fn shake_hands(&mut self, index: usize, ended: bool) {
        let Use::Handshake(stream) = &self.slots[index].content else { return };
        let mut line = [0; handshake::MAX_LINE];
        let peeked = match stream.peek(&mut line) {
            Received::Bytes(count) => handshake::parse(&line[..count]),
            Received::Nothing => return,
            Received::End | Received::Gone => handshake::Line::Wrong,
        };
        let (port, length) = match peeked {
            handshake::Line::Incomplete if !ended => return,
            handshake::Line::Incomplete | handshake::Line::Wrong => {
                Counters::add(&self.counters.refused, 1);
                self.release(index);
                return;
            }
            handshake::Line::Connect { port, length } => (port, length),
        };
        // What comes behind the line is for the guest.
        let consumed = stream.receive(&mut line[..length]) == Received::Bytes(length);
        let Some(ports) = self.ports_to(port).filter(|_| consumed) else {
            Counters::add(&self.counters.refused, 1);
            self.release(index);
            return;
        };
        if let Use::Handshake(stream) = std::mem::replace(&mut self.slots[index].content, Use::Free)
        {
            self.handshakes -= 1;
            let connection = Connection::requested(ports, stream, self.settings.buffer_bytes);
            self.slots[index].content = Use::Connection(connection);
            self.connections.insert(ports, index);
            self.set_deadline(index, self.settings.request_timeout);
            self.queue(index);
        }
    }

    /// Ports for a connection to this port of the guest.
    fn ports_to(&mut self, guest: u32) -> Option<Ports> {
        // As many attempts as there are connections, and one more.
        for _ in 0..=self.connections.len() {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host + 1 };
            let ports = Ports { host, guest };
            if !self.connections.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    /// Ends what has waited too long.
    fn expire(&mut self) -> io::Result<()> {
        self.poller.timer_done();
        let now = Instant::now();
        for index in 0..self.slots.len() {
            if self.slots[index].deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            Counters::add(&self.counters.timed_out, 1);
            match &self.slots[index].content {
                Use::Connection(connection) => {
                    let ports = connection.ports;
                    self.end(index);
                    self.send_reset(ports);
                }
                Use::Free | Use::Handshake(_) | Use::Draining(_) => self.release(index),
            }
        }
        match self.slots.iter().filter_map(|slot| slot.deadline).min() {
            Some(next) => self.poller.wake_at(next),
            None => Ok(()),
        }
    }

    fn set_deadline(&mut self, index: usize, after: Duration) {
        let deadline = Instant::now() + after;
        self.slots[index].deadline = Some(deadline);
        // A timer that exists can be set.
        let _ = self.poller.wake_at(deadline);
    }

    /// A free place, which is not free any more, if there may be another one.
    fn place(&mut self) -> Option<usize> {
        self.free.pop().or_else(|| {
            let index = self.slots.len();
            (index < self.settings.max_connections).then(|| {
                let content = Use::Free;
                self.slots.push(Slot { generation: 0, deadline: None, queued: false, content });
                index
            })
        })
    }

    fn install(&mut self, index: usize, content: Use, timeout: Option<Duration>) {
        self.slots[index].content = content;
        self.count_open();
        if let Some(timeout) = timeout {
            self.set_deadline(index, timeout);
        }
    }

    fn token(&self, index: usize) -> u64 {
        u64::from(self.slots[index].generation) << 32 | index as u64
    }

    fn slot_of(&self, token: u64) -> Option<usize> {
        let index = usize::try_from(token & u64::from(u32::MAX)).ok()?;
        (index < self.slots.len() && self.token(index) == token).then_some(index)
    }

    /// Has the connection wait for its turn, if it has a packet for the guest.
    fn queue(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if let Use::Connection(connection) = &slot.content
            && !slot.queued
            && connection.has_packet()
        {
            slot.queued = true;
            self.ready.push_back(index);
        }
    }

    /// The guest's part of a connection is over. What it has sent still goes to the host.
    fn end(&mut self, index: usize) {
        let Use::Connection(connection) =
            std::mem::replace(&mut self.slots[index].content, Use::Free)
        else {
            return;
        };
        self.connections.remove(&connection.ports);
        match connection.into_rest() {
            Some(rest) => {
                self.slots[index].content = Use::Draining(rest);
                self.set_deadline(index, self.settings.drain_timeout);
            }
            None => self.vacate(index),
        }
    }

    /// Closes whatever is there.
    fn release(&mut self, index: usize) {
        match std::mem::replace(&mut self.slots[index].content, Use::Free) {
            Use::Free => return,
            Use::Handshake(_) => self.handshakes -= 1,
            Use::Connection(connection) => {
                self.connections.remove(&connection.ports);
            }
            Use::Draining(_) => {}
        }
        self.vacate(index);
    }

    fn vacate(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.deadline = None;
        self.free.push(index);
        // Whoever there was no room for, or no descriptor.
        self.acceptable = true;
        self.count_open();
    }

    fn count_open(&self) {
        let open = self.slots.len() - self.free.len();
        self.counters.open.store(open as u64, Ordering::Relaxed);
    }
}
