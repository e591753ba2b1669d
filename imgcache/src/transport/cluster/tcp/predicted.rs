//! Receives the answers to pipelined gets straight into their final places.
//!
//! The answer to `mg <key> v O<opaque>` is `VA <length> O<opaque>`, the value, and an end of line: of
//! a hit every byte but the value's is known beforehand (memcached, doc/protocol.txt, "Meta Get").
//! So one vectored read takes several answers apart in the kernel: header, value, end, header, ...,
//! each to its place. What is not as predicted (a miss, another length, an error) is noticed at the
//! first header that differs; all that came from there on is taken back out of the places it landed
//! in, and is parsed as what it is. Then prediction goes on.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSliceMut, Read, Write};

use super::inbox::Inbox;
use crate::transport::cluster::error::NodeError;

/// Bytes that one read asks for: enough to be worth a system call, and little enough to be in the
/// core's cache still when it is verified.
const READ_BYTES: usize = 1 << 20;
/// Buffers of one read; the system takes 1024.
const READ_BUFFERS: usize = 1023;
/// Bytes of the longest header: `VA 4294967295 O18446744073709551615` and its end.
const HEADER: usize = 40;
/// A longer value is no item of ours, nor anything that a node would be asked for.
const MAX_VALUE: u64 = 64 << 20;
/// The end of a line and of a value.
const END: &[u8; 2] = b"\r\n";

/// A get whose answer is due.
#[derive(Debug)]
pub(in crate::transport::cluster) struct Pending<'m, T> {
    /// What the caller knows it by.
    pub(in crate::transport::cluster) tag: T,
    /// Where the value goes; exactly as long as it should be.
    pub(in crate::transport::cluster) buffer: &'m mut [u8],
    opaque: u64,
    header: [u8; HEADER],
    header_length: usize,
    /// What came instead of the header, and behind the value.
    frame: [u8; HEADER + END.len()],
}

/// What became of a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transport::cluster) enum Answer {
    /// The buffer holds the value.
    Hit,
    /// The node has no such item.
    Miss,
    /// The node has an item without content: somebody has undertaken to fetch it.
    Claimed,
    /// The item has this length, and so is not what was wanted.
    Length(u64),
    /// The node did not want to.
    Refused(String),
}

impl<'m, T> Pending<'m, T> {
    pub(in crate::transport::cluster) fn new(tag: T, buffer: &'m mut [u8], opaque: u64) -> Self {
        let mut header = [0; HEADER];
        let mut rest = &mut header[..];
        // It fits, since a length is one of memory.
        let _ = write!(rest, "VA {} O{opaque}\r\n", buffer.len());
        let header_length = HEADER - rest.len();
        Self { tag, buffer, opaque, header, header_length, frame: [0; HEADER + END.len()] }
    }

    /// What the request must be marked with.
    pub(in crate::transport::cluster) fn opaque(&self) -> u64 {
        self.opaque
    }

    fn whole(&self) -> usize {
        self.header_length + self.buffer.len() + END.len()
    }

    /// The parts in the order in which their bytes come.
    fn parts(&mut self) -> [&mut [u8]; 3] {
        let (header, rest) = self.frame.split_at_mut(self.header_length);
        [header, &mut *self.buffer, &mut rest[..END.len()]]
    }
}

/// The receiving end of a connection.
#[derive(Debug, Default)]
pub(in crate::transport::cluster) struct Receiver {
    /// Bytes of the front answer that have come, all as predicted.
    at: usize,
    pub(in crate::transport::cluster) inbox: Inbox,
}

impl Receiver {
    /// Whether nothing has come that belongs to an answer yet to be handed over.
    pub(in crate::transport::cluster) fn is_idle(&self) -> bool {
        self.at == 0 && self.inbox.is_empty()
    }

    /// Reads until one answer at least is complete, and hands over all that are, in order.
    ///
    /// # Errors
    /// What ends the connection; I/O errors as they are. The gets in `pending` are unanswered then,
    /// and their buffers may hold anything.
    pub(in crate::transport::cluster) fn receive<'m, T>(
        &mut self,
        stream: &mut impl Read,
        pending: &mut VecDeque<Pending<'m, T>>,
        mut done: impl FnMut(Pending<'m, T>, Answer),
    ) -> Result<(), NodeError> {
        let mut answered = false;
        while !answered && !pending.is_empty() {
            if self.inbox.is_empty() {
                let read = self.read_predicted(stream, pending)?;
                self.sort_predicted(read, pending, &mut |pending, answer| {
                    answered = true;
                    done(pending, answer);
                })?;
            }
            while !self.inbox.is_empty() {
                let Some(front) = pending.front_mut() else {
                    return Err(NodeError::protocol("nothing more", b"more than was asked for"));
                };
                let answer = parse_answer(&mut self.inbox, stream, front.opaque, front.buffer)?;
                answered = true;
                if let Some(front) = pending.pop_front() {
                    done(front, answer);
                }
            }
        }
        Ok(())
    }

