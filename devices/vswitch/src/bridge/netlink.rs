//! Requests to the kernel's network by netlink, one after the other.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// How often a list is asked for again that changed while it was being told.
const MOST_DUMPS: usize = 20;
/// More than the kernel puts into one datagram: 32 KiB.
const BUFFER_BYTES: usize = 64 << 10;
/// The header of a message.
const HEADER_BYTES: usize = 16;

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// Its refusal.
    #[error("{0}")]
    Kernel(io::Error),
    /// The socket's.
    #[error("netlink: {0}")]
    Socket(io::Error),
    /// What it answered is not understood.
    #[error("the kernel's answer is not understood: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// Whether the kernel refused with this error number.
    pub fn is(&self, number: i32) -> bool {
        matches!(self, Self::Kernel(error) if error.raw_os_error() == Some(number))
    }
}

/// The part of the kernel that knows interfaces, addresses, neighbours and forwarding tables, of the network
/// namespace in which it was opened.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
    sequence: u32,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Route {
    /// Of this thread's network namespace.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        // Dumps are then of what was asked for only. Kernels before 4.20 tell everything.
        let _ = socket.set_netlink_get_strict_chk(true);
        let (request, answer) = (Vec::new(), Vec::with_capacity(BUFFER_BYTES));
        Ok(Self { socket, sequence: 0, request, answer })
    }

    /// Has the kernel do `message`, with `flags` besides those of every request; what it answers.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(|(answers, _)| answers)
    }

    /// All that `message` asks for.
    ///
    /// # Errors
    /// The kernel's refusal, or the list changes all the time.
    pub fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..MOST_DUMPS {
            let (answers, whole) = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if whole {
                return Ok(answers);
            }
        }
        Err(NetlinkError::Answer("its list changes all the time".into()))
    }

    /// The answers, and whether they are a list of one moment.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        self.request.clear();
        self.request.resize(request.buffer_len(), 0);
        request.serialize(&mut self.request);
        self.socket.send(&self.request, 0).map_err(NetlinkError::Socket)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            self.receive()?;
            let mut rest = self.answer.as_slice();
            while let Some(message) = first(&mut rest) {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
                    .map_err(|error| NetlinkError::Answer(error.to_string()))?;
                // Of a request that failed half-way.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_none() => {
                        return Ok((answers, whole));
                    }
                    NetlinkPayload::Error(error) => {
                        return Err(NetlinkError::Kernel(error.to_io()));
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, whole)),
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), NetlinkError> {
        loop {
            self.answer.clear();
            match self.socket.recv(&mut self.answer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::Socket(error)),
            }
        }
    }
}

/// Takes the first message off `rest`.
fn first<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
    let message = rest.get(..length).filter(|_| length >= HEADER_BYTES)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            let mut messages = 0;
            while first(&mut rest).is_some() {
                messages += 1;
            }
            prop_assert!(messages * HEADER_BYTES <= bytes.len());
        }
    }
}
