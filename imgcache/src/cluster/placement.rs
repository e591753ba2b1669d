//! Which nodes hold an item: weighted rendezvous hashing.
//!
//! Each node draws a lot for each item, and those with the highest hold it (Thaler and Ravishankar,
//! "Using name-based mappings to increase hit rates", 1998; with weights as by Schindelhauer and
//! Schomaker, "Weighted distributed hash tables", 2005: the lot is `-weight / ln(h)` with `h` uniform
//! in (0, 1)). A node that joins or leaves moves only what it gains or loses. The lot depends on the
//! node's *name* and the item's [`IndexKey`], so neither the order of a list nor an address matters.

use twox_hash::XxHash3_64;

use crate::index::IndexKey;

/// The most replicas of an item.
pub const MAX_REPLICAS: usize = 4;

/// A node, as placement sees it.
#[derive(Debug, Clone)]
struct Seat {
    /// What the caller calls the node.
    node: usize,
    /// Hash of its name.
    seed: u64,
    weight: f64,
}

/// Decides which nodes hold an item.
#[derive(Debug, Clone)]
pub struct Placement {
    seats: Vec<Seat>,
    replicas: usize,
    equal: bool,
}

/// The nodes that hold one item, the first draw first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    nodes: [usize; MAX_REPLICAS],
    count: usize,
}

impl Replicas {
    /// The nodes, by the numbers that [`Placement::new`] was given.
    pub fn as_slice(&self) -> &[usize] {
        &self.nodes[..self.count]
    }
}

impl Placement {
    /// Places items on `nodes`, given as (number, name, weight), `replicas` times each, or once on
    /// each node if there are fewer. Nodes of weight 0 get nothing.
    ///
    /// The number is what [`Self::replicas_of`] answers with.
    pub fn new<'n>(
        nodes: impl IntoIterator<Item = (usize, &'n str, u32)>,
        replicas: usize,
    ) -> Self {
        let seats: Vec<Seat> = nodes
            .into_iter()
            .filter(|(_, _, weight)| *weight > 0)
            .map(|(node, name, weight)| Seat {
                node,
                seed: XxHash3_64::oneshot(name.as_bytes()),
                weight: f64::from(weight),
            })
            .collect();
        let replicas = replicas.clamp(1, MAX_REPLICAS).min(seats.len());
        let equal = seats.windows(2).all(|pair| pair[0].weight.total_cmp(&pair[1].weight).is_eq());
        Self { seats, replicas, equal }
    }

    /// How many replicas each item has.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// The nodes that hold the item.
    pub fn replicas_of(&self, key: &IndexKey) -> Replicas {
        let mut best = [(f64::NEG_INFINITY, 0_u64, 0_usize); MAX_REPLICAS];
        let mut count = 0;
        for seat in &self.seats {
            let hash = XxHash3_64::oneshot_with_seed(seat.seed, &key.0);
            // With equal weights the hash alone has the same order, without a logarithm.
            let lot = if self.equal { unit(hash) } else { -seat.weight / unit(hash).ln() };
            let mut entry = (lot, seat.seed, seat.node);
            for slot in best.iter_mut().take(count) {
                if entry.0.total_cmp(&slot.0).then(entry.1.cmp(&slot.1)).is_gt() {
                    std::mem::swap(slot, &mut entry);
                }
            }
            if count < self.replicas {
                best[count] = entry;
                count += 1;
            }
        }
        Replicas { nodes: best.map(|(_, _, node)| node), count }
    }
}

/// The top 53 bits of `hash` as a number in (0, 1).
fn unit(hash: u64) -> f64 {
    let high = u32::try_from(hash >> 32).unwrap_or(0);
    let low = u32::try_from((hash >> 11) & 0x1f_ffff).unwrap_or(0);
    let bits = f64::from(high) * f64::from(1_u32 << 21) + f64::from(low);
    (bits + 0.5) / f64::from(1_u32 << 31) / f64::from(1_u32 << 22)
}

/// Chooses one of the nodes that hold each item so that all are read from alike.
///
/// `items` are (bytes, nodes that hold it); an item of none gets none. `weights` are the nodes'
/// shares of the work, by node number. Begins with the item `first`, so that readers of the same
/// items do not ask the same node at the same time. Each takes its less loaded node, and then a few
/// rounds move items that would be better off elsewhere.
pub fn balance(items: &[(u64, &[usize])], weights: &[f64], first: usize) -> Vec<Option<usize>> {
    const ROUNDS: usize = 3;
    let mut load = vec![0.0; weights.len()];
    let cost = |bytes: u64, node: usize| {
        // Chunks are at most 1 MiB.
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        bytes / weights.get(node).copied().unwrap_or(1.0).max(f64::MIN_POSITIVE)
    };
    let mut chosen: Vec<Option<usize>> = vec![None; items.len()];
    for round in 0..=ROUNDS {
        let mut moved = false;
        for step in 0..items.len() {
            let index = (first % items.len() + step) % items.len();
            let (bytes, nodes) = items[index];
            if let Some(node) = chosen[index] {
                load[node] -= cost(bytes, node);
            }
            let best = nodes.iter().copied().filter(|node| *node < load.len()).min_by(|a, b| {
                let after = |node: usize| load[node] + cost(bytes, node);
                after(*a).total_cmp(&after(*b))
            });
            // Staying is better than a swap between equals.
            let stays = chosen[index].filter(|now| {
                best.is_some_and(|best| {
                    load[*now] + cost(bytes, *now) <= load[best] + cost(bytes, best)
                })
            });
            let node = stays.or(best);
            moved |= node != chosen[index];
            chosen[index] = node;
            if let Some(node) = node {
                load[node] += cost(bytes, node);
            }
        }
        if round > 0 && !moved {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
