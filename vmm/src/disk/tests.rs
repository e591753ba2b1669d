//! Tests of a disk as its device sees it, with an image in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::Duration;

use devices::virtio::blk::{BlockBackend, Completion, Operation, Request, Tag};
use imgcache::image::manifest::{ChunkEntry, ChunkSpan, Placement, Segment, SegmentKind};
use imgcache::lazy::SourceError;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};

use super::*;

const CHUNK: usize = 4096;
const ID: ManifestId = ManifestId([9; 32]);

/// An image in memory, which counts what is asked of it, and waits where it is told to.
#[derive(Debug)]
struct Memory {
    manifest: Manifest,
    content: Vec<u8>,
    fetched: Mutex<HashMap<u32, usize>>,
    /// Chunks that are held back, and those that cannot be had.
    held: Mutex<Vec<u32>>,
    changed: Condvar,
    broken: Mutex<Vec<u32>>,
    calls: AtomicUsize,
}

impl Memory {
    fn new(content: Vec<u8>) -> Arc<Self> {
        let chunks: Vec<_> = content.chunks(CHUNK).map(ChunkEntry::of).collect();
        let length = u64::try_from(content.len()).unwrap();
        let kernel = serde_json::json!({
            "format": "elf", "compression": null,
            "entries": {"linux64": 0x100_0000, "pvh32": null}, "setup_header": null,
            "initrd_addr_max": 0x7fff_ffff, "initrd_above_4g": true, "cmdline_max": 2047,
            "version": null
        });
        let manifest = Manifest {
            architecture: imgcache::image::manifest::Architecture::X86_64,
            chunk_size: 4096,
            kernel: serde_json::from_value(kernel).unwrap(),
            cmdline: String::new(),
            segments: vec![Segment {
                kind: SegmentKind::Block,
                placement: Placement::Device,
                data_length: length,
                memory_length: length,
                first_chunk: 0,
                chunk_count: u32::try_from(chunks.len()).unwrap(),
            }],
            notes: Vec::new(),
            chunks,
        };
        Arc::new(Self {
            manifest,
            content,
            fetched: Mutex::default(),
            held: Mutex::default(),
            changed: Condvar::new(),
            broken: Mutex::default(),
            calls: AtomicUsize::new(0),
        })
    }

    fn fetched(&self) -> HashMap<u32, usize> {
        self.fetched.lock().unwrap().clone()
    }

    fn let_go(&self) {
        self.held.lock().unwrap().clear();
        self.changed.notify_all();
    }
}

impl ChunkSource for Memory {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn fetch(&self, chunks: &[ChunkSpan]) -> Vec<Result<Vec<u8>, SourceError>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let fetch = |chunk: &ChunkSpan| {
            *self.fetched.lock().unwrap().entry(chunk.index).or_default() += 1;
            let mut held = self.held.lock().unwrap();
            while held.contains(&chunk.index) {
                held = self.changed.wait(held).unwrap();
            }
            if self.broken.lock().unwrap().contains(&chunk.index) {
                return Err(SourceError::Refused("gone".into()));
            }
            let at = usize::try_from(chunk.offset).unwrap();
            Ok(self.content[at..at + usize::try_from(chunk.length).unwrap()].to_vec())
        };
        chunks.iter().map(fetch).collect()
    }
}

/// A disk without its device.
struct Bare {
    disk: LazyDisk,
    counters: Arc<Counters>,
    next: usize,
}

impl Bare {
    fn new(memory: &Arc<Memory>, overlay: Option<Overlay>) -> Self {
        let counters = Arc::new(Counters::default());
        let segment = memory.manifest.segments[0].clone();
        let source: Arc<dyn ChunkSource> = memory.clone();
        let disk = LazyDisk::start(source, &ID, &segment, overlay, counters.clone()).unwrap();
        Self { disk, counters, next: 0 }
    }

    fn submit(&mut self, operation: Operation) -> Tag {
        self.next += 1;
        let tag = Tag::of_nobody(self.next);
        self.disk.submit(Request { tag, operation });
        tag
    }

