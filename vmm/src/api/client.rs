//! A client of node agents, for commands: blocking, over a unix socket or by TLS.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ErrorBody;
use crate::exit::Exit;

/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take: somewhat longer than the agent takes at most.
const ANSWER_PATIENCE: Duration = Duration::from_secs(660);
/// The largest answer that is no stream, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// What is not as it is in a part of a path.
const NOT_IN_PATHS: &AsciiSet =
    &CONTROLS.add(b' ').add(b'/').add(b'?').add(b'#').add(b'%').add(b'+').add(b'"');

/// Where an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeAddress {
    /// A socket of this host.
    Unix(PathBuf),
    /// A host, by TLS.
    Https {
        /// Its name or address, as certificates have it.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address of an agent; use unix:/PATH or https://HOST:PORT")]
pub struct AddressError(String);

impl FromStr for NodeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
        let (host, port) = place.rsplit_once(':').ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() || host.contains('/') {
            Err(bad())
        } else {
            Ok(Self::Https { host, port })
        }
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https { host, port } if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// Why an agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error(
        "no node agent answers at {node}: {source}; start one with 'vmm node', or say where it is (--node)"
    )]
    Unreachable {
        /// Where it was looked for.
        node: NodeAddress,
        /// Why not.
        source: io::Error,
    },
    /// It is spoken to by TLS, and it is not said how.
    #[error("{0} needs --node-tls-ca, --node-tls-cert and --node-tls-key")]
    NoTls(NodeAddress),
    /// It says why not.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The connection was lost.
    #[error("the connection to the agent at {node} was lost: {reason}")]
    Lost {
        /// Which.
        node: NodeAddress,
        /// How.
        reason: String,
    },
    /// What it says makes no sense.
    #[error("the agent at {node} does not speak this version's language: {reason}")]
    Nonsense {
        /// Which.
        node: NodeAddress,
        /// What is wrong.
        reason: String,
    },
    /// No connection can be made here.
    #[error("cannot speak to agents: {0}")]
    System(io::Error),
}

impl ClientError {
    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } => Exit::NodeUnavailable,
            Self::NoTls(_) => Exit::Usage,
            Self::Refused(body) => Exit::of_kind(&body.kind),
            Self::Nonsense { .. } | Self::System(_) => Exit::Failure,
        }
    }
}

/// A client of one agent. Each request has a connection of its own.
#[derive(Clone)]
pub struct Client {
    node: NodeAddress,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What is sent with a request.
enum Content {
    Nothing,
    Json(Vec<u8>),
    Bytes(Vec<u8>),
}

/// A part of a path.
pub fn part(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, NOT_IN_PATHS)
}

impl Client {
    /// A client of the agent at `node`; nothing is sent yet.
    pub fn new(node: NodeAddress, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { node, tls }
    }

    /// Where the agent is.
    pub fn node(&self) -> &NodeAddress {
        &self.node
    }

