//! READs of chunks out of a storage node, beside what the device can do and beside TCP: in the lab, over
//! soft-RoCE, where only ratios count (`scripts/bench rdma`).
//!
//! For each size of chunks, into memory that is there already, alternating:
//! - `read`: the transport's own way, by RDMA, nothing verified: what it makes of the device;
//! - `one by one`: one chunk at a time, in order, as in Kehne's thesis (4.4);
//! - `tcp`: the same transport by the memcached protocol, nothing verified;
//! - `verified`: by RDMA, every chunk hashed by BLAKE3, as loads do;
//! - `ib_read_bw` of perftest, with messages of the same size: the bar.
//!
//! And the processor time that the node took meanwhile, as part of the time of the loads.
//!
//! Then an image into the node, out of a store: by RDMA WRITE and by TCP, both hashed by the node.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]
#![expect(clippy::cast_precision_loss, reason = "rates are printed with three digits")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use imgcache::image::name::ImageName;
use imgcache::transport::cluster::{Cluster, ClusterOptions, LinkChoice, LinkKind};
use imgcache::transport::{Accept, ChunkRead, Transport};
use serde_json::{Value, json};

/// Measure reading by RDMA.
#[derive(Debug, Parser)]
struct Options {
    /// The program that pushes.
    #[arg(long)]
    vmm: PathBuf,
    /// The program that serves.
    #[arg(long)]
    imgcached: PathBuf,
    /// Folder with the guest images.
    #[arg(long)]
    images: PathBuf,
    /// The RDMA device.
    #[arg(long, default_value = "rxe0")]
    device: String,
    /// Sizes of chunks in KiB.
    #[arg(long, value_delimiter = ',', default_value = "4,16,64,256,1024")]
    chunks: Vec<u32>,
    /// Counted runs of each.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// File for every figure.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Ways to bring an image.
const WAYS: [&str; 4] = ["read", "one by one", "tcp", "verified"];

fn main() {
    let options = Options::parse();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(&options);
    println!(
        "{:>6}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}  {:>10}",
        "KiB", "ib_read_bw", WAYS[0], WAYS[1], WAYS[2], WAYS[3], "read/bw", "node CPU"
    );
    let mut results = Vec::new();
    for &chunk in &options.chunks {
        let image = push(&options, &node, folder.path(), chunk);
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); WAYS.len() + 1];
        let mut cpu = Vec::new();
        for run in 0..=options.runs {
            let mut rates = vec![bar(&options, chunk)];
            for way in WAYS {
                let (used, begun) = (node.processor_time(), Instant::now());
                rates.push(load(&node, &image, way));
                if way == "read" && run > 0 {
                    let wall = begun.elapsed().as_secs_f64();
                    cpu.push((node.processor_time() - used) / wall * 100.0);
                }
            }
            if run > 0 {
                samples.iter_mut().zip(rates).for_each(|(samples, rate)| samples.push(rate));
            }
        }
        let medians: Vec<f64> = samples.iter().map(|samples| median(samples)).collect();
        let [bar, read, one, tcp, verified] = medians[..] else { unreachable!() };
        println!(
            "{chunk:>6}  {bar:>10.1}  {read:>10.1}  {one:>10.1}  {tcp:>10.1}  {verified:>10.1}  {:>10.2}  \
             {:>8.2} %",
            read / bar,
            median(&cpu)
        );
        results.push(json!({
            "chunk_kib": chunk, "ib_read_bw": bar, "read": read, "one_by_one": one, "tcp": tcp,
            "verified": verified, "node_cpu_percent": median(&cpu), "samples": samples,
        }));
    }
    println!("MB/s, medians of {}", options.runs);
    let pushes = pushes(&options, &node, folder.path());
    if let Some(file) = &options.json {
        let all = json!({ "loads": results, "pushes": pushes });
        std::fs::write(file, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    }
}

/// Puts the images into the node that have been loaded, by WRITE and by TCP in turn.
fn pushes(options: &Options, node: &Node, store: &Path) -> Vec<Value> {
    let names = ["KiB", "push rdma", "push tcp", "rdma/tcp", "CPU rdma", "CPU tcp"];
    let [kib, columns @ ..] = names;
    print!("\n{kib:>6}");
    for name in columns {
        print!("  {name:>10}");
    }
    println!();
    let mut results = Vec::new();
    for &chunk in &options.chunks {
        let mut samples = [const { Vec::new() }; 2];
        let mut cpu = [const { Vec::new() }; 2];
        for run in 0..=options.runs {
            for (way, link) in ["rdma", "tcp"].into_iter().enumerate() {
                let (rate, used) = publish(options, node, store, chunk, link);
                if run > 0 {
                    samples[way].push(rate);
                    cpu[way].push(used);
                }
            }
        }
        let [rdma, tcp] = samples.each_ref().map(|samples| median(samples));
        let [by_rdma, by_tcp] = cpu.each_ref().map(|used| median(used));
        let ratio = rdma / tcp;
        println!(
            "{chunk:>6}  {rdma:>10.1}  {tcp:>10.1}  {ratio:>10.2}  {by_rdma:>8.0} ms  {by_tcp:>8.0} ms"
        );
        results.push(json!({
            "chunk_kib": chunk, "rdma": rdma, "tcp": tcp, "node_cpu_ms_rdma": by_rdma,
            "node_cpu_ms_tcp": by_tcp, "samples": samples,
        }));
    }
    println!(
        "MB/s from the store into the node, and its processor time; medians of {}",
        options.runs
    );
    results
}

