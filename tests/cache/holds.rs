//! Leases and pins: what they hold stays, and limits and ends are as they should be.

use super::client::Client;
use super::node::Node;

/// The 16 bytes by which a node knows the item with this key.
fn index_key(key: &str) -> [u8; 16] {
    blake3::hash(key.as_bytes()).as_bytes()[..16].try_into().unwrap()
}

fn list(keys: &[&str]) -> Vec<u8> {
    keys.iter().flat_map(|key| index_key(key)).collect()
}

fn ask(client: &mut Client<std::net::TcpStream>, head: &str, keys: &[&str]) -> String {
    let list = list(keys);
    let mut request = format!("{head} {}\r\n", list.len()).into_bytes();
    request.extend_from_slice(&list);
    request.extend_from_slice(b"\r\n");
    client.ask(request)
}

const IMAGE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn a_lease_holds_what_is_there_until_it_is_released() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    let answer = ask(&mut client, "lease 00000000000000aa 5000", &["a", "b"]);
    let words: Vec<&str> = answer.split_whitespace().collect();
    assert_eq!(words[..5], ["LEASE", "00000000000000aa", "5000", "1", "1"], "{answer}");
    assert!(words[5].parse::<u16>().unwrap() <= 1000);
    let leases = client.ask("stats leases\r\n");
    // Who sees them does not learn the id, which is enough to end the lease.
    assert!(leases.contains(":items 1\r\n") && !leases.contains("00000000000000aa"), "{leases}");
    let owner = format!(":owner tcp:{}\r\n", client.stream().local_addr().unwrap());
    assert!(leases.contains(&owner), "{leases}");
    assert!(!leases.contains("bytes 0\r\n"), "{leases}");
    // The same id again renews it; the longest time is a minute.
    let answer = ask(&mut client, "lease 00000000000000aa 600000", &[]);
    assert!(answer.starts_with("LEASE 00000000000000aa 60000 "), "{answer}");
    client.expect("release 00000000000000aa 1000\r\n", "RELEASED\r\n");
    client.expect("release 00000000000000aa 0\r\n", "NOT_FOUND\r\n");
    client.expect("stats leases\r\n", "END\r\n");
}

#[test]
fn what_is_leased_is_not_evicted() {
    let node = Node::start_with(&["--memory", "8M"]);
    let mut client = node.connect();
    let value = "x".repeat(1 << 20);
    let set = |key: &str| format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
    client.expect(set("kept"), "STORED\r\n");
    client.expect(set("lost"), "STORED\r\n");
    let answer = ask(&mut client, "lease 0000000000000001 60000", &["kept"]);
    assert!(answer.starts_with("LEASE "), "{answer}");
    for number in 0..40 {
        client.expect(set(&format!("other{number}")), "STORED\r\n");
    }
    client.expect("mg lost s\r\n", "EN\r\n");
    client.expect("mg kept s\r\n", &format!("HD s{}\r\n", value.len()));
}

#[test]
fn pins_hold_until_they_are_taken_away() {
    let node = Node::start_with(&["--memory", "8M"]);
    let mut client = node.connect();
    let value = "x".repeat(1 << 20);
    let set = |key: &str| format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
    client.expect(set("kept"), "STORED\r\n");
    assert_eq!(ask(&mut client, &format!("pin {IMAGE}"), &["kept", "b"]), "PINNED 1 1\r\n");
    for number in 0..40 {
        client.expect(set(&format!("other{number}")), "STORED\r\n");
    }
    client.expect("mg kept s\r\n", &format!("HD s{}\r\n", value.len()));
    assert!(!client.ask("stats placement\r\n").contains("STAT pinned 0\r\n"));
    client.expect(format!("unpin {IMAGE}\r\n"), "UNPINNED\r\n");
    client.expect(format!("unpin {IMAGE}\r\n"), "NOT_FOUND\r\n");
    assert!(client.ask("stats placement\r\n").contains("STAT pinned 0\r\n"));
}

