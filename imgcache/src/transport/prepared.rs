//! An image that this host holds in one file, laid out to be mapped ([`crate::image::prepared`]): what
//! a host's pool gives to a VM. Whoever filled the file has verified it, and nobody can write to it
//! any more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Accept, ChunkRead, MappableExtent, Session, Transport, TransportError};
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::image::prepared::PreparedLayout;
use crate::key::ManifestId;

/// A file that holds an image, and where in it everything lies.
#[derive(Debug, Clone)]
pub struct PreparedFile {
    /// The file.
    pub file: Arc<File>,
    /// Where everything lies.
    pub layout: Arc<PreparedLayout>,
    /// Whether it is in 2 MiB pages, so that mapping it costs a guest nothing.
    pub huge_pages: bool,
}

/// The one image that a VM was given.
#[derive(Debug, Clone)]
pub struct Prepared {
    name: ImageName,
    id: ManifestId,
    manifest: Arc<Manifest>,
    file: PreparedFile,
}

impl Prepared {
    /// The image `name` with this manifest in `file`.
    pub fn new(
        name: ImageName,
        id: ManifestId,
        manifest: Arc<Manifest>,
        file: Arc<File>,
        huge_pages: bool,
    ) -> Self {
        let layout = Arc::new(PreparedLayout::of(&manifest));
        Self { name, id, manifest, file: PreparedFile { file, layout, huge_pages } }
    }

    /// The id of its manifest.
    pub fn id(&self) -> ManifestId {
        self.id
    }
}

impl Transport for Prepared {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        if *name == self.name {
            return Ok(self.id);
        }
        Err(TransportError::UnknownImage(name.clone()))
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        if *id == self.id {
            return Ok(Box::new(self.clone()));
        }
        Err(TransportError::UnknownManifest(*id))
    }
}

impl Session for Prepared {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn sealed(&self) -> bool {
        true
    }

    fn mappable(&self) -> Vec<MappableExtent> {
        Vec::new()
    }

    fn prepared(&self) -> Option<&PreparedFile> {
        Some(&self.file)
    }

    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError> {
        crate::parallel::by_region(
            reads,
            |read| read.buffer.as_ptr().addr(),
            |read| self.fetch_one(read, accept),
        )
    }
}

impl Prepared {
    fn fetch_one(&self, read: ChunkRead<'_>, accept: Accept<'_>) -> Result<(), TransportError> {
        let ChunkRead { index, key, buffer } = read;
        let chunk = self.manifest.chunk(index).filter(|chunk| {
            chunk.entry.key == key && usize::try_from(chunk.length) == Ok(buffer.len())
        });
        let segment = self.manifest.segment_of(index).unwrap_or_default();
        let (Some(chunk), Some(start)) = (chunk, self.file.layout.segment(segment)) else {
            let (image, length) = (self.id, buffer.len());
            return Err(TransportError::NoSuchChunk { image, chunk: index, length, key });
        };
        let offset = start + chunk.offset;
        self.file
            .file
            .read_exact_at(buffer, offset)
            .map_err(|source| TransportError::Io { what: "read an image from the pool", source })?;
        if accept(index, buffer) {
            return Ok(());
        }
        let place = format!("the pool, at byte {offset} of its file,");
        let (image, chunk) = (self.id, index);
        Err(TransportError::DamagedChunk { image, segment, chunk, key, place })
    }
}
