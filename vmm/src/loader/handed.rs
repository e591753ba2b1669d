//! An image whose chunks are handed over one by one, by a manager guest, instead of fetched. Its
//! manifest comes from where images come from, so that every chunk is checked as ever.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imgcache::image::manifest::{MAX_CHUNK_SIZE, Manifest};
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use imgcache::transport::{Accept, ChunkRead, MappableExtent, Session, Transport, TransportError};

/// How long no chunk may come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Manifests from another transport, chunks from a socket; see
/// [`control::vms`](crate::control::vms) for who is at its other end.
#[derive(Debug)]
pub struct Handed {
    manifests: Box<dyn Transport>,
    stream: Arc<Mutex<UnixStream>>,
}

impl Handed {
    /// Connects to who hands chunks over.
    ///
    /// # Errors
    /// Nobody listens at `socket`.
    pub fn connect(socket: &Path, manifests: Box<dyn Transport>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { manifests, stream: Arc::new(Mutex::new(stream)) })
    }
}

impl Transport for Handed {
    fn name(&self) -> &'static str {
        "handed"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        self.manifests.resolve(name)
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        let manifest = self.manifests.open(id)?.manifest().clone();
        Ok(Box::new(HandedSession { id: *id, manifest, stream: self.stream.clone() }))
    }
}

#[derive(Debug)]
struct HandedSession {
    id: ManifestId,
    manifest: Manifest,
    stream: Arc<Mutex<UnixStream>>,
}

impl Session for HandedSession {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn sealed(&self) -> bool {
        false
    }

    fn mappable(&self) -> Vec<MappableExtent> {
        Vec::new()
    }

    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError> {
        let mut missing: HashMap<u32, ChunkRead<'_>> =
            reads.into_iter().map(|read| (read.index, read)).collect();
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source: io::Error| {
            let source = match source.kind() {
                ErrorKind::WouldBlock => {
                    let words = format!("none came for {} s", PATIENCE.as_secs());
                    io::Error::new(ErrorKind::TimedOut, words)
                }
                ErrorKind::UnexpectedEof => {
                    io::Error::new(ErrorKind::UnexpectedEof, "the manager has gone")
                }
                _ => source,
            };
            TransportError::Io { what: "chunks from a manager", source }
        };
        while !missing.is_empty() {
            let mut head = [0; 8];
            stream.read_exact(&mut head).map_err(failed)?;
            let [a, b, c, d, length @ ..] = head;
            let (index, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(length));
            if length > MAX_CHUNK_SIZE {
                let words = format!("a frame of {length} bytes");
                return Err(failed(io::Error::new(ErrorKind::InvalidData, words)));
            }
            match missing.get_mut(&index) {
                Some(read) if usize::try_from(length) == Ok(read.buffer.len()) => {
                    stream.read_exact(read.buffer).map_err(failed)?;
                    if !accept(index, read.buffer) {
                        return Err(self.damaged(index, read));
                    }
                    missing.remove(&index);
                }
                // Zeros, or one that is there already; or one of another length, which is none.
                _ => {
                    let mut rest = (&mut *stream).take(u64::from(length));
                    let dropped = io::copy(&mut rest, &mut io::sink()).map_err(failed)?;
                    if dropped < u64::from(length) {
                        return Err(failed(ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        Ok(())
    }
}

impl HandedSession {
    fn damaged(&self, index: u32, read: &ChunkRead<'_>) -> TransportError {
        TransportError::DamagedChunk {
            image: self.id,
            segment: self.manifest.segment_of(index).unwrap_or_default(),
            chunk: index,
            key: read.key,
            place: "what the manager handed over".into(),
        }
    }
}
