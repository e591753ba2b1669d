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

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    /// To the part `protocol`.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        // Dumps are then of what was asked for only. Kernels before 4.20 tell everything.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// A number for the next request.
    pub fn number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends whole messages.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.socket.send(bytes, 0).map(|_| ()).map_err(NetlinkError::Socket)
    }

    /// Takes what the kernel sent: messages, one behind the other.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::Socket(error)),
            }
        }
    }
}

/// The messages in `bytes`.
pub fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?);
        let length = usize::try_from(length).ok().filter(|length| *length >= 16)?;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The part that knows interfaces, addresses and neighbours.
#[derive(Debug)]
pub struct Route(Channel);

impl Route {
    /// Of this process's network namespace.
    ///
    /// # Errors
    /// The host's refusal.
    pub fn open() -> Result<Self, super::NetError> {
        let channel = Channel::open(NETLINK_ROUTE);
        channel.map(Self).map_err(super::NetError::kernel("ask the kernel about networks"))
    }

    /// Has the kernel do `message`, with `flags` besides those of every request.
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
    /// The kernel's refusal.
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

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.0.number();
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            let bytes = self.0.receive()?;
            for message in split(&bytes) {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
                    .map_err(|error| NetlinkError::Answer(error.to_string()))?;
                if answer.header.sequence_number != request.header.sequence_number {
                    continue;
                }
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok((answers, whole)),
                            Some(_) => Err(NetlinkError::Kernel(error.to_io())),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, whole)),
                    _ => {}
                }
            }
        }
    }
}
