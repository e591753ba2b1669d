//! A network in which each storage node has a link of its own: network namespaces joined by a
//! bridge, and a token bucket on what a node sends.
//!
//! On a machine of few CPUs all links together carry more than the CPUs can move, so without a
//! limit for each, more nodes would be no faster and the measurement would show nothing of them.

use std::process::{Command, Stdio};

const BRIDGE: &str = "vmmbench";

/// The links; gone when dropped.
pub struct Network {
    nodes: usize,
}

impl Network {
    /// Makes links for `nodes` nodes, each of which sends at most `mbit` Mbit/s.
    pub fn new(nodes: usize, mbit: u32) -> Self {
        let network = Self { nodes };
        network.remove(); // of a run that was killed
        ip(&["link", "add", BRIDGE, "type", "bridge"]);
        ip(&["address", "add", "10.98.0.254/24", "dev", BRIDGE]);
        ip(&["link", "set", BRIDGE, "up"]);
        for node in 0..nodes {
            let (space, port) = (Self::namespace(node), format!("vmmbench{node}"));
            ip(&["netns", "add", &space]);
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space]);
            ip(&["link", "set", &port, "master", BRIDGE, "up"]);
            let inside = |arguments: &[&str]| ip(&[&["-n", &space], arguments].concat());
            inside(&["address", "add", &format!("{}/24", Self::address(node)), "dev", "eth0"]);
            inside(&["link", "set", "lo", "up"]);
            inside(&["link", "set", "eth0", "up"]);
            let rate = format!("{mbit}mbit");
            let limit = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate];
            let depth = ["burst", "256kb", "latency", "50ms"];
            run(Command::new("tc").args(["-n", &space]).args(limit).args(depth));
        }
        network
    }

    /// The address of node `node`.
    pub fn address(node: usize) -> String {
        format!("10.98.0.{}", node + 1)
    }

    /// `program`, to be run at node `node`.
    pub fn command(node: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &Self::namespace(node)]).arg(program);
        command
    }

    fn namespace(node: usize) -> String {
        format!("vmmbench-{node}")
    }

    fn remove(&self) {
        let quietly = |arguments: &[&str]| {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        };
        for node in 0..self.nodes {
            quietly(&["netns", "del", &Self::namespace(node)]);
            quietly(&["link", "del", &format!("vmmbench{node}")]);
        }
        quietly(&["link", "del", BRIDGE]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(
        status.success(),
        "{command:?}: {status}; this needs root, iproute2 and network namespaces"
    );
}
