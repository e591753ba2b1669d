//! Service continuations: a server's state moves with its connection (Migratory TCP).
//!
//! A server creates a continuation for a connection and reads and writes through it. Whenever it likes it
//! exports: "this is my state, when I have read so much and sent so much". On a move the new server imports the
//! last export, wherever the old one was meanwhile: what was read since is unread again, what was written since
//! and not sent is cut, and what was sent since is not sent twice, when the new server writes it again. So a
//! move needs nothing of the old server but that it stands still, and servers that do the same from the same
//! state on; that they do is checked byte by byte.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use thiserror::Error;

use crate::privilege::Privilege;
use crate::repair::{self, Frozen, RepairError};
use crate::state::ConnectionState;
use crate::sys;
use crate::wire::{Reader, Writer};

/// Bytes of state that a server can export.
pub const MOST_STATE: usize = 1 << 20;
/// Bytes that can be read, or written, since the last export: beyond, a connection moves only after the next.
pub const MOST_LOGGED: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"Cont";
const VERSION: u16 = 1;

/// Why a continuation is none, or does not move.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// Offsets that were not reached, or are behind those of the last export.
    #[error(
        "cannot export with {read} bytes read and {sent} sent: the last export had {read_before} and {sent_before}, and now it is {read_now} and {sent_now}; export what was done"
    )]
    Offsets {
        /// As exported.
        read: u64,
        /// As exported.
        sent: u64,
        /// At the last export.
        read_before: u64,
        /// At the last export.
        sent_before: u64,
        /// By now.
        read_now: u64,
        /// By now.
        sent_now: u64,
    },
    /// Too large a state.
    #[error(
        "a state of {0} bytes is too large, {MOST_STATE} are the most; move what is not of the connection in another way"
    )]
    State(usize),
    /// Too much was done since the last export.
    #[error(
        "more than {MOST_LOGGED} bytes were read or written since the last export; export more often"
    )]
    NotExported,
    /// The bytes are no continuation.
    #[error("this is no continuation (wrong from byte {0} on); send it as it was made")]
    Broken(usize),
    /// The connection does not move.
    #[error(transparent)]
    Repair(#[from] RepairError),
}

/// What a server has exported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// The server's own.
    pub state: Vec<u8>,
    /// Bytes that it had read since the connection began.
    pub read: u64,
    /// Bytes that it had sent.
    pub sent: u64,
}

/// A connection that can move with what its server knows of it.
#[derive(Debug)]
pub struct Continuation {
    stream: TcpStream,
    export: Export,
    /// Read and written since the export.
    read: Vec<u8>,
    written: Vec<u8>,
    /// Whether there was too much of it.
    is_lost: bool,
    /// What an earlier server has sent and this one has not written yet.
    replay: VecDeque<u8>,
}

impl Continuation {
    /// `cont_create`: of a connection that has just begun. Without an export the new server begins as well.
    pub fn create(stream: TcpStream) -> Self {
        Self {
            stream,
            export: Export::default(),
            read: Vec::new(),
            written: Vec::new(),
            is_lost: false,
            replay: VecDeque::new(),
        }
    }

    /// Bytes that were read since the connection began.
    pub fn bytes_read(&self) -> u64 {
        self.export.read + self.read.len() as u64
    }

    /// Bytes that were sent since the connection began.
    pub fn bytes_sent(&self) -> u64 {
        self.export.sent + self.written.len() as u64
    }

    /// The last export.
    pub fn exported(&self) -> &Export {
        &self.export
    }

    /// The connection. What is read and written past the continuation is lost in a move.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// `cont_export`: the server has `state` when it has read and sent so many bytes since the connection began.
    ///
    /// # Errors
    /// It has not done so, or the state is too large.
    pub fn export(&mut self, state: &[u8], read: u64, sent: u64) -> Result<(), ServiceError> {
        if state.len() > MOST_STATE {
            return Err(ServiceError::State(state.len()));
        }
        let behind = |now: u64, before: u64, length: usize| {
            now.checked_sub(before)
                .and_then(|more| usize::try_from(more).ok())
                .filter(|more| *more <= length)
        };
        let done = behind(read, self.export.read, self.read.len()).zip(behind(
            sent,
            self.export.sent,
            self.written.len(),
        ));
        let Some((reads, writes)) = done else {
            return Err(ServiceError::Offsets {
                read,
                sent,
                read_before: self.export.read,
                sent_before: self.export.sent,
                read_now: self.bytes_read(),
                sent_now: self.bytes_sent(),
            });
        };
        self.read.drain(..reads);
        self.written.drain(..writes);
        self.export.state.clear();
        self.export.state.extend(state);
        (self.export.read, self.export.sent) = (read, sent);
        // What was dropped is in the state now only if the state is of this moment.
        self.is_lost &= !(self.read.is_empty() && self.written.is_empty());
        Ok(())
    }

