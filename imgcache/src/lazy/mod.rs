//! Chunks of an image that are brought one by one, when somebody needs them: those of its disk.
//!
//! A [`ChunkSource`] is asked for them: the image's own client ([`ImageSource`]), or, for a process that
//! reaches neither network nor files, somebody at the other end of a stream ([`served`]).

pub mod served;

use std::sync::Arc;

use crate::client::{Image, LoadError, Verify};
use crate::image::manifest::{ChunkSpan, Manifest};
use crate::transport::ChunkRead;

/// Why a chunk was not brought.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The image's client says so.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Who serves chunks says so.
    #[error("{0}")]
    Refused(String),
    /// What came is not the chunk.
    #[error("what came as chunk {0} is not that chunk")]
    Damaged(u32),
    /// The stream to who serves chunks has ended, or is broken.
    #[error("nobody serves the image's chunks any more: {0}")]
    Stream(#[source] Arc<std::io::Error>),
}

/// What chunks of an image are brought by; verified, whatever it is.
pub trait ChunkSource: Send + Sync + std::fmt::Debug {
    /// The image's manifest.
    fn manifest(&self) -> &Manifest;

    /// Brings these chunks of the image's disk, none of them zero; the results are in their order. May
    /// take as long as the image's client has patience. Several threads may call it.
    fn fetch(&self, chunks: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>>;
}

/// Chunks by the image's own client, in this process.
#[derive(Debug)]
pub struct ImageSource {
    image: Arc<Image>,
    verify: Verify,
}

impl ImageSource {
    /// Chunks of `image`, verified as thoroughly as `verify` says.
    pub fn new(image: Arc<Image>, verify: Verify) -> Self {
        Self { image, verify }
    }

    fn fetch_all(&self, chunks: &[ChunkSpan]) -> Result<Vec<Vec<u8>>, LoadError> {
        let mut contents: Vec<Vec<u8>> = chunks
            .iter()
            .map(|chunk| vec![0; usize::try_from(chunk.length).unwrap_or(0)])
            .collect();
        let reads = chunks.iter().zip(&mut contents).map(|(chunk, buffer)| ChunkRead {
            index: chunk.index,
            key: chunk.entry.key,
            buffer,
        });
        self.image.fetch(reads.collect(), self.verify)?;
        Ok(contents)
    }
}

impl ChunkSource for ImageSource {
    fn manifest(&self) -> &Manifest {
        self.image.manifest()
    }

    fn fetch(&self, chunks: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>> {
        match self.fetch_all(chunks) {
            Ok(contents) => contents.into_iter().map(Ok).collect(),
            // One bad chunk must not fail the others.
            Err(_) if chunks.len() > 1 => {
                chunks.iter().flat_map(|chunk| self.fetch(std::slice::from_ref(chunk))).collect()
            }
            Err(error) => vec![Err(error.into())],
        }
    }
}
