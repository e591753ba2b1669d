//! Who holds what: all items of all images, as the nodes themselves tell it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NodeError;
use super::node::Topology;
use super::tcp::connection::Connection;
use crate::cluster::rebalance::{self, Plan, Surveyed};
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::index::IndexKey;
use crate::key::{ChunkKey, ManifestId};
use crate::parallel::lock;
use crate::record::{self, ItemKey, Kind, NameRecord};

/// How long a node may take to say what it holds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What must be true of an item's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// It hashes to this key.
    Chunk(ChunkKey),
    /// It is this piece of a manifest, which was read while the survey was taken.
    Piece(Vec<u8>),
    /// It is this record, of all that there are the newest.
    Name(NameRecord),
}

/// An item of an image.
#[derive(Debug, Clone)]
pub(super) struct ItemFound {
    pub key: ItemKey,
    pub kind: Kind,
    pub content: Content,
}

/// A name in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFound {
    /// The name.
    pub name: ImageName,
    /// What it stands for.
    pub id: ManifestId,
    /// Positions of its items in the survey.
    items: Vec<usize>,
    /// Bytes of its items, each counted once.
    pub bytes: u64,
}

/// All items of all images, and which nodes hold them.
#[derive(Debug)]
pub struct Survey {
    pub(super) found: Vec<ItemFound>,
    items: Vec<Surveyed>,
    /// The images, by name.
    pub images: Vec<ImageFound>,
    /// For each node of the topology why it could not be asked; none if it was.
    pub failures: Vec<Option<NodeError>>,
    /// Names whose manifest no node could supply whole.
    pub unreadable: Vec<ImageName>,
}

/// How an image is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// The fewest copies that an item of it has.
    pub fewest_copies: usize,
    /// Items of it that are not at all their places.
    pub misplaced: u64,
}

impl Survey {
    /// Asks all nodes of `topology` for their images, and for `names`, and which items they hold.
    ///
    /// A node that cannot be asked is in [`failures`](Self::failures); so is one that fails
    /// half-way, and counts as holding nothing.
    pub fn take(topology: &Topology, names: &[ImageName]) -> Self {
        let count = topology.nodes.len();
        let mut failures: Vec<Option<NodeError>> = (0..count).map(|_| None).collect();
        let mut all: BTreeSet<ImageName> = names.iter().cloned().collect();
        let listed = each_node(topology, &failures, Connection::image_names);
        for (node, listed) in listed.into_iter().enumerate() {
            match listed {
                // Stock memcached keeps no list.
                Some(Err(NodeError::Refused { .. })) | None => (),
                Some(Ok(names)) => all.extend(names),
                Some(Err(error)) => failures[node] = Some(error),
            }
        }
        let mut survey = Self {
            found: Vec::new(),
            items: Vec::new(),
            images: Vec::new(),
            failures,
            unreadable: Vec::new(),
        };
        let mut positions = HashMap::new();
        for name in all {
            survey.add_image(topology, name, &mut positions);
        }
        survey.ask_who_holds(topology);
        survey
    }

    fn add_image(
        &mut self,
        topology: &Topology,
        name: ImageName,
        positions: &mut HashMap<IndexKey, usize>,
    ) {
        let Some((record, up_to_date)) = self.newest_record(topology, &name) else { return };
        let Some((manifest, encoded)) = self.read_manifest(topology, &record.manifest) else {
            self.unreadable.push(name);
            return;
        };
        let mut items = BTreeSet::new();
        let mut add = |survey: &mut Self, key: ItemKey, kind, content, bytes: usize| {
            let index_key = key.index_key();
            let position = *positions.entry(index_key).or_insert_with(|| {
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                survey.items.push(Surveyed { key: index_key, bytes, holders: Vec::new() });
                survey.found.push(ItemFound { key, kind, content });
                survey.found.len() - 1
            });
            items.insert(position);
        };
        for chunk in manifest.all_chunks().filter(|chunk| !chunk.entry.zero) {
            let key = ItemKey::chunk(&chunk.entry.key);
            let length = usize::try_from(chunk.length).unwrap_or(0);
            add(self, key, Kind::Chunk, Content::Chunk(chunk.entry.key), length);
        }
        for (number, piece) in (0..).zip(encoded.chunks(record::PIECE_BYTES)) {
            let key = ItemKey::manifest_piece(&record.manifest, number);
            add(self, key, Kind::ManifestPiece, Content::Piece(piece.to_vec()), piece.len());
        }
        let (id, length) = (record.manifest, record.encode().len());
        add(self, ItemKey::name(&name), Kind::Name, Content::Name(record), length);
        // Of a name it is not enough to have some record of that length.
        if let Some(item) = items.last().and_then(|item: &usize| self.items.get_mut(*item)) {
            item.holders = up_to_date;
        }
        let bytes = items.iter().map(|item| self.items[*item].bytes).sum();
        let items = items.into_iter().collect();
        self.images.push(ImageFound { name, id, items, bytes });
    }

    /// The newest record of `name` that any node has, and the nodes that have it: a push may have
    /// reached only some.
    fn newest_record(
        &self,
        topology: &Topology,
        name: &ImageName,
    ) -> Option<(NameRecord, Vec<usize>)> {
        let key = ItemKey::name(name);
        let answers = each_node(topology, &self.failures, |connection| {
            connection.get(&key, record::MAX_NAME_RECORD_BYTES)
        });
        let records: Vec<(usize, NameRecord)> = answers
            .into_iter()
            .enumerate()
            .filter_map(|(node, answer)| {
                let item = answer?.ok()??;
                Some((node, NameRecord::decode_for(name, &item.value).ok()?))
            })
            .collect();
        let newest = records.iter().map(|(_, record)| record.clone()).reduce(NameRecord::newer)?;
        let same = records.iter().filter(|(_, record)| *record == newest);
        let nodes = same.map(|(node, _)| *node).collect();
        Some((newest, nodes))
    }

