//! The one interface through which a client sees a store, wherever its chunks are.
//!
//! The embedded store implements it by positional reads of local files, the distributed cache by
//! RDMA, out of a node's memory on this host, or by TCP. Nothing here knows what memory the chunks land in: a caller hands out
//! disjoint buffers (slices of guest memory, before the guest runs) and a session fills them, in
//! any order, from any number of threads.

pub mod cluster;
pub mod embedded;
pub mod prepared;
pub mod verbs;

use std::fs::File;
use std::sync::Arc;

use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::{ChunkKey, ManifestId};
use crate::store::StoreError;
use cluster::{CacheReport, ClusterError};
use prepared::PreparedFile;

/// One chunk to be brought, and where it lands.
#[derive(Debug)]
pub struct ChunkRead<'m> {
    /// Position of the chunk in the manifest's chunk table.
    pub index: u32,
    /// What it must hash to.
    pub key: ChunkKey,
    /// Its final place; exactly as long as the chunk.
    pub buffer: &'m mut [u8],
}

/// Part of an image that this host holds in pages which can be mapped into a guest as they are.
///
/// `offset`, `length` and `file_offset` are multiples of 2 MiB.
#[derive(Debug, Clone)]
pub struct MappableExtent {
    /// Index of the segment in the manifest.
    pub segment: usize,
    /// Where the extent begins in the segment, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The file that holds it; to be mapped privately, never written.
    pub file: Arc<File>,
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
}

/// Checks the bytes of a chunk: (position in the chunk table, content) -> whether they are it.
///
/// A session calls it on the thread that brought the chunk, at once, while the bytes are in that
/// core's cache.
pub type Accept<'a> = &'a (dyn Fn(u32, &[u8]) -> bool + Sync);

/// A store, as a client sees it.
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// What to call it in reports: `embedded`, `tcp`, `rdma`.
    fn name(&self) -> &'static str;

    /// The manifest that `name` stands for now.
    ///
    /// # Errors
    /// [`TransportError::UnknownImage`] if there is none of that name.
    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError>;

    /// Opens an image for loading. What it needs stays in the store until the session is dropped.
    ///
    /// # Errors
    /// [`TransportError::UnknownManifest`] if the store does not hold it.
    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError>;
}

/// An image that is being loaded.
pub trait Session: Send + Sync + std::fmt::Debug {
    /// The manifest, verified against the id it was opened by.
    fn manifest(&self) -> &Manifest;

    /// Whether the store vouches that the image's chunks are as they were when they were last
    /// verified in full, so that the chunk checksums suffice. `false` asks for full hashing.
    fn sealed(&self) -> bool;

    /// What can be mapped instead of read. Empty where the store is elsewhere.
    fn mappable(&self) -> Vec<MappableExtent>;

    /// The file that holds all of the image as the guest will find it, verified when it was put
    /// there, where it is held so.
    fn prepared(&self) -> Option<&PreparedFile> {
        None
    }

    /// Brings all of `reads`; returns when each buffer holds what `accept` took for its chunk.
    ///
    /// # Errors
    /// The first chunk that no source could supply; buffers may then hold anything.
    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError>;

    /// What the last fetch did to the nodes of a cache, where there are any.
    fn cache_report(&self) -> Option<CacheReport> {
        None
    }
}

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No image has this name.
    #[error("there is no image '{0}'")]
    UnknownImage(ImageName),
    /// The store does not hold this manifest.
    #[error("there is no manifest {0}")]
    UnknownManifest(ManifestId),
    /// A chunk is not what its manifest says.
    #[error(
        "chunk {chunk} (segment {segment}) of image {image} is damaged: {place} does not hold \
         {key}"
    )]
    DamagedChunk {
        /// The image's manifest.
        image: ManifestId,
        /// Index of the segment.
        segment: usize,
        /// Position in the chunk table.
        chunk: u32,
        /// What it should hash to.
        key: ChunkKey,
        /// Where the store has it: file and offset, or node.
        place: String,
    },
    /// A read that is none of the image's: no such chunk, another key, or another length.
    #[error("image {image} has no chunk {chunk} of {length} bytes with key {key}")]
    NoSuchChunk {
        /// The image's manifest.
        image: ManifestId,
        /// Position in the chunk table that was asked for.
        chunk: u32,
        /// Length of the buffer, in bytes.
        length: usize,
        /// The key that was asked for.
        key: ChunkKey,
    },
    /// What a store of another kind is read by failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// The embedded store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The distributed cache failed.
    #[error(transparent)]
    Cache(#[from] ClusterError),
}

impl TransportError {
    /// Whether the image's content is not what it was when it was pushed; pushing it again mends
    /// that.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::DamagedChunk { .. } => true,
            Self::Store(error) => error.is_damage(),
            Self::Cache(error) => matches!(error, ClusterError::Manifest(_)),
            Self::UnknownImage(_)
            | Self::UnknownManifest(_)
            | Self::NoSuchChunk { .. }
            | Self::Io { .. } => false,
        }
    }
}
