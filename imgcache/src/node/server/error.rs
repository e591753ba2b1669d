//! What can go wrong before anything is served.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// A unix socket that cannot be listened on.
    #[error("cannot listen on {path}: {source}", path = path.display())]
    Unix {
        /// Its file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("{} is in use by another process", .0.display())]
    UnixInUse(PathBuf),
    /// No address at all.
    #[error("nothing to listen on: give an address or a unix socket")]
    NothingToListenOn,
    /// RDMA that was asked for by name.
    #[error("no RDMA: {0}")]
    Rdma(#[from] crate::transport::verbs::VerbsError),
    /// Pushes that were asked for.
    #[error("no pushes by RDMA (--rdma-push on): {0}")]
    Push(crate::node::push::PushOff),
    /// No threads.
    #[error("cannot start threads: {0}")]
    Threads(#[source] io::Error),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] super::tls::TlsError),
    /// More connections than there can be files.
    #[error(
        "{wanted} connections need {files} open files, and at most {limit} are allowed: raise \
         LimitNOFILE or 'ulimit -Hn', or ask for fewer connections"
    )]
    OpenFiles {
        /// Connections asked for.
        wanted: usize,
        /// Files that takes.
        files: u64,
        /// The hard limit.
        limit: u64,
    },
}
