//! A client that finds the server of each key and follows it when it moves.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::journal::write_pieces;
use crate::node::{Op, Outcome, Request};
use crate::range::{Key, NAME_MAX};
use crate::routes::Routes;
use crate::server::{Command, FrameReader, Report, ServerError};
use crate::wire::{Encoded, Frame, VALUE_MAX, WireError};

/// How long to wait for an answer before asking again, perhaps elsewhere.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long to try. Servers forget sessions much later.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name or value is too long.
    #[error("{0} bytes are more than the {1} that are allowed: make it shorter")]
    Large(usize, usize),
    /// No server gave an answer. Whether a write was done is not known.
    #[error("no server answered in {0:?}: see that they run; a write may have been done")]
    Timeout(Duration),
    /// There is no randomness.
    #[error("no number of a session: {0}")]
    Random(#[from] rustix::io::Errno),
    /// A server said something else.
    #[error("the answer is not one to this request: both ends must be of one release")]
    Answer,
}

/// A client. It makes one request at a time.
pub struct Client {
    routes: Arc<dyn Routes>,
    session: u64,
    seq: u64,
    connections: HashMap<SocketAddr, (TcpStream, FrameReader)>,
    /// Which server had each part of the identifiers when it was last asked: by their upper 8 bits.
    homes: HashMap<u64, SocketAddr>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session)
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the service with these routes.
    ///
    /// # Errors
    /// When there is no random number for its session.
    pub fn new(routes: Arc<dyn Routes>) -> Result<Self, ClientError> {
        let mut session = [0; 8];
        rustix::rand::getrandom(&mut session, rustix::rand::GetRandomFlags::empty())?;
        let session = u64::from_le_bytes(session);
        Ok(Self { routes, session, seq: 0, connections: HashMap::new(), homes: HashMap::new() })
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When no server answers.
    pub fn get(&mut self, name: &[u8]) -> Result<Option<Bytes>, ClientError> {
        match self.request(name, Op::Get)? {
            Outcome::Value(value) => Ok(value),
            _ => Err(ClientError::Answer),
        }
    }

    /// Writes an object; whether there was one before.
    ///
    /// # Errors
    /// When no server answers.
    pub fn put(&mut self, name: &[u8], value: Bytes) -> Result<bool, ClientError> {
        if value.len() > VALUE_MAX {
            return Err(ClientError::Large(value.len(), VALUE_MAX));
        }
        self.write(name, Op::Put(value))
    }

    /// Removes an object; whether there was one.
    ///
    /// # Errors
    /// When no server answers.
    pub fn delete(&mut self, name: &[u8]) -> Result<bool, ClientError> {
        self.write(name, Op::Delete)
    }

    fn write(&mut self, name: &[u8], op: Op) -> Result<bool, ClientError> {
        match self.request(name, op)? {
            Outcome::Done { existed } => Ok(existed),
            _ => Err(ClientError::Answer),
        }
    }

    fn request(&mut self, name: &[u8], op: Op) -> Result<Outcome, ClientError> {
        if name.len() > NAME_MAX {
            return Err(ClientError::Large(name.len(), NAME_MAX));
        }
        let key = Key::of(name);
        let id = key.id();
        self.seq += 1;
        let request = Frame::Request(Request { session: self.session, seq: self.seq, key, op });
        let end = Instant::now() + DEADLINE;
        let part = id >> 56;
        while Instant::now() < end {
            let known = self.homes.get(&part).copied();
            let home = || {
                self.routes.home(id).and_then(|(home, _)| self.routes.address(home)?.parse().ok())
            };
            let Some(address) = known.or_else(home) else {
                std::thread::sleep(Duration::from_millis(5)); // no home at this moment
                continue;
            };
            match self.exchange(address, &request) {
                Ok((Outcome::Moved { .. }, hint)) => {
                    self.homes.remove(&part);
                    if let Ok(hint) = hint.parse()
                        && hint != address
                    {
                        self.homes.insert(part, hint);
                    } else if known.is_none() {
                        std::thread::sleep(Duration::from_millis(1)); // the routes are ahead of the server
                    }
                }
                Ok((Outcome::Busy, _)) => std::thread::sleep(Duration::from_millis(5)),
                Ok((outcome, _)) => {
                    self.homes.insert(part, address);
                    return Ok(outcome);
                }
                Err(_) => {
                    self.connections.remove(&address);
                    if self.homes.remove(&part).is_none() {
                        std::thread::sleep(Duration::from_millis(5)); // until the server runs again
                    }
                }
            }
        }
        Err(ClientError::Timeout(DEADLINE))
    }

    /// Sends a request and waits for its answer, and not for those of older ones.
    fn exchange(
        &mut self,
        address: SocketAddr,
        frame: &Frame,
    ) -> Result<(Outcome, String), ServerError> {
        let failed = |error| ServerError::Io(address.to_string(), error);
        let (stream, reader) = match self.connections.entry(address) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(open(address, [0; 16]).map_err(failed)?)
            }
        };
        write_pieces(stream, Encoded::new(frame).pieces()).map_err(failed)?;
        loop {
            match reader.read()? {
                Frame::Answer { session, seq, outcome, address } => {
                    if (session, seq) == (self.session, self.seq) {
                        return Ok((outcome, address));
                    }
                }
                _ => return Err(WireError::Protocol.into()),
            }
        }
    }
}

fn open(address: SocketAddr, secret: [u8; 16]) -> io::Result<(TcpStream, FrameReader)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_pieces(&mut stream, Encoded::new(&Frame::Hello { peer: None, secret }).pieces())?;
    let reader = FrameReader::new(stream.try_clone()?);
    Ok((stream, reader))
}

/// Commands a server, and waits until it is done.
///
/// # Errors
/// When there is no server, or it does not answer.
pub fn command(address: &str, secret: [u8; 16], command: &Command) -> Result<Report, ServerError> {
    let failed = |error| ServerError::Io(address.to_owned(), error);
    let to = address.parse().map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
    let (mut stream, mut reader) = open(to, secret).map_err(failed)?;
    // Transfers take their time.
    stream.set_read_timeout(Some(Duration::from_secs(180))).map_err(failed)?;
    let text = serde_json::to_vec(command).map_err(|error| failed(error.into()))?;
    write_pieces(&mut stream, Encoded::new(&Frame::Command(text.into())).pieces())
        .map_err(failed)?;
    match reader.read()? {
        Frame::Command(text) => serde_json::from_slice(&text).map_err(|error| failed(error.into())),
        _ => Err(WireError::Protocol.into()),
    }
}
