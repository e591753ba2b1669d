//! Chunks out of the memory of a node on this host, without a word to the node.
//!
//! The memory is a file without a name. It is read by `pread`, not mapped: a mapping costs a page table
//! entry for each page of it in each process that loads, which took six times as long as the copying.
//!
//! - [`link`]: a thread's part of a load.

pub(super) mod link;

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::{Errno, pread};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::index::IndexKey;
use crate::index::announce::{Announcement, AnnouncementError};
use crate::index::entry::Entry;
use crate::index::reader::{Bucket, BucketSource, Lookup, bucket_of};
use crate::index::table::BUCKET_BYTES;

/// Bytes that the answer of a node may have.
const ANSWER_BYTES: usize = 512;

/// The memory of a node.
#[derive(Debug)]
pub(super) struct SharedArena {
    announcement: Announcement,
    memory: OwnedFd,
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
            (Some(announced), Some(memory)) => {
                stream.set_nonblocking(true)?;
                Ok(Self { announcement: announced.parse()?, memory, stream })
            }
            _ => Err(ShareError::Refused(answer)),
        }
    }

    /// Which start of the node it is of.
    pub(super) fn boot_id(&self) -> u64 {
        self.announcement.exported.boot_id
    }

    /// Whether the node that handed it over still runs.
    pub(super) fn is_alive(&self) -> bool {
        let mut nothing = [0; 1];
        let end = (&self.stream).read(&mut nothing);
        matches!(end, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn lookup(&self, key: IndexKey) -> io::Result<Lookup> {
        self.announcement.exported.lookup(&mut &*self, key)
    }

    /// Copies the content of `entry`, which is as long as `out`. It may be of several moments.
    fn copy(&self, entry: &Entry, out: &mut [u8]) -> io::Result<()> {
        self.read(entry.offset, out)
    }

    fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match pread(&self.memory, &mut *out, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    out = &mut out[length..];
                    offset += length as u64;
                }
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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
            Err(Errno::INTR) => continue,
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
    type Error = io::Error;

    fn read(&mut self, buckets: [u64; 2], out: &mut [Bucket; 2]) -> io::Result<()> {
        for (number, bucket) in buckets.into_iter().zip(out) {
            let mut bytes = [0; BUCKET_BYTES];
            let offset = self.announcement.index + number * BUCKET_BYTES as u64;
            SharedArena::read(self, offset, &mut bytes)?;
            *bucket = bucket_of(&bytes);
        }
        Ok(())
    }
}
