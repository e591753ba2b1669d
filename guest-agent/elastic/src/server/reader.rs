//! Reads frames from a stream.

use std::io::{self, Read};
use std::net::TcpStream;

use bytes::{Bytes, BytesMut};

use super::ServerError;
use crate::wire::{self, Frame, HEADER, WireError};

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: TcpStream,
    /// What was read and not yet used.
    read: BytesMut,
}

impl FrameReader {
    /// Reads from `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, read: BytesMut::new() }
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the stream ends or fails, or what arrives is no frame.
    pub fn read(&mut self) -> Result<Frame, ServerError> {
        self.fill(HEADER)?;
        let header = self.read.split_to(HEADER);
        let header = header.first_chunk().ok_or(WireError::Short("a header"))?;
        let (kind, length) = wire::header(*header)?;
        self.fill(length)?;
        let body: Bytes = self.read.split_to(length).freeze();
        Ok(wire::decode(kind, body)?)
    }

    /// At least so many bytes are there then. Room is made as bytes arrive, not as they are promised.
    fn fill(&mut self, wanted: usize) -> Result<(), ServerError> {
        while self.read.len() < wanted {
            let have = self.read.len();
            let room = (wanted - have).clamp(4096, 1 << 20);
            self.read.resize(have + room, 0);
            let count = loop {
                match self.stream.read(&mut self.read[have..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            self.read.truncate(have + count.as_ref().copied().unwrap_or(0));
            match count {
                Ok(0) => {
                    return Err(ServerError::Io(
                        "a connection".into(),
                        io::ErrorKind::UnexpectedEof.into(),
                    ));
                }
                Ok(_) => {}
                Err(error) => return Err(ServerError::Io("a connection".into(), error)),
            }
        }
        Ok(())
    }
}
