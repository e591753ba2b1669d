//! Names and manifests: small items, had from any node that has them.
//!
//! A node that is slow is asked again, and given twice the time: a network that is full makes all nodes
//! look so.

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use super::node::Node;
use super::tcp::connection::{Connection, Item};
use super::{Cluster, ClusterError, NodeError, PATIENCE};
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::{self, lock};
use crate::record::{
    ItemKey, MAX_NAME_RECORD_BYTES, NameRecord, PIECE_BYTES, PIECE_BYTES_U64, piece_count,
};

/// Times that something small is asked for while nodes are slow; each time they are given twice as long.
const ROUNDS: u32 = 4;

/// What came of asking the nodes of an item for it.
struct Asked<T> {
    found: Option<T>,
    /// Nodes that have it not, or did not say, each with why.
    said: Vec<(String, String)>,
    /// Nodes of which it is not known.
    unsure: usize,
    /// Whether more time might have helped with one.
    slow: bool,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { found: None, said: Vec::new(), unsure: 0, slow: false }
    }
}

impl<T> Asked<T> {
    fn failed(&mut self, node: &Node, key: &ItemKey, error: &NodeError) {
        self.slow |= error.is_slow();
        self.unsure(node, key, error.to_string());
    }

    fn unsure(&mut self, node: &Node, key: &ItemKey, words: String) {
        log::info!("cache node {}: {key}: {words}", node.name());
        self.unsure += 1;
        self.said.push((node.name().to_owned(), words));
    }

    /// Whether all nodes said that they have it not.
    fn certain(&self) -> bool {
        self.unsure == 0
    }
}

impl Cluster {
    /// When something small that is begun now has to be done: a node that drips is one that stalls.
    pub(super) fn soon(&self, doublings: u32) -> Instant {
        let patience = self.0.options.progress.saturating_mul(PATIENCE << doublings.min(16));
        Instant::now() + patience.min(self.0.options.load_deadline)
    }

    /// Asks until there is an answer, everybody has refused one, or all are slow again and again.
    fn in_rounds<T>(&self, mut ask: impl FnMut(u32) -> Asked<T>) -> Asked<T> {
        let over = self.deadline();
        let mut first = ask(0);
        for doublings in 1..ROUNDS {
            if !first.slow || first.found.is_some() || Instant::now() >= over {
                break;
            }
            let again = ask(doublings);
            // What went wrong at first says most.
            first = Asked { said: first.said, ..again };
        }
        first
    }

    /// The item `key` from the first candidate that has one which `read` takes, in turn from number
    /// `first` on.
    ///
    /// `Ok(None)` if no candidate has it and all were asked, or if there is an origin to go to.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`]: nobody has it, and not everybody could be asked.
    fn item<T>(
        &self,
        key: &ItemKey,
        limit: usize,
        first: usize,
        read: impl Fn(Item) -> Result<T, String>,
    ) -> Result<Option<T>, ClusterError> {
        let asked = self.in_rounds(|doublings| {
            let topology = self.topology();
            let mut asked = Asked::default();
            let mut nodes: Vec<usize> = topology.candidates(&key.index_key()).all().collect();
            let turn = first.checked_rem(nodes.len()).unwrap_or(0);
            nodes.rotate_left(turn);
            for node in nodes {
                let node = &topology.nodes[node];
                let get = |connection: &mut Connection| connection.get(key, limit);
                match node.with_patience(self.soon(doublings), doublings, get) {
                    Ok(Some(item)) => match read(item) {
                        Ok(read) => {
                            asked.found = Some(read);
                            return asked;
                        }
                        Err(words) => asked.unsure(node, key, words),
                    },
                    Ok(None) => {
                        asked.said.push((node.name().to_owned(), "does not have it".to_owned()));
                    }
                    Err(error) => asked.failed(node, key, &error),
                }
            }
            // Whoever has somewhere else to go does not wait for those who are slow.
            asked.slow &= self.0.origin.is_none();
            asked
        });
        if asked.found.is_some() || asked.certain() || self.0.origin.is_some() {
            return Ok(asked.found);
        }
        Err(ClusterError::Unreachable { what: format!("item {key}"), said: asked.said })
    }

