//! The evaluation of the thesis: clients that all load one image at once from storage nodes, by
//! their number, that of the nodes, the size of the image and that of its chunks.
//!
//! `scripts/bench cache` runs it. As there, the VM is not started ("ready to boot"), ramdisks are
//! random, and clients start within a fraction of a second. Every node has a link of its own with a
//! rate limit (see `network`). Baselines of the same run: one node, and stock memcached read with
//! the `memcache` crate's `get`, chunk by chunk.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

mod cluster;
mod fleet;
mod network;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use imgcache::client::ImageClient;
use imgcache::image::manifest::ChunkSpan;
use imgcache::store::Store;

use self::cluster::{Cluster, Server};
use self::network::Network;
use self::report::Row;

/// Measure loading from many nodes by many clients.
#[derive(Parser)]
struct Options {
    /// The program that loads.
    #[arg(long)]
    vmm: PathBuf,
    /// The program that serves.
    #[arg(long)]
    imgcached: PathBuf,
    /// Folder with the guest images.
    #[arg(long)]
    images: PathBuf,
    /// Folder for results.
    #[arg(long)]
    out: PathBuf,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,20,50,100")]
    clients: Vec<usize>,
    /// Numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    nodes: Vec<usize>,
    /// Sizes of the ramdisks in MiB.
    #[arg(long, value_delimiter = ',', default_value = "100,300")]
    megabytes: Vec<u32>,
    /// Sizes of chunks in KiB for the sweep over them; none leaves it out.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16,32,64,128,256,512,1024")]
    chunks: Vec<u32>,
    /// What each node's link sends, in Mbit/s.
    #[arg(long, default_value_t = 500)]
    link: u32,
    /// Guest memory of all clients together stays below this many MiB; what does not fit is left
    /// out, and said.
    #[arg(long, default_value_t = 16_000)]
    memory: u64,
    /// Be the baseline: get all chunks of this image from the memcached server, one by one.
    #[arg(long, num_args = 3, value_names = ["STORE", "IMAGE", "SERVER"])]
    get_loop: Option<Vec<String>>,
}

const DEFAULT_CHUNK: u32 = 256;

fn main() {
    // The baseline knows nothing of the other options.
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, store, image, server] = &arguments[..]
        && flag == "--get-loop"
    {
        return get_loop(Path::new(store), image, server);
    }
    let options = Options::parse();
    let store = tempfile::tempdir_in(options.out.parent().unwrap_or(Path::new("."))).unwrap();
    let bench = Bench { options: &options, store: store.path() };
    let most = options.nodes.iter().copied().max().unwrap_or(1);
    let _network = Network::new(most, options.link);
    let mut rows = Vec::new();
    for &megabytes in &options.megabytes {
        let image = bench.push(megabytes, DEFAULT_CHUNK);
        for &nodes in &options.nodes {
            let cluster = bench.cluster(Server::Imgcached, nodes, megabytes);
            cluster.publish(&options.vmm, store.path(), &image.name);
            for &clients in &options.clients {
                let run = Run { sweep: "scaling", megabytes, chunk: DEFAULT_CHUNK, nodes, clients };
                rows.extend(bench.vmm(&run, &cluster, &image));
            }
        }
        let cluster = bench.cluster(Server::Memcached, 1, megabytes);
        cluster.publish(&options.vmm, store.path(), &image.name);
        for &clients in options.clients.iter().filter(|clients| **clients <= 10) {
            let run = Run { sweep: "baseline", megabytes, chunk: DEFAULT_CHUNK, nodes: 1, clients };
            rows.push(bench.memcache_crate(&run, &image));
        }
        report::write(&options.out, &rows);
    }
    let clients = options.clients.iter().copied().max().unwrap_or(1);
    for &chunk in &options.chunks {
        for &megabytes in &options.megabytes {
            let image = bench.push(megabytes, chunk);
            let cluster = bench.cluster(Server::Imgcached, most, megabytes);
            cluster.publish(&options.vmm, store.path(), &image.name);
            let clients = clients.min(bench.most_clients(megabytes));
            let run = Run { sweep: "chunks", megabytes, chunk, nodes: most, clients };
            rows.extend(bench.vmm(&run, &cluster, &image));
            report::write(&options.out, &rows);
        }
    }
    println!("results are in {}", options.out.display());
}

/// One point of the sweep.
struct Run {
    sweep: &'static str,
    megabytes: u32,
    chunk: u32,
    nodes: usize,
    clients: usize,
}

/// An image of the local store.
struct Image {
    name: String,
    /// What a client has to be sent: ramdisk and kernel, without chunks of zeros.
    bytes: u64,
}

struct Bench<'a> {
    options: &'a Options,
    store: &'a Path,
}

