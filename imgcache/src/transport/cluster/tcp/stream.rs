//! A byte stream to a node: TCP, a socket of this host, or TLS over TCP; blocking, with deadlines.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::cluster::address::NodeAddress;
use crate::transport::cluster::error::NodeError;

/// Files with what TLS needs, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Certificates of the authorities that nodes' certificates must come from.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain, if nodes ask for one.
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate.
    pub key: Option<PathBuf>,
    /// The name that nodes' certificates must be for, if not the one in their address.
    pub server_name: Option<String>,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody is trusted.
    #[error("TLS wants a file with the certificates of trusted authorities")]
    NoAuthorities,
    /// One of a pair without the other.
    #[error("a client certificate and its key go together; only one of them is given")]
    HalfIdentity,
    /// A file that cannot be used.
    #[error("'{}': {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that no certificate can be for.
    #[error("'{0}' cannot be the name in a certificate")]
    ServerName(String),
    /// The library refused what the files have.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// TLS as it is spoken to all nodes of a cache.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that is missing or is not what it should be.
    pub fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        let bad = |path: &Path, error: &dyn fmt::Display| TlsError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let all = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| bad(path, &error))?;
            if all.is_empty() { Err(bad(path, &"has no certificate")) } else { Ok(all) }
        };
        let authorities = files.authorities.as_deref().ok_or(TlsError::NoAuthorities)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authorities)? {
            roots.add(certificate).map_err(|error| bad(authorities, &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match (&files.certificate, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error))?;
                builder.with_client_auth_cert(certificates(chain)?, secret)?
            }
            _ => return Err(TlsError::HalfIdentity),
        };
        // OpenSSL servers that verify clients, memcached among them, answer a resumption with an internal
        // error unless they have set a session context, which memcached has not.
        config.resumption = rustls::client::Resumption::disabled();
        let name = |name: &String| {
            ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))
        };
        let server_name = files.server_name.as_ref().map(name).transpose()?;
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// What connections go by.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }
}

/// How connections are made, and how patient they are.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// TLS, if nodes are spoken to by it.
    pub tls: Option<Tls>,
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long to wait for the next byte of an answer, or for room to send.
    pub progress: Duration,
}

enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connected stream. No read or write outlasts the dialer's patience or the stream's deadline.
pub(in crate::transport::cluster) struct Stream {
    kind: Kind,
    progress: Duration,
    /// What the socket's timeouts are set to.
    set: Duration,
    deadline: Option<Instant>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tcp(_) => "tcp",
            Kind::Unix(_) => "unix",
            Kind::Tls(_) => "tls",
        };
        f.debug_struct("Stream").field("kind", &kind).finish_non_exhaustive()
    }
}

impl Dialer {
    /// One who waits `1 << doublings` times as long.
    #[must_use]
    pub(in crate::transport::cluster) fn patient(&self, doublings: u32) -> Self {
        let more = |time: Duration| time.saturating_mul(1_u32 << doublings.min(16));
        Self { tls: self.tls.clone(), connect: more(self.connect), progress: more(self.progress) }
    }
}

impl Stream {
    pub(in crate::transport::cluster) fn connect(
        address: &NodeAddress,
        dialer: &Dialer,
    ) -> Result<Self, NodeError> {
        let kind = match address {
            NodeAddress::Unix(path) => {
                Kind::Unix(UnixStream::connect(path).map_err(NodeError::Connect)?)
            }
            NodeAddress::Tcp { host, port } => {
                let stream = connect_tcp(host, *port, dialer.connect)?;
                stream.set_nodelay(true).map_err(NodeError::Connect)?;
                match &dialer.tls {
                    None => Kind::Tcp(stream),
                    Some(tls) => Kind::Tls(Box::new(hand_shake(stream, host, tls, dialer)?)),
                }
            }
        };
        let progress = dialer.progress;
        let mut stream = Self { kind, progress, set: Duration::ZERO, deadline: None };
        stream.set_timeouts(progress).map_err(NodeError::Connect)?;
        Ok(stream)
    }

    /// Whether the other end has closed it, or its host says that there is nobody.
    pub(super) fn peer_is_gone(&self) -> bool {
        let mut byte = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = match &self.kind {
            Kind::Tcp(stream) => recv(stream, &mut byte[..], flags),
            Kind::Unix(stream) => recv(stream, &mut byte[..], flags),
            Kind::Tls(stream) => recv(&stream.sock, &mut byte[..], flags),
        };
        match peeked {
            Ok((_, length)) => length == 0,
            Err(error) => !matches!(error, Errno::WOULDBLOCK | Errno::INTR),
        }
    }

