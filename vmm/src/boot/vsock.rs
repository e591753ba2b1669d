//! The socket device of a VM, and the socket that is opened for it.
//!
//! Opening and making are apart, so that a process can do the one before it confines itself, or not at
//! all, and the other after. A listening socket is not bound to the view of files that its process has. A
//! connection from the guest is: it is made when the guest asks for it, by the path that the *process*
//! then has of the folder with the sockets. So a confined process is given that folder within its own
//! root (a bind mount, which may be read-only: connecting writes to a socket, not to the file system),
//! and the path there.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::vsock::{Counters, Counts, SocketPrefix, Vsock};
use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use crate::jail::root::Folder;

/// A socket in the file system, which is removed with this.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// Listens at `path`. A socket of a process that is gone does not stand in the way.
    ///
    /// # Errors
    /// Somebody listens there, something else is there, or the folder cannot be written to.
    pub fn listen(path: &Path) -> io::Result<(Self, UnixListener)> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        Ok((Self(path.to_owned()), listener))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether there is a socket at which nobody listens any more. To connect to any other file is refused in
/// the same words.
fn is_left_over(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connected = UnixStream::connect(path);
    socket && connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The folder of a socket, which a jailed process keeps at its root, and the path that the socket then has
/// there. The folder is visible to who confines itself and to nobody else's VM.
///
/// # Errors
/// The folder cannot be opened.
pub fn in_jail(socket: &Path) -> io::Result<(PathBuf, Folder)> {
    const NAME: &str = "vsock";
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    let name = socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((Path::new("/").join(NAME).join(name), Folder { name: NAME.into(), folder }))
}

/// What is left to those who gave a machine its device.
#[derive(Debug, Clone)]
pub struct VsockEnd {
    cid: u32,
    socket: PathBuf,
    counters: Arc<Counters>,
}

/// What a report says of the device.
#[derive(Debug, Serialize)]
pub struct VsockReport {
    /// The guest's context identifier.
    pub cid: u32,
    /// The socket at which programs of the host reach the guest, as the process of the VM sees it.
    pub socket: PathBuf,
    /// What the device has counted.
    #[serde(flatten)]
    pub counts: Counts,
}

impl VsockEnd {
    /// What there is to be told now.
    pub fn report(&self) -> VsockReport {
        let (cid, socket) = (self.cid, self.socket.clone());
        VsockReport { cid, socket, counts: self.counters.counts() }
    }
}

/// The device of a guest with the context identifier `cid`, to which programs of the host connect by
/// `listener`. `socket` is its path as this process will have it when the guest runs.
///
/// # Errors
/// No more descriptors.
pub fn device(
    cid: u32,
    listener: UnixListener,
    socket: PathBuf,
) -> io::Result<(Box<dyn VirtioDevice>, VsockEnd)> {
    let dialer = Box::new(SocketPrefix::new(&socket));
    let device = Vsock::new(cid, listener, dialer)?;
    let end = VsockEnd { cid, socket, counters: device.counters() };
    Ok((Box::new(device), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_left_over_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (file, _listener) = SocketFile::listen(&path).unwrap();
        let error = SocketFile::listen(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(file);
        assert!(!path.exists());
        std::fs::write(&path, "something else").unwrap();
        assert!(SocketFile::listen(&path).is_err());
        assert!(path.exists());
    }
}
