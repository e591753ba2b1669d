//! Memory that is used again while it is read: what a lease keeps, and what becomes of a load that has none
//! any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use imgcache::image::manifest::ChunkSpan;
use imgcache::index::entry::Entry;
use imgcache::index::reader::{BucketSource, EMPTY_BUCKET, Look};
use imgcache::index::table::BUCKET_BYTES;
use imgcache::transport::verbs::{Buffer, Scope};
use rustix::process::{Pid, Signal, kill_process};

use crate::cache::{Cache, DEVICE, Stop, chunks, press, queues, report, wait};
use crate::loading::{RDMA, chunks_of, index_key, length, session};
use crate::reader::{Buckets, Reader, domain};

/// A node that the image fits into, and little more.
fn small(nodes: usize) -> Cache {
    let arguments = ["--rdma", DEVICE, "--memory", "80M", "--max-leased-permille", "900"];
    Cache::with(nodes, &arguments)
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_load_that_was_suspended_for_longer_than_its_lease_ends_with_the_right_bytes() {
    let cache = small(2);
    let load = cache.begin(&["--transport", "rdma"]);
    wait("the load to connect", || queues(&cache.nodes[0]) > 0);
    let pid = Pid::from_child(&load);
    kill_process(pid, Signal::STOP).unwrap();
    wait("the leases to end", || cache.nodes[0].number("placement", "leased") == 0);
    // What it knows of this node's memory is not so any more when it goes on.
    let stop = AtomicBool::new(false);
    let evicted = || cache.nodes[0].number("", "evictions");
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| press(&cache.nodes[0], &stop));
        wait("all of the image to go", || evicted() > 800);
    });
    kill_process(pid, Signal::CONT).unwrap();
    let report = report(&load.wait_with_output().unwrap());
    let again = report["retries"].as_u64().unwrap() + report["misses"].as_u64().unwrap();
    assert!(again > 0, "it had all that it wanted of the node before: {report}");
    assert!(chunks(&report, &cache.nodes[1], "rdma") > 0, "{report}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn loads_under_eviction_take_what_is_gone_from_the_origin() {
    let cache = small(2);
    let store = cache.bench.store();
    let stop = AtomicBool::new(false);
    let evicted = || cache.nodes.iter().map(|node| node.number("", "evictions")).sum::<u64>();
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for node in &cache.nodes {
            scope.spawn(|| press(node, &stop));
        }
        let mut from_origin = 0;
        for _ in 0..6 {
            let report = cache.load(&["--origin", store.to_str().unwrap()]);
            from_origin += report["chunks_from_origin"].as_u64().unwrap();
        }
        assert!(from_origin > 0 && evicted() > 0, "nothing was evicted");
    });
}

/// A chunk, memory for its buckets and for its content.
struct Place<'s, 'm> {
    chunk: ChunkSpan,
    buckets: Option<[Buffer<'s, 'm>; 2]>,
    content: Option<Buffer<'s, 'm>>,
}

impl<'s, 'm> Place<'s, 'm> {
    /// Places for all of `chunks`, in `memory`.
    fn all(scope: &'s Scope<'s, 'm>, chunks: &[ChunkSpan], mut memory: &'m mut [u8]) -> Vec<Self> {
        let mut parts = Vec::new();
        for chunk in chunks {
            for bytes in [BUCKET_BYTES, BUCKET_BYTES, length(chunk)] {
                let (part, rest) = std::mem::take(&mut memory).split_at_mut(bytes);
                parts.push(part);
                memory = rest;
            }
        }
        let mut buffers = scope.register(parts).unwrap().into_iter();
        let mut next = || buffers.next().unwrap();
        let place = |chunk: &ChunkSpan| {
            let buckets = Some([next(), next()]);
            Self { chunk: *chunk, buckets, content: Some(next()) }
        };
        chunks.iter().map(place).collect()
    }

    /// What the node's index says of the chunk.
    fn look(&mut self, reader: &mut Reader<'s, 'm>) -> Look {
        let exported = reader.announcement.exported;
        let mut buckets = Buckets { reader, memory: self.buckets.take() };
        let (key, mut read) = (index_key(&self.chunk), [EMPTY_BUCKET; 2]);
        buckets.read(exported.table.candidates(key), &mut read).unwrap();
        self.buckets = buckets.memory;
        exported.look(&read, key)
    }

    /// Whether the chunk is whole at the place that `entry` says.
    fn is_whole(&mut self, reader: &mut Reader<'s, 'm>, entry: &Entry) -> bool {
        let content = self.content.take().unwrap();
        let (status, content) = reader.read_one(content, entry.offset);
        assert!(status.is_success(), "{status}");
        let whole = self.chunk.entry.has_key(&content);
        self.content = Some(content);
        whole
    }
}

/// Bytes that [`Place::all`] takes.
fn bytes_of(chunks: &[ChunkSpan]) -> usize {
    chunks.iter().map(|chunk| length(chunk) + 2 * BUCKET_BYTES).sum()
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn what_is_leased_stays_while_everything_else_has_to_go() {
    let cache = small(1);
    let node = &cache.nodes[0];
    let chunks = chunks_of(&*session(&cache.url(), RDMA));
    let mut memory = vec![0; bytes_of(&chunks)];
    let domain = domain();
    domain.scope(|scope| {
        let mut places = Place::all(scope, &chunks, &mut memory);
        // Every second chunk.
        let leased: Vec<_> = chunks.iter().step_by(2).map(index_key).collect();
        let mut reader = Reader::connect(scope, node, &leased);
        // Whoever leases nothing may read all the same.
        let mut guest = Reader::connect(scope, node, &[]);
        let entries: Vec<Entry> = places
            .iter_mut()
            .map(|place| match place.look(&mut guest) {
                Look::Found(entry) => entry,
                look => panic!("chunk {}: {look:?}", place.chunk.index),
            })
            .collect();
        let (stop, mut late, mut rounds) = (AtomicBool::new(false), 0, 0);
        thread::scope(|threads| {
            let _stop = Stop(&stop);
            let pressing = threads.spawn(|| press(node, &stop));
            // Until all memory that may go has gone twice.
            while node.number("", "evictions") < 800 || rounds < 3 {
                for (place, entry) in places.iter_mut().zip(&entries).step_by(2) {
                    assert_eq!(place.look(&mut reader), Look::Found(*entry));
                    assert!(place.is_whole(&mut reader, entry), "chunk {}", place.chunk.index);
                }
                for (place, entry) in places.iter_mut().zip(&entries).skip(1).step_by(2) {
                    // Where it was, something else may be by now; the content says so.
                    late += usize::from(!place.is_whole(&mut guest, entry));
                }
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
            assert!(pressing.join().unwrap() > 0);
        });
        assert!(late > 0, "nothing that was not leased has gone");
        // Of what has gone the index says so too.
        for (place, entry) in places.iter_mut().zip(&entries).skip(1).step_by(2) {
            if !place.is_whole(&mut guest, entry) {
                assert_ne!(place.look(&mut guest), Look::Found(*entry));
            }
        }
        // The right to read ends with the lease.
        reader.release();
        let content = places[0].content.take().unwrap();
        let (status, _) = reader.read_one(content, entries[0].offset);
        assert!(status.is_remote_access(), "{status}");
    });
}
