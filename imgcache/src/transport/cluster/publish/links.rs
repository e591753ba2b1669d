//! By what the chunks of a publication go to each node: decided once, and told in the report.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::writes::{self, NoOffer, Offer, Outcome};
use crate::parallel::lock;
use crate::transport::cluster::links::{Chosen, choose, is_on_this_host};
use crate::transport::cluster::{
    Cluster, Connection, LinkChoice, LinkCounts, LinkKind, Node, NodeError, Put,
};
use crate::transport::verbs::Domain;

/// How long a node may take to register its memory, where nothing but RDMA is wanted.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at that.
const PAUSE: Duration = Duration::from_millis(50);

/// What was sent to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodePush {
    /// The node.
    pub name: String,
    /// Bytes by what they were sent by.
    pub bytes_by: LinkCounts,
    /// Why by nothing faster, or not all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_reason: Option<String>,
}

/// How chunks go to a node.
#[derive(Debug, Default)]
enum Way {
    #[default]
    Unknown,
    /// By WRITE, out of this domain.
    Rdma(Domain, Offer),
    /// As all else.
    Tcp,
}

/// The way to one node, and what has gone it.
#[derive(Debug, Default)]
pub(super) struct NodeLink {
    way: Mutex<Way>,
    told: Mutex<(LinkCounts, Option<String>)>,
}

impl NodeLink {
    /// So many bytes went by the memcached protocol.
    pub(super) fn sent(&self, bytes: u64) {
        lock(&self.told).0.add(LinkKind::Tcp, bytes);
    }

    /// What was sent, to the node of this name; none if that is nothing.
    pub(super) fn report(&self, name: &str) -> Option<NodePush> {
        let (bytes_by, link_reason) = lock(&self.told).clone();
        let is_any = bytes_by.named().next().is_some();
        is_any.then(|| NodePush { name: name.to_owned(), bytes_by, link_reason })
    }

    fn because(&self, reason: String) {
        lock(&self.told).1.get_or_insert(reason);
    }

    /// Writes those of `chunks` by RDMA that go that way; returns the others. The memory of all of them is
    /// one piece.
    ///
    /// # Errors
    /// The node's failure, or that RDMA alone was wanted and cannot be had.
    pub(super) fn write<'a>(
        &self,
        cluster: &Cluster,
        node: &Node,
        chunks: &[Put<'a>],
        deadline: Instant,
    ) -> Result<Vec<Put<'a>>, NodeError> {
        let only = cluster.options().link == LinkChoice::Only(LinkKind::Rdma);
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*way, Way::Unknown) {
            *way = self.decide(cluster, node, deadline)?;
        }
        let Way::Rdma(domain, offer) = &*way else { return Ok(chunks.to_vec()) };
        let work = |connection: &mut Connection| {
            writes::write(domain, *offer, connection, chunks, deadline)
        };
        let writes::Written { outcomes, failed } = node.with(deadline, work)?;
        let mut left = Vec::new();
        for (chunk, outcome) in chunks.iter().zip(outcomes) {
            match outcome {
                Outcome::Stored => {
                    let bytes = u64::try_from(chunk.value.len()).unwrap_or(0);
                    lock(&self.told).0.add(LinkKind::Rdma, bytes);
                }
                Outcome::Had => (),
                Outcome::Left(reason) => {
                    self.because(format!("rdma: {reason}"));
                    left.push(*chunk);
                }
            }
        }
        match failed {
            Some(error) if only => return Err(NodeError::NoPush(error.to_string())),
            // It would fail again.
            Some(_) => *way = Way::Tcp,
            None => (),
        }
        Ok(left)
    }

    fn decide(&self, cluster: &Cluster, node: &Node, deadline: Instant) -> Result<Way, NodeError> {
        let only = match cluster.options().link {
            LinkChoice::Only(LinkKind::Rdma) => true,
            LinkChoice::Auto => false,
            LinkChoice::Only(LinkKind::Tcp) => return Ok(self.tcp("asked for".into())),
            LinkChoice::Only(LinkKind::Shared) => {
                return Ok(self.tcp("nothing is pushed through shared memory".into()));
            }
        };
        if !only && is_on_this_host(node.address()) {
            return Ok(self.tcp("rdma: it is on this host".into()));
        }
        let rdma = LinkChoice::Only(LinkKind::Rdma);
        let reason = match choose(node, rdma, &cluster.0.devices, deadline) {
            Ok(Chosen::Rdma(domain, _)) => match offer(node, only, deadline)? {
                Ok(offer) => return Ok(Way::Rdma(domain, offer)),
                Err(NoOffer::NotYet) if !only => {
                    self.because(format!("rdma: {}", NoOffer::NotYet));
                    return Ok(Way::Unknown);
                }
                Err(reason) => format!("rdma: {reason}"),
            },
            Ok(other) => other.reason().unwrap_or_default().to_owned(),
            Err(NodeError::NoLink(reason)) => reason,
            Err(error) => return Err(error),
        };
        if only { Err(NodeError::NoPush(reason)) } else { Ok(self.tcp(reason)) }
    }

    fn tcp(&self, reason: String) -> Way {
        self.because(reason);
        Way::Tcp
    }
}

/// What `node` takes by WRITE; waits until it knows, where it `must`.
fn offer(node: &Node, must: bool, deadline: Instant) -> Result<Result<Offer, NoOffer>, NodeError> {
    let until = deadline.min(Instant::now() + PATIENCE);
    loop {
        let stats = match node.with(deadline, |connection| connection.stats("rdma")) {
            Ok(stats) => stats,
            // As stock memcached does.
            Err(NodeError::Refused { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        match Offer::of(&stats) {
            Err(NoOffer::NotYet) if must && Instant::now() < until => std::thread::sleep(PAUSE),
            offer => return Ok(offer),
        }
    }
}
