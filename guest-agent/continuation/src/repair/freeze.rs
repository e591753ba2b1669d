//! The old home: the connection falls silent and is read.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::RecvFlags;

use super::inspect::{self, Info};
use super::{
    QUEUE, RECEIVE_BUFFER, RECEIVE_QUEUE, REUSE, RepairError, SEGMENT, SEND_BUFFER, SEND_QUEUE,
    SEQUENCE, TIMESTAMP, WINDOW,
};
use crate::privilege::{Mode, Privilege};
use crate::state::{
    ConnectionState, MOST_QUEUED, Options, ReceiveQueue, SendQueue, Settings, Window, is_after,
};
use crate::sys::{self, Length, SocketOption};

/// A segment of which the peer has acknowledged a part stays whole in the queue; it is not longer than this.
const LARGEST_SEGMENT: usize = 64 << 10;

/// A connection that is silent, with its state. It goes on where it is when this is dropped.
#[derive(Debug)]
pub struct Frozen<S: AsFd> {
    /// Taken by what ends this.
    socket: Option<S>,
    privilege: Arc<dyn Privilege>,
    /// What it is.
    pub state: ConnectionState,
}

/// Freezes a connection, whose frames are held and whose program waits, and reads it.
///
/// # Errors
/// It cannot move, or did not stand still. It goes on, and is given back.
pub fn freeze<S: AsFd>(
    socket: S,
    privilege: &Arc<dyn Privilege>,
) -> Result<Frozen<S>, (S, RepairError)> {
    let fd = socket.as_fd();
    let read = inspect::movable(fd, &**privilege).and_then(|()| Settings::read(fd));
    let settings = match read {
        Ok(settings) => settings,
        Err(error) => return Err((socket, error)),
    };
    let reuse = settings.reuse_address;
    match silence_and_read(socket.as_fd(), &**privilege, settings) {
        Ok(state) => Ok(Frozen { socket: Some(socket), privilege: Arc::clone(privilege), state }),
        Err(error) => {
            // Where it was not silent this fails, and nothing has to be undone.
            let _ = thaw(socket.as_fd(), &**privilege, reuse);
            Err((socket, error))
        }
    }
}

impl<S: AsFd> Frozen<S> {
    /// The connection goes on here.
    ///
    /// # Errors
    /// The kernel's; then it is closed as it is, without a word, or remains so if it was not owned.
    pub fn thaw(mut self) -> Result<Option<S>, RepairError> {
        let Some(socket) = self.socket.take() else { return Ok(None) };
        thaw(socket.as_fd(), &*self.privilege, self.state.settings.reuse_address)?;
        Ok(Some(socket))
    }

    /// The socket, and the state that is to be sent for it.
    pub(crate) fn parts(&mut self) -> (Option<&mut S>, &mut ConnectionState) {
        (self.socket.as_mut(), &mut self.state)
    }

    /// The connection is elsewhere: here it ends, without a word to the peer. The socket is closed if it was
    /// owned; otherwise it is to be, as it is.
    pub fn close(mut self) {
        self.socket = None;
    }
}

impl<S: AsFd> Drop for Frozen<S> {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            let reuse = self.state.settings.reuse_address;
            if thaw(socket.as_fd(), &*self.privilege, reuse).is_err() {
                // It stays silent: nobody can be told, and the peer asks until it gives up.
            }
        }
    }
}

/// Lets a silent connection go on, without a probe: what it would have said, it says by itself.
fn thaw(fd: BorrowedFd<'_>, privilege: &dyn Privilege, reuse: bool) -> Result<(), RepairError> {
    privilege
        .repair(fd, Mode::OffSilently)
        .map_err(RepairError::privilege("to let a connection go on"))?;
    // The mode has taken it away.
    sys::set_number(fd, REUSE, reuse.into()).map_err(RepairError::kernel("let others listen"))
}

impl Settings {
    fn read(fd: BorrowedFd<'_>) -> Result<Self, RepairError> {
        let number = |option| {
            sys::get_number(fd, option).map_err(RepairError::kernel("tell how a socket is set up"))
        };
        let tcp = |name| number(SocketOption::tcp(name));
        let keep_alive =
            [tcp(libc::TCP_KEEPIDLE)?, tcp(libc::TCP_KEEPINTVL)?, tcp(libc::TCP_KEEPCNT)?];
        let keeps = number(SocketOption::socket(libc::SO_KEEPALIVE))? != 0;
        let mut name = [0; 16];
        let length = sys::get(fd, SocketOption::tcp(libc::TCP_CONGESTION), &mut name)
            .map_err(RepairError::kernel("name the congestion control"))?;
        let name = String::from_utf8_lossy(name.get(..length).unwrap_or_default());
        Ok(Self {
            send_buffer: number(SEND_BUFFER)?,
            receive_buffer: number(RECEIVE_BUFFER)?,
            reuse_address: number(REUSE)? != 0,
            no_delay: tcp(libc::TCP_NODELAY)? != 0,
            keep_alive: keeps.then_some(keep_alive),
            user_timeout: tcp(libc::TCP_USER_TIMEOUT)?,
            congestion: name.trim_end_matches('\0').to_owned(),
        })
    }
}

