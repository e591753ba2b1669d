//! Puts an image into the cache: chunks, then the manifest, then the name.
//!
//! Nodes are asked first what they have, so that only what is missing is sent, and a publication that
//! was interrupted goes on where it was. Everything goes to all its replicas; a node that is down is
//! left out and told of, as long as each item has one node that took it. Before the name is set, all
//! that was sent is asked for again: memcached forgets without a word when its memory is full.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::connection::{Put, PutAnswer};
use super::error::NodeError;
use super::node::Topology;
use super::{Cluster, ClusterError};
use crate::client::Progress;
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::{self, lock};
use crate::record::{ItemKey, Kind, NameRecord, PIECE_BYTES};
use crate::transport::{ChunkRead, Session, TransportError};

/// Bytes of chunks that are read, and then sent, at a time.
const BATCH_BYTES: usize = 8 << 20;
/// How long one exchange with a node may take.
const EXCHANGE: Duration = Duration::from_secs(30);

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
    let mut rest = &missing[..];
    while !rest.is_empty() {
        let mut sum = 0_usize;
        let fits = |(at, _): &&(usize, Vec<usize>)| {
            sum = sum.saturating_add(chunks[*at].length);
            sum <= BATCH_BYTES
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        let mut memory: Vec<Vec<u8>> =
            now.iter().map(|(at, _)| vec![0; chunks[*at].length]).collect();
        let reads = now.iter().zip(&mut memory).filter_map(|((at, _), buffer)| {
            let Source::Chunk(index) = chunks[*at].source else { return None };
            let key = manifest.chunk(index)?.entry.key;
            Some(ChunkRead { index, key, buffer })
        });
        // What goes out is what the key says, whatever the source vouches for.
        session.fetch(reads.collect(), &|index, content| {
            manifest.chunk(index).is_some_and(|chunk| chunk.entry.has_key(content))
        })?;
        let sent: Vec<(&Entry, &[u8], &[usize])> = now
            .iter()
            .zip(&memory)
            .map(|((at, nodes), value)| (&chunks[*at], &value[..], &nodes[..]))
            .collect();
        publisher.send(&sent)?;
        if let Some(progress) = progress {
            progress(bytes(&mut now.iter().map(|(at, _)| chunks[*at].length)));
        }
        rest = later;
    }
    publisher.send_manifest()?;
    let sent: Vec<Entry> = missing.iter().map(|(at, _)| chunks[*at].clone()).collect();
    publisher.require(&sent)?;
    let revision = publisher.set_name(name)?;
    let (bytes_sent, nodes_down) = publisher.end();
    Ok(PublishReport {
        id: publisher.id,
        bytes_total: total,
        bytes_new,
        bytes_shared: total - bytes_new - bytes_zero,
        bytes_zero,
        bytes_sent,
        chunks_total: u64::try_from(manifest.chunks.len()).unwrap_or(u64::MAX),
        chunks_new: u64::try_from(missing.len()).unwrap_or(u64::MAX),
        replicas: publisher.topology.replicas(),
        revision,
        nodes_down,
    })
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

/// An item that the image needs.
#[derive(Debug, Clone)]
struct Entry {
    key: ItemKey,
    kind: Kind,
    length: usize,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// The chunk at this position of the chunk table.
    Chunk(u32),
    /// This part of the manifest.
    Piece(Range<usize>),
    Name,
}

struct Publisher<'c> {
    cluster: &'c Cluster,
    topology: std::sync::Arc<Topology>,
    id: ManifestId,
    encoded: Vec<u8>,
    /// What each node that failed said; it is not asked again.
    down: Mutex<Vec<Option<String>>>,
    sent: Mutex<u64>,
}

impl<'c> Publisher<'c> {
    fn new(cluster: &'c Cluster, manifest: &Manifest) -> Result<Self, TransportError> {
        let encoded = manifest.encode().map_err(ClusterError::Manifest)?;
        let topology = cluster.topology();
        let down = Mutex::new(vec![None; topology.nodes.len()]);
        let id = ManifestId::of(&encoded);
        Ok(Self { cluster, topology, id, encoded, down, sent: Mutex::default() })
    }

