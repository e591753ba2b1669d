//! Metrics and health.

use std::net::SocketAddr;

use super::client::Client;
use super::node::Node;

fn get(node: &Node, path: &str) -> (u16, String) {
    get_from(node.http(), path)
}

/// The status and the body of a page.
pub fn get_from(address: SocketAddr, path: &str) -> (u16, String) {
    let mut client = Client::connect(address);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    let text = String::from_utf8(client.rest()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn metrics_count_what_happened() {
    let node = Node::start_with(&["--http", "127.0.0.1:0"]);
    let mut client = node.connect();
    client.expect("set a 0 0 3\r\nabc\r\n", "STORED\r\n");
    client.expect("get a b\r\n", "VALUE a 0 3\r\nabc\r\nEND\r\n");
    client.expect("nonsense\r\n", "ERROR\r\n");
    let (status, text) = get(&node, "/metrics");
    assert_eq!(status, 200);
    for line in [
        "imgcached_requests_total{command=\"get\"} 1",
        "imgcached_requests_total{command=\"set\"} 1",
        "imgcached_errors_total{kind=\"unknown_command\"} 1",
        "imgcached_hits_total{kind=\"other\"} 1",
        "imgcached_misses_total{kind=\"other\"} 1",
        "imgcached_items{kind=\"other\"} 1",
        "imgcached_content_bytes{kind=\"other\"} 3",
        "imgcached_memory_bytes{of=\"leased\"} 0",
        "imgcached_connections 1",
        "imgcached_draining 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("imgcached_received_bytes_total "), "{text}");
    // A reset is of the statistics only.
    client.expect("stats reset\r\n", "RESET\r\n");
    let (_, text) = get(&node, "/metrics");
    assert!(text.contains("imgcached_requests_total{command=\"get\"} 1"), "{text}");
}

#[test]
fn health_is_told() {
    let node = Node::start_with(&["--http", "127.0.0.1:0"]);
    assert_eq!(get(&node, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&node, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(get(&node, "/nothing").0, 404);
}

#[test]
fn silent_connections_end_and_are_bounded() {
    let node = Node::start_with(&["--http", "127.0.0.1:0"]);
    let mut silent: Vec<_> = (0..64).map(|_| Client::connect(node.http())).collect();
    silent[0].send("GET /healthz HTTP/1.1\r\nHost: ");
    // This one waits for a place, which it gets when the others have not asked for anything in time.
    assert_eq!(get(&node, "/healthz"), (200, "ok\n".to_owned()));
    for client in silent {
        client.rest();
    }
}

#[test]
fn a_draining_node_is_healthy_and_not_ready() {
    let node = Node::start_with(&["--http", "127.0.0.1:0"]);
    let mut client = node.connect();
    client.send("lease 0000000000000001 60000 0\r\n\r\n");
    assert!(client.line().starts_with("LEASE"));
    node.signal(rustix::process::Signal::TERM);
    while get(&node, "/readyz").0 != 503 {
        std::thread::yield_now();
    }
    assert_eq!(get(&node, "/healthz").0, 200);
    assert!(get(&node, "/metrics").1.contains("imgcached_draining 1"));
    client.send("release 0000000000000001 0\r\n");
    assert_eq!(client.line(), "RELEASED");
    drop(client);
    assert_eq!(node.wait().0.code(), Some(0));
}
