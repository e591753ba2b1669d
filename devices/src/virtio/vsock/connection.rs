//! One connection between a program of the host and one of the guest.

use super::credit::{Receiving, Sending};
use super::host::{Broken, Poller, Received, Stream};
use super::packet::{Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest has been asked, or is to be.
    Requested,
    /// It stands.
    Established,
}

/// Packets without content that are to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// What the guest did that ends a connection at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation;

/// A packet to the guest, whose ports and context identifiers are still to be filled in.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is for.
    pub operation: Operation,
    /// Bytes of content.
    pub length: u32,
    /// Flags of the operation.
    pub flags: u32,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Its ports.
    pub ports: Ports,
    stream: Stream,
    state: State,
    due: Due,
    sending: Sending,
    receiving: Receiving,
    /// There may be something to read from the host.
    readable: bool,
    hung_up: bool,
    /// What the guest does not do any more.
    guest_shutdown: u32,
    /// What the host does not do any more, and what the guest knows of that.
    host_shutdown: u32,
    told_shutdown: u32,
    /// The guest was asked for credit and has not given any since.
    asked: bool,
}

impl Connection {
    /// One that a program of the host asks for.
    pub fn requested(ports: Ports, stream: Stream, room: u32) -> Self {
        let due = Due { request: true, ..Due::default() };
        Self::new(ports, stream, room, State::Requested, due)
    }

    /// One that the guest asked for by `header`.
    pub fn accepted(ports: Ports, stream: Stream, room: u32, header: &Header) -> Self {
        let due = Due { response: true, ..Due::default() };
        let mut connection = Self::new(ports, stream, room, State::Established, due);
        connection.sending.told(header.room, header.forwarded);
        connection
    }

    fn new(ports: Ports, stream: Stream, room: u32, state: State, due: Due) -> Self {
        Self {
            ports,
            stream,
            state,
            due,
            sending: Sending::default(),
            receiving: Receiving::new(room),
            // Who knows what came before anybody waited for it.
            readable: true,
            hung_up: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            asked: false,
        }
    }

    /// Whether the guest has yet to accept it.
    pub fn is_requested(&self) -> bool {
        self.state == State::Requested
    }

    /// Whether there is, or may be, a packet for the guest.
    pub fn has_packet(&self) -> bool {
        if self.state == State::Requested {
            return self.due.request;
        }
        let Due { request: _, response, credit_update, credit_request } = self.due;
        response
            || credit_update
            || credit_request
            || self.told_shutdown != self.host_shutdown
            || self.reads() && (self.sending.allowed() > 0 || !self.asked)
    }

    /// Whether the host's content is of use and may be there.
    fn reads(&self) -> bool {
        self.readable
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// The next packet for the guest, with content up to the length of `content` put there.
    pub fn next_packet(&mut self, content: &mut [u8]) -> Option<Outgoing> {
        let plain = |operation| Some(Outgoing { operation, length: 0, flags: 0 });
        if std::mem::take(&mut self.due.request) {
            return plain(Operation::Request);
        }
        if self.state == State::Requested {
            return None;
        }
        if std::mem::take(&mut self.due.response) {
            return plain(Operation::Response);
        }
        if let Some(length) = self.read(content) {
            // Every packet tells of the room.
            self.due.credit_update = false;
            return Some(Outgoing { operation: Operation::Data, length, flags: 0 });
        }
        if self.told_shutdown != self.host_shutdown {
            self.told_shutdown = self.host_shutdown;
            let flags = self.host_shutdown;
            return Some(Outgoing { operation: Operation::Shutdown, length: 0, flags });
        }
        if self.reads() && self.sending.allowed() == 0 && !self.asked {
            self.asked = true;
            self.due.credit_request = true;
        }
        if std::mem::take(&mut self.due.credit_request) {
            self.due.credit_update = false;
            return plain(Operation::CreditRequest);
        }
        if std::mem::take(&mut self.due.credit_update) {
            return plain(Operation::CreditUpdate);
        }
        None
    }

    /// Reads what the guest may be sent.
    fn read(&mut self, content: &mut [u8]) -> Option<u32> {
        let allowed = usize::try_from(self.sending.allowed()).unwrap_or(usize::MAX);
        let most = content.len().min(allowed);
        if !self.reads() || most == 0 {
            return None;
        }
        match self.stream.receive(&mut content[..most]) {
            Received::Bytes(count) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.sending.sent(count);
                return Some(count);
            }
            Received::Nothing => self.readable = false,
            Received::End if !self.hung_up => self.host_shutdown |= SHUTDOWN_SEND,
            Received::End | Received::Gone => self.host_shutdown = SHUTDOWN_BOTH,
        }
        None
    }

