//! What needs `CAP_NET_ADMIN`, and no more: three calls, made here or by the helper process.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::diag;
use crate::sys::{self, SocketOption};

/// Modes of `TCP_REPAIR` (<linux/tcp.h>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The socket is silent, and shows and takes its inner state.
    On,
    /// It speaks again, first by a probe of the peer's window, to which the peer answers.
    Off,
    /// It speaks again, but says nothing now.
    OffSilently,
}

/// Who has the privilege.
pub trait Privilege: std::fmt::Debug + Send + Sync {
    /// Puts a TCP socket into the mode.
    ///
    /// # Errors
    /// The kernel's: `EPERM` without the privilege or for a listening socket.
    fn repair(&self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()>;

    /// Sets the sizes of a socket's buffers to send and to receive, beyond the limits for all programs. Bytes as
    /// the kernel gives them, which is twice what one sets.
    ///
    /// # Errors
    /// The kernel's: `EPERM` without the privilege.
    fn buffers(&self, socket: BorrowedFd<'_>, send: u32, receive: u32) -> io::Result<()>;

    /// Whether the segments of the connection between these addresses are signed (TCP-MD5, RFC 2385), as far as
    /// the kernel says.
    ///
    /// # Errors
    /// None could be asked.
    fn is_signed(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<bool>;
}

/// This process has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own;

impl Privilege for Own {
    fn repair(&self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
        // <linux/tcp.h>: TCP_REPAIR_ON, TCP_REPAIR_OFF, TCP_REPAIR_OFF_NO_WP.
        let value: i32 = match mode {
            Mode::On => 1,
            Mode::Off => 0,
            Mode::OffSilently => -1,
        };
        sys::set(socket, SocketOption::tcp(libc::TCP_REPAIR), &value.to_ne_bytes())
    }

    fn buffers(&self, socket: BorrowedFd<'_>, send: u32, receive: u32) -> io::Result<()> {
        sys::set_number(socket, SocketOption::socket(libc::SO_SNDBUFFORCE), send / 2)?;
        sys::set_number(socket, SocketOption::socket(libc::SO_RCVBUFFORCE), receive / 2)
    }

    fn is_signed(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
        diag::is_signed(local, peer)
    }
}
