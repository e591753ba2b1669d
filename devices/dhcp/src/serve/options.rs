//! Which server to be, and why there is none.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use super::packet;
use crate::journal::JournalError;
use crate::mirror::session::Secret;
use crate::record::RecordError;
use crate::settings::{Settings, SettingsError};

/// Which server to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interface, which may be a bridge, whose clients are served.
    pub interface: String,
    /// What is served; alike at all mirrors.
    pub settings: Settings,
    /// The file of boot records.
    pub records: Option<PathBuf>,
    /// Where the journal and the socket are.
    pub state: PathBuf,
    /// Other servers.
    pub mirrors: Vec<SocketAddr>,
    /// Where others find this one.
    pub listen: Option<SocketAddr>,
    /// What it shares with them.
    pub secret: Option<Secret>,
    /// It is the first of its group.
    pub first: bool,
    /// It serves without mirrors: somebody knows that no other serves.
    pub alone: bool,
    /// Changes are on the disk before they are committed, also where a mirror has them.
    pub sync: bool,
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Of the settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Of the records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Of the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Neither mirror nor the word that it is to serve without.
    #[error(
        "this server has no mirror, and a lease that only it knows of is lost with it: name one with --mirror, \
         or be one with --listen-mirror; or say --no-mirror"
    )]
    NoMirror,
    /// Mirrors without a secret.
    #[error("mirrors know each other by a secret: give all the same --secret-file")]
    NoSecret,
    /// Of the interface.
    #[error("cannot use the interface '{interface}': {source}")]
    Interface {
        /// Its name.
        interface: String,
        /// Why not.
        source: io::Error,
    },
    /// Of a socket.
    #[error("cannot {what}: {source}")]
    Socket {
        /// What.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// The address by which `interface` would speak to those in its `subnet`.
///
/// # Errors
/// It has none, or is not there.
pub fn address_of(interface: &str, subnet: ipnet::Ipv4Net) -> Result<Ipv4Addr, ServeError> {
    let failed = |source| ServeError::Interface { interface: interface.to_owned(), source };
    let find = || -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        packet::bind_to_device(&socket, interface)?;
        // Nothing is sent: only the route is looked up.
        socket.connect((subnet.hosts().last().unwrap_or(subnet.network()), 9))?;
        socket.local_addr()
    };
    match find().map_err(failed)? {
        SocketAddr::V4(address) if subnet.contains(address.ip()) => Ok(*address.ip()),
        _ => Err(failed(io::Error::other(format!("it has no address in {subnet}")))),
    }
}
