//! Limits: connections, memory, idle and stalled clients.

use std::io::Write;
use std::thread;
use std::time::Duration;

use super::client::Client;
use super::node::{Node, run};

#[test]
fn one_connection_too_many_is_told_so() {
    let node = Node::start_with(&["--max-connections", "2"]);
    let (mut first, mut second) = (node.connect(), node.connect());
    first.expect("mn\r\n", "MN\r\n");
    second.expect("mn\r\n", "MN\r\n");
    assert_eq!(node.connect().rest(), b"ERROR Too many open connections\r\n");
    drop(first);
    // Its place is free when the node has seen that it is gone.
    let mut third = loop {
        let mut client = node.connect();
        client.send("version\r\n");
        if client.line().starts_with("VERSION") {
            break client;
        }
    };
    third.expect("mn\r\n", "MN\r\n");
    let stats = third.ask("stats\r\n");
    assert!(stats.contains("STAT max_connections 2\r\n"), "{stats}");
    assert!(!stats.contains("STAT rejected_connections 0\r\n"), "{stats}");
}

#[test]
fn more_connections_than_files_are_refused_at_the_start() {
    let (code, text) = run(&["--max-connections", "1000000000", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("LimitNOFILE"), "{text}");
}

#[test]
fn idle_connections_end_when_told_to() {
    let node = Node::start_with(&["--idle-timeout", "1"]);
    let mut client = node.connect();
    client.expect("mn\r\n", "MN\r\n");
    assert_eq!(client.rest(), b"");
    let stats = node.connect().ask("stats\r\n");
    assert!(stats.contains("STAT idle_kicks 1\r\n"), "{stats}");
}

#[test]
fn unfinished_requests_and_unread_replies_end_the_connection() {
    let node = Node::start_with(&["--stall-timeout", "1"]);
    let mut half = node.connect();
    half.send("set a 0 0 100\r\nabc");
    let mut deaf = node.connect();
    let value = "x".repeat(1 << 20);
    deaf.expect(format!("set big 0 0 {}\r\n{value}\r\n", value.len()), "STORED\r\n");
    deaf.send("get big\r\n".repeat(100));
    assert_eq!(half.rest(), b"");
    let mut other = node.connect();
    while !other.ask("stats\r\n").contains("STAT stall_kicks 2\r\n") {
        thread::yield_now();
    }
    assert!(deaf.rest().len() < 100 << 20, "all of it was sent");
}

#[test]
fn who_sends_a_byte_now_and_then_is_closed_too() {
    let node = Node::start_with(&["--stall-timeout", "1"]);
    let mut slow = node.connect();
    slow.send("set a 0 0 100000\r\n");
    // Each byte alone would be progress.
    for _ in 0..1000 {
        if slow.stream().write_all(b"x").is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(node.connect().ask("stats\r\n").contains("STAT stall_kicks 1\r\n"));
}

#[test]
fn values_on_their_way_have_a_part_of_the_memory_only() {
    let node = Node::start_with(&["--memory", "8M", "--max-reserved-permille", "250"]);
    let begun: Vec<_> = (0..2)
        .map(|number| {
            let mut client = node.connect();
            client.send(format!("set k{number} 0 0 1048576\r\nx"));
            client
        })
        .collect();
    let mut other = node.connect();
    while other.ask("stats conns\r\n").matches("state conn_nread").count() < 2 {
        thread::yield_now();
    }
    other.expect("set a 0 0 1\r\nx\r\n", "SERVER_ERROR busy: retry after 50 ms\r\n");
    drop(begun);
    while other.ask("set a 0 0 1\r\nx\r\n") != "STORED\r\n" {
        thread::yield_now();
    }
}

#[test]
fn a_client_that_does_not_read_makes_nothing_grow() {
    let node = Node::start();
    let mut deaf = node.connect();
    let value = "x".repeat(256 << 10);
    deaf.expect(format!("set big 0 0 {}\r\n{value}\r\n", value.len()), "STORED\r\n");
    let mut other = node.connect();
    other.expect("mn\r\n", "MN\r\n");
    let before = node.private_memory();
    // 2.5 GB of replies.
    deaf.send("get big\r\n".repeat(10_000));
    for _ in 0..1000 {
        other.expect("mg nothing\r\n", "EN\r\n");
    }
    let grown = node.private_memory().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    let one = format!("VALUE big 0 {}\r\n{value}\r\nEND\r\n", value.len());
    for _ in 0..100 {
        assert!(deaf.bytes(one.len()) == one.as_bytes());
    }
}

#[test]
fn a_busy_connection_does_not_starve_others() {
    let node = Node::start_with(&["--threads", "1"]);
    let address = node.address();
    let pipeline = "mg nothing\r\n".repeat(500_000);
    let mut busy = Client::connect(address);
    let writer = thread::spawn(move || {
        busy.send(pipeline);
        busy
    });
    // Each of these takes its turn while the other still has requests.
    let mut other = node.connect();
    for _ in 0..100 {
        other.expect("mg nothing\r\n", "EN\r\n");
    }
    let stats = other.ask("stats\r\n");
    assert!(!stats.contains("STAT conn_yields 0\r\n"), "{stats}");
    // The replies fit nobody's buffers: it could not end before they are read.
    let writing = !writer.is_finished();
    drop(node);
    assert!(writing, "it was done before");
}
