//! Tests of the client with the embedded store, and with one whose names change meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};

use super::*;
use crate::key::ChunkKey;
use crate::store::Store;
use crate::testing::{image, name, noise, push};

const CHUNK: u32 = 64 << 10;
const KERNEL_BYTES: usize = 100;

fn opened(initrd: &[u8]) -> (tempfile::TempDir, Image) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path()).unwrap();
    push(&store, "a", image(&noise(1, KERNEL_BYTES), initrd, CHUNK)).unwrap();
    let image = ImageClient::new(Box::new(store)).open(&name("a")).unwrap();
    (folder, image)
}

fn in_place<'m>(image: &Image, memory: &'m [u8]) -> Vec<Target<'m>> {
    let pieces = memory.chunks(64 << 10);
    let chunks = image.manifest().chunks_of(1);
    chunks.zip(pieces).map(|(c, bytes)| Target::InPlace { index: c.index, bytes }).collect()
}

#[test]
fn what_is_mapped_is_verified() {
    let mut initrd = noise(2, 5 << 20);
    initrd[1 << 20..2 << 20].fill(0);
    let (_folder, image) = opened(&initrd);
    for (verify, verified) in
        [(Verify::Auto, Verification::Checksum), (Verify::Full, Verification::Full)]
    {
        let options = LoadOptions { verify, progress: None };
        let report = image.load(in_place(&image, &initrd), &options).unwrap();
        let expected = LoadReport {
            bytes_fetched: 0,
            bytes_mapped: 5 << 20,
            bytes_zero: 1 << 20,
            chunks: 80,
            verify: verified,
            transport: "embedded",
            cache: None,
        };
        assert_eq!(report, expected);
        // In a chunk of content, and in one of zeros.
        for position in [3 << 20, (1 << 20) + 5] {
            initrd[position] ^= 1;
            let error = image.load(in_place(&image, &initrd), &options).unwrap_err();
            initrd[position] ^= 1;
            let LoadError::DamagedInPlace { segment: 1, chunk, .. } = &error else {
                panic!("{error}")
            };
            let offset = u64::try_from(position).unwrap();
            assert_eq!(chunk.offset, offset - offset % u64::from(CHUNK));
        }
    }
}

#[test]
fn a_target_that_is_no_chunk_is_refused() {
    let (_folder, image) = opened(&noise(2, 100_000));
    let key = image.manifest().chunks[1].key;
    let fetch = |index, key, length| {
        let mut memory = vec![0; length];
        let read = ChunkRead { index, key, buffer: &mut memory };
        image.load(vec![Target::Fetch(read)], &LoadOptions::default()).map(|_| ())
    };
    fetch(1, key, 64 << 10).unwrap();
    for (index, length) in [(1, 100), (2, 64 << 10), (3, 1), (u32::MAX, 64 << 10)] {
        let error = fetch(index, key, length).unwrap_err();
        assert!(matches!(error, LoadError::NoSuchChunk { .. }), "{error}");
    }
    let error = fetch(1, ChunkKey::of(b"other"), 64 << 10).unwrap_err();
    assert!(error.to_string().contains("has no chunk 1 of 65536 bytes"), "{error}");
    let bytes = &[0; 7];
    let error = image.load(vec![Target::InPlace { index: 1, bytes }], &LoadOptions::default());
    assert!(matches!(error, Err(LoadError::NoSuchChunk { index: 1, length: 7, .. })));
}

#[test]
fn a_zero_chunk_that_is_asked_for_is_zero() {
    let (_folder, image) = opened(&[0; 100]);
    let mut memory = [7; 100];
    let key = image.manifest().chunks[1].key;
    let read = ChunkRead { index: 1, key, buffer: &mut memory };
    image.load(vec![Target::Fetch(read)], &LoadOptions::default()).unwrap();
    assert_eq!(memory, [0; 100]);
}

/// A store in which an image is pushed again, and the old one collected, whenever it is resolved.
#[derive(Debug)]
struct Moving {
    store: Store,
    moves: usize,
    resolved: AtomicUsize,
}

impl Transport for Moving {
    fn name(&self) -> &'static str {
        "moving"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        let id = self.store.resolve(name)?;
        let count = self.resolved.fetch_add(1, AtomicOrdering::Relaxed);
        if count < self.moves {
            let seed = u64::try_from(count).unwrap() + 10;
            push(&self.store, name.as_str(), image(&noise(seed, 10), &[1], CHUNK)).unwrap();
            self.store.gc().unwrap();
        }
        Ok(id)
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        Transport::open(&self.store, id)
    }
}

#[test]
fn an_image_that_moves_is_followed_but_not_for_ever() {
    for (moves, followed) in [(0, true), (3, true), (100, false)] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        push(&store, "a", image(&noise(1, 10), &[1], CHUNK)).unwrap();
        let moving = Moving { store, moves, resolved: AtomicUsize::new(0) };
        let result = ImageClient::new(Box::new(moving)).open(&name("a"));
        assert_eq!(result.is_ok(), followed);
    }
}
