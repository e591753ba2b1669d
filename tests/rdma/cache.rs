//! Nodes that can be read by RDMA, with an image in them.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::node::Node;
use crate::common::{Bench, guest_file};

/// The device: that of `scripts/lib/rxe.sh`, or the one that `scripts/rdma-hardware` builds the tests for.
pub const DEVICE: &str = match option_env!("VMM_TEST_RDMA_DEVICE") {
    Some(name) => name,
    None => "rxe0",
};
/// Where nodes listen: an address of that device tells clients which to use.
const LISTEN: &str = match option_env!("VMM_TEST_RDMA_LISTEN") {
    Some(address) => address,
    None => "127.0.0.1:0",
};

/// Nodes that hold the image `guest`, in two copies if there are two.
pub struct Cache {
    pub bench: Bench,
    pub nodes: Vec<Node>,
}

impl Cache {
    pub fn new(count: usize) -> Self {
        Self::with(count, &["--rdma", DEVICE])
    }

    pub fn with(count: usize, arguments: &[&str]) -> Self {
        Self::in_chunks(count, arguments, "256K")
    }

    /// The image in chunks of this size. Nodes have 128 MiB unless the arguments say otherwise.
    pub fn in_chunks(count: usize, arguments: &[&str], chunk: &str) -> Self {
        let bench = Bench::new();
        let memory = if arguments.contains(&"--memory") { &[][..] } else { &["--memory", "128M"] };
        let listen = if arguments.contains(&"--listen") { &[][..] } else { &["--listen", LISTEN] };
        let arguments = [memory, listen, arguments].concat();
        let nodes: Vec<Node> = (0..count).map(|_| Node::start(bench.path(), &arguments)).collect();
        let files = ["vmlinuz", "initrd-small.cpio.gz"].map(guest_file);
        let [kernel, initrd] = files.each_ref().map(|file| file.to_str().unwrap());
        let push = ["image", "push", "guest", "--kernel", kernel, "--initrd", initrd];
        bench.expect(0, &[&push[..], &["--chunk-size", chunk]].concat());
        let cache = Self { bench, nodes };
        cache.bench.expect(0, &["image", "publish", "guest", "--cache", &cache.url()]);
        cache.nodes.iter().for_each(registered);
        cache
    }

    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("memcached://{}", addresses.join(","))
    }

    /// A load of the image out of the cache alone.
    pub fn load_command(&self, more: &[&str]) -> Command {
        let url = self.url();
        let mut arguments = vec!["boot", "--ready-only", "--json", "--image", "guest"];
        arguments.extend(["--memory", "192M", "--cache", &url]);
        arguments.extend(more);
        let mut command = self.bench.vmm(&arguments);
        command.env("VMM_STORE", self.bench.path().join("no-store"));
        command
    }

    /// Begins such a load.
    pub fn begin(&self, more: &[&str]) -> Child {
        let mut command = self.load_command(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// What a load tells of the cache; it must succeed.
    pub fn load(&self, more: &[&str]) -> Value {
        report(&self.load_command(more).output().unwrap())
    }
}

/// What a load that has succeeded tells of the cache.
pub fn report(output: &Output) -> Value {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["load"]["verify"], "full", "{report}");
    report["load"]["cache"].clone()
}

/// Chunks that `node` supplied by `link`, as `report` has it.
pub fn chunks(report: &Value, node: &Node, link: &str) -> u64 {
    let name = node.address().to_string();
    let nodes = report["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|one| one["name"] == name.as_str());
    node.map_or(0, |node| node["by"][link].as_u64().unwrap_or(0))
}

/// Waits until `node` can be read by RDMA, if it is to be.
pub fn registered(node: &Node) {
    wait("the memory to be registered", || {
        !node.stats("rdma").iter().any(|(name, value)| name == "rdma" && value == "registering")
    });
}

/// Queues that `node` serves.
pub fn queues(node: &Node) -> u64 {
    node.number("rdma", "queues")
}

/// Runs a program of the system, which must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// Stores plain items at `node`, and asks for each, until it is told to stop: what may go has to, and what nobody
/// asks for goes first. How many were stored.
pub fn press(node: &Node, stop: &AtomicBool) -> usize {
    const BYTES: usize = 200 << 10;
    const BATCH: usize = 8;
    let mut stored = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut requests = Vec::with_capacity(BATCH * (BYTES + 64));
        for number in stored..stored + BATCH {
            requests.extend_from_slice(format!("ms noise{number} {BYTES} q\r\n").as_bytes());
            requests.resize(requests.len() + BYTES, 7);
            requests.extend_from_slice(format!("\r\nmg noise{number}\r\n").as_bytes());
        }
        requests.extend_from_slice(b"mn\r\n");
        node.ask(&requests, "MN\r\n");
        stored += BATCH;
    }
    stored
}

/// Tells others to stop when it is dropped, so that nobody waits for them after a failure.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for something that comes in seconds, or not at all.
pub fn wait(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what} in vain");
        sleep(Duration::from_millis(20));
    }
}

/// What there is of the device, without what tells processes apart.
pub fn resources() -> String {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