    /// What `name` stands for: the newest record that any of its nodes has.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`]: nobody knows the name, and not everybody could be asked.
    pub fn name_record(&self, name: &ImageName) -> Result<Option<NameRecord>, ClusterError> {
        let asked = self.in_rounds(|doublings| self.ask_for_name(name, doublings));
        if asked.found.is_some() || asked.certain() {
            return Ok(asked.found);
        }
        Err(ClusterError::Unreachable { what: format!("image '{name}'"), said: asked.said })
    }

    fn ask_for_name(&self, name: &ImageName, doublings: u32) -> Asked<NameRecord> {
        let (topology, deadline) = (self.topology(), self.soon(doublings));
        let key = ItemKey::name(name);
        let asked: Mutex<Asked<NameRecord>> = Mutex::default();
        let candidates: Vec<usize> = topology.candidates(&key.index_key()).all().collect();
        let ask = |number: usize| {
            let node = &topology.nodes[number];
            let get = |connection: &mut Connection| connection.get(&key, MAX_NAME_RECORD_BYTES);
            let answer = node.with_patience(deadline, doublings, get);
            let mut asked = lock(&asked);
            match answer {
                Ok(None) => (),
                Ok(Some(item)) => match NameRecord::decode_for(name, &item.value) {
                    Ok(record) => {
                        asked.found = Some(match asked.found.take() {
                            Some(other) => other.newer(record),
                            None => record,
                        });
                    }
                    Err(error) => asked.unsure(node, &key, error.to_string()),
                },
                Err(error) => asked.failed(node, &key, &error),
            }
        };
        thread::scope(|scope| {
            // One after the other, a node that is down would hold up those that are not.
            for node in candidates.iter().skip(1) {
                scope.spawn(|| ask(*node));
            }
            candidates.first().copied().map(ask)
        });
        asked.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The manifest `id`, verified, if the cache has all of it.
    pub(super) fn manifest(&self, id: &ManifestId) -> Result<Option<Manifest>, ClusterError> {
        let mut last = None;
        // Only the whole can be verified: if it is damaged, all pieces are had from other replicas.
        for first in 0..=self.topology().replicas() {
            let Some(bytes) = self.manifest_bytes(id, first)? else { break };
            match Manifest::decode_as(id, &bytes) {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error) => last = Some(error),
            }
        }
        last.map_or(Ok(None), |error| Err(ClusterError::Manifest(error)))
    }

    /// The encoding of a manifest, each piece from candidate `first` if it has one.
    fn manifest_bytes(
        &self,
        id: &ManifestId,
        first: usize,
    ) -> Result<Option<Vec<u8>>, ClusterError> {
        let piece = |number: u32, expected: Option<u64>| {
            let key = ItemKey::manifest_piece(id, number);
            self.item(&key, PIECE_BYTES, first, |item| {
                let length = u64::try_from(item.value.len()).unwrap_or(u64::MAX);
                let expected = match expected {
                    Some(expected) => expected,
                    None => Manifest::encoded_length(&item.value)
                        .map_err(|error| error.to_string())?
                        .min(PIECE_BYTES_U64),
                };
                if length == expected {
                    return Ok(item.value);
                }
                Err(format!("has {length} bytes of a piece of {expected}"))
            })
        };
        let Some(mut bytes) = piece(0, None)? else { return Ok(None) };
        let length = Manifest::encoded_length(&bytes).map_err(ClusterError::Manifest)?;
        let count = piece_count(length);
        let rest: Vec<Mutex<Option<Vec<u8>>>> = (1..count).map(|_| Mutex::default()).collect();
        parallel::each((1..count).zip(&rest).collect(), |(number, slot)| {
            let left = length - u64::from(number) * PIECE_BYTES_U64;
            *lock(slot) = piece(number, Some(left.min(PIECE_BYTES_U64)))?;
            Ok::<_, ClusterError>(())
        })?;
        for slot in rest {
            let slot = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let Some(more) = slot else { return Ok(None) };
            bytes.extend_from_slice(&more);
        }
        Ok(Some(bytes))
    }
}
