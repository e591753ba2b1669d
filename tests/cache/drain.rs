//! An orderly end, and what is there after another start.

use rustix::process::Signal;

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
    let node = Node::start();
    let mut client = node.connect();
    client.send("set a 0 0 10\r\n01234");
    let mut other = node.connect();
    while !other.ask("stats conns\r\n").contains("state conn_nread") {
        std::thread::yield_now();
    }
    node.signal(Signal::TERM);
    while !other.ask("stats placement\r\n").contains("STAT draining 1\r\n") {
        std::thread::yield_now();
    }
    client.send("56789\r\n");
    assert_eq!(client.line(), "STORED");
    drop(client);
    drop(other);
    assert_eq!(node.wait().0.code(), Some(0));
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
