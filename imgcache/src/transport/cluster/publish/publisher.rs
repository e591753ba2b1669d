//! The exchanges of a publication: what is missing where, sending it, and asking for it again.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::links::{NodeLink, NodePush};
use super::now;
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::{self, lock};
use crate::record::{ItemKey, Kind, NameRecord, PIECE_BYTES};
use crate::transport::TransportError;
use crate::transport::cluster::{
    Cluster, ClusterError, Connection, NodeError, Put, PutAnswer, Topology,
};

/// How long one exchange with a node may take.
const EXCHANGE: Duration = Duration::from_secs(30);

/// How long a node may have no memory for an item: while what was removed rests, or is in use.
const PATIENCE: Duration = Duration::from_secs(20);

/// An item that the image needs.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: ItemKey,
    pub(super) kind: Kind,
    pub(super) length: usize,
    pub(super) source: Source,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    /// The chunk at this position of the chunk table.
    Chunk(u32),
    /// This part of the manifest.
    Piece(Range<usize>),
    Name,
}

/// What was refused, by whom, and in what words.
type Refusal = (String, String, String);

/// Exchanges with all nodes for one image; remembers who is down.
pub(super) struct Publisher<'c> {
    cluster: &'c Cluster,
    pub(super) topology: Arc<Topology>,
    pub(super) id: ManifestId,
    encoded: Vec<u8>,
    /// What each node that failed said; it is not asked again.
    down: Mutex<Vec<Option<String>>>,
    sent: Mutex<u64>,
    /// The way to each node.
    links: Vec<NodeLink>,
}

impl<'c> Publisher<'c> {
    pub(super) fn new(cluster: &'c Cluster, manifest: &Manifest) -> Result<Self, TransportError> {
        let encoded = manifest.encode().map_err(ClusterError::Manifest)?;
        let topology = cluster.topology();
        let down = Mutex::new(vec![None; topology.nodes.len()]);
        let id = ManifestId::of(&encoded);
        let links = topology.nodes.iter().map(|_| NodeLink::default()).collect();
        Ok(Self { cluster, topology, id, encoded, down, sent: Mutex::default(), links })
    }

    /// Positions of those of `entries` that some of their nodes lack, and these nodes.
    pub(super) fn missing(
        &self,
        entries: &[Entry],
    ) -> Result<Vec<(usize, Vec<usize>)>, TransportError> {
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
    pub(super) fn send(&self, items: &[(&Entry, &[u8], &[usize])]) -> Result<(), TransportError> {
        let refused: Mutex<Option<Refusal>> = Mutex::default();
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

    fn put(&self, node: usize, puts: &[Put<'_>], refused: &Mutex<Option<Refusal>>) {
        let chunks_left;
        let mut puts = puts;
        if !puts.is_empty() && puts.iter().all(|put| put.kind == Kind::Chunk) {
            let Some(left) = self.write(node, puts) else { return };
            chunks_left = left;
            puts = &chunks_left;
        }
        if puts.is_empty() {
            return;
        }
        let put = |connection: &mut Connection| connection.put_patiently(puts, PATIENCE);
        let Some(answers) = self.exchange(node, put) else { return };
        let bytes: usize = puts.iter().map(|put| put.value.len()).sum();
        self.count(bytes);
        self.links[node].sent(u64::try_from(bytes).unwrap_or(0));
        for (put, answer) in puts.iter().zip(answers) {
            let reply = match answer {
                PutAnswer::Stored | PutAnswer::Kept => None,
                PutAnswer::Busy(_) => {
                    Some(format!("has had no memory for {} s", PATIENCE.as_secs()))
                }
                PutAnswer::Refused(reply) => Some(reply),
            };
            if let Some(reply) = reply {
                let what = format!("item {} of {} bytes", put.key, put.value.len());
                let name = self.topology.nodes[node].name().to_owned();
                lock(refused).get_or_insert((what, name, reply));
            }
        }
    }

    /// Writes chunks to a node by RDMA, where they go that way; returns the others, or none if the node has
    /// failed.
    fn write<'p>(&self, node: usize, chunks: &[Put<'p>]) -> Option<Vec<Put<'p>>> {
        let deadline = Instant::now() + EXCHANGE;
        let to = &self.topology.nodes[node];
        let left = self.links[node].write(self.cluster, to, chunks, deadline);
        let left = left.map_err(|error| lock(&self.down)[node] = Some(error.to_string())).ok()?;
        let bytes =
            |chunks: &[Put<'_>]| chunks.iter().map(|chunk| chunk.value.len()).sum::<usize>();
        self.count(bytes(chunks) - bytes(&left));
        Some(left)
    }

    fn count(&self, bytes: usize) {
        *lock(&self.sent) += u64::try_from(bytes).unwrap_or(0);
    }

    /// A node that is up and does not take something will not take it the next time either.
    fn check(&self, refused: Mutex<Option<Refusal>>) -> Result<(), TransportError> {
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

    pub(super) fn send_manifest(&self) -> Result<(), TransportError> {
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
    pub(super) fn require(&self, entries: &[Entry]) -> Result<(), TransportError> {
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
    pub(super) fn set_name(&self, name: &ImageName) -> Result<u64, TransportError> {
        let before = match self.cluster.name_record(name) {
            Ok(record) => record.map_or(0, |record| record.revision),
            // Nobody who is up knows of any.
            Err(_) => 0,
        };
        let revision = now().max(before.saturating_add(1));
        self.put_name(name, revision, false)?;
        Ok(revision)
    }

    pub(super) fn put_name(
        &self,
        name: &ImageName,
        revision: u64,
        add: bool,
    ) -> Result<(), TransportError> {
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
        work: impl FnMut(&mut Connection) -> Result<T, NodeError>,
    ) -> Option<T> {
        let deadline = Instant::now() + EXCHANGE;
        let result = self.topology.nodes[node].with(deadline, work);
        result.map_err(|error| lock(&self.down)[node] = Some(error.to_string())).ok()
    }

    /// What went to each node, by what.
    pub(super) fn links(&self) -> Vec<NodePush> {
        let named = self.topology.nodes.iter().zip(&self.links);
        named.filter_map(|(node, link)| link.report(node.name())).collect()
    }

    pub(super) fn end(&self) -> (u64, Vec<(String, String)>) {
        let down = lock(&self.down);
        let named = self.topology.nodes.iter().zip(&*down);
        let named = named.filter_map(|(node, said)| Some((node.name().to_owned(), said.clone()?)));
        (*lock(&self.sent), named.collect())
    }
}
