//! Chunks out of the memory of a node on this host, without a word to the node.
//!
//! - `mapping`: the memory;
//! - [`link`]: a thread's part of a load.

pub(super) mod link;
mod mapping;

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use self::mapping::Mapping;
use crate::index::IndexKey;
use crate::index::announce::{Announcement, AnnouncementError};
use crate::index::entry::Entry;
use crate::index::reader::{Bucket, BucketSource, Lookup};
use crate::index::table::BUCKET_BYTES;

/// Bytes that the answer of a node may have.
const ANSWER_BYTES: usize = 512;

/// The memory of a node.
#[derive(Debug)]
pub(super) struct SharedArena {
    announcement: Announcement,
    mapping: Mapping,
    /// Ends with the node, and nothing comes on it.
    stream: UnixStream,
}

/// Why a node's memory cannot be read in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShareError {
    /// Its socket cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not share; its answer.
    #[error("it answered {0:?}")]
    Refused(String),
    /// It announced what cannot be.
    #[error("{0}")]
    Announcement(#[from] AnnouncementError),
}

/// Nothing of the index is outside of the mapping, or else the announcement was not true of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bucket {0} of the node's index is outside of its memory")]
pub(super) struct Outside(u64);

impl SharedArena {
    /// Has the node at a socket of this host hand over its memory (`share`, in
    /// `docs/cache-protocol.md`).
    ///
    /// # Errors
    /// The socket's, or that the node does not share.
    pub(super) fn of_socket(path: &Path, patience: Duration) -> Result<Self, ShareError> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(b"share\r\n")?;
        let (answer, memory) = receive(&stream)?;
        let announced = answer.strip_suffix("\r\n").and_then(|line| line.strip_prefix("SHARE "));
        match (announced, memory) {
            (Some(announced), Some(memory)) => Self::new(announced.parse()?, &memory, stream),
            _ => Err(ShareError::Refused(answer)),
        }
    }

    fn new(
        announcement: Announcement,
        memory: &OwnedFd,
        stream: UnixStream,
    ) -> Result<Self, ShareError> {
        let length = usize::try_from(announcement.exported.bytes).map_err(io::Error::other)?;
        let mapping = Mapping::new(memory, length)?;
        stream.set_nonblocking(true)?;
        Ok(Self { announcement, mapping, stream })
    }

    /// Whether the node that handed it over still runs.
    pub(super) fn is_alive(&self) -> bool {
        let mut nothing = [0; 1];
        let end = (&self.stream).read(&mut nothing);
        matches!(end, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn lookup(&self, key: IndexKey) -> Result<Lookup, Outside> {
        self.announcement.exported.lookup(&mut &*self, key)
    }

    /// Copies the content of `entry`; whether it is inside the memory, and as long as `out`.
    fn copy(&self, entry: &Entry, out: &mut [u8]) -> bool {
        usize::try_from(entry.length) == Ok(out.len())
            && usize::try_from(entry.offset).is_ok_and(|offset| self.mapping.copy(offset, out))
    }
}

/// One line, and the file that came with it.
fn receive(stream: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut answer = Vec::new();
    let mut memory = None;
    while !answer.ends_with(b"\n") && answer.len() < ANSWER_BYTES {
        let mut bytes = [0; ANSWER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(stream, &mut parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => continue,
            received => received?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                memory = memory.or(files.last());
            }
        }
        if received.bytes == 0 || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&bytes[..received.bytes]);
    }
    Ok((String::from_utf8_lossy(&answer).into_owned(), memory))
}

impl BucketSource for &SharedArena {
    type Error = Outside;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> Result<(), Outside> {
        for (number, bucket) in buckets.into_iter().zip(out) {
            let start = number
                .checked_mul(BUCKET_BYTES as u64)
                .and_then(|offset| offset.checked_add(self.announcement.index))
                .and_then(|offset| usize::try_from(offset).ok())
                .ok_or(Outside(number))?;
            for (at, word) in bucket.iter_mut().flatten().enumerate() {
                *word = self.mapping.word(start + at * 8).ok_or(Outside(number))?;
            }
        }
        Ok(())
    }
}
