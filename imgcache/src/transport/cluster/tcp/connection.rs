//! One connection to a node: the memcached meta protocol (memcached, doc/protocol.txt, "Meta
//! Commands"), with many requests on their way at a time.
//!
//! What a load reads goes by `ask` and `answers`, straight into guest memory; the rest are
//! plain calls for commands that move little.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IoSlice, Write};
use std::time::{Duration, Instant};

use super::predicted::{Answer, Header, Pending, Receiver, expect_end, parse_header};
use super::stream::{Dialer, Stream};
use crate::cluster::address::NodeAddress;
use crate::image::name::ImageName;
use crate::record::{ItemKey, Kind};
use crate::transport::cluster::error::NodeError;

/// Requests that are sent before their answers are read; their text fits into any socket's buffers,
/// so that neither side waits for the other to read.
pub(in crate::transport::cluster) const MAX_ASKED: usize = 256;
/// The same for items that are sent: so many bytes, and then the answers are read.
const PUT_BYTES: usize = 4 << 20;
/// Lines that an answer of `stats` may have.
const MAX_STATS: usize = 100_000;

/// A connection that is in step: what was asked was answered.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    receiver: Receiver,
    /// Counts the requests.
    opaque: u64,
    /// Whether an error has left requests unanswered.
    broken: bool,
    /// Whether it has carried anything since it was last idle.
    pub(in crate::transport::cluster) reused: bool,
}

/// An item, as a node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its content.
    pub value: Vec<u8>,
    /// The client flags, which tell its kind.
    pub flags: u32,
}

/// An item that is to be stored.
#[derive(Debug, Clone, Copy)]
pub struct Put<'a> {
    /// Its key.
    pub key: &'a ItemKey,
    /// What it is; becomes the client flags.
    pub kind: Kind,
    /// Its content.
    pub value: &'a [u8],
    /// Only if there is none yet.
    pub add: bool,
}

/// What became of an item that was to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutAnswer {
    /// It is stored.
    Stored,
    /// There is one already, and it was only to be added.
    Kept,
    /// The node has no memory for it before this time has passed.
    Busy(Duration),
    /// The node did not want to; its words.
    Refused(String),
}

impl PutAnswer {
    /// What `line` answers; none if it is none of the answers that there are.
    fn of(line: &str) -> Option<Self> {
        Some(match line.split(' ').next()? {
            "HD" => Self::Stored,
            "NS" => Self::Kept,
            "SERVER_ERROR" => match retry_after(line) {
                Some(time) => Self::Busy(time),
                None => Self::Refused(line.to_owned()),
            },
            _ => return None,
        })
    }
}

/// When imgcached has memory again, if that is what `line` says (`docs/cache-protocol.md`).
fn retry_after(line: &str) -> Option<Duration> {
    let time = line.strip_prefix("SERVER_ERROR busy: retry after ")?.strip_suffix(" ms")?;
    time.parse().ok().map(Duration::from_millis)
}

