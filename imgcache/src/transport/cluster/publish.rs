//! Puts an image into the cache: chunks, then the manifest, then the name.
//!
//! Nodes are asked first what they have, so that only what is missing is sent, and a publication that
//! was interrupted goes on where it was. Everything goes to all its replicas; a node that is down is
//! left out and told of, as long as each item has one node that took it. Before the name is set, all
//! that was sent is asked for again: memcached forgets without a word when its memory is full.

mod links;
mod publisher;
mod writes;

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub use self::links::NodePush;
use self::publisher::{Entry, Publisher, Source};
use super::{Cluster, LinkCounts};
use crate::client::Progress;
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::record::{ItemKey, Kind};
use crate::transport::{ChunkRead, Session, TransportError};

/// Bytes of chunks that are read, and then sent, at a time.
const BATCH_BYTES: usize = 8 << 20;
/// How often chunks that are gone again are sent again.
const MORE_ROUNDS: usize = 3;

/// What a publication did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublishReport {
    /// The image's id.
    pub id: ManifestId,
    /// Bytes of all chunks.
    pub bytes_total: u64,
    /// Bytes of chunks that at least one node was sent.
    pub bytes_new: u64,
    /// Bytes of chunks that all their nodes had already, or that the image has more than once.
    pub bytes_shared: u64,
    /// Bytes of chunks that are all zero.
    pub bytes_zero: u64,
    /// Bytes that went to nodes, counted for each replica, the manifest's included.
    pub bytes_sent: u64,
    /// The same, by what they went by.
    pub bytes_by: LinkCounts,
    /// The same of each node, and why by nothing faster; those that were sent nothing are left out.
    pub nodes: Vec<NodePush>,
    /// Number of all chunks.
    pub chunks_total: u64,
    /// Number of chunks that at least one node was sent.
    pub chunks_new: u64,
    /// Nodes that each item is on.
    pub replicas: usize,
    /// Revision of the name.
    pub revision: u64,
    /// Nodes that could not be given what they should have, and what they said.
    pub nodes_down: Vec<(String, String)>,
}

/// Publishes the image that `session` has under `name`.
///
/// # Errors
/// The source's failure; [`ClusterError::NotTaken`] and [`ClusterError::TooSmall`]. The name stands
/// for what it did before; what was sent stays for the next try.
pub fn publish(
    cluster: &Cluster,
    name: &ImageName,
    session: &dyn Session,
    progress: Option<Progress<'_>>,
) -> Result<PublishReport, TransportError> {
    let publisher = Publisher::new(cluster, session.manifest())?;
    let manifest = session.manifest();
    let mut seen = HashSet::new();
    let chunks: Vec<Entry> = manifest
        .all_chunks()
        .filter(|chunk| !chunk.entry.zero && seen.insert(chunk.entry.key))
        .map(|chunk| {
            let key = ItemKey::chunk(&chunk.entry.key);
            let length = usize::try_from(chunk.length).unwrap_or(usize::MAX);
            Entry { key, kind: Kind::Chunk, length, source: Source::Chunk(chunk.index) }
        })
        .collect();
    let missing = publisher.missing(&chunks)?;
    let bytes = |all: &mut dyn Iterator<Item = usize>| -> u64 {
        all.map(|length| u64::try_from(length).unwrap_or(0)).sum()
    };
    let bytes_new = bytes(&mut missing.iter().map(|(at, _)| chunks[*at].length));
    let bytes_zero =
        manifest.all_chunks().filter(|c| c.entry.zero).map(|c| u64::from(c.length)).sum();
    let total = manifest.data_bytes();
    if let Some(progress) = progress {
        progress(total - bytes_new);
    }
    send_chunks(&publisher, session, &chunks, &missing, progress)?;
    // A node that evicts may have let go of new chunks for later ones, before old items of other
    // images; each further round finds fewer of these.
    let mut last = if missing.is_empty() { 0 } else { usize::MAX };
    for _ in 0..MORE_ROUNDS {
        if last == 0 {
            break;
        }
        let gone = publisher.missing(&chunks)?;
        if gone.len() >= last {
            break;
        }
        last = gone.len();
        send_chunks(&publisher, session, &chunks, &gone, None)?;
    }
    publisher.send_manifest()?;
    let sent: Vec<Entry> = missing.iter().map(|(at, _)| chunks[*at].clone()).collect();
    publisher.require(&sent)?;
    let revision = publisher.set_name(name)?;
    let (bytes_sent, nodes_down) = publisher.end();
    let nodes = publisher.links();
    let mut bytes_by = LinkCounts::default();
    for (kind, bytes) in nodes.iter().flat_map(|node| node.bytes_by.named()) {
        bytes_by.add(kind, bytes);
    }
    Ok(PublishReport {
        id: publisher.id,
        bytes_total: total,
        bytes_new,
        bytes_shared: total - bytes_new - bytes_zero,
        bytes_zero,
        bytes_sent,
        bytes_by,
        nodes,
        chunks_total: u64::try_from(manifest.chunks.len()).unwrap_or(u64::MAX),
        chunks_new: u64::try_from(missing.len()).unwrap_or(u64::MAX),
        replicas: publisher.topology.replicas(),
        revision,
        nodes_down,
    })
}

