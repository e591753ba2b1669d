//! Loading an image from one memcached over loopback, against what else could bring its bytes.
//!
//! All into the same kind of memory, fresh guest RAM, and alternating:
//! - `vmm boot --ready-only --cache`: what its report calls resolve and load; every chunk verified by
//!   BLAKE3;
//! - a plain TCP stream of as many bytes from one thread to another, which copies nothing else and
//!   verifies nothing: what loopback allows;
//! - `memcache::Client::get` of each chunk, one after the other, copied to its place, not verified.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use imgcache::client::{ImageClient, Verify};
use imgcache::image::name::ImageName;
use imgcache::record::ItemKey;
use imgcache::store::Store;
use imgcache::transport::Transport;
use imgcache::transport::cluster::{Cluster, ClusterOptions};
use serde_json::{Value, json};
use vmm::loader::{self, KernelChoice, RamdiskChoice};
use vmm::machine::memory::{BackingChoice, GuestRam};

/// Where the bytes go: above what a guest has below its first 4 MiB.
const START: u64 = 4 << 20;
/// Bytes of one write or read of the plain stream.
const PART: usize = 1 << 20;

/// Measure loading from a cache.
#[derive(Debug, Parser)]
struct Options {
    /// The program to measure.
    #[arg(long)]
    vmm: PathBuf,
    /// HOST:PORT of one memcached that holds the image.
    #[arg(long)]
    server: String,
    /// The store that the image was published from.
    #[arg(long)]
    store: PathBuf,
    /// Name of the image.
    #[arg(long)]
    image: ImageName,
    /// Counted runs of each.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// File for every figure.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also load in this process with each of these numbers of connections ...
    #[arg(long, value_delimiter = ',')]
    connections: Vec<usize>,
    /// ... and each of these numbers of bytes asked for ahead on each of them.
    #[arg(long, value_delimiter = ',', default_value = "1048576")]
    window: Vec<usize>,
}

fn main() {
    let options = Options::parse();
    let store = Store::open(&options.store).unwrap();
    let id = Store::resolve(&store, &options.image).unwrap();
    let session = Transport::open(&store, &id).unwrap();
    let chunks: Vec<(String, usize)> = session
        .manifest()
        .all_chunks()
        .filter(|chunk| !chunk.entry.zero)
        .map(|chunk| {
            let length = usize::try_from(chunk.length).unwrap();
            (ItemKey::chunk(&chunk.entry.key).to_string(), length)
        })
        .collect();
    let bytes: usize = chunks.iter().map(|(_, length)| length).sum();

    let mut variants: Vec<(String, Box<dyn Fn() -> f64 + '_>)> = vec![
        ("vmm boot --cache".into(), Box::new(|| boot(&options))),
        ("plain TCP stream".into(), Box::new(|| stream(bytes))),
        ("memcache::Client::get".into(), Box::new(|| client(&options.server, &chunks))),
    ];
    for connections in &options.connections {
        for window in &options.window {
            let name = format!("{connections} x {} KiB ahead", window >> 10);
            let work = || load(&options, *connections, *window);
            variants.push((name, Box::new(work)));
        }
    }
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); variants.len()];
    for run in 0..=options.runs {
        for (samples, (_, variant)) in samples.iter_mut().zip(&variants) {
            let ms = variant();
            if run > 0 {
                samples.push(ms);
            }
        }
    }
    println!("{} bytes in {} chunks, medians of {}", bytes, chunks.len(), options.runs);
    println!("{:<24} {:>9} {:>9} {:>8}", "", "ms", "best", "GB/s");
    let mut results = Vec::new();
    for ((name, _), samples) in variants.iter().zip(&samples) {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, best) = (sorted[sorted.len() / 2], sorted[0]);
        let rate = f64::from(u32::try_from(bytes >> 10).unwrap()) * 1024.0 / median / 1e6;
        println!("{name:<24} {median:>9.1} {best:>9.1} {rate:>8.2}");
        results.push(json!({ "variant": name, "median_ms": median, "samples_ms": samples }));
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results).unwrap()).unwrap();
    }
}

fn boot(options: &Options) -> f64 {
    let output = Command::new(&options.vmm)
        .args(["boot", "--ready-only", "--json", "--memory", "1G", "--memory-backing", "thp"])
        .args(["--cache", &format!("memcached://{}", options.server), "--image"])
        .arg(options.image.as_str())
        .env("VMM_STORE", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let phases = report["phases"].as_array().unwrap();
    let phases =
        phases.iter().filter(|phase| phase["name"] == "resolve" || phase["name"] == "load");
    phases.map(|phase| phase["ms"].as_f64().unwrap()).sum()
}

/// The load alone, as `vmm boot` does it.
fn load(options: &Options, connections: usize, window: usize) -> f64 {
    let url = format!("memcached://{}", options.server).parse().unwrap();
    let how = ClusterOptions { connections, window, ..ClusterOptions::default() };
    let begun = Instant::now();
    let cluster = Cluster::open(&url, how, None).unwrap();
    let image = ImageClient::new(Box::new(cluster)).open(&options.image).unwrap();
    let mut ram = memory();
    let how = loader::Options {
        verify: Verify::Auto,
        kernel: KernelChoice::Copy,
        ramdisk: RamdiskChoice::Copy,
        progress: None,
    };
    loader::land(&image, &mut ram, &how).unwrap();
    begun.elapsed().as_secs_f64() * 1e3
}

fn memory() -> GuestRam {
    GuestRam::new(1 << 30, BackingChoice::Thp).unwrap()
}

fn stream(bytes: usize) -> f64 {
    let source = vec![7_u8; 16 * PART];
    let length = u64::try_from(bytes).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut left = bytes;
            for part in source.chunks(PART).cycle() {
                let part = &part[..left.min(PART)];
                if part.is_empty() || stream.write_all(part).is_err() {
                    break;
                }
                left -= part.len();
            }
        });
        let begun = Instant::now();
        let mut ram = memory();
        let range = START..START + length;
        let mut zones = ram.landing_zones(std::slice::from_ref(&range)).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        for part in zones[0].chunks_mut(PART) {
            stream.read_exact(part).unwrap();
        }
        begun.elapsed().as_secs_f64() * 1e3
    })
}

fn client(server: &str, chunks: &[(String, usize)]) -> f64 {
    let bytes: usize = chunks.iter().map(|(_, length)| length).sum();
    let length = u64::try_from(bytes).unwrap();
    let begun = Instant::now();
    let mut ram = memory();
    let range = START..START + length;
    let mut zones = ram.landing_zones(std::slice::from_ref(&range)).unwrap();
    let client = memcache::Client::connect(format!("memcache://{server}")).unwrap();
    let mut rest = &mut *zones[0];
    for (key, length) in chunks {
        let value: Vec<u8> = client.get(key).unwrap().unwrap();
        let (here, later) = rest.split_at_mut(*length);
        here.copy_from_slice(&value);
        rest = later;
    }
    begun.elapsed().as_secs_f64() * 1e3
}