    /// A manifest, put together from whichever nodes have its pieces. Only the whole can be verified: if
    /// it is damaged, all pieces are had from other nodes.
    fn read_manifest(&self, topology: &Topology, id: &ManifestId) -> Option<(Manifest, Vec<u8>)> {
        (0..=topology.replicas()).find_map(|first| {
            let mut encoded = self.read_piece(topology, id, 0, first)?;
            let length = Manifest::encoded_length(&encoded).ok()?;
            for number in 1..record::piece_count(length) {
                encoded.extend_from_slice(&self.read_piece(topology, id, number, first)?);
            }
            let manifest = Manifest::decode_as(id, &encoded).ok()?;
            Some((manifest, encoded))
        })
    }

    /// A piece of a manifest, from number `first` on of those that have it, wherever it should be.
    fn read_piece(
        &self,
        topology: &Topology,
        id: &ManifestId,
        number: u32,
        first: usize,
    ) -> Option<Vec<u8>> {
        let key = ItemKey::manifest_piece(id, number);
        let places = topology.candidates(&key.index_key());
        let others = (0..topology.nodes.len()).filter(|node| places.all().all(|p| p != *node));
        let up = places.all().chain(others).filter(|node| self.failures[*node].is_none());
        let mut found = up.filter_map(|node| {
            let deadline = Instant::now() + PATIENCE;
            let get = |connection: &mut Connection| connection.get(&key, record::PIECE_BYTES);
            Some(topology.nodes[node].with(deadline, get).ok()??.value)
        });
        found.nth(first)
    }

    fn ask_who_holds(&mut self, topology: &Topology) {
        let keys: Vec<ItemKey> = self.found.iter().map(|item| item.key).collect();
        let answers = each_node(topology, &self.failures, |connection| connection.lengths(&keys));
        for (node, answer) in answers.into_iter().enumerate() {
            match answer {
                None => (),
                Some(Err(error)) => self.failures[node] = Some(error),
                Some(Ok(lengths)) => {
                    let items = self.items.iter_mut().zip(&self.found).zip(lengths);
                    for ((item, found), length) in items {
                        if found.kind != Kind::Name && length == Some(item.bytes) {
                            item.holders.push(node);
                        }
                    }
                }
            }
        }
    }

    /// For each node of the topology whether it answered.
    pub fn reachable(&self) -> Vec<bool> {
        self.failures.iter().map(Option::is_none).collect()
    }

    /// What is to be done so that everything is where `topology` wants it.
    pub fn plan(&self, topology: &Topology) -> Plan {
        rebalance::plan(&self.items, topology.placement(), &self.reachable())
    }

    /// For each node how many items it is the only one to hold.
    pub fn sole_copies(&self) -> Vec<u64> {
        rebalance::sole_copies(&self.items, &self.reachable())
    }

    /// For each node (items, bytes) that it holds.
    pub fn held(&self) -> Vec<(u64, u64)> {
        let mut held = vec![(0, 0); self.failures.len()];
        for item in &self.items {
            for node in &item.holders {
                held[*node].0 += 1;
                held[*node].1 += item.bytes;
            }
        }
        held
    }

    /// How `image` is spread over the nodes of `topology`.
    pub fn spread(&self, topology: &Topology, image: &ImageFound) -> Spread {
        let mut spread = Spread { fewest_copies: usize::MAX, misplaced: 0 };
        for item in image.items.iter().map(|item| &self.items[*item]) {
            spread.fewest_copies = spread.fewest_copies.min(item.holders.len());
            let places = topology.placement().replicas_of(&item.key);
            if !places.as_slice().iter().all(|place| item.holders.contains(place)) {
                spread.misplaced += 1;
            }
        }
        spread
    }

    /// The images of which something is nowhere to be had.
    pub fn incomplete(&self) -> Vec<&ImageName> {
        let lost = |item: &usize| self.items.get(*item).is_some_and(|i| i.holders.is_empty());
        let incomplete = self.images.iter().filter(|image| image.items.iter().any(lost));
        incomplete.map(|image| &image.name).chain(&self.unreadable).collect()
    }

    /// Which nodes hold the item at a position of the plan.
    pub(super) fn holders(&self, item: usize) -> &[usize] {
        self.items.get(item).map_or(&[], |item| &item.holders)
    }
}

/// Does `work` with each node that has not failed, at once; none for one that has.
fn each_node<T: Send>(
    topology: &Topology,
    failures: &[Option<NodeError>],
    work: impl Fn(&mut Connection) -> Result<T, NodeError> + Sync,
) -> Vec<Option<Result<T, NodeError>>> {
    let results = std::sync::Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for (number, node) in topology.nodes.iter().enumerate() {
            if failures.get(number).is_none_or(Option::is_some) {
                continue;
            }
            let (results, work) = (&results, &work);
            scope.spawn(move || {
                let result = node.with(Instant::now() + PATIENCE, work);
                lock(results).insert(number, result);
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    (0..topology.nodes.len()).map(|number| results.remove(&number)).collect()
}