#[test]
fn too_much_is_refused() {
    let node = Node::start_with(&["--memory", "16M", "--max-leases", "1"]);
    let mut client = node.connect();
    let value = "x".repeat(1 << 20);
    let keys: Vec<String> = (0..12).map(|number| format!("k{number}")).collect();
    for key in &keys {
        client.expect(format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()), "STORED\r\n");
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let answer = ask(&mut client, "lease 0000000000000001 5000", &keys);
    assert!(answer.starts_with("SERVER_ERROR too much to be held"), "{answer}");
    let answer = ask(&mut client, "lease 0000000000000001 5000", &keys[..2]);
    assert!(answer.starts_with("LEASE "), "{answer}");
    let answer = ask(&mut client, "lease 0000000000000002 5000", &keys[..1]);
    assert!(answer.starts_with("BUSY "), "{answer}");
}

#[test]
fn what_takes_long_is_answered_in_its_turn() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set k7 0 0 1\r\nx\r\n", "STORED\r\n");
    let names: Vec<String> = (0..5000).map(|number| format!("k{number}")).collect();
    let keys = list(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let lists = ["lease 0000000000000001 60000", &format!("pin {IMAGE}")];
    let mut request = Vec::new();
    for head in lists {
        request.extend(format!("{head} {}\r\n", keys.len()).into_bytes());
        request.extend_from_slice(&keys);
        request.extend_from_slice(b"\r\nget k7\r\n");
    }
    request.extend_from_slice(b"flush_all\r\nget k7\r\nflush_all noreply\r\nmn\r\n");
    client.send(request);
    let found = ["VALUE k7 0 1", "x", "END"];
    assert!(client.line().starts_with("LEASE 0000000000000001 60000 1 4999 "));
    assert_eq!(found.map(|_| client.line()), found);
    assert_eq!(client.line(), "PINNED 1 4999");
    assert_eq!(found.map(|_| client.line()), found);
    assert_eq!(["OK", "END", "MN"].map(|_| client.line()), ["OK", "END", "MN"]);
}

#[test]
fn bad_lists_are_refused_and_skipped() {
    let node = Node::start();
    let mut client = node.connect();
    let refused = client.ask("lease 0000000000000001 5000 6\r\nquit\r\n\r\n");
    assert!(refused.starts_with("CLIENT_ERROR a key list has"), "{refused}");
    client.expect("lease 1 5000 4\r\nquit\r\n", "CLIENT_ERROR bad command line format\r\n");
    client.expect("pin 00 4\r\nquit\r\n", "CLIENT_ERROR bad command line format\r\n");
    client.expect("release x 1\r\n", "CLIENT_ERROR bad command line format\r\n");
    client.expect("lease\r\n", "ERROR\r\n");
    let data = "x".repeat(16) + "y";
    let answer = client.ask(format!("lease 0000000000000001 5000 16\r\n{data}\r\n"));
    assert_eq!(answer, "CLIENT_ERROR bad data chunk\r\n");
    client.expect("stats leases\r\n", "END\r\n");
}

#[test]
fn a_chunk_must_be_what_its_key_says() {
    let node = Node::start();
    let mut client = node.connect();
    let content = "the content of a chunk";
    let key = format!("c/{}", blake3::hash(content.as_bytes()).to_hex());
    let flags = 0x766d_6301;
    let set = |data: &str| format!("set {key} {flags} 0 {}\r\n{data}\r\n", data.len());
    let answer = client.ask(set("the content of a Chunk"));
    assert!(answer.starts_with("SERVER_ERROR chunk is damaged"), "{answer}");
    client.expect(format!("mg {key}\r\n"), "EN\r\n");
    client.expect(set(content), "STORED\r\n");
    client.expect(format!("mg {key} f\r\n"), &format!("HD f{flags}\r\n"));
    let answer = client.ask(format!("ms {key} 1 F{flags}\r\nx\r\n"));
    assert!(answer.starts_with("SERVER_ERROR chunk is damaged"), "{answer}");
    // Not even one that is a number becomes another one.
    let key = format!("c/{}", blake3::hash(b"12").to_hex());
    client.expect(format!("set {key} {flags} 0 2\r\n12\r\n"), "STORED\r\n");
    for request in [format!("incr {key} 1\r\n"), format!("ma {key} MD\r\n")] {
        let answer = client.ask(request);
        assert!(answer.starts_with("CLIENT_ERROR cannot increment"), "{answer}");
    }
    client.expect(format!("get {key}\r\n"), &format!("VALUE {key} {flags} 2\r\n12\r\nEND\r\n"));
}
