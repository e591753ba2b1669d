//! The sockets that the agent listens at.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("something listens at '{}' already; choose another path (--socket)", .0.display())]
    InUse(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen at '{}': {source}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There is no such group.
    #[error("there is no group '{0}' on this host")]
    Group(String),
}

/// Listens at a unix socket. A file that a process left behind is replaced.
///
/// # Errors
/// [`ListenError`].
pub fn unix(path: &Path, group: Option<&str>) -> Result<UnixListener, ListenError> {
    let fail = |source| ListenError::Unix { path: path.to_owned(), source };
    let group = group.map(group_number).transpose()?;
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).map_err(fail)?;
    }
    if is_left_behind(path).map_err(|_| ListenError::InUse(path.to_owned()))? {
        fs::remove_file(path).map_err(fail)?;
    }
    // Nobody can connect before it listens, and that it does when its permissions are set.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || -> io::Result<UnixListener> {
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        chown(path, None, group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        rustix::net::listen(&socket, i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
        UnixListener::from_std(socket.into())
    };
    make().map_err(fail)
}

/// Whether `path` is a socket at which nobody listens; an error if somebody does, or if it is
/// something else.
fn is_left_behind(path: &Path) -> io::Result<bool> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(false) };
    if !metadata.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The number of a group that is named, or is a number.
fn group_number(group: &str) -> Result<u32, ListenError> {
    let named = || {
        let groups = fs::read_to_string("/etc/group").ok()?;
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
        })
    };
    let number = group.parse().ok().or_else(named);
    number.ok_or_else(|| ListenError::Group(group.to_owned()))
}

/// Listens at a TCP address.
///
/// # Errors
/// [`ListenError::Tcp`].
pub fn tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ListenError::Tcp { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!(group_number("root").unwrap(), 0);
        assert_eq!(group_number("12345").unwrap(), 12345);
        assert!(matches!(group_number("no such group"), Err(ListenError::Group(_))));
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/node.sock");
        let listener = unix(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(unix(&path, None), Err(ListenError::InUse(_))));
        drop(listener);
        drop(unix(&path, Some("root")).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let file = folder.path().join("file");
        fs::write(&file, "not a socket").unwrap();
        assert!(matches!(unix(&file, None), Err(ListenError::InUse(_))));
    }
}
