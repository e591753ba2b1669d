//! Resolves a name and loads the chunks of an image, each verified before the guest runs.

use std::fmt;

use serde::Serialize;

use crate::image::manifest::{ChunkSpan, Manifest};
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel;
use crate::transport::cluster::CacheReport;
use crate::transport::prepared::PreparedFile;
use crate::transport::{ChunkRead, MappableExtent, Session, Transport, TransportError};

/// How often [`ImageClient::open`] resolves a name whose manifest was replaced meanwhile.
const RESOLVE_ATTEMPTS: usize = 4;

/// Reads images through one transport.
#[derive(Debug)]
pub struct ImageClient {
    transport: Box<dyn Transport>,
}

/// An image that is open for loading.
#[derive(Debug)]
pub struct Image {
    name: ImageName,
    id: ManifestId,
    transport: &'static str,
    session: Box<dyn Session>,
}

/// One chunk and the memory in which the guest will find it.
#[derive(Debug)]
pub enum Target<'m> {
    /// To be brought.
    Fetch(ChunkRead<'m>),
    /// Mapped there already; only to be verified.
    InPlace {
        /// Position in the manifest's chunk table.
        index: u32,
        /// The mapped bytes, exactly as long as the chunk.
        bytes: &'m [u8],
    },
}

/// How thoroughly to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// By checksum if the store vouches for its chunks, else in full.
    #[default]
    Auto,
    /// By BLAKE3, whatever the store says.
    Full,
}

/// How the chunks of a load were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// By XXH3-64, against the manifest, whose own hash was checked.
    Checksum,
    /// By BLAKE3.
    Full,
    /// When it was put where it is; nobody could write to it since.
    Prepared,
}

/// Called with the bytes that were verified since the last call; from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Options of a load.
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// How thoroughly to verify.
    pub verify: Verify,
    /// Whom to tell about progress.
    pub progress: Option<Progress<'a>>,
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions").field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// What a load did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// Bytes brought into buffers.
    pub bytes_fetched: u64,
    /// Bytes that were mapped already.
    pub bytes_mapped: u64,
    /// Bytes of the image's zero chunks, which nothing was done for. Its disk does not count.
    pub bytes_zero: u64,
    /// Chunks that were fetched or verified in place.
    pub chunks: u64,
    /// How they were verified.
    pub verify: Verification,
    /// The transport that brought them.
    pub transport: &'static str,
    /// What the nodes of the cache did, if the image came from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheReport>,
}

/// Why an image was not opened or loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such image.
    #[error("there is no image '{0}'")]
    NotFound(ImageName),
    /// It is there, but not as it was pushed. Pushing it again mends it.
    #[error("image '{image}' is damaged: {source}")]
    Damaged {
        /// Its name.
        image: ImageName,
        /// What is damaged, and where.
        source: Box<TransportError>,
    },
    /// A chunk that was mapped is not what the manifest says.
    #[error(
        "image '{image}' is damaged: chunk {} (segment {segment}, offset {}), mapped from the \
         store, is not {}", chunk.index, chunk.offset, chunk.entry.key
    )]
    DamagedInPlace {
        /// Its name.
        image: ImageName,
        /// Index of the segment.
        segment: usize,
        /// The chunk.
        chunk: Box<ChunkSpan>,
    },
    /// A target that is no chunk of the image: its place in the table, or its length, is wrong.
    #[error("image '{image}' has no chunk {index} of {length} bytes")]
    NoSuchChunk {
        /// Its name.
        image: ImageName,
        /// The position in the chunk table.
        index: u32,
        /// The length of the target's memory, in bytes.
        length: usize,
    },
    /// It could not be read.
    #[error("image '{image}': {source}")]
    Io {
        /// Its name.
        image: ImageName,
        /// What failed.
        source: Box<TransportError>,
    },
}

impl ImageClient {
    /// A client of the store behind `transport`.
    pub fn new(transport: Box<dyn Transport>) -> Self {
        Self { transport }
    }

    /// The manifest that `name` stands for now.
    ///
    /// # Errors
    /// [`LoadError::NotFound`] if there is none; else why it cannot be found out.
    pub fn resolve(&self, name: &ImageName) -> Result<ManifestId, LoadError> {
        self.transport.resolve(name).map_err(|error| failed(name, error))
    }

    /// Opens the image with this manifest, which is to be called `name` in reports, whether or not the
    /// name stands for it still.
    ///
    /// # Errors
    /// [`LoadError::Damaged`] if it is not there any more; else why it cannot be read.
    pub fn open_exactly(&self, name: &ImageName, id: ManifestId) -> Result<Image, LoadError> {
        let session = self.transport.open(&id).map_err(|error| failed(name, error))?;
        Ok(Image { name: name.clone(), id, transport: self.transport.name(), session })
    }

    /// Opens the image that is called `name` now.
    ///
    /// # Errors
    /// [`LoadError::NotFound`] if there is none; else why it cannot be read.
    pub fn open(&self, name: &ImageName) -> Result<Image, LoadError> {
        let mut id = self.transport.resolve(name).map_err(|error| failed(name, error))?;
        let mut attempt = 1;
        loop {
            match self.transport.open(&id) {
                Ok(session) => {
                    let transport = self.transport.name();
                    return Ok(Image { name: name.clone(), id, transport, session });
                }
                // Pushed again and collected since it was resolved.
                Err(TransportError::UnknownManifest(_)) if attempt < RESOLVE_ATTEMPTS => {
                    let now = self.transport.resolve(name).map_err(|error| failed(name, error))?;
                    if now == id {
                        return Err(failed(name, TransportError::UnknownManifest(id)));
                    }
                    id = now;
                    attempt += 1;
                }
                Err(error) => return Err(failed(name, error)),
            }
        }
    }
}

