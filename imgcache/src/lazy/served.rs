//! Chunks over a stream: a VM's process that can open nothing has one end, who has the image the other.
//!
//! | who | bytes | content (integers are little-endian) |
//! |---|---|---|
//! | process | 4 | number of chunks, 1 to [`MAX_BATCH`] |
//! | | 4 each | their positions in the manifest's chunk table |
//! | server | 4 | for each, in that order: its length in bytes, or 0 if it could not be had |
//! | | length | its content; or, after 0, 2 bytes with the length of the reason, and the reason |
//!
//! Neither trusts the other. The server gives nothing but chunks of the disk of this image, and ends at
//! the first request that is none; it holds at most [`HELD_BYTES`], and does nothing that the process
//! could make it repeat without reading the answers. The process verifies every chunk by BLAKE3.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ChunkSource, SourceError};
use crate::image::manifest::{ChunkSpan, Manifest, SegmentKind};

/// The most chunks of a request.
pub const MAX_BATCH: usize = 16;
/// The most bytes of chunks that a server holds, but at least one chunk.
pub const HELD_BYTES: usize = 1 << 20;
/// The longest reason, in bytes.
const MAX_REASON: usize = 512;

/// Why a server has ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream.
    #[error("the stream of a VM's disk: {0}")]
    Stream(#[from] io::Error),
    /// A request of no chunks, or of too many.
    #[error("a VM's process asks for {0} chunks at once; 1 to {MAX_BATCH} are allowed")]
    Batch(u32),
    /// A chunk that is none of the disk's, or that is zero.
    #[error("a VM's process asks for chunk {0}, which is none of its disk's")]
    Chunk(u32),
}

/// Serves the chunks of the disk of the source's image, until the other end closes the stream; returns how
/// many it has served.
///
/// # Errors
/// The stream breaks, or the other end does not keep to the rules.
pub fn serve_chunks(
    mut stream: impl Read + Write,
    source: &dyn ChunkSource,
) -> Result<u64, ServeError> {
    let mut served = 0;
    while let Some(count) = next_request(&mut stream)? {
        let batch = usize::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_BATCH).contains(count))
            .ok_or(ServeError::Batch(count))?;
        let mut chunks = Vec::with_capacity(batch);
        for _ in 0..batch {
            let index = read_u32(&mut stream)?;
            chunks.push(disk_chunk(source.manifest(), index).ok_or(ServeError::Chunk(index))?);
        }
        let chunk_size = usize::try_from(source.manifest().chunk_size).unwrap_or(HELD_BYTES);
        for part in chunks.chunks((HELD_BYTES / chunk_size.max(1)).max(1)) {
            for result in source.fetch(part) {
                match result {
                    Ok(content) => {
                        let length = u32::try_from(content.len()).unwrap_or(0);
                        stream.write_all(&length.to_le_bytes())?;
                        stream.write_all(&content)?;
                        served += 1;
                    }
                    Err(error) => refuse(&mut stream, &error)?,
                }
            }
        }
        stream.flush()?;
    }
    Ok(served)
}

