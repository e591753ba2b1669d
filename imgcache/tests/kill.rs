//! A push that is killed at any moment leaves the image that was there, or the new one.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use imgcache::client::{ImageClient, LoadError, LoadOptions, Target};
use imgcache::image::import::{BootEntries, KernelFormat};
use imgcache::image::manifest::{Architecture, KernelInfo, Placement, SegmentKind};
use imgcache::image::name::ImageName;
use imgcache::store::{NewImage, NewSegment, PushOptions, Store};
use imgcache::transport::ChunkRead;

const STORE: &str = "IMGCACHE_TEST_KILL_STORE";
const ADDRESS: u64 = 16 << 20;
const CHUNK_SIZE: u32 = 64 << 10;
const LENGTH: usize = 4 << 20;

/// Content that tells its own seed, in the first byte.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    // Shared by all seeds, so that pushes also refer to what earlier ones wrote.
    bytes[LENGTH / 2..].fill(0x5a);
    bytes[0] = seed;
    bytes
}

fn image(data: Vec<u8>) -> NewImage<'static> {
    NewImage {
        architecture: Architecture::X86_64,
        chunk_size: CHUNK_SIZE,
        kernel: KernelInfo {
            format: KernelFormat::Elf,
            compression: None,
            entries: BootEntries { linux64: Some(ADDRESS), pvh32: None },
            setup_header: None,
            initrd_addr_max: 0x7fff_ffff,
            initrd_above_4g: false,
            cmdline_max: 100,
            version: None,
        },
        cmdline: String::new(),
        notes: Vec::new(),
        segments: vec![NewSegment {
            kind: SegmentKind::Kernel,
            placement: Placement::Fixed { address: ADDRESS },
            data_length: None,
            memory_length: 0,
            content: Box::new(move |sink| Ok(sink.write_all(&data).map(|()| Vec::new())?)),
        }],
    }
}

/// Loads the image and returns its seed, if it is there.
fn seed(store: &Store, name: &ImageName) -> Result<Option<u8>, LoadError> {
    let image = match ImageClient::new(Box::new(store.clone())).open(name) {
        Err(LoadError::NotFound(_)) => return Ok(None),
        opened => opened?,
    };
    let mut memory = vec![0; LENGTH];
    let targets = image.manifest().chunks_of(0).zip(memory.chunks_mut(64 << 10));
    let targets = targets.map(|(chunk, buffer)| {
        Target::Fetch(ChunkRead { index: chunk.index, key: chunk.entry.key, buffer })
    });
    image.load(targets.collect(), &LoadOptions::default())?;
    let seed = memory[0];
    assert!(memory == content(seed), "image of seed {seed} is broken");
    Ok(Some(seed))
}

/// What the child does: it pushes until it is killed.
#[test]
fn child() -> Result<(), Box<dyn Error>> {
    let Some(folder) = env::var_os(STORE) else { return Ok(()) };
    let store = Store::create(Path::new(&folder))?;
    let name: ImageName = "a".parse()?;
    for seed in (0..=u8::MAX).cycle() {
        store.push(&name, image(content(seed)), PushOptions::default())?;
    }
    Ok(())
}

#[test]
fn a_killed_push_breaks_nothing() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let name: ImageName = "a".parse()?;
    let store = Store::create(folder.path())?;
    let mut seen = 0;
    for round in 0..12u64 {
        let mut child = Command::new(env::current_exe()?)
            .args(["--exact", "child", "--test-threads=1"])
            .env(STORE, folder.path())
            .stdout(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_micros(20_000 + round * 7_919));
        child.kill()?;
        assert!(!child.wait()?.success(), "the child ended by itself");
        seen += u32::from(seed(&store, &name)?.is_some());
        assert_eq!(store.verify()?.damage, []);
        let collected = store.gc()?;
        assert_eq!(fs::read_dir(folder.path().join("tmp"))?.count(), 0, "{collected:?}");
        seed(&store, &name)?;
    }
    assert!(seen > 0, "no push ever ended");
    Ok(())
}
