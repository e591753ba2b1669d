//! How fast the node's memory is, on one thread: `cargo run --release -p imgcache --example node_speed`.
//!
//! Prints sets and gets of 4 KiB and 256 KiB items. A set is a copy and a hash; a get copies nothing,
//! as the server sends from where the item is, so it is measured with a copy too.

use std::error::Error;
use std::time::Instant;

use imgcache::node::cache::{Attributes, Cache, CacheConfig, Key, Now, StoreMode};

const MEMORY: u64 = 512 << 20;
const SECONDS: f64 = 1.0;

/// Calls `work` for a while, with growing numbers; returns calls a second.
fn measure(mut work: impl FnMut(u64) -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let started = Instant::now();
    for n in 0_u64.. {
        work(n)?;
        let elapsed = started.elapsed().as_secs_f64();
        if elapsed > SECONDS {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52 calls")]
            return Ok((n + 1) as f64 / elapsed);
        }
    }
    Err("no time passes".into())
}

fn report(what: &str, length: usize, rate: f64, moved: bool) {
    print!("{what:<28} {:>4} KiB  {rate:>10.0} /s", length >> 10);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let gigabytes = rate * length as f64 / 1e9;
    if moved { println!("  {gigabytes:>6.2} GB/s") } else { println!() }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = CacheConfig { memory_bytes: MEMORY, populate: false, ..CacheConfig::default() };
    let (cache, opened) = Cache::open(&config)?;
    println!("{} MiB in {} pages", opened.memory_bytes >> 20, opened.backing);
    for length in [4 << 10, 256 << 10] {
        let source = vec![7; length];
        let fits = MEMORY / u64::try_from(length)? / 2;
        let keys: Vec<Key> = (0..fits).map(|n| Key::new(&n.to_le_bytes())).collect();
        let key = |n: u64| &keys[usize::try_from(n % fits).unwrap_or(0)];
        let attributes = Attributes::default();
        let mut set = |n: u64| {
            let mut memory = cache.reserve(length, Now::system())?;
            memory.copy_from_slice(&source);
            memory[..8].copy_from_slice(&n.to_le_bytes());
            cache.store(key(n), StoreMode::Set, memory, &attributes, Now::system())?;
            Ok(())
        };
        for n in 0..fits {
            set(n)?;
        }
        report("set, replacing", length, measure(&mut set)?, true);
        let many: Vec<Key> = (0..fits * 4).map(|n| Key::new(&(n << 32).to_le_bytes())).collect();
        let evicting = measure(|n| {
            let mut memory = cache.reserve(length, Now::system())?;
            memory.copy_from_slice(&source);
            memory[..8].copy_from_slice(&n.to_le_bytes());
            let key = &many[usize::try_from(n % (fits * 4)).unwrap_or(0)];
            cache.store(key, StoreMode::Set, memory, &attributes, Now::system())?;
            Ok(())
        })?;
        report("set, evicting", length, evicting, true);
        cache.flush_all(0, Now::system());
        for n in 0..fits {
            set(n)?;
        }
        let get = measure(|n| match cache.get(key(n), Now::system()) {
            Some(item) if item.bytes().len() == length => Ok(()),
            _ => Err("an item is missing".into()),
        })?;
        report("get, nothing copied", length, get, false);
        let mut target = vec![0; length];
        let copied = measure(|n| {
            let item = cache.get(key(n), Now::system()).ok_or("an item is missing")?;
            target.copy_from_slice(item.bytes());
            Ok(())
        })?;
        report("get, copied", length, copied, true);
        let counters = cache.counters();
        let items = counters.items.max(1);
        println!(
            "{items} items, {} evicted, {} bytes beside the arena: {} an item",
            counters.counts.evictions,
            counters.overhead_bytes,
            counters.overhead_bytes / items
        );
        cache.flush_all(0, Now::system());
    }
    Ok(())
}