/// How many chunks are asked for next; `None` at the end of the stream.
fn next_request(stream: &mut impl Read) -> io::Result<Option<u32>> {
    let mut first = [0; 1];
    loop {
        match stream.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut rest = [0; 3];
    stream.read_exact(&mut rest)?;
    let [a] = first;
    let [b, c, d] = rest;
    Ok(Some(u32::from_le_bytes([a, b, c, d])))
}

fn refuse(stream: &mut impl Write, error: &SourceError) -> io::Result<()> {
    let reason = error.to_string();
    let reason = reason.as_bytes().get(..MAX_REASON).unwrap_or(reason.as_bytes());
    stream.write_all(&0_u32.to_le_bytes())?;
    stream.write_all(&u16::try_from(reason.len()).unwrap_or(0).to_le_bytes())?;
    stream.write_all(reason)
}

/// The chunk at this position, if it is one of the disk's that is stored.
fn disk_chunk(manifest: &Manifest, index: u32) -> Option<ChunkSpan> {
    let segment = manifest.segments.get(manifest.segment_of(index)?)?;
    manifest.chunk(index).filter(|chunk| segment.kind == SegmentKind::Block && !chunk.entry.zero)
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The process' end.
#[derive(Debug)]
pub struct ServedSource {
    manifest: Arc<Manifest>,
    stream: Mutex<Stream>,
}

/// The stream, and why it is of no use any more.
#[derive(Debug)]
struct Stream {
    stream: UnixStream,
    broken: Option<Arc<io::Error>>,
}

impl ServedSource {
    /// Chunks of the image with this manifest, from who is at the other end of `stream`.
    pub fn new(manifest: Arc<Manifest>, stream: UnixStream) -> Self {
        Self { manifest, stream: Mutex::new(Stream { stream, broken: None }) }
    }
}

impl ChunkSource for ServedSource {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn fetch(&self, chunks: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.chunks(MAX_BATCH).flat_map(|batch| stream.fetch(batch)).collect()
    }
}

impl Stream {
    fn fetch(&mut self, batch: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>> {
        let mut results = Vec::with_capacity(batch.len());
        if self.broken.is_none()
            && let Err(error) = self.ask(batch, &mut results)
        {
            // What comes after a part of an answer is no answer.
            self.broken = Some(Arc::new(error));
        }
        if let Some(error) = &self.broken {
            results.resize_with(batch.len(), || Err(SourceError::Stream(Arc::clone(error))));
        }
        results
    }

    fn ask(
        &mut self,
        batch: &[ChunkSpan],
        results: &mut Vec<Result<Vec<u8>, SourceError>>,
    ) -> io::Result<()> {
        let mut request = Vec::with_capacity(4 + 4 * batch.len());
        request.extend(u32::try_from(batch.len()).unwrap_or(0).to_le_bytes());
        for chunk in batch {
            request.extend(chunk.index.to_le_bytes());
        }
        self.stream.write_all(&request)?;
        for chunk in batch {
            let length = read_u32(&mut self.stream)?;
            if length == 0 {
                let mut length = [0; 2];
                self.stream.read_exact(&mut length)?;
                let mut reason = vec![0; usize::from(u16::from_le_bytes(length)).min(MAX_REASON)];
                self.stream.read_exact(&mut reason)?;
                let reason = String::from_utf8_lossy(&reason).into_owned();
                results.push(Err(SourceError::Refused(reason)));
                continue;
            }
            if length != chunk.length {
                return Err(io::Error::other(format!(
                    "chunk {} comes with {length} bytes and has {}",
                    chunk.index, chunk.length
                )));
            }
            let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
            self.stream.read_exact(&mut content)?;
            let good = chunk.entry.has_key(&content);
            results.push(if good { Ok(content) } else { Err(SourceError::Damaged(chunk.index)) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::thread;

    use super::*;
    use crate::client::{ImageClient, Verify};
    use crate::lazy::ImageSource;
    use crate::store::{PushOptions, Store};
    use crate::testing::{image, name, noise};

    const CHUNK: usize = 4096;

    /// An image with a disk of ten chunks and a bit, the third of which is zero.
    fn pushed() -> (tempfile::TempDir, Vec<u8>, ImageSource) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        let mut content = noise(7, 10 * CHUNK + 512);
        content[2 * CHUNK..3 * CHUNK].fill(0);
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&content).unwrap();
        let length = u64::try_from(content.len()).unwrap();
        let new = image(&noise(1, 5000), &noise(2, 5000), 4096).with_disk(&file, length);
        store.push(&name("a"), new, PushOptions::default()).unwrap();
        let opened = ImageClient::new(Box::new(store)).open(&name("a")).unwrap();
        (folder, content, ImageSource::new(Arc::new(opened), Verify::Auto))
    }

    fn disk_chunks(manifest: &Manifest) -> Vec<ChunkSpan> {
        let (segment, _) = manifest.disk().unwrap();
        manifest.chunks_of(segment).filter(|chunk| !chunk.entry.zero).collect()
    }

    #[test]
    fn chunks_come_over_a_stream_as_they_are() {
        let (_folder, content, source) = pushed();
        let (here, there) = UnixStream::pair().unwrap();
        let served = ServedSource::new(Arc::new(source.manifest().clone()), here);
        let server = thread::spawn(move || serve_chunks(there, &source).unwrap());
        let chunks = disk_chunks(served.manifest());
        for wanted in [&chunks[..], &chunks[9..], &[chunks[3], chunks[3]]] {
            for (chunk, found) in wanted.iter().zip(served.fetch(wanted)) {
                let at = usize::try_from(chunk.offset).unwrap();
                let length = usize::try_from(chunk.length).unwrap();
                assert!(found.unwrap() == content[at..at + length], "{chunk:?}");
            }
        }
        drop(served);
        assert_eq!(server.join().unwrap(), 10 + 1 + 2);
    }

    #[test]
    fn a_damaged_chunk_fails_alone_and_says_why() {
        let (folder, _, source) = pushed();
        let chunks = disk_chunks(source.manifest());
        let pack = std::fs::read_dir(folder.path().join("packs")).unwrap();
        let pack = pack.map(|e| e.unwrap().path()).find(|p| p.extension().is_none()).unwrap();
        std::fs::remove_file(&pack).unwrap();
        // The store has the pack open still: what is gone is another matter than what is damaged.
        assert!(source.fetch(&chunks).iter().all(Result::is_ok));
        let mut wrong = chunks[1];
        wrong.entry.key = chunks[0].entry.key;
        let results = source.fetch(&[chunks[0], wrong, chunks[2]]);
        let good: Vec<_> = results.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, false, true]);
    }

    #[test]
    fn what_is_no_chunk_of_the_disk_is_not_served() {
        let (_folder, _, source) = pushed();
        let first = source.manifest().disk().unwrap().1.first_chunk;
        let request =
            |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        for (bytes, error) in [
            (request(&[0]), "asks for 0 chunks"),
            (request(&[17]), "asks for 17 chunks"),
            (request(&[u32::MAX]), "chunks at once"),
            (request(&[1, 0]), "chunk 0, which is none"),
            (request(&[2, first, first + 2]), "which is none of its disk's"),
            (request(&[1, u32::MAX]), "which is none of its disk's"),
            (request(&[2, first]), "the stream of a VM's disk"),
        ] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(&bytes).unwrap();
            here.shutdown(Shutdown::Write).unwrap();
            let found = serve_chunks(there, &source).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn a_server_that_lies_or_ends_is_not_believed() {
        let (_folder, _, source) = pushed();
        let chunks = disk_chunks(source.manifest());
        let manifest = Arc::new(source.manifest().clone());
        let answer = |length: u32, bytes: &[u8]| [&length.to_le_bytes()[..], bytes].concat();
        for (bytes, error) in [
            (answer(4096, &[1; 4096]), "is not that chunk"),
            (answer(0, b"\x04\0gone"), "gone"),
            (answer(5, b"12345"), "nobody serves"),
            (answer(u32::MAX, &[]), "nobody serves"),
            (answer(4096, &[1; 40]), "nobody serves"),
            (Vec::new(), "nobody serves"),
        ] {
            let (here, mut there) = UnixStream::pair().unwrap();
            let served = ServedSource::new(manifest.clone(), here);
            there.write_all(&bytes).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
            let found = served.fetch(&chunks[..1]).remove(0).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
            // Once it is broken it stays so, and nobody waits for it.
            if error == "nobody serves" {
                assert!(served.fetch(&chunks).iter().all(Result::is_err));
            }
        }
    }
}
