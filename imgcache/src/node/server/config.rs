//! How the server is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::files::DEFAULT_CONNECTIONS;
use crate::node::cache::MAX_ITEM_BYTES;
use crate::node::rdma::RdmaConfig;

pub use crate::tls::TlsConfig;

/// What the server is to be like.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// TCP addresses to listen on; port 0 takes any free one.
    pub listen: Vec<SocketAddr>,
    /// A unix socket to listen on.
    pub unix: Option<UnixConfig>,
    /// With TLS on all TCP addresses.
    pub tls: Option<TlsConfig>,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a connection may be without a request.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may keep a request unfinished or a reply unread.
    pub stall_timeout: Duration,
    /// How long ending waits for leases and requests.
    pub drain_timeout: Duration,
    /// The largest value that the cache takes, for statistics.
    pub max_item_bytes: usize,
    /// What this node calls itself.
    pub node_name: String,
    /// Threads that serve.
    pub threads: usize,
    /// Whether and how clients may read by RDMA.
    pub rdma: RdmaChoice,
}

/// Whether and how clients may read by RDMA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RdmaChoice {
    /// Not at all.
    Off,
    /// If there is a device.
    Auto(RdmaConfig),
    /// In this way, or the node does not start.
    Required(RdmaConfig),
}

/// A unix socket.
#[derive(Debug, Clone)]
pub struct UnixConfig {
    /// Its file, which is replaced if nobody listens there.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 11211))],
            unix: None,
            tls: None,
            max_connections: DEFAULT_CONNECTIONS,
            idle_timeout: None,
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            max_item_bytes: MAX_ITEM_BYTES,
            node_name: "imgcached".to_owned(),
            threads: 1,
            rdma: RdmaChoice::Off,
        }
    }
}
