//! The socket for frames of one interface: only datagrams to one port reach it.
#![allow(unsafe_code, reason = "packet sockets have no safe interface; each call is by itself")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send,
    socket_with, sockopt,
};

/// Room for frames that have come and were not read yet, in bytes: those of some thousand clients.
const RECEIVE_BYTES: usize = 8 << 20;

/// What is taken: IPv4, no later fragment, UDP, to the port in the ninth step. As tcpdump writes "udp dst port" down
/// (classic BPF; the kernel's Documentation/networking/filter.rst).
const FILTER: [(u16, u8, u8, u32); 11] = [
    (0x28, 0, 0, 12),     // the frame's kind
    (0x15, 0, 8, 0x0800), // IPv4, or no
    (0x30, 0, 0, 23),     // the protocol
    (0x15, 0, 6, 17),     // UDP, or no
    (0x28, 0, 0, 20),     // the place in the packet
    (0x45, 4, 0, 0x1fff), // a later fragment: no
    (0xb1, 0, 0, 14),     // the header's length
    (0x48, 0, 0, 16),     // the port
    (0x15, 0, 1, 67),     // ours, or no
    (0x06, 0, 0, 0xffff), // yes
    (0x06, 0, 0, 0),      // no
];
/// The step that has the port.
const PORT_STEP: usize = 8;
/// Takes nothing.
const NOTHING: [(u16, u8, u8, u32); 1] = [(0x06, 0, 0, 0)];

/// A socket for the frames of an interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl PacketSocket {
    /// On the interface called `name`, for datagrams to `port`.
    ///
    /// # Errors
    /// There is none, it is no Ethernet interface, or packet sockets are not permitted.
    pub fn open(name: &str, port: u16) -> io::Result<Self> {
        // Of no protocol: nothing comes before all is ready.
        let kind = SocketType::RAW;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, kind, flags, None)?;
        let index = netdevice::name_to_index(&socket, name)?;
        let mut steps = FILTER;
        steps[PORT_STEP].3 = port.into();
        filter(&socket, &steps)?;
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BYTES));
        let protocol = 0x0800_u16.to_be();
        bind(&socket, index, protocol)?;
        let mac = address(&socket)?;
        Ok(Self { socket, mac })
    }

    /// The interface's address on its link.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Takes a frame that has come into `buffer`; nothing if there is none.
    ///
    /// # Errors
    /// The interface is down, or gone.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, length)) => Ok(buffer.get(..length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// There is no room, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.socket, frame, SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has nothing come to `socket`: it only holds its port.
///
/// # Errors
/// The kernel's refusal.
pub fn deafen(socket: &impl AsFd) -> io::Result<()> {
    filter(socket, &NOTHING)
}

/// Binds `socket` to the interface called `name`.
///
/// # Errors
/// There is none, or it is not permitted.
pub fn bind_to_device(socket: &impl AsFd, name: &str) -> io::Result<()> {
    let length = libc::socklen_t::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads no more of the name than its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn filter(socket: &impl AsFd, program: &[(u16, u8, u8, u32)]) -> io::Result<()> {
    let mut steps: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let length = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is there until after the call, and no more than its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length_of::<libc::sock_fprog>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind(socket: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    let mut link = empty();
    link.sll_protocol = protocol;
    link.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the address is there during the call, and has the length that is given.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const link).cast(), length_of::<libc::sockaddr_ll>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The address of the interface that `socket` is bound to.
fn address(socket: &OwnedFd) -> io::Result<[u8; 6]> {
    let mut link = empty();
    let mut length = length_of::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes no more than the length that is given, which is the structure's.
    let result =
        unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut link).cast(), &raw mut length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if link.sll_hatype != libc::ARPHRD_ETHER || link.sll_halen != 6 {
        return Err(io::Error::other("it is no Ethernet interface"));
    }
    link.sll_addr.first_chunk().copied().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn empty() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
