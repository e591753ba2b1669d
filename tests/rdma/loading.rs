//! Loads in this process, by the library: so that something can be done at a certain point of one, and what
//! it has brought be looked at.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgcache::image::manifest::ChunkSpan;
use imgcache::index::IndexKey;
use imgcache::record::ItemKey;
use imgcache::transport::cluster::{CacheReport, Cluster, ClusterOptions, LinkChoice, LinkKind};
use imgcache::transport::{ChunkRead, Session, Transport};

/// What a load may take until it fails with an error.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// RDMA, or an error.
pub const RDMA: LinkChoice = LinkChoice::Only(LinkKind::Rdma);

/// The image `guest` of the cache at `url`.
pub fn session(url: &str, link: LinkChoice) -> Box<dyn Session> {
    session_with(url, ClusterOptions { link, ..ClusterOptions::default() })
}

/// The same with other options.
pub fn session_with(url: &str, options: ClusterOptions) -> Box<dyn Session> {
    let options = ClusterOptions { load_deadline: DEADLINE, ..options };
    let cluster = Cluster::open(&url.parse().unwrap(), options, None).unwrap();
    let id = cluster.resolve(&"guest".parse().unwrap()).unwrap();
    cluster.open(&id).unwrap()
}

/// Its chunks that are stored, each content once.
pub fn chunks_of(session: &dyn Session) -> Vec<ChunkSpan> {
    let mut chunks: Vec<_> =
        session.manifest().all_chunks().filter(|chunk| !chunk.entry.zero).collect();
    chunks.sort_by_key(|chunk| chunk.entry.key.0);
    chunks.dedup_by_key(|chunk| chunk.entry.key.0);
    chunks.sort_by_key(|chunk| chunk.index);
    chunks
}

/// Bytes of a chunk.
pub fn length(chunk: &ChunkSpan) -> usize {
    usize::try_from(chunk.length).unwrap()
}

/// What a node's index knows a chunk by.
pub fn index_key(chunk: &ChunkSpan) -> IndexKey {
    ItemKey::chunk(&chunk.entry.key).index_key()
}

/// Loads all chunks, and does `then` once, when `percent` of their bytes have come; no other chunk is accepted
/// meanwhile. All bytes are looked at again at the end, when whatever came late has come.
pub fn load(session: &dyn Session, percent: usize, then: &(dyn Fn() + Sync)) -> CacheReport {
    let chunks = chunks_of(session);
    let bytes: usize = chunks.iter().map(length).sum();
    let mut memory = vec![0_u8; bytes];
    let mut rest = &mut memory[..];
    let mut reads = Vec::new();
    for chunk in &chunks {
        let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(length(chunk));
        reads.push(ChunkRead { index: chunk.index, key: chunk.entry.key, buffer });
        rest = behind;
    }
    let (seen, point) = (Mutex::new(0), bytes * percent / 100);
    let accept = |index, content: &[u8]| {
        {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *seen;
            *seen += content.len();
            if before <= point && point < *seen {
                then();
            }
        }
        session.manifest().chunk(index).is_some_and(|chunk| chunk.entry.has_key(content))
    };
    session.fetch(reads, &accept).unwrap();
    let mut rest = &memory[..];
    for chunk in &chunks {
        let (content, behind) = rest.split_at(length(chunk));
        assert!(chunk.entry.has_key(content), "chunk {}", chunk.index);
        rest = behind;
    }
    session.cache_report().unwrap()
}
