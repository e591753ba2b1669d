//! Storage nodes, each at its own link, with images in them.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::network::Network;

const PORT: u16 = 11211;

/// What runs on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// Our own.
    Imgcached,
    /// The distribution's memcached.
    Memcached,
}

/// Running nodes; ended when dropped.
pub struct Cluster {
    nodes: Vec<Child>,
}

impl Cluster {
    /// Starts `count` nodes with `megabytes` of memory each.
    pub fn start(server: Server, imgcached: &Path, count: usize, megabytes: u64) -> Self {
        let nodes = (0..count)
            .map(|node| {
                let address = Network::address(node);
                let mut command = match server {
                    Server::Imgcached => {
                        let mut command = Network::command(node, imgcached);
                        command.args(["--listen", &format!("{address}:{PORT}")]);
                        command.args(["--memory", &format!("{megabytes}M")]);
                        command
                    }
                    Server::Memcached => {
                        let mut command = Network::command(node, Path::new("memcached"));
                        command.args(["-u", "root", "-l", &address, "-p", &PORT.to_string()]);
                        command.args(["-m", &megabytes.to_string(), "-I", "2m"]);
                        command
                    }
                };
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        let cluster = Self { nodes };
        for node in 0..count {
            wait_for(&format!("{}:{PORT}", Network::address(node)));
        }
        cluster
    }

    /// How clients reach it.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = (0..self.nodes.len())
            .map(|node| format!("{}:{PORT}", Network::address(node)))
            .collect();
        format!("memcached://{}", addresses.join(","))
    }

    /// Puts the image `name` of the store into it.
    pub fn publish(&self, vmm: &Path, store: &Path, name: &str) {
        let status = Command::new(vmm)
            .env("VMM_STORE", store)
            .args(["image", "publish", name, "--cache", &self.url()])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn wait_for(address: &str) {
    let address = address.to_socket_addrs().unwrap().next().unwrap();
    let begun = Instant::now();
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "no node at {address}");
        sleep(Duration::from_millis(20));
    }
}
