//! Why a node, or a whole cache, did not do what it was asked for.

use std::io;
use std::time::Duration;

use super::tcp::stream::TlsError;
use crate::cluster::members::MembersError;
use crate::image::manifest::ManifestError;
use crate::key::{ChunkKey, ManifestId};
use crate::transport::verbs::{Status, VerbsError};

/// What went wrong with one node. Does not name it: that is done where nodes are compared.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection came about.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// Nothing came although something was due.
    #[error("not a byte for {} ms", .0.as_millis())]
    Stalled(Duration),
    /// What it was doing has taken too long.
    #[error("not done in the time there was")]
    Deadline,
    /// It closed the connection in the middle.
    #[error("closed the connection")]
    Closed,
    /// It said what nobody says in this place.
    #[error("answered {found:?} where {expected} was due")]
    Protocol {
        /// What should have come.
        expected: &'static str,
        /// What came, cut short.
        found: String,
    },
    /// It knows what was asked for and will not do it.
    #[error("refused {what}: {reply}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its answer.
        reply: String,
    },
    /// A memcached from before the meta commands.
    #[error(
        "does not know the meta commands ('mg'); memcached 1.6 or later, or imgcached, is needed"
    )]
    NoMeta,
    /// RDMA failed on this host.
    #[error("RDMA: {0}")]
    Verbs(#[from] VerbsError),
    /// A READ or WRITE failed.
    #[error("RDMA: {0}")]
    Rdma(Status),
    /// The right to read has run out, because nobody asked for more time: this host stood still.
    #[error("the right to read by RDMA has run out")]
    Expired,
    /// It cannot be read in the way that was asked for.
    #[error("cannot be read as was asked for: {0}")]
    NoLink(String),
    /// It cannot be pushed to in the way that was asked for.
    #[error("cannot be pushed to as was asked for: {0}")]
    NoPush(String),
    /// It failed several times of late and is not asked before some time has passed.
    #[error("is not asked for another {} ms, since it failed: {last}", wait.as_millis())]
    LeftAlone {
        /// How long.
        wait: Duration,
        /// The last failure.
        last: String,
    },
}

impl NodeError {
    /// Whether the node may be of use in other ways than by RDMA.
    pub(super) fn is_of_rdma(&self) -> bool {
        matches!(self, Self::Verbs(_) | Self::Rdma(_) | Self::Refused { .. })
    }

    /// Whether more time might have helped: a network that is full is as silent as a node that is
    /// gone.
    pub(super) fn is_slow(&self) -> bool {
        match self {
            Self::Connect(error) => {
                matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
            }
            Self::Stalled(_) | Self::Deadline | Self::LeftAlone { .. } => true,
            _ => false,
        }
    }

    pub(super) fn protocol(expected: &'static str, found: &[u8]) -> Self {
        const SHOWN: usize = 60;
        let found = found.get(..SHOWN).unwrap_or(found);
        Self::Protocol { expected, found: String::from_utf8_lossy(found).into_owned() }
    }
}

/// Why a cache did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The membership file cannot be used.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody who could be asked has it, and not everybody could be asked.
    #[error("the cache cannot say anything of {what}: {}", list(said))]
    Unreachable {
        /// What was wanted.
        what: String,
        /// Each node and what it said.
        said: Vec<(String, String)>,
    },
    /// A chunk that is nowhere to be had.
    #[error("chunk {chunk} of image {image} ({key}) is nowhere to be had: {}", list(said))]
    Unavailable {
        /// The image's manifest.
        image: ManifestId,
        /// Position in the chunk table.
        chunk: u32,
        /// Its key.
        key: ChunkKey,
        /// Each node that should have it, and what it said.
        said: Vec<(String, String)>,
    },
    /// A load that took too long.
    #[error(
        "the load was not done after {} s: {left} chunks had not arrived; {}",
        after.as_secs(),
        failures(said)
    )]
    Deadline {
        /// How long it was given.
        after: Duration,
        /// Chunks that had not arrived.
        left: usize,
        /// Nodes that failed meanwhile, and how they did last.
        said: Vec<(String, String)>,
    },
    /// The cache's manifest is not what its id says.
    #[error("the cache's {0}")]
    Manifest(ManifestError),
    /// The origin has not what the cache lacks.
    #[error("the origin: {0}")]
    Origin(String),
    /// The cache did not take an item of an image that was to be published.
    #[error("the cache did not take {what} of image {image}: {}", list(said))]
    NotTaken {
        /// What was to be put.
        what: String,
        /// The image's manifest.
        image: ManifestId,
        /// Each node that should have it, and what it said.
        said: Vec<(String, String)>,
    },
    /// Items that were put are gone again.
    #[error(
        "the cache has lost {lost} of the {sent} items that were sent for image {image}: the \
         memory of its nodes is too small for it (memcached -m)"
    )]
    TooSmall {
        /// The image's manifest.
        image: ManifestId,
        /// Items that are gone.
        lost: usize,
        /// Items that were sent.
        sent: usize,
    },
}

impl ClusterError {
    /// Whether the cache could not be reached, or could not supply what it should have.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Unavailable { .. }
            | Self::Deadline { .. }
            | Self::Origin(_)
            | Self::NotTaken { .. }
            | Self::TooSmall { .. } => true,
            Self::Members(_) | Self::Tls(_) | Self::Manifest(_) => false,
        }
    }
}

/// How nodes failed, if any did.
fn failures(said: &[(String, String)]) -> String {
    if said.is_empty() { "no node failed".into() } else { list(said) }
}

/// What each node said, as one text.
fn list(said: &[(String, String)]) -> String {
    const SHOWN: usize = 8;
    let mut lines: Vec<String> =
        said.iter().take(SHOWN).map(|(node, words)| format!("{node}: {words}")).collect();
    if said.len() > SHOWN {
        lines.push(format!("and {} more", said.len() - SHOWN));
    }
    if lines.is_empty() { "no node holds it".into() } else { lines.join("; ") }
}
