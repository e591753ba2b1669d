//! A cache of its own for a test: nodes, each behind a proxy, with an image in them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::node::Node;
use crate::common::{Bench, guest_file};
use crate::proxy::Proxy;

/// What a load may take until it fails with an error, in seconds.
const DEADLINE: &str = "40";
/// Bytes of the image's chunks, about.
pub const IMAGE_BYTES: u64 = 130 << 20;

/// Nodes, proxies before them, and the program's store with the image `guest`.
pub struct Cluster {
    pub bench: Bench,
    pub nodes: Vec<Node>,
    pub proxies: Vec<Proxy>,
}

impl Cluster {
    /// `count` nodes that hold the image `guest` in two copies.
    pub fn new(count: usize) -> Self {
        Self::with(count, &["--memory", "400M"])
    }

    /// The same with other `arguments` for each node.
    pub fn with(count: usize, arguments: &[&str]) -> Self {
        let cluster = Self::empty(count, arguments);
        cluster.push("guest", &guest_file("initrd-100.cpio"));
        cluster.publish("guest").unwrap();
        cluster
    }

    /// Nodes that hold nothing.
    pub fn empty(count: usize, arguments: &[&str]) -> Self {
        let bench = Bench::new();
        let start = |_| Node::start(bench.path(), arguments);
        let nodes: Vec<Node> = (0..count).map(start).collect();
        let proxies = nodes.iter().map(|node| Proxy::new(node.address())).collect();
        Self { bench, nodes, proxies }
    }

    /// Puts an image into the store of this host.
    pub fn push(&self, name: &str, initrd: &Path) {
        let (kernel, initrd) = (guest_file("vmlinuz"), initrd.to_str().unwrap());
        let kernel = kernel.to_str().unwrap();
        self.bench.expect(0, &["image", "push", name, "--kernel", kernel, "--initrd", initrd]);
    }

    /// Puts an image of the store into the cache.
    pub fn publish(&self, name: &str) -> Result<(), Output> {
        let url = self.url();
        let output = self.bench.vmm(&["image", "publish", name, "--cache", &url]).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(output) }
    }

    /// Through the proxies.
    pub fn url(&self) -> String {
        url(self.proxies.iter().map(Proxy::address))
    }

    /// A load of the image through the proxies, without an origin.
    pub fn load(&self, name: &str) -> Load {
        self.load_with(name, &[])
    }

    /// The same with more arguments.
    pub fn load_with(&self, name: &str, more: &[&str]) -> Load {
        let begun = Instant::now();
        let output = self.load_command(name, more).output().unwrap();
        Load { output, took: begun.elapsed() }
    }

    /// The command of a load.
    pub fn load_command(&self, name: &str, more: &[&str]) -> Command {
        let url = self.url();
        let mut arguments = vec!["boot", "--ready-only", "--json", "--image", name];
        arguments.extend(["--memory", "256M", "--cache", &url, "--load-deadline", DEADLINE]);
        arguments.extend(more);
        let mut command = self.bench.vmm(&arguments);
        command.env("VMM_STORE", self.bench.path().join("no-store"));
        command
    }
}

/// A cache of the nodes at these addresses.
pub fn url(addresses: impl Iterator<Item = SocketAddr>) -> String {
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    format!("memcached://{}", addresses.join(","))
}

/// A load that has ended.
#[derive(Debug)]
pub struct Load {
    output: Output,
    took: Duration,
}

impl Load {
    /// It succeeded, with all bytes; what it tells of the cache.
    pub fn complete(self) -> Value {
        assert!(
            self.output.status.success(),
            "after {:?}: {}",
            self.took,
            String::from_utf8_lossy(&self.output.stderr)
        );
        let mut report: Value = serde_json::from_slice(&self.output.stdout).unwrap();
        let load = report["load"].take();
        assert_eq!(load["verify"], "full", "{load}");
        let bytes = load["bytes_fetched"].as_u64().unwrap();
        assert!(bytes > IMAGE_BYTES, "{load}");
        load["cache"].clone()
    }

    /// It failed with `code` within its deadline and a grace; its words.
    pub fn failed(self, code: i32) -> String {
        let words = String::from_utf8(self.output.stderr).unwrap();
        assert_eq!(self.output.status.code(), Some(code), "{words}");
        // A deadline that is not kept would hang a control plane; the grace is for a busy host.
        let limit = Duration::from_secs(DEADLINE.parse::<u64>().unwrap() + 20);
        assert!(self.took < limit, "{:?}: {words}", self.took);
        words
    }
}