    fn completion(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.disk.completion() {
                return completion;
            }
            let event = self.disk.event();
            poll(&mut [PollFd::new(&event, PollFlags::IN)], None).unwrap();
        }
    }

    fn does(&mut self, operation: Operation) -> Option<Vec<u8>> {
        let tag = self.submit(operation);
        let Completion { tag: completed, result } = self.completion();
        assert_eq!(completed, tag);
        result.ok()
    }

    fn read(&mut self, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.does(Operation::Read { offset, length })
    }
}

/// Bytes that differ everywhere, but for a chunk of zeros, the fourth.
fn content(chunks: usize) -> Vec<u8> {
    let mut content: Vec<u8> = (0..chunks * CHUNK / 4)
        .flat_map(|n| u32::try_from(n).unwrap().wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    content[3 * CHUNK..4 * CHUNK].fill(0);
    content
}

fn scratch(length: usize, limit: Option<u64>) -> Overlay {
    Overlay::scratch(tempfile::tempfile().unwrap(), length as u64, limit)
}

#[test]
fn only_what_is_read_is_brought_and_each_chunk_once() {
    let memory = Memory::new(content(300));
    let mut disk = Bare::new(&memory, None);
    assert!(!disk.disk.is_writable());
    assert_eq!(disk.disk.sectors(), 300 * 8);
    assert_eq!(disk.read(7 * 4096 + 512, 1024).unwrap(), memory.content[7 * 4096 + 512..][..1024]);
    assert_eq!(disk.read(7 * 4096, 4096).unwrap(), memory.content[7 * 4096..][..4096]);
    // Over a chunk of zeros, which is never brought.
    assert_eq!(disk.read(2 * 4096, 3 * 4096).unwrap(), memory.content[2 * 4096..][..3 * 4096]);
    assert_eq!(memory.fetched(), HashMap::from([(7, 1), (2, 1), (4, 1)]));
    let report = disk.counters.report();
    assert_eq!((report.chunks_fetched, report.chunks_ahead), (3, 0));
    assert_eq!((report.bytes_fetched, report.bytes_read), (3 * 4096, 1024 + 4 * 4096));
}

#[test]
fn a_chunk_that_is_long_in_coming_is_asked_for_once_and_holds_up_nothing_else() {
    let memory = Memory::new(content(300));
    memory.held.lock().unwrap().push(9);
    let overlay = scratch(memory.content.len(), None);
    let mut disk = Bare::new(&memory, Some(overlay));
    let slow: Vec<_> =
        (0..5).map(|_| disk.submit(Operation::Read { offset: 9 * 4096, length: 4096 })).collect();
    // Reads of others, writes and flushes go on.
    assert!(disk.read(100 * 4096, 4096).is_some());
    assert!(disk.does(Operation::Write { offset: 9 * 4096, data: vec![1; 512] }).is_some());
    assert!(disk.does(Operation::Flush).is_some());
    assert!(disk.disk.completion().is_none());
    memory.let_go();
    let mut found = Vec::new();
    for _ in &slow {
        let Completion { tag, result } = disk.completion();
        found.push(tag);
        assert_eq!(result.unwrap()[512..], memory.content[9 * 4096 + 512..10 * 4096]);
    }
    found.sort_by_key(|tag| tag.slot());
    assert_eq!(found, slow);
    assert_eq!(memory.fetched()[&9], 1);
}

#[test]
fn a_chunk_that_cannot_be_had_fails_its_readers_only_and_is_tried_again() {
    let memory = Memory::new(content(300));
    memory.broken.lock().unwrap().push(5);
    let mut disk = Bare::new(&memory, None);
    assert_eq!(disk.read(4 * 4096, 3 * 4096), None);
    assert!(disk.read(4 * 4096, 4096).is_some());
    assert_eq!(disk.read(5 * 4096, 512), None);
    memory.broken.lock().unwrap().clear();
    assert_eq!(disk.read(5 * 4096, 4096).unwrap(), memory.content[5 * 4096..6 * 4096]);
    assert_eq!(disk.counters.report().errors, 2);
}

#[test]
fn who_reads_in_sequence_finds_the_next_chunks_there() {
    let memory = Memory::new(content(1000));
    let mut disk = Bare::new(&memory, None);
    for part in 0..4 {
        disk.read(part << 17, 1 << 17).unwrap();
    }
    // 512 KiB were read; up to 1 MiB more comes by itself.
    while memory.fetched().len() < 127 + 256 {
        std::thread::yield_now();
    }
    // The next reads ask for what follows only, and what was brought is not brought again.
    disk.read(1 << 19, 1 << 17).unwrap();
    assert!(memory.fetched().values().all(|count| *count == 1));
    assert!(disk.counters.report().chunks_ahead >= 256);
}

#[test]
fn a_full_overlay_fails_writes_and_nothing_else() {
    let memory = Memory::new(content(16));
    let mut disk = Bare::new(&memory, Some(scratch(16 * CHUNK, Some(4096))));
    let write = |offset, byte| Operation::Write { offset, data: vec![byte; 4096] };
    assert!(disk.does(write(0, 1)).is_some());
    assert!(disk.does(write(8192, 2)).is_none());
    assert!(disk.does(write(0, 3)).is_some());
    assert_eq!(disk.read(0, 4096).unwrap(), [3; 4096]);
    assert_eq!(disk.read(8192, 4096).unwrap(), memory.content[8192..][..4096]);
    assert!(disk.does(Operation::Zero { offset: 0, length: 4096 }).is_some());
    assert!(disk.does(write(8192, 2)).is_some());
    let report = disk.counters.report();
    assert_eq!((report.errors, report.overlay_bytes), (1, 4096));
}

#[test]
fn a_disk_whose_chunks_never_come_ends_all_the_same() {
    let memory = Memory::new(content(16));
    memory.held.lock().unwrap().push(0);
    let mut disk = Bare::new(&memory, None);
    disk.submit(Operation::Read { offset: 0, length: 512 });
    let (told, ended) = mpsc::channel();
    std::thread::spawn(move || {
        drop(disk);
        told.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).unwrap();
    memory.let_go();
}

/// What a driver does, in whole sectors.
#[derive(Debug, Clone)]
enum Act {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
}

fn act(sectors: u64) -> impl Strategy<Value = Act> {
    let place =
        (0..sectors, 1..40_u64).prop_map(move |(start, count)| (start, count.min(sectors - start)));
    prop_oneof![
        3 => place.clone().prop_map(|(start, count)| Act::Read(start, count)),
        3 => (place.clone(), any::<u8>()).prop_map(|((s, c), byte)| Act::Write(s, c, byte)),
        1 => place.prop_map(|(start, count)| Act::Zero(start, count)),
        1 => Just(Act::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_disk_with_an_overlay_is_a_vector_and_its_image_stays_as_it_is(
        acts in prop::collection::vec(act(16 * 8), 1..60),
    ) {
        let memory = Memory::new(content(16));
        let mut model = memory.content.clone();
        let mut disk = Bare::new(&memory, Some(scratch(model.len(), None)));
        let bytes = |start: u64, count: u64| {
            let at = usize::try_from(start * 512).unwrap();
            at..at + usize::try_from(count * 512).unwrap()
        };
        for act in acts {
            let done = match act {
                Act::Read(start, count) => {
                    let range = bytes(start, count);
                    let found = disk.read(start * 512, range.len());
                    prop_assert_eq!(found.as_deref(), Some(&model[range]));
                    continue;
                }
                Act::Write(start, count, byte) => {
                    let range = bytes(start, count);
                    model[range.clone()].fill(byte);
                    disk.does(Operation::Write { offset: start * 512, data: model[range].to_vec() })
                }
                Act::Zero(start, count) => {
                    model[bytes(start, count)].fill(0);
                    disk.does(Operation::Zero { offset: start * 512, length: count * 512 })
                }
                Act::Flush => disk.does(Operation::Flush),
            };
            prop_assert_eq!(done, Some(Vec::new()));
        }
        let mut other = Bare::new(&memory, None);
        prop_assert_eq!(other.read(0, model.len()).unwrap(), memory.content.clone());
    }
}