fn failed(name: &ImageName, source: TransportError) -> LoadError {
    let image = name.clone();
    match source {
        TransportError::UnknownImage(name) => LoadError::NotFound(name),
        // The name is there, what it stands for is not.
        TransportError::UnknownManifest(_) => LoadError::Damaged { image, source: source.into() },
        source if source.is_damage() => LoadError::Damaged { image, source: source.into() },
        source => LoadError::Io { image, source: source.into() },
    }
}

impl Image {
    /// Its name.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        self.session.manifest()
    }

    /// What of it can be mapped instead of fetched.
    pub fn mappable(&self) -> Vec<MappableExtent> {
        self.session.mappable()
    }

    /// The file that holds all of it as the guest will find it, where it is held so.
    pub fn prepared(&self) -> Option<&PreparedFile> {
        self.session.prepared()
    }

    /// Fills and verifies all of `targets`; they should be in ascending order of address.
    ///
    /// # Errors
    /// The first chunk that could not be brought or is not what it should be; memory may then hold
    /// anything.
    pub fn load(
        &self,
        targets: Vec<Target<'_>>,
        options: &LoadOptions<'_>,
    ) -> Result<LoadReport, LoadError> {
        let manifest = self.session.manifest();
        let verify = match options.verify {
            Verify::Auto if self.session.prepared().is_some() => Verification::Prepared,
            Verify::Auto if self.session.sealed() => Verification::Checksum,
            Verify::Auto | Verify::Full => Verification::Full,
        };
        let mut reads = Vec::new();
        let mut mapped = Vec::new();
        let mut report = LoadReport {
            bytes_fetched: 0,
            bytes_mapped: 0,
            bytes_zero: zero_bytes(manifest),
            chunks: u64::try_from(targets.len()).unwrap_or(u64::MAX),
            verify,
            transport: self.transport,
            cache: None,
        };
        for target in targets {
            match target {
                Target::Fetch(read) => {
                    let chunk = self.chunk(read.index, read.buffer.len())?;
                    report.bytes_fetched += u64::from(chunk.length);
                    if chunk.entry.zero {
                        read.buffer.fill(0);
                    } else {
                        reads.push(read);
                    }
                }
                Target::InPlace { index, bytes } => {
                    let chunk = self.chunk(index, bytes.len())?;
                    report.bytes_mapped += u64::from(chunk.length);
                    mapped.push((chunk, bytes));
                }
            }
        }
        let accept = |chunk: &ChunkSpan, content: &[u8]| {
            let good = match verify {
                Verification::Checksum => chunk.entry.has_checksum(content),
                Verification::Full => chunk.entry.has_key(content),
                Verification::Prepared => true,
            };
            if good && let Some(progress) = options.progress {
                progress(u64::from(chunk.length));
            }
            good
        };
        parallel::by_region(
            mapped,
            |(_, bytes)| bytes.as_ptr().addr(),
            |(chunk, bytes)| {
                if accept(&chunk, bytes) { Ok(()) } else { Err(self.damaged_in_place(chunk)) }
            },
        )?;
        self.session
            .fetch(reads, &|index, content| {
                manifest.chunk(index).is_some_and(|chunk| accept(&chunk, content))
            })
            .map_err(|error| failed(&self.name, error))?;
        report.cache = self.session.cache_report();
        Ok(report)
    }

    /// Brings and verifies chunks by themselves, such as those of a disk that is read now; none of them
    /// zero.
    ///
    /// # Errors
    /// The first chunk that could not be brought or is not what it should be; the buffers may then hold
    /// anything.
    pub fn fetch(&self, reads: Vec<ChunkRead<'_>>, verify: Verify) -> Result<(), LoadError> {
        let manifest = self.session.manifest();
        let by_checksum = verify == Verify::Auto && self.session.sealed();
        let accept = |index: u32, content: &[u8]| {
            manifest.chunk(index).is_some_and(|chunk| {
                if by_checksum {
                    chunk.entry.has_checksum(content)
                } else {
                    chunk.entry.has_key(content)
                }
            })
        };
        self.session.fetch(reads, &accept).map_err(|error| failed(&self.name, error))
    }

    fn chunk(&self, index: u32, length: usize) -> Result<ChunkSpan, LoadError> {
        self.manifest()
            .chunk(index)
            .filter(|chunk| usize::try_from(chunk.length) == Ok(length))
            .ok_or_else(|| LoadError::NoSuchChunk { image: self.name.clone(), index, length })
    }

    fn damaged_in_place(&self, chunk: ChunkSpan) -> LoadError {
        let segment = self.manifest().segment_of(chunk.index).unwrap_or_default();
        LoadError::DamagedInPlace { image: self.name.clone(), segment, chunk: chunk.into() }
    }
}

fn zero_bytes(manifest: &Manifest) -> u64 {
    manifest
        .loaded()
        .flat_map(|(segment, _)| manifest.chunks_of(segment))
        .filter(|chunk| chunk.entry.zero)
        .map(|chunk| u64::from(chunk.length))
        .sum()
}

#[cfg(test)]
mod tests;