    /// One read into the places of the answers that are due.
    fn read_predicted<T>(
        &self,
        stream: &mut impl Read,
        pending: &mut VecDeque<Pending<'_, T>>,
    ) -> Result<usize, NodeError> {
        let mut slices = Vec::with_capacity(pending.len().saturating_mul(3).min(READ_BUFFERS));
        let (mut passed, mut bytes) = (self.at, 0);
        for one in pending.iter_mut() {
            if slices.len() + 3 > READ_BUFFERS || bytes >= READ_BYTES {
                break;
            }
            for part in one.parts() {
                let here = passed.min(part.len());
                passed -= here;
                let part = &mut part[here..];
                if !part.is_empty() {
                    bytes += part.len();
                    slices.push(IoSliceMut::new(part));
                }
            }
        }
        loop {
            match stream.read_vectored(&mut slices) {
                Ok(0) => return Err(NodeError::Closed),
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(NodeError::Io(error)),
            }
        }
    }

    /// Hands over what is complete of `read` more bytes; puts what is not as predicted into the
    /// inbox.
    fn sort_predicted<'m, T>(
        &mut self,
        read: usize,
        pending: &mut VecDeque<Pending<'m, T>>,
        done: &mut dyn FnMut(Pending<'m, T>, Answer),
    ) -> Result<(), NodeError> {
        let mut here = self.at.saturating_add(read);
        self.at = 0;
        while here > 0 {
            let Some(front) = pending.front_mut() else { break };
            let length = here.min(front.header_length);
            if front.frame[..length] != front.header[..length] {
                self.take_back(here, pending);
                return Ok(());
            }
            let whole = front.whole();
            if here < whole {
                self.at = here;
                return Ok(());
            }
            let [_, _, end] = front.parts();
            if end != END {
                return Err(NodeError::protocol("the end of a value", end));
            }
            here -= whole;
            if let Some(front) = pending.pop_front() {
                done(front, Answer::Hit);
            }
        }
        Ok(())
    }

    /// The last `count` bytes that came are not what the places are for in which they landed, from
    /// the front one on.
    fn take_back<T>(&mut self, count: usize, pending: &mut VecDeque<Pending<'_, T>>) {
        let mut left = count;
        let mut parts: Vec<&[u8]> = Vec::new();
        for one in pending.iter_mut() {
            for part in one.parts() {
                let here = left.min(part.len());
                left -= here;
                if here > 0 {
                    parts.push(&part[..here]);
                }
            }
            if left == 0 {
                break;
            }
        }
        self.inbox.put(&parts);
    }
}

/// The header of an answer that carries a value, or tells that there is none.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::transport::cluster) enum Header {
    /// A value of this many bytes follows.
    Value {
        /// Its length.
        length: u64,
        /// What else was said: `W`, `Z`, `f7`, ...
        flags: Vec<String>,
    },
    /// No such item.
    Miss,
    /// Not now, or never.
    Refused(String),
}

/// Reads the header of the answer to a meta get with this opaque.
pub(in crate::transport::cluster) fn parse_header(
    inbox: &mut Inbox,
    stream: &mut impl Read,
    opaque: u64,
) -> Result<Header, NodeError> {
    const EXPECTED: &str = "the answer to a get";
    let line = inbox.line(stream)?;
    let wrong = || NodeError::protocol(EXPECTED, &line);
    let text = std::str::from_utf8(&line).map_err(|_| wrong())?;
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let value = match words.next() {
        Some("EN") => None,
        Some("VA") => {
            let length = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
            if length > MAX_VALUE {
                return Err(wrong());
            }
            Some(length)
        }
        Some("SERVER_ERROR") => return Ok(Header::Refused(text.to_owned())),
        Some("ERROR") if text == "ERROR" => return Err(NodeError::NoMeta),
        _ => return Err(wrong()),
    };
    let flags: Vec<String> = words.map(str::to_owned).collect();
    let echoed = flags.iter().find_map(|flag| flag.strip_prefix('O'));
    if echoed.is_some_and(|echoed| echoed.parse() != Ok(opaque)) {
        return Err(wrong());
    }
    Ok(value.map_or(Header::Miss, |length| Header::Value { length, flags }))
}

/// Reads the end of a value.
pub(in crate::transport::cluster) fn expect_end(
    inbox: &mut Inbox,
    stream: &mut impl Read,
) -> Result<(), NodeError> {
    let mut end = [0; END.len()];
    inbox.fill(stream, &mut end)?;
    if end == *END { Ok(()) } else { Err(NodeError::protocol("the end of a value", &end)) }
}

/// Reads the answer to a get, whatever it is.
fn parse_answer(
    inbox: &mut Inbox,
    stream: &mut impl Read,
    opaque: u64,
    buffer: &mut [u8],
) -> Result<Answer, NodeError> {
    let length = match parse_header(inbox, stream, opaque)? {
        Header::Miss => return Ok(Answer::Miss),
        Header::Refused(reply) => return Ok(Answer::Refused(reply)),
        Header::Value { length, .. } => length,
    };
    let answer = if usize::try_from(length) == Ok(buffer.len()) && length > 0 {
        inbox.fill(stream, buffer)?;
        Answer::Hit
    } else {
        inbox.skip(stream, length)?;
        if length == 0 { Answer::Claimed } else { Answer::Length(length) }
    };
    expect_end(inbox, stream)?;
    Ok(answer)
}

#[cfg(test)]
mod tests;
