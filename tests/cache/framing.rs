//! How requests are cut out of the stream: pipelines, pieces, garbage, other protocols.

use std::thread;
use std::time::Duration;

use super::node::Node;

#[test]
fn thousands_of_pipelined_requests_are_answered_in_order() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set n 0 0 1\r\n0\r\n", "STORED\r\n");
    let requests = "incr n 1\r\n".repeat(20_000);
    let answers: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
    client.expect(requests, &answers);
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let node = Node::start();
    let mut client = node.connect();
    for byte in b"set a 0 0 5\r\nhello\r\nget a\r\nmg a v\r\n" {
        client.send([*byte]);
        thread::sleep(Duration::from_millis(1));
    }
    for line in ["STORED", "VALUE a 0 5", "hello", "END", "VA 5", "hello"] {
        assert_eq!(client.line(), line);
    }
}

#[test]
fn what_was_asked_is_answered_before_a_half_closed_connection_ends() {
    let node = Node::start();
    let mut client = node.connect();
    client.send("set a 0 0 1\r\nx\r\nget a\r\nget a");
    client.finish();
    assert_eq!(client.rest(), b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn garbage_is_answered_and_the_node_goes_on() {
    let node = Node::start();
    let mut client = node.connect();
    let mut seed = 1_u64;
    for _ in 0..500 {
        let line: Vec<u8> = (0..40)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Never the end of a line, nor an upper-case word: HTTP is another test's.
                let byte = seed.to_be_bytes()[0];
                if byte == b'\n' || byte.is_ascii_uppercase() { b'!' } else { byte }
            })
            .collect();
        let answer = client.ask([b"?", &line[..], b"\r\n"].concat());
        assert_eq!(answer, "ERROR\r\n");
    }
    node.stop();
}

#[test]
fn a_data_block_without_its_end_is_refused_whole() {
    let node = Node::start();
    let mut client = node.connect();
    // Too long: what is left of the block is not taken for a command.
    client.expect("set a 0 0 3\r\nabcdelete b\r\n", "CLIENT_ERROR bad data chunk\r\n");
    client.expect("set a 0 0 3\r\nabcd\r\n", "CLIENT_ERROR bad data chunk\r\n");
    client.expect("set a 0 0 3\r\nabcX\n", "CLIENT_ERROR bad data chunk\r\n");
    client.expect("ms a 3 q\r\nabcdef\r\n", "CLIENT_ERROR bad data chunk\r\n");
    client.expect("set a 0 0 3 noreply\r\nabcdef\r\n", "");
    client.expect("get a\r\n", "END\r\n");
    // Too short: the block takes what follows.
    client.expect(
        "set a 0 0 8\r\nab\r\nmn\r\n\r\nget a\r\n",
        "STORED\r\nVALUE a 0 8\r\nab\r\nmn\r\n\r\nEND\r\n",
    );
}

#[test]
fn what_is_too_large_is_swallowed() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("set b 0 0 1\r\nx\r\n", "STORED\r\n");
    let large = "get a\r\n".repeat(300_000);
    let length = large.len();
    let answer = "SERVER_ERROR object too large for cache\r\n";
    client.expect(format!("set a 0 0 {length}\r\n{large}\r\n"), answer);
    client.expect(format!("add b 0 0 {length}\r\n{large}\r\n"), answer);
    client.expect(format!("ms c {length} q\r\n{large}\r\n"), answer);
    // What was to be replaced is gone, what was not stays.
    client.expect("get a b\r\n", "VALUE b 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn long_lines_end_the_connection() {
    let node = Node::start();
    let mut client = node.connect();
    client.send_to_the_end("set ".to_owned() + &"k".repeat(3000));
    assert_eq!(client.rest(), b"CLIENT_ERROR line too long\r\n");
    let mut client = node.connect();
    client.send_to_the_end("x".repeat(1 << 20));
    assert_eq!(client.rest(), b"CLIENT_ERROR line too long\r\n");
}

#[test]
fn a_get_may_name_very_many_keys() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set key 0 0 1\r\nx\r\n", "STORED\r\n");
    let get = "get".to_owned() + &" key".repeat(200_000) + "\r\n";
    let answer = "VALUE key 0 1\r\nx\r\n".repeat(200_000) + "END\r\n";
    // Sent and received at once: neither side keeps it all.
    let address = node.address();
    let mut other = super::client::Client::connect(address);
    let reader = thread::spawn(move || {
        other.send(get);
        other.bytes(answer.len()) == answer.as_bytes()
    });
    assert!(reader.join().unwrap());
    let mut client = node.connect();
    client.send_to_the_end("get".to_owned() + &" key".repeat(300_000));
    assert_eq!(client.rest(), b"CLIENT_ERROR line too long\r\n");
}

#[test]
fn the_binary_protocol_ends_the_connection_with_a_log_line() {
    let node = Node::start();
    let mut client = node.connect();
    client.send([0x80, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(client.rest(), b"");
    let log = node.stop();
    assert!(log.contains("binary protocol"), "{log}");
}

#[test]
fn http_ends_the_connection() {
    let node = Node::start();
    let mut client = node.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\n\r\nset a 0 0 1\r\nx\r\n");
    assert_eq!(client.rest(), b"");
    node.connect().expect("get a\r\n", "END\r\n");
}