    /// The numbers by which a packet tells of the room that there is.
    pub fn tell(&mut self) -> (u32, u32) {
        self.receiving.tell()
    }

    /// The guest accepts: `welcome` is what the host is told.
    ///
    /// # Errors
    /// It was not asked.
    pub fn accept(&mut self, welcome: &[u8], poller: &Poller) -> Result<(), Violation> {
        if self.state != State::Requested || self.due.request {
            return Err(Violation);
        }
        self.state = State::Established;
        // Nothing was sent before, so that the socket has room; of whoever has gone, its end tells.
        match self.stream.send(welcome, poller) {
            Ok(sent) if sent == welcome.len() => {}
            _ => self.host_shutdown = SHUTDOWN_BOTH,
        }
        Ok(())
    }

    /// The guest tells of its room.
    pub fn credit(&mut self, header: &Header) {
        self.sending.told(header.room, header.forwarded);
        if self.sending.allowed() > 0 {
            self.asked = false;
        }
    }

    /// The guest asks for the room.
    pub fn asked_for_credit(&mut self) {
        self.due.credit_update = true;
    }

    /// Content from the guest.
    ///
    /// # Errors
    /// It may not send that.
    pub fn deliver(&mut self, content: &[u8], poller: &Poller) -> Result<(), Violation> {
        let length = u32::try_from(content.len()).map_err(|_| Violation)?;
        if self.state != State::Established
            || self.guest_shutdown & SHUTDOWN_SEND != 0
            || !self.receiving.receive(length)
        {
            return Err(Violation);
        }
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.discard(poller);
        } else {
            match self.stream.send(content, poller) {
                Ok(sent) => self.receiving.forward(u32::try_from(sent).unwrap_or(u32::MAX)),
                Err(Broken) => self.discard(poller),
            }
        }
        self.due.credit_update |= self.receiving.is_news();
        Ok(())
    }

    /// Nobody on the host reads any more: what came has gone nowhere.
    fn discard(&mut self, poller: &Poller) {
        self.host_shutdown |= SHUTDOWN_RECEIVE;
        self.stream.discard(poller);
        self.receiving.forward_all();
    }

    /// Something came up with the socket.
    pub fn came_up(&mut self, readable: bool, writable: bool, hung_up: bool, poller: &Poller) {
        self.readable |= readable;
        self.hung_up |= hung_up;
        if hung_up && self.host_shutdown & SHUTDOWN_SEND != 0 {
            // It had said that it sends no more; now it is gone.
            self.host_shutdown = SHUTDOWN_BOTH;
        }
        if writable && self.stream.waiting() > 0 {
            match self.stream.flush(poller) {
                Ok(sent) => self.receiving.forward(u32::try_from(sent).unwrap_or(u32::MAX)),
                Err(Broken) => self.discard(poller),
            }
            self.due.credit_update |= self.receiving.is_news();
            self.end_sending_if_done();
        }
    }

    /// The guest will not do some things any more. Returns whether that is all it could do.
    pub fn shut_down(&mut self, flags: u32) -> bool {
        let new = flags & SHUTDOWN_BOTH & !self.guest_shutdown;
        self.guest_shutdown |= new;
        if new & SHUTDOWN_RECEIVE != 0 {
            self.stream.end_receiving();
        }
        if new & SHUTDOWN_SEND != 0 {
            self.end_sending_if_done();
        }
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    fn end_sending_if_done(&self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.stream.waiting() == 0 {
            self.stream.end_sending();
        }
    }

    /// Whether the guest has been told that the host does nothing more: it is to end the connection.
    pub fn awaits_reset(&self) -> bool {
        self.told_shutdown == SHUTDOWN_BOTH
    }

    /// What is left to be sent to the host once the guest's part is over.
    pub fn into_rest(self) -> Option<Stream> {
        (self.stream.waiting() > 0 && self.host_shutdown & SHUTDOWN_RECEIVE == 0)
            .then_some(self.stream)
    }
}