impl Bench<'_> {
    /// Puts the image into the local store.
    fn push(&self, megabytes: u32, chunk: u32) -> Image {
        let name = format!("bench-{megabytes}-{chunk}");
        let status = Command::new(&self.options.vmm)
            .env("VMM_STORE", self.store)
            .args(["image", "push", &name, "--chunk-size", &format!("{chunk}K"), "--kernel"])
            .arg(self.options.images.join("vmlinuz"))
            .arg("--initrd")
            .arg(self.options.images.join(format!("initrd-{megabytes}.cpio")))
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let bytes = stored(self.store, &name).iter().map(|chunk| u64::from(chunk.length)).sum();
        Image { name, bytes }
    }

    /// Nodes with room for two copies of the image.
    fn cluster(&self, server: Server, nodes: usize, megabytes: u32) -> Cluster {
        let copies = nodes.min(2);
        let image = u64::from(megabytes) + 64;
        let each = image * u64::try_from(copies).unwrap() * 5 / 4 / u64::try_from(nodes).unwrap();
        Cluster::start(server, &self.options.imgcached, nodes, each.max(64) + 64)
    }

    /// How many clients' guest memory fits the limit.
    fn most_clients(&self, megabytes: u32) -> usize {
        usize::try_from(self.options.memory / u64::from(megabytes + 40)).unwrap()
    }

    fn vmm(&self, run: &Run, cluster: &Cluster, image: &Image) -> Option<Row> {
        if run.clients > self.most_clients(run.megabytes) {
            println!(
                "{} clients with {} MB each do not fit this machine's memory: left out",
                run.clients, run.megabytes
            );
            return None;
        }
        let memory = format!("{}M", (run.megabytes + 128).next_multiple_of(64));
        let nowhere = self.store.join("none");
        let url = cluster.url();
        let outcome = fleet::run(run.clients, || {
            let mut command = Command::new(&self.options.vmm);
            command.env("VMM_STORE", &nowhere);
            command.args(["boot", "--image", &image.name, "--cache", &url, "--memory", &memory]);
            command.args(["--ready-only", "--json", "--load-deadline", "600"]);
            command
        });
        Some(self.row(run, image, ["vmm", "imgcached"], &outcome))
    }

    fn memcache_crate(&self, run: &Run, image: &Image) -> Row {
        let program = std::env::current_exe().unwrap();
        let outcome = fleet::run(run.clients, || {
            let mut command = Command::new(&program);
            command.arg("--get-loop").arg(self.store).arg(&image.name);
            command.arg(format!("memcache://{}:11211", Network::address(0)));
            command
        });
        self.row(run, image, ["memcache crate", "memcached"], &outcome)
    }

    fn row(
        &self,
        run: &Run,
        image: &Image,
        [loader, server]: [&'static str; 2],
        outcome: &fleet::Outcome,
    ) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
        let (clients, nodes, bytes) = (run.clients as f64, run.nodes as f64, image.bytes as f64);
        let bits = clients * bytes * 8.0;
        let capacity = f64::from(self.options.link) * 1e6 * nodes;
        let row = Row {
            sweep: run.sweep,
            loader,
            server,
            megabytes: run.megabytes,
            chunk_bytes: run.chunk << 10,
            nodes: run.nodes,
            clients: run.clients,
            mean_s: outcome.mean() / 1e3,
            max_s: outcome.max() / 1e3,
            link_share: bits / (outcome.all_ms / 1e3) / capacity,
        };
        println!(
            "{:<9} {:<14} {:>4} MB, {:>4} KiB chunks, {} nodes, {:>3} clients: mean {:>7.3} s, max \
             {:>7.3} s, links {:>3.0} %",
            row.sweep,
            row.loader,
            row.megabytes,
            run.chunk,
            row.nodes,
            row.clients,
            row.mean_s,
            row.max_s,
            row.link_share * 100.0
        );
        row
    }
}

/// The chunks of an image of the local store that have to be sent.
fn stored(store: &Path, name: &str) -> Vec<ChunkSpan> {
    let store = Store::open(store).unwrap();
    let image = ImageClient::new(Box::new(store)).open(&name.parse().unwrap()).unwrap();
    image.manifest().all_chunks().filter(|chunk| !chunk.entry.zero).collect()
}

/// The baseline: what the obvious program does with a stock server.
fn get_loop(store: &Path, image: &str, server: &str) {
    let chunks = stored(store, image);
    let begun = Instant::now();
    let client = memcache::Client::connect(server).unwrap();
    let mut memory = Vec::new();
    for chunk in chunks {
        let value: Option<Vec<u8>> = client.get(&format!("c/{}", chunk.entry.key)).unwrap();
        memory.extend_from_slice(&value.unwrap());
    }
    println!("{}", serde_json::json!({ "ready_ms": begun.elapsed().as_secs_f64() * 1e3 }));
    drop(memory);
}
