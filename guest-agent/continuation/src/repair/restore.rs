//! The new home: a socket is made that is the connection, and then speaks.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use super::{
    QUEUE, RECEIVE_QUEUE, REUSE, RepairError, SEGMENT, SEND_QUEUE, SEQUENCE, TIMESTAMP, WINDOW,
};
use crate::privilege::{Mode, Privilege};
use crate::state::{ConnectionState, Settings, Window};
use crate::sys::{self, SocketOption};

/// A call hands so much to the kernel.
const CHUNK: usize = 64 << 10;
/// Beyond what is in a queue: each piece has a header.
const ROOM: u32 = 256 << 10;
/// `TCP_MAXSEG` takes no more.
const LARGEST_MAXSEG: u32 = 32767;

/// Codes of `struct tcp_repair_opt`: the numbers of the options in a header of TCP.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;

/// A connection that is here, and silent yet. It ends without a word when this is dropped.
#[derive(Debug)]
pub struct Restored {
    socket: OwnedFd,
    privilege: Arc<dyn Privilege>,
    settings: Settings,
    local: SocketAddr,
    peer: SocketAddr,
    /// What is to be sent first.
    unsent: Vec<u8>,
    read_closed: bool,
}

/// Makes a connection of its state. It is silent, so the network needs not lead here yet.
///
/// # Errors
/// It cannot be, or the kernel refuses; nothing is left.
pub fn restore(
    state: &ConnectionState,
    privilege: &Arc<dyn Privilege>,
) -> Result<Restored, RepairError> {
    state.check()?;
    let kernel = RepairError::kernel::<io::Error>;
    let family = if state.local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(RepairError::kernel("make a socket"))?;
    let fd = socket.as_fd();
    let number = |option, value| {
        sys::set_number(fd, option, value).map_err(kernel("take the connection's numbers"))
    };
    privilege.repair(fd, Mode::On).map_err(RepairError::privilege("to restore a connection"))?;
    // Until all is written, a crash must not look like the orderly end of a stream.
    reset_on_close(fd, true)?;
    make_room(fd, state, &**privilege)?;
    number(SEGMENT, state.options.mss.min(LARGEST_MAXSEG))?;
    number(QUEUE, SEND_QUEUE)?;
    number(SEQUENCE, start(state.send.end, &state.send.bytes))?;
    number(QUEUE, RECEIVE_QUEUE)?;
    number(SEQUENCE, start(state.receive.end, &state.receive.bytes))?;
    connect(fd, state)?;
    set_options(fd, state)?;
    number(QUEUE, RECEIVE_QUEUE)?;
    fill(fd, &state.receive.bytes)?;
    number(QUEUE, SEND_QUEUE)?;
    let sent = state.send.bytes.len().saturating_sub(state.send.unsent);
    let (sent, unsent) = state.send.bytes.split_at(sent);
    fill(fd, sent)?;
    set_window(fd, &state.window)?;
    let settings = state.settings.clone();
    set_up(fd, &settings)?;
    Ok(Restored {
        privilege: Arc::clone(privilege),
        settings,
        local: state.local,
        peer: state.peer,
        unsent: unsent.to_vec(),
        read_closed: state.read_closed,
        socket,
    })
}

impl Restored {
    /// The address at which the connection is here.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The other end's.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The connection speaks: it asks the peer, which answers with what it has, and sends what was not sent. The
    /// network leads here, and may still hold what comes.
    ///
    /// # Errors
    /// The kernel's; the peer then sees a reset.
    pub fn start(self) -> Result<OwnedFd, RepairError> {
        let fd = self.socket.as_fd();
        self.privilege
            .repair(fd, Mode::Off)
            .map_err(RepairError::privilege("to let a connection go on"))?;
        // The buffer has its size only after this: nothing is acknowledged before the network leads here, and
        // this must not wait for it.
        fill(fd, &self.unsent)?;
        let Settings { send_buffer, receive_buffer, reuse_address, .. } = self.settings;
        self.privilege
            .buffers(fd, send_buffer, receive_buffer)
            .map_err(RepairError::privilege("to give buffers their size"))?;
        sys::set_number(fd, REUSE, reuse_address.into())
            .map_err(RepairError::kernel("let others listen"))?;
        if self.read_closed {
            let shut = rustix::net::shutdown(fd, rustix::net::Shutdown::Read);
            shut.map_err(RepairError::kernel("end what is read"))?;
        }
        reset_on_close(fd, false)?;
        Ok(self.socket)
    }
}

/// The number of the first of these bytes, of which `end` is behind the last.
fn start(end: u32, bytes: &[u8]) -> u32 {
    // Queues are far shorter than numbers go round.
    end.wrapping_sub(u32::try_from(bytes.len()).unwrap_or_default())
}

