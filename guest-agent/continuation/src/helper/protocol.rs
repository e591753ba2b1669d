//! What is asked of the helper and answered: one message of a `SOCK_SEQPACKET` each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::privilege::Mode;
use crate::wire::{Reader, Writer};

/// Bytes of a message at most.
pub(super) const LONGEST: usize = 64;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Repair(Mode),
    Buffers { send: u32, receive: u32 },
    IsSigned { local: SocketAddr, peer: SocketAddr },
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done(bool),
    /// The kernel's number.
    Failed(i32),
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match *self {
            Self::Repair(Mode::On) => to.u8(1),
            Self::Repair(Mode::Off) => to.u8(2),
            Self::Repair(Mode::OffSilently) => to.u8(3),
            Self::Buffers { send, receive } => {
                to.u8(4);
                to.u32(send);
                to.u32(receive);
            }
            Self::IsSigned { local, peer } => {
                to.u8(if local.is_ipv4() { 5 } else { 6 });
                for address in [local, peer] {
                    match address.ip() {
                        IpAddr::V4(ip) => to.0.extend(ip.to_ipv6_mapped().octets()),
                        IpAddr::V6(ip) => to.0.extend(ip.octets()),
                    }
                    to.u16(address.port());
                }
            }
        }
        to.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let request = match from.u8()? {
            1 => Self::Repair(Mode::On),
            2 => Self::Repair(Mode::Off),
            3 => Self::Repair(Mode::OffSilently),
            4 => Self::Buffers { send: from.u32()?, receive: from.u32()? },
            family @ (5 | 6) => {
                let mut address = || {
                    let ip = Ipv6Addr::from(from.array::<16>()?);
                    let ip = if family == 5 { ip.to_ipv4_mapped()?.into() } else { ip.into() };
                    Some(SocketAddr::new(ip, from.u16()?))
                };
                Self::IsSigned { local: address()?, peer: address()? }
            }
            _ => return None,
        };
        from.0.is_empty().then_some(request)
    }
}

impl Answer {
    pub(super) fn encode(self) -> [u8; 5] {
        let (kind, value) = match self {
            Self::Done(value) => (0, i32::from(value)),
            Self::Failed(number) => (1, number),
        };
        let [a, b, c, d] = value.to_le_bytes();
        [kind, a, b, c, d]
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [0, value, 0, 0, 0] => Some(Self::Done(value != 0)),
            [1, a, b, c, d] => Some(Self::Failed(i32::from_le_bytes([a, b, c, d]))),
            _ => None,
        }
    }
}

/// Sends a message, with a descriptor.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message and the descriptor that came with it; none when the other side has closed.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    // Others than the first there is no room for: the kernel has closed them.
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    bytes.truncate(received.bytes);
    Ok(Some((bytes, fd)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_answers_are_what_they_were() {
        let (v4, v6) = ("10.0.0.1:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap());
        for request in [
            Request::Repair(Mode::On),
            Request::Repair(Mode::Off),
            Request::Repair(Mode::OffSilently),
            Request::Buffers { send: 1, receive: u32::MAX },
            Request::IsSigned { local: v4, peer: v4 },
            Request::IsSigned { local: v6, peer: v6 },
        ] {
            assert!(request.encode().len() <= LONGEST);
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in [Answer::Done(true), Answer::Done(false), Answer::Failed(libc::EPERM)] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            let _ = Answer::decode(&bytes);
        }
    }
}
