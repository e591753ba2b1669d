//! What a node has sent and nobody has looked at yet: lines and blocks out of a stream.

use std::io::{ErrorKind, Read};

use crate::transport::cluster::error::NodeError;

/// The longest line that a node may answer with, its end included.
pub(in crate::transport::cluster) const MAX_LINE: usize = 2048;
/// How far ahead is read to find the end of a line.
const LOOK_AHEAD: usize = 4096;

/// Bytes that were read ahead; at most [`LOOK_AHEAD`], or what was put in.
#[derive(Debug, Default)]
pub(in crate::transport::cluster) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Inbox {
    pub(in crate::transport::cluster) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Takes bytes that were received elsewhere; nothing may be waiting here.
    pub(in crate::transport::cluster) fn put(&mut self, parts: &[&[u8]]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
    }

    /// The next line, without its end. Reads ahead from `stream` if it is not all here.
    pub(in crate::transport::cluster) fn line(
        &mut self,
        stream: &mut impl Read,
    ) -> Result<Vec<u8>, NodeError> {
        let mut searched = 0;
        loop {
            let waiting = self.bytes.get(self.start..).unwrap_or_default();
            let fresh = waiting.get(searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let end = searched + end;
                let line = waiting.get(..end).unwrap_or_default();
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.start += end + 1;
                return Ok(line);
            }
            searched = waiting.len();
            if searched >= MAX_LINE {
                return Err(NodeError::protocol("a line of at most 2048 bytes", waiting));
            }
            self.bytes.drain(..self.start);
            self.start = 0;
            let length = self.bytes.len();
            self.bytes.resize(length + LOOK_AHEAD, 0);
            let read = stream.read(&mut self.bytes[length..]);
            self.bytes.truncate(length + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(NodeError::Closed),
                Ok(_) => (),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(NodeError::Io(error)),
            }
        }
    }

    /// Fills `buffer`: from what waits here, the rest straight from `stream`.
    pub(in crate::transport::cluster) fn fill(
        &mut self,
        stream: &mut impl Read,
        buffer: &mut [u8],
    ) -> Result<(), NodeError> {
        let waiting = self.bytes.get(self.start..).unwrap_or_default();
        let (here, rest) = buffer.split_at_mut(waiting.len().min(buffer.len()));
        here.copy_from_slice(&waiting[..here.len()]);
        self.start += here.len();
        if rest.is_empty() { Ok(()) } else { stream.read_exact(rest).map_err(NodeError::Io) }
    }

    /// Reads `count` bytes that nobody wants.
    pub(in crate::transport::cluster) fn skip(
        &mut self,
        stream: &mut impl Read,
        mut count: u64,
    ) -> Result<(), NodeError> {
        let mut scratch = [0; LOOK_AHEAD];
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(LOOK_AHEAD).min(LOOK_AHEAD);
            self.fill(stream, &mut scratch[..part])?;
            count -= u64::try_from(part).unwrap_or(count);
        }
        Ok(())
    }
}