fn reset_on_close(fd: BorrowedFd<'_>, on: bool) -> Result<(), RepairError> {
    sockopt::set_socket_linger(fd, on.then_some(Duration::ZERO))
        .map_err(RepairError::kernel("choose how a socket closes"))
}

/// Buffers that hold the queues: otherwise the kernel refuses them when they are filled.
fn make_room(
    fd: BorrowedFd<'_>,
    state: &ConnectionState,
    privilege: &dyn Privilege,
) -> Result<(), RepairError> {
    let size = |usual: u32, bytes: &[u8]| {
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(ROOM);
        usual.max(wanted.saturating_mul(2)).min(i32::MAX.unsigned_abs())
    };
    let send = size(state.settings.send_buffer, &state.send.bytes);
    let receive = size(state.settings.receive_buffer, &state.receive.bytes);
    privilege
        .buffers(fd, send, receive)
        .map_err(RepairError::privilege("to make room for a connection's queues"))
}

fn connect(fd: BorrowedFd<'_>, state: &ConnectionState) -> Result<(), RepairError> {
    let ConnectionState { local, peer, .. } = *state;
    match rustix::net::bind(fd, &local) {
        Ok(()) => {}
        Err(Errno::ADDRNOTAVAIL) => return Err(RepairError::NotHere(local)),
        Err(Errno::ADDRINUSE) => return Err(RepairError::InUse { local, peer }),
        Err(error) => return Err(RepairError::kernel("take the connection's address")(error)),
    }
    match rustix::net::connect(fd, &peer) {
        Ok(()) => Ok(()),
        // The same two addresses; it is no other error for a socket that is bound.
        Err(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => Err(RepairError::InUse { local, peer }),
        Err(error) => Err(RepairError::kernel("take the connection's other address")(error)),
    }
}

fn set_options(fd: BorrowedFd<'_>, state: &ConnectionState) -> Result<(), RepairError> {
    let options = &state.options;
    let mut list = vec![(OPTION_MSS, options.mss)];
    if let Some((theirs, ours)) = options.window_scale {
        list.push((OPTION_WINDOW, u32::from(theirs) | u32::from(ours) << 16));
    }
    if options.sack {
        list.push((OPTION_SACK, 0));
    }
    if options.timestamps.is_some() {
        list.push((OPTION_TIMESTAMP, 0));
    }
    let bytes: Vec<u8> = list
        .into_iter()
        .flat_map(|(code, value)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect();
    let failed = RepairError::kernel::<io::Error>;
    sys::set(fd, SocketOption::tcp(libc::TCP_REPAIR_OPTIONS), &bytes)
        .map_err(failed("take what the two ends have agreed"))?;
    if let Some(clock) = options.timestamps {
        sys::set_number(fd, TIMESTAMP, clock).map_err(failed("take the clock of timestamps"))?;
    }
    Ok(())
}

fn set_window(fd: BorrowedFd<'_>, window: &Window) -> Result<(), RepairError> {
    let Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = *window;
    let bytes = [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup].map(u32::to_ne_bytes).concat();
    sys::set(fd, WINDOW, &bytes).map_err(RepairError::kernel("take the windows"))
}

fn set_up(fd: BorrowedFd<'_>, settings: &Settings) -> Result<(), RepairError> {
    let number = |option, value| {
        sys::set_number(fd, option, value).map_err(RepairError::kernel("set up a socket"))
    };
    number(SocketOption::tcp(libc::TCP_NODELAY), settings.no_delay.into())?;
    number(SocketOption::tcp(libc::TCP_USER_TIMEOUT), settings.user_timeout)?;
    if let Some([idle, interval, count]) = settings.keep_alive {
        number(SocketOption::tcp(libc::TCP_KEEPIDLE), idle)?;
        number(SocketOption::tcp(libc::TCP_KEEPINTVL), interval)?;
        number(SocketOption::tcp(libc::TCP_KEEPCNT), count)?;
        number(SocketOption::socket(libc::SO_KEEPALIVE), 1)?;
    }
    // Not every kernel has each, and the connection is right with any.
    let _ = sys::set(fd, SocketOption::tcp(libc::TCP_CONGESTION), settings.congestion.as_bytes());
    Ok(())
}

/// Writes all of `bytes`, for which there is room.
fn fill(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), RepairError> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let chunk = rest.get(..CHUNK).unwrap_or(rest);
        match rustix::net::send(fd, chunk, flags) {
            Ok(0) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                return Err(RepairError::NoRoom { taken, length: bytes.len() });
            }
            Ok(more) => taken += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(RepairError::kernel("fill a connection's queue")(error)),
        }
    }
    Ok(())
}
