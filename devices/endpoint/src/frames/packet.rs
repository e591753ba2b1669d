//! Frames through an interface, by a packet socket (packet(7)), which needs `CAP_NET_RAW`.
//!
//! The interface must be handed frames for identifiers: a switch does that for a VM; an adapter must be promiscuous.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::LinkAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::{ETHERTYPE, Frames};

/// The most frames that are dropped because they came from other interfaces, before the socket had one.
const MOST_STRAY: usize = 100_000;

/// An interface.
#[derive(Debug)]
pub struct Interface {
    socket: OwnedFd,
    address: [u8; 6],
}

impl Interface {
    /// The interface called `name`, in the network namespace of this thread.
    ///
    /// # Errors
    /// There is none, or it is no Ethernet interface; the kernel's refusal.
    pub fn open(name: &str) -> io::Result<Self> {
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("no Ethernet interface {name}"));
        // The kernel's own description of the interface is the address that a packet socket is bound to.
        let link = |address: nix::ifaddrs::InterfaceAddress| {
            let link: Option<LinkAddr> = address.address?.as_link_addr().copied();
            link.filter(|_| address.interface_name == name)
        };
        let link = getifaddrs()?.find_map(link).ok_or_else(missing)?;
        let address = link.addr().ok_or_else(missing)?;
        let protocol = NonZeroU32::new(u32::from(ETHERTYPE.to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &link)?;
        let this = Self { socket, address };
        let mut stray = 0;
        while stray < MOST_STRAY && this.take(&mut [0; 1])?.is_some() {
            stray += 1;
        }
        Ok(this)
    }

    /// A frame that is there.
    fn take(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.socket, buffer, RecvFlags::empty()) {
            Ok((length, _)) => Ok(Some(length)),
            // The interface was down for a while: what is sent then is lost, as in any network.
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::NETDOWN,
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Frames for Interface {
    fn address(&self) -> [u8; 6] {
        self.address
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.socket, frame, SendFlags::empty())?;
        Ok(())
    }

    fn recv(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        if let Some(length) = self.take(buffer)? {
            return Ok(Some(length));
        }
        let wait = Timespec::try_from(patience).ok();
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => self.take(buffer),
            Err(error) => Err(error.into()),
        }
    }
}
