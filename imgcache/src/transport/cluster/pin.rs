//! Pins: nodes keep all items of an image until they are told otherwise, or end.
//!
//! A pin is of a manifest, not of a name: when the name moves on, what it stood for stays pinned.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Cluster, ClusterError, NodeError};
use crate::image::manifest::Manifest;
use crate::index::IndexKey;
use crate::key::ManifestId;
use crate::parallel::lock;
use crate::record::{ItemKey, piece_count};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a node says of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodePin {
    /// The node.
    pub node: String,
    /// Items that it keeps, or had kept.
    pub held: u64,
    /// Items that it should have and has not.
    pub missing: u64,
    /// Why it keeps none; none if it does.
    pub failure: Option<String>,
}

impl Cluster {
    /// Has each node keep what it should hold of the image `id`; `None` if the cache has no such
    /// image.
    ///
    /// # Errors
    /// The manifest cannot be had. What single nodes say is in the result.
    pub fn pin(&self, id: &ManifestId) -> Result<Option<Vec<NodePin>>, ClusterError> {
        let Some(manifest) = self.manifest(id)? else { return Ok(None) };
        let topology = self.topology();
        let mut lists = vec![Vec::new(); topology.nodes.len()];
        for key in items_of(id, &manifest)? {
            for node in topology.candidates(&key).current() {
                lists[node].extend_from_slice(&key.0);
            }
        }
        Ok(Some(self.at_each_node(|number, connection| {
            let list: &[u8] = &lists[number];
            if list.is_empty() {
                return Ok((0, 0));
            }
            let head = format!("pin {id} {}\r\n", list.len());
            let reply = connection.command(&[head.as_bytes(), list, b"\r\n"])?;
            let mut words = reply.split(' ');
            match (words.next(), words.next().map(str::parse), words.next().map(str::parse)) {
                (Some("PINNED"), Some(Ok(held)), Some(Ok(missing))) => Ok((held, missing)),
                _ => Err(NodeError::Refused { what: "to pin it".into(), reply }),
            }
        })))
    }

    /// Lets all nodes forget the image `id` as they need the memory.
    pub fn unpin(&self, id: &ManifestId) -> Vec<NodePin> {
        self.at_each_node(|_, connection| {
            let reply = connection.command(&[format!("unpin {id}\r\n").as_bytes()])?;
            match reply.as_str() {
                "UNPINNED" => Ok((1, 0)),
                "NOT_FOUND" => Ok((0, 0)),
                _ => Err(NodeError::Refused { what: "to unpin it".into(), reply }),
            }
        })
    }

    /// Does `work` with all nodes at once; what comes of it is items held and missing.
    fn at_each_node(
        &self,
        work: impl Fn(usize, &mut super::Connection) -> Result<(u64, u64), NodeError> + Sync,
    ) -> Vec<NodePin> {
        let topology = self.topology();
        let results: Vec<Mutex<Option<NodePin>>> =
            topology.nodes.iter().map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            for (number, (node, slot)) in topology.nodes.iter().zip(&results).enumerate() {
                let work = &work;
                scope.spawn(move || {
                    let result = node.with(Instant::now() + PATIENCE, |connection| {
                        // Stock memcached would take the list for commands.
                        if node.knows_leases(connection)? {
                            return work(number, connection);
                        }
                        let reply = "memcached has no pins; imgcached has".into();
                        Err(NodeError::Refused { what: "to pin".into(), reply })
                    });
                    let node = node.name().to_owned();
                    *lock(slot) = Some(match result {
                        Ok((held, missing)) => NodePin { node, held, missing, failure: None },
                        Err(error) => {
                            let failure = Some(error.to_string());
                            NodePin { node, held: 0, missing: 0, failure }
                        }
                    });
                });
            }
        });
        results.iter().filter_map(|slot| lock(slot).take()).collect()
    }
}

/// The index keys of all items of an image but its names.
fn items_of(id: &ManifestId, manifest: &Manifest) -> Result<Vec<IndexKey>, ClusterError> {
    let length = manifest.encode().map_err(ClusterError::Manifest)?.len();
    let pieces = piece_count(u64::try_from(length).unwrap_or(u64::MAX));
    let pieces = (0..pieces).map(|number| ItemKey::manifest_piece(id, number));
    let chunks = manifest.all_chunks().filter(|chunk| !chunk.entry.zero);
    let items = pieces.chain(chunks.map(|chunk| ItemKey::chunk(&chunk.entry.key)));
    let mut keys: Vec<IndexKey> = items.map(|key| key.index_key()).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}