    /// No read or write waits for longer than `progress`, instead of the dialer's patience.
    pub(in crate::transport::cluster) fn set_patience(&mut self, progress: Duration) {
        self.progress = progress;
    }

    /// Nothing that is begun from now on goes on after `deadline`.
    pub(in crate::transport::cluster) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    fn set_timeouts(&mut self, timeout: Duration) -> io::Result<()> {
        if timeout == self.set {
            return Ok(());
        }
        let timeout_or_none = Some(timeout);
        match &self.kind {
            Kind::Tcp(stream) => {
                stream.set_read_timeout(timeout_or_none)?;
                stream.set_write_timeout(timeout_or_none)?;
            }
            Kind::Tls(stream) => {
                stream.sock.set_read_timeout(timeout_or_none)?;
                stream.sock.set_write_timeout(timeout_or_none)?;
            }
            Kind::Unix(stream) => {
                stream.set_read_timeout(timeout_or_none)?;
                stream.set_write_timeout(timeout_or_none)?;
            }
        }
        self.set = timeout;
        Ok(())
    }

    /// Before each call of the system that may wait.
    fn prepare(&mut self) -> io::Result<()> {
        let Some(deadline) = self.deadline else { return self.set_timeouts(self.progress) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, PastDeadline));
        }
        // In steps of 10 ms, not to set it for each read of a load's last second.
        let step = left.max(Duration::from_millis(10)).as_millis().div_ceil(10) * 10;
        let left = Duration::from_millis(u64::try_from(step).unwrap_or(u64::MAX));
        self.set_timeouts(left.min(self.progress))
    }

    /// What an error of reading or writing means.
    pub(in crate::transport::cluster) fn failed(&self, error: io::Error) -> NodeError {
        match error.kind() {
            _ if is_past_deadline(&error) => NodeError::Deadline,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let past = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if past { NodeError::Deadline } else { NodeError::Stalled(self.progress) }
            }
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => NodeError::Closed,
            _ => NodeError::Io(error),
        }
    }
}

/// Marks the error of a stream whose deadline has passed.
#[derive(Debug, thiserror::Error)]
#[error("past the deadline")]
struct PastDeadline;

fn is_past_deadline(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.and_then(|inner| inner.downcast_ref::<PastDeadline>()).is_some()
}

fn connect_tcp(host: &str, port: u16, patience: Duration) -> Result<TcpStream, NodeError> {
    let addresses = (host, port).to_socket_addrs().map_err(NodeError::Connect)?;
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(NodeError::Connect(last))
}

fn hand_shake(
    stream: TcpStream,
    host: &str,
    tls: &Tls,
    dialer: &Dialer,
) -> Result<StreamOwned<ClientConnection, TcpStream>, NodeError> {
    let failed = |error: rustls::Error| NodeError::Connect(io::Error::other(error));
    let name = match &tls.server_name {
        Some(name) => name.clone(),
        None => ServerName::try_from(host.to_owned())
            .map_err(|error| NodeError::Connect(io::Error::other(error)))?,
    };
    stream.set_read_timeout(Some(dialer.connect)).map_err(NodeError::Connect)?;
    stream.set_write_timeout(Some(dialer.connect)).map_err(NodeError::Connect)?;
    let session = ClientConnection::new(Arc::clone(&tls.config), name).map_err(failed)?;
    let mut stream = StreamOwned::new(session, stream);
    // Without application data to send it does the handshake and no more.
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(NodeError::Connect)?;
    }
    Ok(stream)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buffer)])
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            self.prepare()?;
            let read = match &mut self.kind {
                Kind::Tcp(stream) => stream.read_vectored(buffers),
                Kind::Unix(stream) => stream.read_vectored(buffers),
                Kind::Tls(stream) => stream.read_vectored(buffers),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                read => return read,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        self.prepare()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.write_vectored(buffers),
            Kind::Unix(stream) => stream.write_vectored(buffers),
            Kind::Tls(stream) => stream.write_vectored(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Tcp(stream) => stream.flush(),
            Kind::Unix(stream) => stream.flush(),
            Kind::Tls(stream) => stream.flush(),
        }
    }
}