/// MB/s of putting the image of these chunks into the node, and the node's processor time in ms.
fn publish(options: &Options, node: &Node, store: &Path, chunk: u32, link: &str) -> (f64, f64) {
    node.forget();
    let (used, begun) = (node.processor_time(), Instant::now());
    let output = Command::new(&options.vmm)
        .env("VMM_STORE", store)
        .args(["image", "publish", &format!("bench-{chunk}"), "--json", "--cache", &node.url()])
        .args(["--transport", link])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let (wall, used) = (begun.elapsed(), node.processor_time() - used);
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (bytes, by) = (report["bytes_new"].as_u64().unwrap(), &report["bytes_by"]);
    assert!(by[link].as_u64() >= Some(bytes), "it went another way: {report}");
    (bytes as f64 / 1e6 / wall.as_secs_f64(), used * 1e3)
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A storage node on this machine.
struct Node {
    child: Child,
    address: String,
}

impl Node {
    fn start(options: &Options) -> Self {
        let mut child = Command::new(&options.imgcached)
            .args(["--listen", "127.0.0.1:0", "--memory", "512M", "--rdma", &options.device])
            .args(["--rdma-push", "on"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready listen=").unwrap().to_owned();
        Self { child, address }
    }

    /// Seconds of processor time so far (`proc_pid_stat(5)`, fields 14 and 15).
    fn processor_time(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Forgets everything, and waits until its memory is free again.
    fn forget(&self) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"flush_all\r\n").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"OK\r\n");
        // Removed content rests for 2 s where it can be read from afar, and expired content is looked for
        // once a second.
        sleep(Duration::from_secs(4));
    }

    fn url(&self) -> String {
        format!("memcached://{}", self.address)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pushes a kernel and a ramdisk of 100 MB in chunks of this size.
fn push(options: &Options, node: &Node, store: &Path, chunk: u32) -> ImageName {
    let name = format!("bench-{chunk}");
    let status = Command::new(&options.vmm)
        .env("VMM_STORE", store)
        .args(["image", "push", &name, "--chunk-size", &format!("{chunk}K"), "--kernel"])
        .arg(options.images.join("vmlinuz"))
        .arg("--initrd")
        .arg(options.images.join("initrd-100.cpio"))
        .args(["--cache", &node.url()])
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    name.parse().unwrap()
}

/// MB/s of bringing all chunks of `image` in this `way`.
fn load(node: &Node, image: &ImageName, way: &str) -> f64 {
    let link = if way == "tcp" { LinkKind::Tcp } else { LinkKind::Rdma };
    let options = ClusterOptions {
        link: LinkChoice::Only(link),
        rdma_chunks: if way == "one by one" { 1 } else { ClusterOptions::default().rdma_chunks },
        ..ClusterOptions::default()
    };
    let cluster = Cluster::open(&node.url().parse().unwrap(), options, None).unwrap();
    let id = cluster.resolve(image).unwrap();
    let session = cluster.open(&id).unwrap();
    let chunks: Vec<_> =
        session.manifest().all_chunks().filter(|chunk| !chunk.entry.zero).collect();
    let length = |length: u32| usize::try_from(length).unwrap();
    let bytes: usize = chunks.iter().map(|chunk| length(chunk.length)).sum();
    let mut memory = vec![1_u8; bytes];
    let mut rest = &mut memory[..];
    let mut reads = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        let (buffer, behind) = std::mem::take(&mut rest).split_at_mut(length(chunk.length));
        reads.push(ChunkRead { index: chunk.index, key: chunk.entry.key, buffer });
        rest = behind;
    }
    let manifest = session.manifest().clone();
    let hashed = |index: u32, content: &[u8]| {
        manifest.chunk(index).is_some_and(|chunk| chunk.entry.has_key(content))
    };
    let accept: Accept<'_> = if way == "verified" { &hashed } else { &|_, _| true };
    let begun = Instant::now();
    session.fetch(reads, accept).unwrap();
    let rate = bytes as f64 / 1e6 / begun.elapsed().as_secs_f64();
    // What was not hashed on the way is hashed now: a bar that brings other bytes is none.
    let mut rest = &memory[..];
    for chunk in &chunks {
        let (content, behind) = rest.split_at(length(chunk.length));
        assert!(chunk.entry.has_key(content), "chunk {} is not what it should be", chunk.index);
        rest = behind;
    }
    rate
}

/// MB/s of `ib_read_bw`, server and client on this machine.
fn bar(options: &Options, chunk: u32) -> f64 {
    let bytes = u64::from(chunk) << 10;
    // As many bytes as an image has, about.
    let count = ((130 << 20) / bytes).max(20).to_string();
    let size = bytes.to_string();
    let arguments =
        ["-d", &options.device, "-s", &size, "-n", &count, "-F", "--report_gbits", "-o", "16"];
    let mut server = Command::new("ib_read_bw")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut rate = None;
    // The first asks before the server listens.
    for _ in 0..20 {
        sleep(Duration::from_millis(300));
        let output = Command::new("ib_read_bw").args(arguments).arg("127.0.0.1").output().unwrap();
        rate = rate_of(&String::from_utf8_lossy(&output.stdout), &size);
        if rate.is_some() {
            break;
        }
    }
    let _ = server.kill();
    server.wait().unwrap();
    rate.expect("ib_read_bw reports a rate")
}

/// MB/s in the report of `ib_read_bw`: #bytes, #iterations, peak and average in Gbit/s, Mpps.
fn rate_of(report: &str, size: &str) -> Option<f64> {
    report.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let average = (words.len() == 5 && words[0] == size).then(|| words[3].parse::<f64>());
        average?.ok().map(|gigabits| gigabits * 1e3 / 8.0)
    })
}
