//! A continuation as C has it: one thing, whatever has become of it.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::sync::Arc;

use continuation::privilege::Privilege;
use continuation::repair::{self, Frozen, Restored};
use continuation::service::Continuation;
use continuation::state::ConnectionState;

/// An error, with its number.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) number: i32,
    pub(crate) text: String,
}

impl Error {
    pub(crate) fn argument(text: &str) -> Self {
        Self { number: libc::EINVAL, text: text.to_owned() }
    }

    pub(crate) fn none() -> Self {
        Self::argument("there is no continuation")
    }

    pub(crate) fn other(error: impl std::error::Error) -> Self {
        Self { number: libc::EPROTO, text: error.to_string() }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        Self { number, text: error.to_string() }
    }
}

/// A connection with its continuation.
#[derive(Debug, Default)]
pub enum Connection {
    /// It works.
    Live(Continuation),
    /// It stands still.
    Frozen(Frozen<Continuation>),
    /// It is here, and silent yet.
    Arriving(Restored, Vec<u8>),
    /// It has failed in between.
    #[default]
    Gone,
}

impl Connection {
    pub(crate) fn create(stream: TcpStream) -> Self {
        Self::Live(Continuation::create(stream))
    }

    pub(crate) fn live(&self) -> Result<&Continuation, Error> {
        match self {
            Self::Live(live) => Ok(live),
            _ => Err(Error::argument("the connection stands still; thaw or start it first")),
        }
    }

    fn live_mut(&mut self) -> Result<&mut Continuation, Error> {
        match self {
            Self::Live(live) => Ok(live),
            _ => Err(Error::argument("the connection stands still; thaw or start it first")),
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        Ok(self.live_mut()?.read(buffer)?)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        Ok(self.live_mut()?.write(bytes)?)
    }

    pub(crate) fn export(&mut self, state: &[u8], read: u64, sent: u64) -> Result<(), Error> {
        self.live_mut()?.export(state, read, sent).map_err(Error::other)
    }

    /// The connection's state behind its length, and the continuation.
    pub(crate) fn freeze(&mut self, privilege: &Arc<dyn Privilege>) -> Result<Vec<u8>, Error> {
        self.live()?;
        let Self::Live(live) = mem::take(self) else { return Err(Error::none()) };
        match live.freeze(privilege) {
            Ok((frozen, continuation)) => {
                let state = frozen.state.encode();
                *self = Self::Frozen(frozen);
                let mut blob = (state.len() as u64).to_le_bytes().to_vec();
                blob.extend(state);
                blob.extend(continuation);
                Ok(blob)
            }
            Err((live, error)) => {
                *self = Self::Live(live);
                Err(Error::other(error))
            }
        }
    }

    pub(crate) fn thaw(&mut self) -> Result<(), Error> {
        match mem::take(self) {
            Self::Frozen(frozen) => {
                if let Some(live) = frozen.thaw().map_err(Error::other)? {
                    *self = Self::Live(live);
                }
                Ok(())
            }
            other => {
                *self = other;
                Err(Error::argument("the connection is not frozen"))
            }
        }
    }

    pub(crate) fn leave(self) {
        if let Self::Frozen(frozen) = self {
            frozen.close();
        }
    }

    pub(crate) fn import(blob: &[u8], privilege: &Arc<dyn Privilege>) -> Result<Self, Error> {
        let parts = || {
            let (length, rest) = blob.split_first_chunk()?;
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
        };
        let (state, continuation) =
            parts().ok_or_else(|| Error::argument("the blob is broken; send it as it was made"))?;
        let state = ConnectionState::decode(state).map_err(Error::other)?;
        Continuation::check_import(continuation).map_err(Error::other)?;
        let restored = repair::restore(&state, privilege).map_err(Error::other)?;
        Ok(Self::Arriving(restored, continuation.to_vec()))
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        match mem::take(self) {
            Self::Arriving(restored, continuation) => {
                let stream = TcpStream::from(restored.start().map_err(Error::other)?);
                let live = Continuation::import(stream, &continuation).map_err(Error::other)?;
                *self = Self::Live(live);
                Ok(())
            }
            other => {
                *self = other;
                Err(Error::argument("the connection is not one that arrives"))
            }
        }
    }
}