/// The order is not to be changed: see the module above.
fn silence_and_read(
    fd: BorrowedFd<'_>,
    privilege: &dyn Privilege,
    settings: Settings,
) -> Result<ConnectionState, RepairError> {
    let kernel = RepairError::kernel::<std::io::Error>;
    let number =
        |option| sys::get_number(fd, option).map_err(kernel("tell the connection's numbers"));
    let length = |which| sys::length(fd, which).map_err(kernel("tell the lengths of the queues"));
    let queue =
        |which| sys::set_number(fd, QUEUE, which).map_err(kernel("turn to a connection's queue"));

    // An acknowledgement that the kernel still owes goes now: sent later, by its timer, it would have a later clock
    // than what the new home sends first, which the peer would drop (RFC 7323, section 5).
    sys::set_number(fd, SocketOption::tcp(libc::TCP_QUICKACK), 1)
        .map_err(kernel("acknowledge what has come"))?;
    privilege.repair(fd, Mode::On).map_err(RepairError::privilege("to freeze a connection"))?;

    queue(RECEIVE_QUEUE)?;
    let end = number(SEQUENCE)?;
    let unread = length(Length::Unread)?;
    let receive = ReceiveQueue { end, bytes: peek(fd, unread, 0)? };

    // From here on what the kernel's timers send does not reach the wire. Not to be left again: with another
    // queue chosen they would send, behind the back of the numbers below.
    queue(SEND_QUEUE)?;
    let info = Info::of(fd)?;
    info.check()?;
    let (local, peer) = inspect::names(fd)?;
    let read_closed = inspect::read_closed(fd)?;
    let unacknowledged = length(Length::Unacknowledged)?;
    let unsent = length(Length::Unsent)?;
    let mut window = read_window(fd)?;
    // What came out of order does not move, the peer sends it again; nor does what it said of the peer's window.
    // With our window shut, as when memory is short, the kernel would not even take it.
    if is_after(window.snd_wl1, receive.end) {
        window.snd_wl1 = receive.end;
    }
    let end = number(SEQUENCE)?;
    let send = SendQueue { end, unsent, bytes: peek(fd, unacknowledged, LARGEST_SEGMENT)? };
    let mss = number(SEGMENT)?;
    let clock = number(TIMESTAMP)?;

    for (what, which, before) in [
        ("unread", Length::Unread, unread),
        ("unacknowledged", Length::Unacknowledged, unacknowledged),
    ] {
        let after = length(which)?;
        if before != after {
            return Err(RepairError::NotStill { what, before, after });
        }
    }
    let options = Options {
        mss,
        window_scale: info.window_scale,
        sack: info.sack,
        timestamps: info.timestamps.then_some(clock),
    };
    let state =
        ConnectionState { local, peer, send, receive, window, options, settings, read_closed };
    state.check()?;
    Ok(state)
}

fn read_window(fd: BorrowedFd<'_>) -> Result<Window, RepairError> {
    let mut bytes = [0; 20];
    sys::get(fd, WINDOW, &mut bytes).map_err(RepairError::kernel("tell the windows"))?;
    let mut numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_ne_bytes(*bytes));
    let mut next = || numbers.next().unwrap_or_default();
    Ok(Window {
        snd_wl1: next(),
        snd_wnd: next(),
        max_window: next(),
        rcv_wnd: next(),
        rcv_wup: next(),
    })
}

/// The `length` bytes of the queue that is chosen. There may be `more` before them.
fn peek(fd: BorrowedFd<'_>, length: usize, more: usize) -> Result<Vec<u8>, RepairError> {
    if length > MOST_QUEUED {
        return Err(RepairError::TooMuch(length));
    }
    if length == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; length + more + 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (found, _) = rustix::net::recv(fd, &mut *bytes, flags)
        .map_err(RepairError::kernel("read a connection's queue"))?;
    if found < length || found > length + more {
        let what = "length of a queue, read";
        return Err(RepairError::NotStill { what, before: length, after: found });
    }
    bytes.truncate(found);
    bytes.drain(..found - length);
    Ok(bytes)
}