    /// Gets what is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parsed(Method::GET, path, Content::Nothing)
    }

    /// Posts `body` to `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let text = serde_json::to_vec(body).map_err(|error| self.nonsense(&error))?;
        self.parsed(Method::POST, path, Content::Json(text))
    }

    /// Posts nothing to `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_nothing<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parsed(Method::POST, path, Content::Nothing)
    }

    /// Posts bytes to `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_bytes(&self, path: &str, bytes: &[u8]) -> Result<(), ClientError> {
        self.whole(Method::POST, path, Content::Bytes(bytes.to_vec())).map(drop)
    }

    /// Puts nothing at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parsed(Method::PUT, path, Content::Nothing)
    }

    /// Deletes what is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.whole(Method::DELETE, path, Content::Nothing).map(drop)
    }

    /// Deletes what is at `path`, and gets what there is then.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete_and_get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.parsed(Method::DELETE, path, Content::Nothing)
    }

    /// Gets what is at `path`, as it comes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stream(&self, path: &str) -> Result<Stream, ClientError> {
        let runtime = runtime()?;
        let body = runtime.block_on(async {
            let response = self.send(Method::GET, path, Content::Nothing).await?;
            self.check(response).await
        })?;
        Ok(Stream { runtime, body, piece: Bytes::new() })
    }

    fn parsed<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<T, ClientError> {
        let text = self.whole(method, path, content)?;
        serde_json::from_slice(&text).map_err(|error| self.nonsense(&error))
    }

    fn whole(&self, method: Method, path: &str, content: Content) -> Result<Bytes, ClientError> {
        runtime()?.block_on(async {
            let response = self.send(method, path, content).await?;
            let body = self.check(response).await?;
            self.collect(body).await
        })
    }

    fn nonsense(&self, reason: &dyn fmt::Display) -> ClientError {
        ClientError::Nonsense { node: self.node.clone(), reason: reason.to_string() }
    }

    fn lost(&self, reason: &dyn fmt::Display) -> ClientError {
        ClientError::Lost { node: self.node.clone(), reason: reason.to_string() }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { node: self.node.clone(), source }
    }

    /// The body of an answer that is no refusal.
    async fn check(&self, response: Response<Incoming>) -> Result<Incoming, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let text = self.collect(response.into_body()).await?;
        match serde_json::from_slice(&text) {
            Ok(body) => Err(ClientError::Refused(body)),
            Err(_) => Err(self.nonsense(&format!("status {status}"))),
        }
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        let limited = http_body_util::Limited::new(body, MAX_ANSWER);
        match timeout(ANSWER_PATIENCE, limited.collect()).await {
            Ok(Ok(all)) => Ok(all.to_bytes()),
            Ok(Err(error)) => Err(self.lost(&error)),
            Err(late) => Err(self.lost(&late)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<Response<Incoming>, ClientError> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        match &self.node {
            NodeAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).await;
                let stream = stream.map_err(|error| self.unreachable(error))?;
                self.speak(stream, method, path, content).await
            }
            NodeAddress::Https { host, port } => {
                let tls = self.tls.clone().ok_or_else(|| ClientError::NoTls(self.node.clone()))?;
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| self.unreachable(io::Error::other(error)))?;
                let connect = async {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    TlsConnector::from(tls).connect(name, stream).await
                };
                let stream = timeout(CONNECT_PATIENCE, connect).await;
                let stream = stream.unwrap_or_else(|_| Err(late()));
                let stream = stream.map_err(|error| self.unreachable(error))?;
                self.speak(stream, method, path, content).await
            }
        }
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<Response<Incoming>, ClientError> {
        let host = match &self.node {
            NodeAddress::Unix(_) => "localhost".to_owned(),
            node @ NodeAddress::Https { .. } => {
                node.to_string().trim_start_matches("https://").to_owned()
            }
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        let body = match content {
            Content::Nothing => Vec::new(),
            Content::Json(text) => {
                request = request.header(CONTENT_TYPE, "application/json");
                text
            }
            Content::Bytes(bytes) => {
                request = request.header(CONTENT_TYPE, "application/octet-stream");
                bytes
            }
        };
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| self.nonsense(&error))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| self.lost(&error))?;
        // It ends with the runtime, or with the connection.
        tokio::spawn(connection);
        match timeout(ANSWER_PATIENCE, sender.send_request(request)).await {
            Ok(answer) => answer.map_err(|error| self.lost(&because(&error))),
            Err(late) => Err(self.lost(&late)),
        }
    }
}

/// One thread, this one: it starts in microseconds.
fn runtime() -> Result<Runtime, ClientError> {
    Builder::new_current_thread().enable_all().build().map_err(ClientError::System)
}

/// An error with its causes: of TLS, the refusal of a certificate is one.
fn because(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// What an agent sends for as long as it likes.
pub struct Stream {
    runtime: Runtime,
    body: Incoming,
    piece: Bytes,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.body.frame()) {
                None => return Ok(0),
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    self.piece = frame.into_data().unwrap_or_default();
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Where an agent of this host listens unless told otherwise, in its folder.
pub fn socket_in(folder: &Path) -> PathBuf {
    folder.join("node.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["unix:/run/vmm/node.sock", "https://host-1:7000", "https://[::1]:7000"] {
            let address: NodeAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "unix:", "/run/x", "http://a:1", "https://a", "https://:1", "https://a:b"]
        {
            assert!(text.parse::<NodeAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_parts_of_paths() {
        assert_eq!(part("team/app@v2:1+x").to_string(), "team%2Fapp@v2:1%2Bx");
    }
}
