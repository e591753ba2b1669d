//! The small part that has the privilege: a process that keeps `CAP_NET_ADMIN` and nothing else, and does for
//! sockets that are handed to it (`SCM_RIGHTS`) what [`Privilege`] has. All else runs without.
//!
//! Whoever can reach its socket can silence and shape TCP sockets that he has, and ask whether connections are
//! signed: no more. It is a socket of the program that started it, or one in a folder for one user.

mod confine;
mod protocol;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

pub use confine::confine;
use protocol::{Answer, Request};

use crate::privilege::{Mode, Own, Privilege};
use crate::sys::{self, SocketOption};

/// Why there is no helper.
#[derive(Debug, Error)]
pub enum HelperError {
    /// It does not start.
    #[error("cannot start the helper {program}: {source}; install it beside the agent")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error(
        "cannot reach the helper at {path}: {source}; start continuation-helper --listen there"
    )]
    Connect {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A step by which it gives up what it does not need.
    #[error(
        "the helper cannot {what}: {source}; start it with CAP_NET_ADMIN, and as root or without other capabilities"
    )]
    Confine {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A helper, as its client sees it.
#[derive(Debug)]
pub struct Helper {
    /// One question at a time, each with its answer.
    socket: Mutex<OwnedFd>,
    child: Option<Child>,
}

impl Helper {
    /// Connects to a helper that listens at `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(path: &Path) -> Result<Self, HelperError> {
        let connect = || {
            let flags = SocketFlags::CLOEXEC;
            let kind = SocketType::SEQPACKET;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let failed = |source: rustix::io::Errno| HelperError::Connect {
            path: path.display().to_string(),
            source: source.into(),
        };
        Ok(Self { socket: Mutex::new(connect().map_err(failed)?), child: None })
    }

    /// Starts `program` as this process's own helper; it ends with it.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(program: &Path) -> Result<Self, HelperError> {
        let start = || {
            let (ours, its) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            let child = Command::new(program).stdin(Stdio::from(its)).spawn()?;
            Ok(Self { socket: Mutex::new(ours), child: Some(child) })
        };
        let program = program.display().to_string();
        start().map_err(|source| HelperError::Start { program, source })
    }

    fn ask(&self, request: Request, socket: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let helper = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::send(&*helper, &request.encode(), socket)?;
        let mut bytes = [0; protocol::LONGEST];
        let (length, _) = rustix::net::recv(&*helper, &mut bytes, RecvFlags::empty())?;
        let answer = bytes.get(..length).and_then(Answer::decode);
        match answer.ok_or(io::ErrorKind::UnexpectedEof)? {
            Answer::Done(value) => Ok(value),
            Answer::Failed(number) => Err(io::Error::from_raw_os_error(number)),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It ends when its socket is closed; this is before that, so that none is left to be waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Privilege for Helper {
    fn repair(&self, socket: BorrowedFd<'_>, mode: Mode) -> io::Result<()> {
        self.ask(Request::Repair(mode), Some(socket)).map(drop)
    }

    fn buffers(&self, socket: BorrowedFd<'_>, send: u32, receive: u32) -> io::Result<()> {
        self.ask(Request::Buffers { send, receive }, Some(socket)).map(drop)
    }

    fn is_signed(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
        self.ask(Request::IsSigned { local, peer }, None)
    }
}

/// Does what is asked on `socket`, until the other side closes it.
///
/// # Errors
/// The socket's.
pub fn serve(socket: impl AsFd) -> io::Result<()> {
    loop {
        let Some((bytes, passed)) = protocol::receive(&socket)? else { return Ok(()) };
        let done = Request::decode(&bytes)
            .ok_or(io::Error::from_raw_os_error(libc::EBADMSG))
            .and_then(|request| perform(request, passed.as_ref()));
        let answer = match done {
            Ok(value) => Answer::Done(value),
            Err(error) => Answer::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        rustix::net::send(&socket, &answer.encode(), SendFlags::NOSIGNAL)?;
    }
}

fn perform(request: Request, passed: Option<&OwnedFd>) -> io::Result<bool> {
    let socket = || {
        let fd = passed.ok_or(io::Error::from_raw_os_error(libc::EBADF))?.as_fd();
        match sys::get_number(fd, SocketOption::socket(libc::SO_PROTOCOL))? {
            6 => Ok(fd),
            _ => Err(io::Error::from_raw_os_error(libc::EPROTOTYPE)),
        }
    };
    match request {
        Request::Repair(mode) => Own.repair(socket()?, mode).map(|()| true),
        Request::Buffers { send, receive } => Own.buffers(socket()?, send, receive).map(|()| true),
        Request::IsSigned { local, peer } => Own.is_signed(local, peer),
    }
}
