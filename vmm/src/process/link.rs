//! The connection between the node agent and the process of a VM that it has started: one message
//! there, with all files that the VM needs, and one back, when it is ready or has failed.
//!
//! It is the process' standard input, a pair of sequenced packet sockets: a message is a packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::boot::report::Phase;
use crate::net::Network;
use crate::spec::VmSpec;
use crate::spec::name::VmName;

/// The longest message, in bytes: a VM's description with a command line of 64 KiB, escaped.
const MAX_MESSAGE: usize = 160 << 10;
/// The most descriptors that go with one: a limit of the kernel's is 253 (`SCM_MAX_FD`).
const MAX_FILES: usize = 32;

/// What a descriptor that a VM is given is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// The lock that says that the VM lives.
    Lock,
    /// `/dev/kvm`.
    Kvm,
    /// The file of the pool that holds its image.
    Image,
    /// That image's manifest.
    Manifest,
    /// Where its console is written to.
    Console,
    /// Where what the guest says of itself is written to.
    Events,
    /// Where its report is written to at its end.
    Report,
    /// The socket at which it is told things.
    Socket,
    /// The interface of its network, which [`Start::network`] describes.
    Tap,
    /// A stream to who serves the chunks of its image's disk ([`imgcache::lazy::served`]).
    Chunks,
    /// The file of its disk's overlay.
    Overlay,
    /// The socket of its socket device.
    Vsock,
}

/// What a VM is told first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// Its number on the node.
    pub number: u64,
    /// Its name.
    pub name: VmName,
    /// What it is to be.
    pub spec: VmSpec,
    /// What it is on its network, if it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// How it confines itself when it has loaded (as of `jail::Confinement`); not at all without.
    pub confinement: Option<String>,
    /// Whether it waits, when it is ready, to be told to start.
    pub hold: bool,
    /// The id of its image's manifest.
    pub manifest: String,
    /// Whether the file of its image is in 2 MiB pages.
    pub huge_pages: bool,
    /// Where the socket of its socket device is, as it sees it once it is confined.
    pub vsock: Option<PathBuf>,
    /// What each of the descriptors is that come with this, in their order.
    pub given: Vec<Given>,
}

/// What a VM tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It is ready to boot.
    Ready {
        /// Its phases since its process began.
        phases: Vec<ToldPhase>,
        /// Its report so far, as of `vmm boot --json`.
        report: serde_json::Value,
    },
    /// It never will be.
    Failed {
        /// The exit code with which its process ends.
        code: u8,
        /// Why, and what to do.
        message: String,
    },
}

/// A phase, as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToldPhase {
    /// What was done.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

impl From<&Phase> for ToldPhase {
    fn from(phase: &Phase) -> Self {
        Self { name: phase.name.to_owned(), ms: phase.ms }
    }
}

/// One end of a link.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both ends of a new one. They are closed when a program is executed.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// The end that a process was given.
    pub fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    /// The descriptor.
    pub fn into_inner(self) -> OwnedFd {
        self.0
    }

    /// Sends a message, with descriptors of which the other end gets copies.
    ///
    /// # Errors
    /// The message is too long, or nobody is there.
    pub fn send(&self, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MAX_MESSAGE || files.len() > MAX_FILES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let packet = [IoSlice::new(&text)];
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &packet, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message, with its descriptors; `None` when the other end is gone.
    ///
    /// # Errors
    /// It is no such message, or was cut off.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = vec![0; MAX_MESSAGE];
        let mut packet = [IoSliceMut::new(&mut text)];
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut packet, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        Ok(Some((serde_json::from_slice(&text[..received.bytes])?, files)))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn a_message_arrives_with_its_files() {
        let (here, there) = Link::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let message = Told::Failed { code: 7, message: "x".repeat(100_000) };
        here.send(&message, &[file.as_fd(), there.as_fd()]).unwrap();
        file.write_all(b"seen").unwrap();
        let (told, mut files) = there.receive::<Told>().unwrap().unwrap();
        assert!(matches!(told, Told::Failed { code: 7, message } if message.len() == 100_000));
        assert_eq!(files.len(), 2);
        let mut same = std::fs::File::from(files.remove(0));
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seen");
        drop(files);
        drop(here);
        assert!(there.receive::<Told>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (here, there) = Link::pair().unwrap();
        here.send(&"hello", &[]).unwrap();
        assert!(there.receive::<Told>().is_err());
        let long = "x".repeat(MAX_MESSAGE);
        assert!(here.send(&long, &[]).is_err());
    }
}
