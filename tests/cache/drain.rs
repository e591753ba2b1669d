//! An orderly end, and what is there after another start.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;

use super::client::Client;
use super::http::get_from;
use super::node::{Node, run, text};

#[test]
fn without_leases_and_requests_it_ends_at_once() {
    let node = Node::start();
    let mut idle = node.connect();
    idle.expect("mn\r\n", "MN\r\n");
    let log = node.stop();
    assert!(log.contains("drained"), "{log}");
    assert_eq!(idle.rest(), b"");
    let node = Node::start();
    node.signal(Signal::INT);
    assert_eq!(node.wait().0.code(), Some(0));
}

#[test]
fn leases_are_waited_for_and_no_new_ones_given() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.send("lease 0000000000000001 60000 0\r\n\r\n");
    assert!(client.line().starts_with("LEASE"));
    node.signal(Signal::TERM);
    while !client.ask("stats placement\r\n").contains("STAT draining 1\r\n") {
        std::thread::yield_now();
    }
    client.expect("lease 0000000000000002 60000 0\r\n\r\n", "DRAINING\r\n");
    // What was leased can still be read, over new connections too.
    node.connect().expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    client.expect("release 0000000000000001 1\r\n", "RELEASED\r\n");
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_request_that_has_begun_is_carried_out() {
    let node = Node::start_with(&["--http", "127.0.0.1:0"]);
    let mut client = node.connect();
    client.send("set a 0 0 10\r\n01234");
    let mut other = node.connect();
    while !other.ask("stats conns\r\n").contains("state conn_nread") {
        std::thread::yield_now();
    }
    node.signal(Signal::TERM);
    while get_from(node.http(), "/readyz").0 != 503 {
        std::thread::yield_now();
    }
    assert_eq!(other.rest(), b"");
    // The request that had begun is the last one.
    client.send("56789\r\nget a\r\n");
    assert_eq!(client.line(), "STORED");
    assert_eq!(client.rest(), b"");
    assert_eq!(node.wait().0.code(), Some(0));
}

#[test]
fn a_busy_node_ends_and_cuts_no_reply() {
    let node = Node::start();
    let value = "x".repeat(300_000);
    node.connect().expect(format!("set big 0 0 {}\r\n{value}\r\n", value.len()), "STORED\r\n");
    let reply = format!("VALUE big 0 {}\r\n{value}\r\nEND\r\n", value.len());
    let (address, answered) = (node.address(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (reply, answered) = (&reply, &answered);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                client.send("get big\r\n".repeat(8));
                // There are always more requests than were answered.
                loop {
                    let part = client.up_to(reply.len());
                    if part.is_empty() {
                        break;
                    }
                    assert!(part == reply.as_bytes(), "cut after {} bytes", part.len());
                    answered.fetch_add(1, Ordering::Relaxed);
                    client.send_to_the_end("get big\r\n");
                }
            });
        }
        // And somebody who comes again and again.
        scope.spawn(|| while TcpStream::connect(address).is_ok() {});
        while answered.load(Ordering::Relaxed) < 30 {
            std::thread::yield_now();
        }
        node.signal(Signal::TERM);
        let (status, log) = node.wait();
        assert_eq!(status.code(), Some(0), "{log}");
    });
}

#[test]
fn what_does_not_end_is_cut_off_with_a_code() {
    let node = Node::start_with(&["--drain-timeout", "0"]);
    let mut client = node.connect();
    client.send("lease 0000000000000001 60000 0\r\n\r\n");
    assert!(client.line().starts_with("LEASE"));
    node.signal(Signal::TERM);
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(7), "{log}");
    assert!(log.contains("cut off"), "{log}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let node = Node::start();
    let mut client = node.connect();
    client.send("lease 0000000000000001 60000 0\r\n\r\n");
    assert!(client.line().starts_with("LEASE"));
    node.signal(Signal::TERM);
    while !client.ask("stats placement\r\n").contains("STAT draining 1\r\n") {
        std::thread::yield_now();
    }
    node.signal(Signal::TERM);
    assert_eq!(node.wait().0.code(), Some(143));
}

#[test]
fn items_survive_in_an_arena_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena");
    let arguments = ["--arena", text(&path)];
    let node = Node::start_with(&arguments);
    let mut client = node.connect();
    let value = "x".repeat(300_000);
    client.expect(format!("set big 7 0 {}\r\n{value}\r\n", value.len()), "STORED\r\n");
    client.expect("set gone 0 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("delete gone\r\n", "DELETED\r\n");
    let placement = client.ask("stats placement\r\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Only one node at a time.
    let (code, said) = run(&["--memory", "64M", "--listen", "127.0.0.1:0", "--arena", text(&path)]);
    assert_eq!(code, Some(5), "{said}");
    drop(client);
    node.stop();

    let node = Node::start_with(&arguments);
    let mut client = node.connect();
    client.expect("get big gone\r\n", &format!("VALUE big 7 300000\r\n{value}\r\nEND\r\n"));
    let stats = client.ask("stats\r\n");
    assert!(stats.contains("STAT restored_items 1\r\n"), "{stats}");
    assert_ne!(client.ask("stats placement\r\n"), placement, "the same boot id");
    // Killed, it keeps them too.
    node.signal(Signal::KILL);
    node.wait();
    let node = Node::start_with(&arguments);
    node.connect().expect("mg big s\r\n", "HD s300000\r\n");
}

#[test]
fn no_arena_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arena");
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let (code, said) = run(&["--memory", "8M", "--listen", "127.0.0.1:0", "--arena", text(&path)]);
    assert_eq!(code, Some(5), "{said}");
}
