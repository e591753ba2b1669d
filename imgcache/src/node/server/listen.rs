//! Listening, and what comes of a connection until it is served.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::config::UnixConfig;
use super::connections::{Address, Registered};
use super::error::ServerError;
use super::stream::{self, Stream};
use super::tls::Tls;
use super::{Shared, connection};
use crate::node::cache::Now;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause when there are no files for another connection.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);
/// What memcached says to a connection too many.
const TOO_MANY: &[u8] = b"ERROR Too many open connections\r\n";

/// Listens on a TCP address.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            // Each address is its own: [::] does not take IPv4 along.
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ServerError::Listen { address, source })
}

/// Listens on a unix socket. A file that a process left behind is replaced.
pub(super) fn unix(config: &UnixConfig) -> Result<UnixListener, ServerError> {
    let path = &config.path;
    let fail = |source| ServerError::Unix { path: path.clone(), source };
    if is_left_behind(path).map_err(|_| ServerError::UnixInUse(path.clone()))? {
        fs::remove_file(path).map_err(fail)?;
    }
    // Nobody can connect between bind and the permissions: those of the file are set first.
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|error| fail(error.into()))?;
    let address = rustix::net::SocketAddrUnix::new(path).map_err(|error| fail(error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| fail(error.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(config.mode)).map_err(fail)?;
    let backlog = i32::try_from(BACKLOG).unwrap_or(i32::MAX);
    rustix::net::listen(&socket, backlog).map_err(|error| fail(error.into()))?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket)).map_err(fail)
}

/// Whether `path` is a socket on which nobody listens; an error if somebody does, or if it is
/// something else.
fn is_left_behind(path: &Path) -> io::Result<bool> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(false) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

/// Accepts TCP connections, for ever.
pub(super) async fn accept_tcp(shared: Arc<Shared>, listener: TcpListener, local: SocketAddr) {
    let local = Address::Tcp(local);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream::configure(&stream) {
                    // It was gone already.
                    tracing::debug!("{peer}: {error}");
                    continue;
                }
                match enter(&shared, &stream, Address::Tcp(peer), &local) {
                    Some(registered) => match stream.into_std() {
                        Ok(stream) => {
                            shared.workers.spawn(serve_tcp(shared.clone(), stream, registered));
                        }
                        Err(error) => pause(&shared, &error).await,
                    },
                    // Who expects TLS would not understand it.
                    None if shared.tls.is_some() => refused(&shared),
                    None => turn_away(&shared, stream).await,
                }
            }
            Err(error) => pause(&shared, &error).await,
        }
    }
}

/// Accepts connections to the unix socket, for ever.
pub(super) async fn accept_unix(shared: Arc<Shared>, listener: UnixListener, local: Address) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match enter(&shared, &stream, local.clone(), &local) {
                Some(registered) => match stream.into_std() {
                    Ok(stream) => {
                        shared.workers.spawn(serve_unix(shared.clone(), stream, registered));
                    }
                    Err(error) => pause(&shared, &error).await,
                },
                None => turn_away(&shared, stream).await,
            },
            Err(error) => pause(&shared, &error).await,
        }
    }
}

fn enter(
    shared: &Shared,
    stream: &(impl AsFd + AsRawFd),
    peer: Address,
    local: &Address,
) -> Option<Registered> {
    let now = Now::system().monotonic;
    let registered = shared.connections.enter(stream.as_raw_fd(), peer, local.clone(), now)?;
    shared.counters.connections.add_one();
    Some(registered)
}

/// Serves a connection; in the event loop that it is to stay with.
async fn serve_tcp(shared: Arc<Shared>, stream: std::net::TcpStream, registered: Registered) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return shared.log.warn(|| format!("a connection was lost: {error}")),
    };
    match shared.tls.clone() {
        None => connection::serve(shared, Stream::Tcp(stream), registered).await,
        // Apart, so that connections without TLS do not carry it along.
        Some(tls) => Box::pin(shake_hands(shared, tls, stream, registered)).await,
    }
}

/// The same of the unix socket.
async fn serve_unix(
    shared: Arc<Shared>,
    stream: std::os::unix::net::UnixStream,
    registered: Registered,
) {
    match UnixStream::from_std(stream) {
        Ok(stream) => connection::serve(shared, Stream::Unix(stream), registered).await,
        Err(error) => shared.log.warn(|| format!("a connection was lost: {error}")),
    }
}

async fn shake_hands(
    shared: Arc<Shared>,
    tls: Arc<Tls>,
    stream: TcpStream,
    registered: Registered,
) {
    let handshake = Box::pin(TlsAcceptor::from(tls.current()).accept(stream));
    let error = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => {
            let stream = Stream::Tls(Box::new(stream));
            return connection::serve(shared, stream, registered).await;
        }
        Ok(Err(error)) => error,
        Err(_) => io::Error::from(io::ErrorKind::TimedOut),
    };
    shared.counters.handshake_errors.add_one();
    shared.log.warn(|| format!("{}: TLS handshake: {error}", registered.connection.peer));
}

fn refused(shared: &Shared) {
    shared.counters.refused_connections.add_one();
    shared.log.warn(|| "a connection was refused: there are too many");
}

/// Something that one can write to and that takes without waiting.
trait TurnAway {
    fn take_what_came(&self);
}

impl TurnAway for TcpStream {
    fn take_what_came(&self) {
        let _ = self.try_read(&mut [0; 4096]);
    }
}

impl TurnAway for UnixStream {
    fn take_what_came(&self) {
        let _ = self.try_read(&mut [0; 4096]);
    }
}

/// Tells a client that it is one too many.
async fn turn_away(shared: &Shared, mut stream: impl TurnAway + AsyncWriteExt + Unpin) {
    refused(shared);
    // The socket's buffer is empty: it takes a line at once. What the client sent already must be
    // read, or closing would take the line back.
    let _ = timeout(super::GOODBYE, stream.write_all(TOO_MANY)).await;
    stream.take_what_came();
    let _ = timeout(super::GOODBYE, stream.shutdown()).await;
}

async fn pause(shared: &Shared, error: &io::Error) {
    let start = Instant::now();
    shared.counters.out_of_files.add_one();
    shared.log.warn(|| format!("no connection can be accepted: {error}"));
    tokio::time::sleep(OUT_OF_FILES_PAUSE).await;
    let waited = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.counters.out_of_files_us.add(waited);
}
