//! Images for tests, their publication and their loads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imgcache::client::{Image, ImageClient, LoadError, LoadOptions, LoadReport, Progress, Target};
use imgcache::image::import::{BootEntries, KernelFormat};
use imgcache::image::manifest::{Architecture, KernelInfo, Manifest, Placement, SegmentKind};
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use imgcache::store::{NewImage, NewSegment, PushOptions, Store};
use imgcache::transport::cluster::publish::{PublishReport, publish};
use imgcache::transport::cluster::{CacheReport, Cluster, ClusterOptions};
use imgcache::transport::{Accept, ChunkRead, MappableExtent, Session, Transport, TransportError};
use tempfile::TempDir;

use crate::servers::{Memcached, url};

const KERNEL: u64 = 16 << 20;

pub fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// `length` bytes that differ for every `seed` and look random.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A store with images in it, and what is in them.
pub struct Fixture {
    pub store: Store,
    pub folder: TempDir,
    pub content: Vec<u8>,
    pub chunk_size: u32,
}

impl Fixture {
    /// An image `a` of `length` bytes, with some zero chunks and two equal ones.
    pub fn new(length: usize, chunk_size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        let mut content = noise(7, length);
        let chunk = usize::try_from(chunk_size).unwrap();
        if length > 6 * chunk {
            content[2 * chunk..4 * chunk].fill(0);
            content.copy_within(..chunk, 4 * chunk);
        }
        let fixture = Self { store, folder, content, chunk_size };
        fixture.push("a", &fixture.content);
        fixture
    }

    pub fn push(&self, image: &str, content: &[u8]) {
        let kernel = KernelInfo {
            format: KernelFormat::Elf,
            compression: None,
            entries: BootEntries { linux64: Some(KERNEL), pvh32: None },
            setup_header: None,
            initrd_addr_max: 0x7fff_ffff,
            initrd_above_4g: true,
            cmdline_max: 2047,
            version: None,
        };
        let content = content.to_vec();
        let segment = NewSegment {
            kind: SegmentKind::Kernel,
            placement: Placement::Fixed { address: KERNEL },
            data_length: u64::try_from(content.len()).ok(),
            memory_length: 0,
            content: Box::new(move |sink| Ok(sink.write_all(&content).map(|()| Vec::new())?)),
        };
        let image_to_push = NewImage {
            architecture: Architecture::X86_64,
            chunk_size: self.chunk_size,
            kernel,
            cmdline: String::new(),
            notes: Vec::new(),
            segments: vec![segment],
        };
        self.store.push(&name(image), image_to_push, PushOptions::default()).unwrap();
    }

    pub fn session(&self, image: &str) -> Box<dyn Session> {
        let id = Store::resolve(&self.store, &name(image)).unwrap();
        Transport::open(&self.store, &id).unwrap()
    }

    pub fn publish(&self, cluster: &Cluster) -> Result<PublishReport, TransportError> {
        publish(cluster, &name("a"), &*self.session("a"), None)
    }

    /// Publishes `a` in a new cache of `servers`.
    pub fn published(&self, servers: &[Memcached]) -> PublishReport {
        self.publish(&cluster(&url(servers))).unwrap()
    }

    /// Loads `a` and compares it with what was pushed.
    pub fn check(&self, cluster: Cluster) -> CacheReport {
        self.check_with(cluster, None).unwrap()
    }

    pub fn check_with(
        &self,
        cluster: Cluster,
        progress: Option<Progress<'_>>,
    ) -> Result<CacheReport, LoadError> {
        let image = ImageClient::new(Box::new(cluster)).open(&name("a"))?;
        let (memory, report) = load(&image, progress)?;
        assert!(memory == self.content, "what was loaded is not what was pushed");
        Ok(report.cache.unwrap())
    }

    /// The memcached key of chunk `index`, and its content.
    pub fn chunk(&self, index: u32) -> (String, Vec<u8>) {
        let session = self.session("a");
        let chunk = session.manifest().chunk(index).unwrap();
        let offset = usize::try_from(chunk.offset).unwrap();
        let length = usize::try_from(chunk.length).unwrap();
        (format!("c/{}", chunk.entry.key), self.content[offset..offset + length].to_vec())
    }

    /// Chunks that are stored: not zero, each once.
    pub fn stored_chunks(&self) -> u64 {
        let session = self.session("a");
        let chunks = session.manifest().all_chunks().filter(|chunk| !chunk.entry.zero);
        let keys: std::collections::BTreeSet<_> = chunks.map(|chunk| chunk.entry.key).collect();
        u64::try_from(keys.len()).unwrap()
    }
}

/// Loads an image of one segment into fresh memory.
pub fn load(
    image: &Image,
    progress: Option<Progress<'_>>,
) -> Result<(Vec<u8>, LoadReport), LoadError> {
    let manifest = image.manifest();
    let mut memory = vec![0; usize::try_from(manifest.data_bytes()).unwrap()];
    let chunk_size = usize::try_from(manifest.chunk_size).unwrap();
    let targets = manifest
        .all_chunks()
        .zip(memory.chunks_mut(chunk_size))
        .filter(|(chunk, _)| !chunk.entry.zero)
        .map(|(chunk, buffer)| {
            let (index, key) = (chunk.index, chunk.entry.key);
            Target::Fetch(ChunkRead { index, key, buffer })
        })
        .collect();
    let options = LoadOptions { progress, ..LoadOptions::default() };
    let report = image.load(targets, &options)?;
    Ok((memory, report))
}

/// Options of tests: less patience than a user has, which is still far beyond what anything takes.
pub fn options() -> ClusterOptions {
    ClusterOptions { progress: Duration::from_millis(500), ..ClusterOptions::default() }
}

pub fn cluster(url: &str) -> Cluster {
    Cluster::open(&url.parse().unwrap(), options(), None).unwrap()
}

pub fn cluster_with(url: &str, origin: impl Transport + 'static) -> Cluster {
    Cluster::open(&url.parse().unwrap(), options(), Some(Box::new(origin))).unwrap()
}

/// A store that counts how often each chunk is read, and takes its time.
#[derive(Debug)]
pub struct Counting {
    pub store: Store,
    pub reads: &'static [AtomicU64],
    pub pause: Duration,
}

impl Counting {
    /// A counter for each chunk; they outlive the test.
    pub fn new(store: &Store, pause: Duration) -> Self {
        let counters: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
        Self { store: store.clone(), reads: counters.leak(), pause }
    }
}

#[derive(Debug)]
struct CountingSession {
    session: Box<dyn Session>,
    reads: &'static [AtomicU64],
    pause: Duration,
}

impl Transport for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn resolve(&self, name: &ImageName) -> Result<ManifestId, TransportError> {
        Transport::resolve(&self.store, name)
    }

    fn open(&self, id: &ManifestId) -> Result<Box<dyn Session>, TransportError> {
        let session = Transport::open(&self.store, id)?;
        Ok(Box::new(CountingSession { session, reads: self.reads, pause: self.pause }))
    }
}

impl Session for CountingSession {
    fn manifest(&self) -> &Manifest {
        self.session.manifest()
    }

    fn sealed(&self) -> bool {
        self.session.sealed()
    }

    fn mappable(&self) -> Vec<MappableExtent> {
        self.session.mappable()
    }

    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError> {
        for read in &reads {
            self.reads[usize::try_from(read.index).unwrap()].fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(self.pause);
        self.session.fetch(reads, accept)
    }
}
