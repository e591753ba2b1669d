//! One end of a live TCP connection, taken out of a kernel and put into another, by `TCP_REPAIR`.
//!
//! The order of the calls decides whether the connection lives: with another the two ends repeat themselves for
//! ever, when timers have sent something behind the reader's back.
//!
//! Nothing may arrive while a connection is frozen, so the network holds what comes for it; and its program
//! does not read or write. That it was not so is noticed, and the connection goes on where it was.

mod freeze;
mod inspect;
mod restore;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use thiserror::Error;

pub use freeze::{Frozen, freeze};
pub use inspect::movable;
pub use restore::{Restored, restore};

use crate::state::StateError;
use crate::sys::{self, SocketOption};

/// What a buffer of a connection that is to move is limited to, in bytes as one sets them: a move takes as long
/// as copying them.
pub const BUFFER: u32 = 256 << 10;

/// Numbers of the queues of a socket (<linux/tcp.h>).
const RECEIVE_QUEUE: u32 = 1;
const SEND_QUEUE: u32 = 2;

const QUEUE: SocketOption = SocketOption::tcp(libc::TCP_REPAIR_QUEUE);
const SEQUENCE: SocketOption = SocketOption::tcp(libc::TCP_QUEUE_SEQ);
const WINDOW: SocketOption = SocketOption::tcp(libc::TCP_REPAIR_WINDOW);
const SEGMENT: SocketOption = SocketOption::tcp(libc::TCP_MAXSEG);
const TIMESTAMP: SocketOption = SocketOption::tcp(libc::TCP_TIMESTAMP);
const SEND_BUFFER: SocketOption = SocketOption::socket(libc::SO_SNDBUF);
const RECEIVE_BUFFER: SocketOption = SocketOption::socket(libc::SO_RCVBUF);
const REUSE: SocketOption = SocketOption::socket(libc::SO_REUSEADDR);

/// Why a connection cannot move, or did not.
#[derive(Debug, Error)]
pub enum RepairError {
    /// No socket, or one of something else.
    #[error("this is no TCP socket (protocol {0}); move connections of TCP only")]
    NotTcp(u32),
    /// A socket that listens.
    #[error(
        "a listening socket and its backlog do not move; listen at the destination, and move what was accepted"
    )]
    Listening,
    /// It is being opened or closed.
    #[error(
        "a connection in the kernel's state {0} cannot move, only ESTABLISHED (1) and CLOSE_WAIT (8); wait until it is, or let it end here"
    )]
    NotEstablished(u8),
    /// The kernel does TLS, or something else, for it.
    #[error(
        "the kernel works on this connection (TCP_ULP {0:?}), whose keys cannot be moved; do TLS in the program"
    )]
    UpperLayer(String),
    /// Several paths.
    #[error("a connection of MPTCP cannot move; listen with IPPROTO_TCP")]
    Multipath,
    /// Segments are signed.
    #[error(
        "the segments of this connection are signed ({0}), whose keys cannot be moved; do without for services that move"
    )]
    Signed(&'static str),
    /// There is urgent data.
    #[error("the connection has urgent data, which cannot be moved; read it first")]
    Urgent,
    /// Larger queues than can be moved.
    #[error("a queue of the connection has {0} bytes, and at most {most} can be moved; mark connections as migratable when they are accepted", most = crate::state::MOST_QUEUED)]
    TooMuch(usize),
    /// Something was sent, received, read or written meanwhile.
    #[error(
        "the connection went on while it was read ({what}: {before}, then {after}); hold its frames and stop its program first"
    )]
    NotStill {
        /// What has changed.
        what: &'static str,
        /// Bytes first.
        before: usize,
        /// Bytes then.
        after: usize,
    },
    /// The state is none.
    #[error(transparent)]
    State(#[from] StateError),
    /// The address is not this machine's.
    #[error(
        "{0} is no address of this machine; give it to an interface before connections move here"
    )]
    NotHere(SocketAddr),
    /// There is the same connection already, or something else at its port.
    #[error(
        "there is a connection from {local} to {peer} here already; close it, or refuse the move"
    )]
    InUse {
        /// This end.
        local: SocketAddr,
        /// The other.
        peer: SocketAddr,
    },
    /// The kernel has no room for a queue.
    #[error(
        "the kernel took {taken} of {length} bytes of a queue; free memory (net.ipv4.tcp_mem), or move fewer connections at once"
    )]
    NoRoom {
        /// Bytes that it took.
        taken: usize,
        /// Bytes of the queue.
        length: usize,
    },
    /// The privilege is missing.
    #[error(
        "{what} needs CAP_NET_ADMIN in the network namespace's user namespace; ask the helper: {source}"
    )]
    Privilege {
        /// For what.
        what: &'static str,
        /// The kernel's.
        source: io::Error,
    },
    /// A call that the kernel refused.
    #[error(
        "the kernel does not {what}: {source}; see whether it has CONFIG_CHECKPOINT_RESTORE, and is at least of Linux 4.8"
    )]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

impl RepairError {
    /// Makes the kernel's refusals to do `what` errors.
    fn kernel<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { what, source: source.into() }
    }

    fn privilege(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM) => Self::Privilege { what, source },
            _ => Self::Kernel { what, source },
        }
    }
}

/// Limits the buffers of a connection, or of all that a listening socket accepts, so that a move is short. Bytes
/// as one sets them; what the kernel allows all programs is the limit (`net.core.wmem_max`, `rmem_max`).
///
/// # Errors
/// The kernel's, of something that is no socket.
pub fn mark_migratable(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    sys::set_number(&socket, SEND_BUFFER, bytes)?;
    sys::set_number(&socket, RECEIVE_BUFFER, bytes)
}