    /// Positions of those of `entries` that some of their nodes lack, and these nodes.
    fn missing(&self, entries: &[Entry]) -> Result<Vec<(usize, Vec<usize>)>, TransportError> {
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); self.topology.nodes.len()];
        for (at, entry) in entries.iter().enumerate() {
            for node in self.topology.candidates(&entry.key.index_key()).current() {
                wanted[node].push(at);
            }
        }
        let lacking: Mutex<Vec<(usize, usize)>> = Mutex::default();
        self.each_node(|node| {
            let keys: Vec<ItemKey> = wanted[node].iter().map(|at| entries[*at].key).collect();
            if keys.is_empty() {
                return;
            }
            let Some(lengths) = self.exchange(node, |c| c.lengths(&keys)) else { return };
            let lacks = wanted[node].iter().zip(lengths).filter(|(at, length)| {
                let expected = u64::try_from(entries[**at].length).ok();
                *length != expected
            });
            lock(&lacking).extend(lacks.map(|(at, _)| (*at, node)));
        });
        let mut lacking = lacking.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        lacking.sort_unstable();
        let mut missing: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, node) in lacking {
            match missing.last_mut() {
                Some((last, nodes)) if *last == at => nodes.push(node),
                _ => missing.push((at, vec![node])),
            }
        }
        for entry in entries {
            self.require_a_node(entry)?;
        }
        Ok(missing)
    }

    /// Sends each item with its content to the nodes that lack it.
    fn send(&self, items: &[(&Entry, &[u8], &[usize])]) -> Result<(), TransportError> {
        let refused: Mutex<Option<(String, String, String)>> = Mutex::default();
        self.each_node(|node| {
            let puts: Vec<Put<'_>> = items
                .iter()
                .filter(|(_, _, nodes)| nodes.contains(&node))
                .map(|(entry, value, _)| Put {
                    key: &entry.key,
                    kind: entry.kind,
                    value,
                    add: false,
                })
                .collect();
            self.put(node, &puts, &refused);
        });
        self.check(refused)?;
        items.iter().try_for_each(|(entry, _, _)| self.require_a_node(entry))
    }

    fn put(
        &self,
        node: usize,
        puts: &[Put<'_>],
        refused: &Mutex<Option<(String, String, String)>>,
    ) {
        if puts.is_empty() {
            return;
        }
        let Some(answers) = self.exchange(node, |connection| connection.put(puts)) else { return };
        let bytes: usize = puts.iter().map(|put| put.value.len()).sum();
        *lock(&self.sent) += u64::try_from(bytes).unwrap_or(0);
        for (put, answer) in puts.iter().zip(answers) {
            if let PutAnswer::Refused(reply) = answer {
                let what = format!("item {} of {} bytes", put.key, put.value.len());
                let name = self.topology.nodes[node].name().to_owned();
                lock(refused).get_or_insert((what, name, reply));
            }
        }
    }

    /// A node that is up and does not take something will not take it the next time either.
    fn check(
        &self,
        refused: Mutex<Option<(String, String, String)>>,
    ) -> Result<(), TransportError> {
        let refused = refused.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((what, node, reply)) = refused else { return Ok(()) };
        let hint = if reply.contains("too large") {
            " (let it take larger items: memcached -I 2m; or push in smaller chunks)"
        } else {
            ""
        };
        let said = vec![(node, format!("{reply}{hint}"))];
        Err(ClusterError::NotTaken { what, image: self.id, said }.into())
    }

    fn pieces(&self) -> Vec<Entry> {
        let ranges = (0..self.encoded.len()).step_by(PIECE_BYTES);
        let ends = ranges.map(|start| start..(start + PIECE_BYTES).min(self.encoded.len()));
        (0..)
            .zip(ends)
            .map(|(number, range)| Entry {
                key: ItemKey::manifest_piece(&self.id, number),
                kind: Kind::ManifestPiece,
                length: range.len(),
                source: Source::Piece(range),
            })
            .collect()
    }

    fn send_manifest(&self) -> Result<(), TransportError> {
        let pieces = self.pieces();
        let missing = self.missing(&pieces)?;
        let content = |entry: &Entry| match &entry.source {
            Source::Piece(range) => self.encoded.get(range.clone()).unwrap_or_default(),
            Source::Chunk(_) | Source::Name => &[],
        };
        let items =
            missing.iter().map(|(at, nodes)| (&pieces[*at], content(&pieces[*at]), &nodes[..]));
        self.send(&items.collect::<Vec<_>>())?;
        self.require(&pieces)
    }

    /// Checks that each of `entries` is there still.
    fn require(&self, entries: &[Entry]) -> Result<(), TransportError> {
        let nodes = |entry: &Entry| {
            let down = lock(&self.down);
            let up = |node: &usize| down[*node].is_none();
            self.topology.candidates(&entry.key.index_key()).current().filter(up).count()
        };
        let missing = self.missing(entries)?;
        let gone = missing.iter().filter(|(at, lacking)| lacking.len() >= nodes(&entries[*at]));
        match gone.count() {
            0 => Ok(()),
            lost => {
                let (image, sent) = (self.id, entries.len());
                Err(ClusterError::TooSmall { image, lost, sent }.into())
            }
        }
    }

    /// Lets `name` stand for the image, in place of whatever it stood for.
    fn set_name(&self, name: &ImageName) -> Result<u64, TransportError> {
        let before = match self.cluster.name_record(name) {
            Ok(record) => record.map_or(0, |record| record.revision),
            // Nobody who is up knows of any.
            Err(_) => 0,
        };
        let revision = now().max(before.saturating_add(1));
        self.put_name(name, revision, false)?;
        Ok(revision)
    }

    fn put_name(&self, name: &ImageName, revision: u64, add: bool) -> Result<(), TransportError> {
        let record = NameRecord { name: name.clone(), manifest: self.id, revision }.encode();
        let key = ItemKey::name(name);
        let value = record.as_bytes();
        let entry = Entry { key, kind: Kind::Name, length: value.len(), source: Source::Name };
        let refused = Mutex::default();
        let nodes: Vec<usize> = self.topology.candidates(&key.index_key()).current().collect();
        self.each_node(|node| {
            if nodes.contains(&node) {
                self.put(node, &[Put { key: &key, kind: Kind::Name, value, add }], &refused);
            }
        });
        self.check(refused)?;
        self.require_a_node(&entry)
    }

    /// At least one of the nodes of an item is up.
    fn require_a_node(&self, entry: &Entry) -> Result<(), TransportError> {
        let down = lock(&self.down);
        let nodes: Vec<usize> =
            self.topology.candidates(&entry.key.index_key()).current().collect();
        if nodes.iter().any(|node| down[*node].is_none()) {
            return Ok(());
        }
        let said = nodes.iter().filter_map(|node| {
            Some((self.topology.nodes[*node].name().to_owned(), down[*node].clone()?))
        });
        let (what, said) = (format!("item {}", entry.key), said.collect());
        Err(ClusterError::NotTaken { what, image: self.id, said }.into())
    }

    /// Calls `work` for each node that is up, several at a time.
    fn each_node(&self, work: impl Fn(usize) + Sync) {
        let up: Vec<usize> = {
            let down = lock(&self.down);
            (0..down.len()).filter(|node| down[*node].is_none()).collect()
        };
        let result = parallel::each(up, |node| {
            work(node);
            Ok::<(), std::convert::Infallible>(())
        });
        match result {
            Ok(()) => (),
            Err(never) => match never {},
        }
    }

    /// Does something with a node. A node that fails is down from then on.
    fn exchange<T>(
        &self,
        node: usize,
        work: impl FnMut(&mut super::Connection) -> Result<T, NodeError>,
    ) -> Option<T> {
        let deadline = std::time::Instant::now() + EXCHANGE;
        let result = self.topology.nodes[node].with(deadline, work);
        result.map_err(|error| lock(&self.down)[node] = Some(error.to_string())).ok()
    }

    fn end(&self) -> (u64, Vec<(String, String)>) {
        let down = lock(&self.down);
        let named = self.topology.nodes.iter().zip(&*down);
        let named = named.filter_map(|(node, said)| Some((node.name().to_owned(), said.clone()?)));
        (*lock(&self.sent), named.collect())
    }
}
