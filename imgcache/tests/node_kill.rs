//! A storage node that is killed at any moment leaves a file from which whole items come back.
#![cfg(feature = "node")]

use std::env;
use std::error::Error;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use imgcache::node::cache::{
    Attributes, BackingChoice, Cache, CacheConfig, DeleteRequest, Key, Now, OpenStep, Progress,
    StoreMode,
};

const FILE: &str = "IMGCACHE_TEST_KILL_ARENA";
const KEYS: u64 = 96;

fn config(file: &Path) -> CacheConfig {
    CacheConfig {
        memory_bytes: 8 << 20,
        index_entries: Some(128),
        backing: BackingChoice::Small,
        file: Some(file.to_owned()),
        populate: false,
        ..CacheConfig::default()
    }
}

/// Begins with the key and a salt, from which the rest follows.
fn content(n: u64, salt: u64) -> Vec<u8> {
    let length = 16 + usize::try_from(salt % (100 << (n % 11))).unwrap_or(0);
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes[8..16].copy_from_slice(&salt.to_le_bytes());
    bytes
}

/// What the child does: it writes until it is killed.
#[test]
fn child() -> Result<(), Box<dyn Error>> {
    let Some(file) = env::var_os(FILE) else { return Ok(()) };
    let (cache, _) = Cache::open(&config(Path::new(&file)))?;
    for round in 1_u64.. {
        let salt = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        let (n, now) = (salt % KEYS, Now::system());
        let key = Key::new(&n.to_le_bytes());
        if round % 9 == 0 {
            cache.delete(&key, &DeleteRequest::default(), now)?;
        } else {
            let content = content(n, salt);
            cache.store_bytes(&key, StoreMode::Set, &content, &Attributes::default(), now)?;
        }
    }
    Ok(())
}

/// How many entries the child below takes over before it dies.
const DIES_AFTER: &str = "IMGCACHE_TEST_KILL_AFTER";
/// More than are verified between two reports of progress.
const MANY: u64 = 12_000;

fn many(file: &Path) -> CacheConfig {
    CacheConfig { index_entries: Some(1 << 15), ..config(file) }
}

/// What the child does: it takes a file over, and dies of it.
#[test]
fn dying_heir() -> Result<(), Box<dyn Error>> {
    let (Some(file), Ok(after)) = (env::var_os(FILE), env::var(DIES_AFTER)) else { return Ok(()) };
    let after: u64 = after.parse()?;
    Cache::open_watched(&many(Path::new(&file)), Now::system(), &mut |progress: Progress| {
        if progress.step == OpenStep::Verify && progress.done >= after {
            std::process::abort();
        }
        ControlFlow::Continue(())
    })?;
    Ok(())
}

#[test]
fn a_node_that_is_killed_twice_while_it_takes_over_loses_nothing() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("arena");
    let (cache, _) = Cache::open(&many(&file))?;
    let now = Now::system();
    for n in 0..MANY {
        let (key, content) = (Key::new(&n.to_le_bytes()), n.to_le_bytes());
        cache.store_bytes(&key, StoreMode::Set, &content, &Attributes::default(), now)?;
    }
    drop(cache);
    for after in ["8000", "4000"] {
        let heir = Command::new(env::current_exe()?)
            .args(["--exact", "dying_heir", "--test-threads=1"])
            .env(FILE, &file)
            .env(DIES_AFTER, after)
            .stdout(Stdio::null())
            .status()?;
        assert_eq!(heir.signal(), Some(6), "the child ended by itself");
    }
    let (cache, report) = Cache::open(&many(&file))?;
    assert_eq!((report.restored, report.damaged), (MANY, 0));
    for n in 0..MANY {
        let item = cache.get(&Key::new(&n.to_le_bytes()), now).ok_or(format!("{n} is missing"))?;
        assert_eq!(item.bytes(), n.to_le_bytes());
    }
    Ok(())
}

#[test]
fn a_killed_node_leaves_whole_items() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("arena");
    let mut kept = 0;
    for round in 0..10_u64 {
        let mut child = Command::new(env::current_exe()?)
            .args(["--exact", "child", "--test-threads=1"])
            .env(FILE, &file)
            .stdout(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_micros(15_000 + round * 7_919));
        child.kill()?;
        assert!(!child.wait()?.success(), "the child ended by itself");
        let (cache, report) = Cache::open(&config(&file))?;
        let mut found = 0;
        for n in 0..KEYS {
            let Some(item) = cache.get(&Key::new(&n.to_le_bytes()), Now::system()) else {
                continue;
            };
            let salt = u64::from_le_bytes(item.bytes()[8..16].try_into()?);
            assert!(item.bytes() == content(n, salt), "item {n} is broken");
            found += 1;
        }
        assert_eq!(found, report.restored);
        // The one entry that was being written, or the content that one was being taken from.
        assert!(report.damaged <= 2, "{report:?}");
        kept += found;
    }
    assert!(kept > 0, "nothing was ever written");
    Ok(())
}
