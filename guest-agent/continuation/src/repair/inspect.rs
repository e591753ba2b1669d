//! Whether a connection is one that can move.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::RepairError;
use crate::privilege::Privilege;
use crate::sys::{self, SocketOption};

/// Of <linux/tcp.h> and <linux/in.h>; libc has them only for some targets.
const TCP_AO_INFO: i32 = 40;
const IPPROTO_MPTCP: u32 = 262;
/// Of the kernel's `net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// What `TCP_INFO` says, as far as it is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Info {
    pub(super) state: u8,
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) window_scale: Option<(u8, u8)>,
}

impl Info {
    pub(super) fn of(socket: impl AsFd) -> Result<Self, RepairError> {
        let mut info = [0; 8];
        sys::get(socket, SocketOption::tcp(libc::TCP_INFO), &mut info)
            .map_err(RepairError::kernel("tell of the connection"))?;
        let [state, _, _, _, _, options, scales, _] = info;
        Ok(Self {
            state,
            timestamps: options & 1 != 0,
            sack: options & 2 != 0,
            window_scale: (options & 4 != 0).then_some((scales & 15, scales >> 4)),
        })
    }

    /// # Errors
    /// The connection is in a state in which it cannot move.
    pub(super) fn check(self) -> Result<(), RepairError> {
        match self.state {
            ESTABLISHED | CLOSE_WAIT => Ok(()),
            LISTEN => Err(RepairError::Listening),
            other => Err(RepairError::NotEstablished(other)),
        }
    }
}

/// This end's address and the other's.
pub(super) fn names(socket: impl AsFd) -> Result<(SocketAddr, SocketAddr), RepairError> {
    let read = || {
        let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        let peer = rustix::net::getpeername(&socket)?.ok_or(Errno::NOTCONN)?;
        Ok((local, SocketAddr::try_from(peer)?))
    };
    read().map_err(RepairError::kernel::<Errno>("name the connection's ends"))
}

/// Refuses what cannot move.
///
/// # Errors
/// Why.
pub fn movable(socket: impl AsFd, privilege: &dyn Privilege) -> Result<(), RepairError> {
    let socket = socket.as_fd();
    match sys::get_number(socket, SocketOption::socket(libc::SO_PROTOCOL)) {
        Ok(6) => {}
        Ok(IPPROTO_MPTCP) => return Err(RepairError::Multipath),
        Ok(other) => return Err(RepairError::NotTcp(other)),
        Err(source) => return Err(RepairError::kernel("name the socket's protocol")(source)),
    }
    Info::of(socket)?.check()?;
    let mut name = [0; 16];
    let length = sys::get(socket, SocketOption::tcp(libc::TCP_ULP), &mut name).unwrap_or(0);
    match std::str::from_utf8(name.get(..length).unwrap_or_default()) {
        Ok("") => {}
        Ok("mptcp") => return Err(RepairError::Multipath),
        name => {
            let name = name.unwrap_or("?").trim_end_matches('\0');
            return Err(RepairError::UpperLayer(name.to_owned()));
        }
    }
    // A kernel without it refuses, and so does one in which the connection has no keys.
    if sys::get(socket, SocketOption::tcp(TCP_AO_INFO), &mut [0; 64]).is_ok() {
        return Err(RepairError::Signed("TCP-AO"));
    }
    let (local, peer) = names(socket)?;
    let signed = privilege.is_signed(local, peer);
    if signed.map_err(RepairError::privilege("to tell whether segments are signed"))? {
        return Err(RepairError::Signed("TCP-MD5"));
    }
    if polled(socket, PollFlags::PRI)? {
        return Err(RepairError::Urgent);
    }
    Ok(())
}

/// Whether the peer, or the program, has ended what is read.
pub(super) fn read_closed(socket: impl AsFd) -> Result<bool, RepairError> {
    polled(socket, PollFlags::RDHUP)
}

fn polled(socket: impl AsFd, wanted: PollFlags) -> Result<bool, RepairError> {
    let mut fds = [PollFd::new(&socket, wanted)];
    poll(&mut fds, Some(&Timespec::default()))
        .map_err(RepairError::kernel("poll the connection"))?;
    Ok(fds[0].revents().contains(wanted))
}