/// Sends the chunks at these positions, each to the nodes beside it.
fn send_chunks(
    publisher: &Publisher<'_>,
    session: &dyn Session,
    chunks: &[Entry],
    missing: &[(usize, Vec<usize>)],
    progress: Option<Progress<'_>>,
) -> Result<(), TransportError> {
    let manifest = session.manifest();
    let mut rest = missing;
    // In one piece, so that it is registered at once where it is written by RDMA.
    let mut memory = Vec::new();
    while !rest.is_empty() {
        let mut sum = 0_usize;
        let fits = |(at, _): &&(usize, Vec<usize>)| {
            sum = sum.saturating_add(chunks[*at].length);
            sum <= BATCH_BYTES
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let lengths = || now.iter().map(|(at, _)| chunks[*at].length);
        memory.resize(lengths().sum(), 0);
        let mut unread = &mut memory[..];
        let buffers = lengths().map_while(|length| unread.split_off_mut(..length));
        let reads = now.iter().zip(buffers).filter_map(|((at, _), buffer)| {
            let Source::Chunk(index) = chunks[*at].source else { return None };
            let key = manifest.chunk(index)?.entry.key;
            Some(ChunkRead { index, key, buffer })
        });
        // What goes out is what the key says, whatever the source vouches for.
        session.fetch(reads.collect(), &|index, content| {
            manifest.chunk(index).is_some_and(|chunk| chunk.entry.has_key(content))
        })?;
        let mut unsent = &memory[..];
        let sent: Vec<(&Entry, &[u8], &[usize])> = now
            .iter()
            .zip(lengths().map_while(|length| unsent.split_off(..length)))
            .map(|((at, nodes), value)| (&chunks[*at], value, &nodes[..]))
            .collect();
        publisher.send(&sent)?;
        if let Some(progress) = progress {
            let bytes: usize = now.iter().map(|(at, _)| chunks[*at].length).sum();
            progress(u64::try_from(bytes).unwrap_or(0));
        }
        rest = later;
    }
    Ok(())
}

/// Publishes the manifest of an image whose chunks are there, and `name` if nobody has set it
/// meanwhile.
pub(super) fn publish_records(
    cluster: &Cluster,
    manifest: &Manifest,
    name: Option<&ImageName>,
) -> Result<(), TransportError> {
    let publisher = Publisher::new(cluster, manifest)?;
    publisher.send_manifest()?;
    if let Some(name) = name
        && cluster.name_record(name)?.is_none()
    {
        publisher.put_name(name, now(), true)?;
    }
    Ok(())
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