    /// Whether the peer has acknowledged all that was written (`SIOCOUTQ`).
    ///
    /// A server that closes a connection before leaves the last bytes to its kernel, from which nobody can move
    /// them: no move is begun then until they have arrived. One that waits for this can be moved at any time.
    ///
    /// # Errors
    /// The connection has broken, or the kernel does not tell.
    pub fn is_delivered(&self) -> io::Result<bool> {
        // The queue of one that has broken stays as it was.
        if let Some(error) = self.stream().take_error()? {
            return Err(error);
        }
        Ok(sys::length(self, sys::Length::Unacknowledged)? == 0)
    }

    /// Keeps the logs within their bounds. Without them there are offsets only, and no move until the next
    /// export that is of its moment.
    fn bound(&mut self) {
        if self.is_lost || self.read.len().max(self.written.len()) > MOST_LOGGED {
            self.is_lost = true;
            self.export.read += self.read.len() as u64;
            self.export.sent += self.written.len() as u64;
            self.read.clear();
            self.written.clear();
        }
    }

    /// Freezes the connection ([`repair::freeze`]); what is to be sent with its state is given, for
    /// [`Continuation::import`].
    ///
    /// # Errors
    /// It cannot move now. It goes on, and is given back.
    #[expect(clippy::result_large_err, reason = "the continuation is given back by value")]
    pub fn freeze(
        self,
        privilege: &Arc<dyn Privilege>,
    ) -> Result<(Frozen<Self>, Vec<u8>), (Self, ServiceError)> {
        if self.is_lost {
            return Err((self, ServiceError::NotExported));
        }
        let mut frozen = match repair::freeze(self, privilege) {
            Ok(frozen) => frozen,
            Err((this, error)) => return Err((this, error.into())),
        };
        let (this, state) = frozen.parts();
        let bytes = this.map(|this| this.cut(state)).unwrap_or_default();
        Ok((frozen, bytes))
    }

    /// Cuts the queues to the offsets of the last export.
    fn cut(&self, state: &mut ConnectionState) -> Vec<u8> {
        state.receive.bytes.splice(..0, self.read.iter().copied());
        let mut replay: Vec<u8> = self.written.iter().chain(&self.replay).copied().collect();
        let cut = replay.len().min(state.send.unsent);
        replay.truncate(replay.len() - cut);
        let queue = &mut state.send;
        queue.bytes.truncate(queue.bytes.len().saturating_sub(cut));
        queue.unsent -= cut;
        queue.end = queue.end.wrapping_sub(u32::try_from(cut).unwrap_or_default());
        let mut to = Writer::default();
        to.0.extend(MAGIC);
        to.u16(VERSION);
        to.u64(self.export.read);
        to.u64(self.export.sent);
        to.bytes(&self.export.state);
        to.bytes(&replay);
        to.0
    }

    /// `cont_import`: the connection that has arrived, with what was exported of it.
    ///
    /// # Errors
    /// The bytes are no continuation.
    pub fn import(stream: TcpStream, bytes: &[u8]) -> Result<Self, ServiceError> {
        let mut from = Reader(bytes);
        let (export, replay) = Self::read_import(&mut from)
            .filter(|_| from.0.is_empty())
            .ok_or(ServiceError::Broken(bytes.len() - from.0.len()))?;
        Ok(Self { export, replay, ..Self::create(stream) })
    }

    fn read_import(from: &mut Reader<'_>) -> Option<(Export, VecDeque<u8>)> {
        if from.array() != Some(MAGIC) || from.u16()? != VERSION {
            return None;
        }
        // So that they can be counted on from here.
        let mut offset = || from.u64().filter(|offset| *offset < 1 << 62);
        let (read, sent) = (offset()?, offset()?);
        let state = from.bytes(MOST_STATE)?.to_vec();
        let replay = from.bytes(2 * MOST_LOGGED)?.to_vec().into();
        Some((Export { state, read, sent }, replay))
    }

    /// Whether `bytes` are a continuation.
    ///
    /// # Errors
    /// They are none.
    pub fn check_import(bytes: &[u8]) -> Result<(), ServiceError> {
        let mut from = Reader(bytes);
        Self::read_import(&mut from)
            .filter(|_| from.0.is_empty())
            .map(drop)
            .ok_or(ServiceError::Broken(bytes.len() - from.0.len()))
    }
}

impl AsFd for Continuation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Continuation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.read.extend(buffer.iter().take(length));
        self.bound();
        Ok(length)
    }
}

