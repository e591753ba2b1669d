//! Ten thousand connections.

use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::node::Node;

const CONNECTIONS: usize = 10_000;
/// What an idle connection may take of the node's memory, in bytes. The kernel's part of it is not
/// in it.
const BYTES_EACH: u64 = 3 << 10;

#[test]
fn ten_thousand_idle_connections_cost_little() {
    let limits = getrlimit(Resource::Nofile);
    let needed = CONNECTIONS as u64 + 200;
    if limits.maximum.is_some_and(|maximum| maximum < needed) {
        eprintln!("skipped: {needed} open files are needed, {limits:?} are allowed");
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).unwrap();
    let node = Node::start();
    let mut other = node.connect();
    other.expect("mn\r\n", "MN\r\n");
    let before = node.private_memory();
    let mut idle: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = node.connect();
            // Each has been used, so that it had buffers.
            client.expect("get nothing\r\n", "END\r\n");
            client
        })
        .collect();
    let stats = other.ask("stats\r\n");
    assert!(stats.contains(&format!("STAT curr_connections {}\r\n", CONNECTIONS + 1)), "{stats}");
    let each = node.private_memory().saturating_sub(before) / CONNECTIONS as u64;
    eprintln!("{each} bytes for each idle connection");
    assert!(each < BYTES_EACH, "{each} bytes for each connection");
    // They are all still served, and so is a new one.
    for client in idle.iter_mut().step_by(97) {
        client.expect("get nothing\r\n", "END\r\n");
    }
    node.connect().expect("mn\r\n", "MN\r\n");
    drop(idle);
    while !other.ask("stats\r\n").contains("STAT curr_connections 1\r\n") {
        std::thread::yield_now();
    }
    let _ = TcpStream::connect(node.address()).unwrap();
}