/// What a node says to somebody who wants an item, or else to fetch it from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transport::cluster) enum Claim {
    /// It has the item: the buffer holds it.
    Hit,
    /// It has not, and the asker is to fetch it.
    Won,
    /// It has not, and somebody else is at it.
    Taken,
    /// It has something else under the key.
    Length(u64),
    /// It did not want to.
    Refused(String),
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`NodeError::Connect`].
    pub fn open(address: &NodeAddress, dialer: &Dialer) -> Result<Self, NodeError> {
        let stream = Stream::connect(address, dialer)?;
        let receiver = Receiver::default();
        Ok(Self { stream, receiver, opaque: 0, broken: false, reused: false })
    }

    /// Whether the other end has closed it, or its host says that there is nobody.
    pub(in crate::transport::cluster) fn peer_is_gone(&self) -> bool {
        self.stream.peer_is_gone()
    }

    /// Waits so long for the next byte.
    pub(in crate::transport::cluster) fn set_patience(&mut self, progress: Duration) {
        self.stream.set_patience(progress);
    }

    /// Nothing goes on after `deadline`.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.stream.set_deadline(deadline);
    }

    /// Whether it can be used for something else: everything was answered, and nothing came that
    /// was not asked for.
    pub fn is_clean(&self) -> bool {
        !self.broken && self.receiver.is_idle()
    }

    /// Asks for the values of `wanted`, each a key and the get that takes the answer.
    pub(in crate::transport::cluster) fn ask<'k>(
        &mut self,
        keys: impl Iterator<Item = (&'k ItemKey, u64)>,
    ) -> Result<(), NodeError> {
        let mut text = String::new();
        for (key, opaque) in keys {
            let _ = write!(text, "mg {key} v O{opaque}\r\n");
        }
        self.send(&[text.as_bytes()])
    }

    /// An opaque that no request on this connection had yet.
    pub(in crate::transport::cluster) fn next_opaque(&mut self) -> u64 {
        self.opaque += 1;
        self.opaque
    }

    /// Receives answers to what was asked, one at least.
    pub(in crate::transport::cluster) fn answers<'m, T>(
        &mut self,
        pending: &mut VecDeque<Pending<'m, T>>,
        done: impl FnMut(Pending<'m, T>, Answer),
    ) -> Result<(), NodeError> {
        let result = self.receiver.receive(&mut self.stream, pending, done);
        self.checked(result)
    }

    /// The item `key`, if the node has it and it has at most `limit` bytes of content.
    ///
    /// # Errors
    /// The connection's failure; [`NodeError::Refused`] for a longer item.
    pub fn get(&mut self, key: &ItemKey, limit: usize) -> Result<Option<Item>, NodeError> {
        let opaque = self.next_opaque();
        self.send(&[format!("mg {key} v f O{opaque}\r\n").as_bytes()])?;
        let result = self.receive_item(key, opaque, limit);
        self.checked(result)
    }

    fn receive_item(
        &mut self,
        key: &ItemKey,
        opaque: u64,
        limit: usize,
    ) -> Result<Option<Item>, NodeError> {
        let what = || format!("to give {key}");
        let inbox = &mut self.receiver.inbox;
        let (length, flags) = match parse_header(inbox, &mut self.stream, opaque)? {
            Header::Miss => return Ok(None),
            Header::Refused(reply) => return Err(NodeError::Refused { what: what(), reply }),
            Header::Value { length, flags } => (length, flags),
        };
        let Some(fits) = usize::try_from(length).ok().filter(|length| *length <= limit) else {
            inbox.skip(&mut self.stream, length)?;
            expect_end(inbox, &mut self.stream)?;
            let reply = format!("the item has {length} bytes; at most {limit} are due");
            return Err(NodeError::Refused { what: what(), reply });
        };
        let mut value = vec![0; fits];
        inbox.fill(&mut self.stream, &mut value)?;
        expect_end(inbox, &mut self.stream)?;
        let flags = flags.iter().find_map(|flag| flag.strip_prefix('f')?.parse().ok());
        // What somebody has undertaken to fetch is not there yet.
        Ok((fits > 0).then(|| Item { value, flags: flags.unwrap_or(0) }))
    }

    /// How many bytes of content the node has of each of `keys`; `None` for what it has not.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn lengths(&mut self, keys: &[ItemKey]) -> Result<Vec<Option<u64>>, NodeError> {
        let mut lengths = Vec::with_capacity(keys.len());
        for some in keys.chunks(MAX_ASKED) {
            let text: String = some.iter().map(|key| format!("mg {key} s\r\n")).collect();
            self.send(&[text.as_bytes()])?;
            for _ in some {
                let line = self.line()?;
                let wrong = || NodeError::protocol("HD or EN", line.as_bytes());
                let length = match line.split(' ').next() {
                    Some("EN") => None,
                    Some("HD") => {
                        let size = line.split(' ').find_map(|word| word.strip_prefix('s'));
                        Some(size.and_then(|size| size.parse().ok()).ok_or_else(wrong)?)
                    }
                    Some("ERROR") if line == "ERROR" => {
                        return self.checked(Err(NodeError::NoMeta));
                    }
                    _ => return self.checked(Err(wrong())),
                };
                lengths.push(length.filter(|length| *length > 0));
            }
        }
        Ok(lengths)
    }

    /// Stores `items`; says what became of each.
    ///
    /// # Errors
    /// The connection's failure; some of the items may then be stored.
    pub fn put(&mut self, items: &[Put<'_>]) -> Result<Vec<PutAnswer>, NodeError> {
        let mut answers = Vec::with_capacity(items.len());
        let mut rest = items;
        while !rest.is_empty() {
            let mut bytes = 0_usize;
            let fit = |item: &&Put<'_>| {
                bytes = bytes.saturating_add(item.value.len());
                bytes <= PUT_BYTES
            };
            let count = rest.iter().take(MAX_ASKED).take_while(fit).count().max(1);
            let (now, later) = rest.split_at(count.min(rest.len()));
            let headers: Vec<String> = now.iter().map(Put::header).collect();
            let parts: Vec<&[u8]> = now
                .iter()
                .zip(&headers)
                .flat_map(|(item, header)| [header.as_bytes(), item.value, b"\r\n"])
                .collect();
            self.send(&parts)?;
            for _ in now {
                let line = self.line()?;
                let Some(answer) = PutAnswer::of(&line) else {
                    return self.checked(Err(match line.as_str() {
                        "ERROR" => NodeError::NoMeta,
                        _ => NodeError::protocol("HD or NS", line.as_bytes()),
                    }));
                };
                answers.push(answer);
            }
            rest = later;
        }
        Ok(answers)
    }

    /// As [`put`](Self::put), but where the node has no memory yet it is asked again, for `patience`.
    ///
    /// # Errors
    /// The connection's failure; some of the items may then be stored.
    pub fn put_patiently(
        &mut self,
        items: &[Put<'_>],
        patience: Duration,
    ) -> Result<Vec<PutAnswer>, NodeError> {
        let until = Instant::now() + patience;
        let mut answers = self.put(items)?;
        loop {
            let busy = answers.iter().enumerate().filter_map(|(at, answer)| match answer {
                PutAnswer::Busy(time) => Some((at, *time)),
                _ => None,
            });
            let (places, times): (Vec<usize>, Vec<Duration>) = busy.unzip();
            let Some(wait) = times.into_iter().max() else { return Ok(answers) };
            if Instant::now() + wait >= until {
                return Ok(answers);
            }
            std::thread::sleep(wait);
            let again: Vec<Put<'_>> = places.iter().map(|place| items[*place]).collect();
            for (place, answer) in places.into_iter().zip(self.put(&again)?) {
                answers[place] = answer;
            }
        }
    }

    /// Wants the item `key`, or the right to fetch it, for `ttl` seconds, from elsewhere.
    pub(in crate::transport::cluster) fn claim(
        &mut self,
        key: &ItemKey,
        ttl: u32,
        buffer: &mut [u8],
    ) -> Result<Claim, NodeError> {
        let opaque = self.next_opaque();
        self.send(&[format!("mg {key} v N{ttl} O{opaque}\r\n").as_bytes()])?;
        let result = self.receive_claim(opaque, buffer);
        self.checked(result)
    }

    fn receive_claim(&mut self, opaque: u64, buffer: &mut [u8]) -> Result<Claim, NodeError> {
        let inbox = &mut self.receiver.inbox;
        let (length, flags) = match parse_header(inbox, &mut self.stream, opaque)? {
            // A node that does not let anybody claim.
            Header::Miss => return Ok(Claim::Won),
            Header::Refused(reply) => return Ok(Claim::Refused(reply)),
            Header::Value { length, flags } => (length, flags),
        };
        let told = |flag: &str| flags.iter().any(|one| one == flag);
        let claim = if told("W") {
            inbox.skip(&mut self.stream, length)?;
            Claim::Won
        } else if length == 0 {
            Claim::Taken
        } else if usize::try_from(length) == Ok(buffer.len()) {
            inbox.fill(&mut self.stream, buffer)?;
            Claim::Hit
        } else {
            inbox.skip(&mut self.stream, length)?;
            Claim::Length(length)
        };
        expect_end(inbox, &mut self.stream)?;
        Ok(claim)
    }

    /// Removes the item `key`; whether there was one.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn delete(&mut self, key: &ItemKey) -> Result<bool, NodeError> {
        let line = self.command(&[format!("md {key}\r\n").as_bytes()])?;
        match line.split(' ').next() {
            Some("HD") => Ok(true),
            Some("NF") => Ok(false),
            _ => self.checked(Err(NodeError::protocol("HD or NF", line.as_bytes()))),
        }
    }

    /// The answer to `stats` or `stats GROUP`: names and values in the node's order.
    ///
    /// # Errors
    /// The connection's failure; [`NodeError::Refused`] if the node knows no such group.
    pub fn stats(&mut self, group: &str) -> Result<Vec<(String, String)>, NodeError> {
        let command = if group.is_empty() { "stats".into() } else { format!("stats {group}") };
        self.send(&[command.as_bytes(), b"\r\n"])?;
        let mut stats = Vec::new();
        loop {
            let line = self.line()?;
            if line == "END" || line == "RESET" {
                return Ok(stats);
            }
            if let Some((name, value)) =
                line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' '))
                && stats.len() < MAX_STATS
            {
                stats.push((name.to_owned(), value.to_owned()));
            } else if stats.is_empty() && line.contains("ERROR") {
                return Err(NodeError::Refused { what: command, reply: line });
            } else {
                return self.checked(Err(NodeError::protocol("STAT or END", line.as_bytes())));
            }
        }
    }

    /// Whether the node knows leases: imgcached does, stock memcached does not.
    ///
    /// # Errors
    /// The connection's failure.
    pub(in crate::transport::cluster) fn knows_leases(&mut self) -> Result<bool, NodeError> {
        // Of a lease that nobody has. Unlike `lease`, it is one line also for who does not know it.
        Ok(self.command(&[b"release 0000000000000000 0\r\n"])? == "NOT_FOUND")
    }

    /// Has the node keep the items of the index keys `keys` for `ttl`, as lease `id`, or for longer
    /// if it has the lease already. Only for a node that [knows leases](Self::knows_leases).
    ///
    /// # Errors
    /// The connection's failure; [`NodeError::Refused`] if the node holds too much already, or ends.
    pub(in crate::transport::cluster) fn lease(
        &mut self,
        id: u64,
        ttl: Duration,
        keys: &[u8],
    ) -> Result<(), NodeError> {
        let head = format!("lease {id:016x} {} {}\r\n", ttl.as_millis(), keys.len());
        let reply = self.command(&[head.as_bytes(), keys, b"\r\n"])?;
        if reply.starts_with("LEASE ") {
            return Ok(());
        }
        Err(NodeError::Refused { what: "a lease".into(), reply })
    }

    /// Ends lease `id`, by which `bytes` were read.
    ///
    /// # Errors
    /// The connection's failure.
    pub(in crate::transport::cluster) fn release(
        &mut self,
        id: u64,
        bytes: u64,
    ) -> Result<(), NodeError> {
        self.command(&[format!("release {id:016x} {bytes}\r\n").as_bytes()]).map(drop)
    }

    /// The names of the images that the node knows, as `stats image` of imgcached tells them.
    ///
    /// # Errors
    /// As [`Self::stats`]; stock memcached refuses.
    pub fn image_names(&mut self) -> Result<Vec<ImageName>, NodeError> {
        let stats = self.stats("image")?;
        let name = |stat: &str| stat.strip_suffix(":manifest")?.parse().ok();
        Ok(stats.iter().filter_map(|(stat, _)| name(stat)).collect())
    }

    /// Sends a command that is answered by one line, such as imgcached's own, in `parts` with all
    /// ends of lines; returns the answer without its end.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn command(&mut self, parts: &[&[u8]]) -> Result<String, NodeError> {
        self.send(parts)?;
        self.line()
    }

    /// The next line of an answer, without its end.
    ///
    /// # Errors
    /// The connection's failure.
    pub(in crate::transport::cluster) fn line(&mut self) -> Result<String, NodeError> {
        let line = self.receiver.inbox.line(&mut self.stream);
        let line = self.checked(line)?;
        let text = String::from_utf8(line)
            .map_err(|error| NodeError::protocol("a line of text", error.as_bytes()));
        self.checked(text)
    }

    /// Sends all of `parts`.
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), NodeError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        let result = loop {
            IoSlice::advance_slices(&mut rest, 0);
            if rest.is_empty() {
                break self.stream.flush();
            }
            // The system takes 1024 at a time.
            let count = rest.len().min(1024);
            match self.stream.write_vectored(&rest[..count]) {
                Ok(0) => break Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
                Err(error) => break Err(error),
            }
        };
        self.checked(result.map_err(NodeError::Io))
    }

    /// After an error the connection is out of step.
    fn checked<T>(&mut self, result: Result<T, NodeError>) -> Result<T, NodeError> {
        result.map_err(|error| match error {
            error @ NodeError::Refused { .. } => error,
            NodeError::Io(error) => {
                self.broken = true;
                self.stream.failed(error)
            }
            error => {
                self.broken = true;
                error
            }
        })
    }
}

impl Put<'_> {
    fn header(&self) -> String {
        let mode = if self.add { " ME" } else { "" };
        format!("ms {} {} F{}{mode}\r\n", self.key, self.value.len(), self.kind.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_a_put_are_told_apart() {
        assert_eq!(PutAnswer::of("HD"), Some(PutAnswer::Stored));
        assert_eq!(PutAnswer::of("NS"), Some(PutAnswer::Kept));
        let busy = PutAnswer::of("SERVER_ERROR busy: retry after 250 ms");
        assert_eq!(busy, Some(PutAnswer::Busy(Duration::from_millis(250))));
        for refused in ["SERVER_ERROR busy: retry after a while", "SERVER_ERROR object too large"] {
            assert_eq!(PutAnswer::of(refused), Some(PutAnswer::Refused(refused.to_owned())));
        }
        assert_eq!((PutAnswer::of("EN"), PutAnswer::of("")), (None, None));
    }
}
