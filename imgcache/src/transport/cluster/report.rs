//! What a load did to the nodes, and they to it.

use std::time::Duration;

use serde::Serialize;

use super::links::LinkKind;

/// Where the chunks of a load came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CacheReport {
    /// Epoch of the membership that was used.
    pub epoch: u64,
    /// What each node did, in the order of the membership; those that did nothing are left out.
    pub nodes: Vec<NodeReport>,
    /// Chunks that came from nodes.
    pub chunks_from_nodes: u64,
    /// Chunks that came from the origin.
    pub chunks_from_origin: u64,
    /// Bytes that came from the origin.
    pub bytes_from_origin: u64,
    /// Chunks that another node was asked for than the first.
    pub replica_switches: u64,
    /// Chunks that were asked for again, of whomever.
    pub retries: u64,
    /// Times that a node did not have a chunk.
    pub misses: u64,
    /// Times that what a node had was not the chunk.
    pub damaged: u64,
    /// Half of the chunks took no longer than this from request to verified, in milliseconds.
    pub chunk_ms_p50: f64,
    /// 99 of 100 chunks took no longer than this.
    pub chunk_ms_p99: f64,
}

/// Chunks by what they came by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkCounts {
    /// Out of the node's memory on this host.
    #[serde(skip_serializing_if = "is_zero")]
    pub shared: u64,
    /// By RDMA READ.
    #[serde(skip_serializing_if = "is_zero")]
    pub rdma: u64,
    /// By the memcached protocol.
    #[serde(skip_serializing_if = "is_zero")]
    pub tcp: u64,
}

impl LinkCounts {
    pub(super) fn add(&mut self, kind: LinkKind, count: u64) {
        match kind {
            LinkKind::Shared => self.shared += count,
            LinkKind::Rdma => self.rdma += count,
            LinkKind::Tcp => self.tcp += count,
        }
    }

    /// Those that are not 0, by name.
    pub fn named(&self) -> impl Iterator<Item = (LinkKind, u64)> {
        let all = [
            (LinkKind::Shared, self.shared),
            (LinkKind::Rdma, self.rdma),
            (LinkKind::Tcp, self.tcp),
        ];
        all.into_iter().filter(|(_, count)| *count > 0)
    }
}

/// What one node did for a load.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NodeReport {
    /// The node.
    pub name: String,
    /// Chunks that it supplied.
    pub chunks: u64,
    /// What these came by.
    pub by: LinkCounts,
    /// The RDMA device of this host by which it was read, or was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Why by nothing faster, or how the device was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_reason: Option<String>,
    /// Their bytes.
    pub bytes: u64,
    /// Connections to it that failed, or did not come about.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// How the last of these failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Steps of a power of two.
const STEPS: u64 = 1 << 3;
/// Buckets up to 2^40 microseconds, which is beyond any deadline.
const BUCKETS: usize = 8 * 40;

/// How long chunks took: a histogram of microseconds whose buckets are at most an eighth wide.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Box<[u32; BUCKETS]>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(STEPS);
        let power = u64::from(micros.ilog2());
        let step = (micros >> (power - 3)) - STEPS;
        let index = usize::try_from(power * STEPS + step).unwrap_or(usize::MAX);
        let bucket = &mut self.0[index.min(BUCKETS - 1)];
        *bucket = bucket.saturating_add(1);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.0.iter_mut().zip(other.0.iter()) {
            *bucket = bucket.saturating_add(*more);
        }
    }

    /// The latency that `permille` of 1000 do not exceed, in milliseconds; 0 if there are none.
    pub(super) fn quantile(&self, permille: u64) -> f64 {
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        let rank = (total * permille).div_ceil(1000);
        let mut seen = 0;
        for (index, count) in (0_u32..).zip(self.0.iter()) {
            seen += u64::from(*count);
            if seen >= rank && seen > 0 {
                let steps = f64::from(index % 8 + 9) / 8.0;
                return steps * 2_f64.powi(i32::try_from(index / 8).unwrap_or(0)) / 1000.0;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut latencies = Latencies::default();
        assert!(latencies.quantile(500).abs() < f64::EPSILON);
        for micros in 1..=10_000 {
            latencies.add(Duration::from_micros(micros));
        }
        let mut twice = latencies.clone();
        twice.merge(&latencies);
        for histogram in [&latencies, &twice] {
            for (permille, exact) in [(500, 5.0), (990, 9.9), (1000, 10.0)] {
                let found = histogram.quantile(permille);
                assert!((exact..exact * 1.13).contains(&found), "{permille}: {found}");
            }
        }
        latencies.add(Duration::MAX);
        assert!(latencies.quantile(1000) > 1e6);
    }
}