impl Write for Continuation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = if self.replay.is_empty() {
            self.stream.write(bytes)?
        } else {
            let length = bytes.len().min(self.replay.len());
            if !self.replay.iter().zip(bytes).all(|(sent, now)| sent == now) {
                let text = "the peer was sent other bytes before the move; make the server write \
                            the same from the same state on, or export after each write";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            self.replay.drain(..length);
            length
        };
        self.written.extend(bytes.iter().take(length));
        self.bound();
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::sample;

    /// A client's end, and a continuation of the server's.
    fn pair() -> (TcpStream, Continuation) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, Continuation::create(listener.accept().unwrap().0))
    }

    #[test]
    fn only_what_was_done_is_exported() {
        let (mut client, mut server) = pair();
        client.write_all(b"abcd").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"ABC").unwrap();
        for (read, sent) in [(5, 0), (0, 4), (u64::MAX, 0)] {
            let error = server.export(b"", read, sent).unwrap_err();
            assert!(matches!(error, ServiceError::Offsets { read_now: 4, sent_now: 3, .. }));
        }
        server.export(b"state", 3, 2).unwrap();
        assert!(server.export(b"", 2, 2).is_err(), "it is behind the last");
        let export = Export { state: b"state".to_vec(), read: 3, sent: 2 };
        assert_eq!(server.exported(), &export);
        assert_eq!((server.bytes_read(), server.bytes_sent()), (4, 3));
        let error = server.export(&vec![0; MOST_STATE + 1], 3, 2).unwrap_err();
        assert!(matches!(error, ServiceError::State(_)));
    }

    #[test]
    fn queues_are_cut_to_the_last_export_and_nothing_is_sent_twice() {
        let (mut client, mut server) = pair();
        client.write_all(b"abcd").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"ABCD").unwrap();
        server.export(b"one", 1, 1).unwrap();
        // Its kernel has the last three bytes, of which one was not sent.
        let mut state = sample();
        state.send.bytes = b"BCD".to_vec();
        state.receive.bytes = b"ef".to_vec();
        let end = state.send.end;
        let blob = server.cut(&mut state);
        assert_eq!(state.receive.bytes, b"bcdef");
        assert_eq!((&state.send.bytes[..], state.send.unsent), (&b"BC"[..], 0));
        assert_eq!(state.send.end, end - 1);
        let (mut client, stream) = {
            let (client, server) = pair();
            (client, server.stream)
        };
        let mut server = Continuation::import(stream, &blob).unwrap();
        assert_eq!(server.exported(), &Export { state: b"one".to_vec(), read: 1, sent: 1 });
        // "BC" were sent; the new server writes them all the same.
        server.write_all(b"BCDE").unwrap();
        assert_eq!(server.bytes_sent(), 5);
        let mut found = [0; 2];
        client.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"DE");
        // One that writes something else is found out, before a byte is sent.
        let (_client, server) = pair();
        let mut server = Continuation::import(server.stream, &blob).unwrap();
        let error = server.write(b"Bx").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_written_is_delivered_when_the_peer_has_it() {
        let (mut client, mut server) = pair();
        assert!(server.is_delivered().unwrap());
        // More than the client has room for, since it reads nothing.
        server.stream().set_nonblocking(true).unwrap();
        while server.write(&[7; 16384]).is_ok() {}
        assert!(!server.is_delivered().unwrap());
        client.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        let began = std::time::Instant::now();
        while !server.is_delivered().unwrap() {
            assert!(began.elapsed() < std::time::Duration::from_secs(10));
            let _ = client.read(&mut [0; 16384]); // nothing, when it has all
        }
        // A client that is gone.
        while server.write(&[7; 16384]).is_ok() {}
        drop(client);
        let began = std::time::Instant::now();
        while server.is_delivered().is_ok() {
            assert!(began.elapsed() < std::time::Duration::from_secs(10));
        }
    }

    #[test]
    fn who_exports_too_seldom_moves_after_the_next_export() {
        let (client, mut server) = pair();
        let reader = std::thread::spawn(move || io::copy(&mut &client, &mut io::sink()).unwrap());
        server.write_all(&vec![0; MOST_LOGGED + 1]).unwrap();
        let sent = server.bytes_sent();
        assert_eq!(sent, MOST_LOGGED as u64 + 1);
        let privilege: Arc<dyn Privilege> = Arc::new(crate::privilege::Own);
        let (mut server, error) = server.freeze(&privilege).unwrap_err();
        assert!(matches!(error, ServiceError::NotExported));
        server.export(b"", 0, sent).unwrap();
        assert!(!server.is_lost);
        drop(server);
        assert_eq!(reader.join().unwrap(), sent);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), head in any::<bool>()) {
            let mut blob = if head { [&MAGIC[..], &VERSION.to_le_bytes()].concat() } else { Vec::new() };
            blob.extend(bytes);
            let _ = Continuation::check_import(&blob);
        }
    }
}
