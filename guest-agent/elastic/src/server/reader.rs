//! Reads frames from a stream.

use std::io::{self, BufReader, Read};
use std::net::TcpStream;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

use super::ServerError;
use crate::wire::{self, Frame, HEADER};

/// Bytes read ahead: small frames come many at once.
const AHEAD: usize = 8 << 10;
/// Bytes of a huge page. Where they are of another size, the advice is taken for larger frames or not at all.
const HUGE: usize = 2 << 20;

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: BufReader<TcpStream>,
}

impl FrameReader {
    /// Reads from `stream`.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::with_capacity(AHEAD, stream) }
    }

    /// The next frame.
    ///
    /// # Errors
    /// When the stream ends or fails, or what arrives is no frame.
    pub fn read(&mut self) -> Result<Frame, ServerError> {
        let failed = |error| ServerError::Io("a connection".into(), error);
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).map_err(failed)?;
        let (kind, length) = wire::header(header)?;
        let body = body(&mut self.stream, length).map_err(failed)?;
        Ok(wire::decode(kind, body)?)
    }
}

/// The next `length` bytes. Memory is used as they arrive, not as they are promised.
fn body(from: &mut impl Read, length: usize) -> io::Result<Bytes> {
    // A page that is nearly filled is worth having whole.
    let huge = (length + HUGE / 4) / HUGE;
    if huge == 0 {
        let mut body = Vec::with_capacity(length);
        from.take(length as u64).read_to_end(&mut body)?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(body.into());
    }
    // Most of the time that a range takes to arrive would go to faults of small pages: a gibibyte has 262,144.
    // The kernel aligns what is whole huge pages.
    let mut map = MmapMut::map_anon(length.next_multiple_of(HUGE))?;
    if let Err(error) = map.advise_range(Advice::HugePage, 0, huge * HUGE) {
        log::debug!("no huge pages for a frame: {error}"); // it is slower without them
    }
    from.read_exact(&mut map[..length])?;
    Ok(Bytes::from_owner(map).slice(..length))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::Cursor;

    use super::*;

    #[test]
    fn bodies_of_every_kind_of_memory_are_what_was_sent() {
        for length in [0, 1, 9 * AHEAD + 1, HUGE * 3 / 4, HUGE, HUGE + 1, 3 * HUGE - 7] {
            let sent: Vec<u8> = (0..=250).cycle().take(length + 1).collect();
            let mut from = Cursor::new(&sent);
            assert!(body(&mut from, length).unwrap() == sent[..length], "{length}");
            assert_eq!(from.position(), length as u64);
            let mut cut = Cursor::new(&sent[..length.saturating_sub(1)]);
            assert_eq!(body(&mut cut, length).is_err(), length > 0, "{length}");
        }
    }
}
