//! Peers that are no memcached, or lie: an error of that node, and the image from the others.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::servers::{Manner, Memcached, nobody, pretender};
use crate::support::{Fixture, cluster, options};

/// Answers each line with `answer` of its key and opaque, until the other side goes.
fn answer_lines(stream: TcpStream, answer: impl Fn(&str, &str) -> Vec<u8>) {
    let mut out = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let key = line.split(' ').nth(1).unwrap_or_default();
        let opaque = line.split(' ').find(|word| word.starts_with('O')).unwrap_or("O0");
        if out.write_all(&answer(key, opaque)).is_err() {
            return;
        }
    }
}

fn an_old_memcached(stream: TcpStream) {
    answer_lines(stream, |_, _| b"ERROR\r\n".to_vec());
}

fn says_nothing(stream: TcpStream) {
    let mut lines = BufReader::new(stream).lines();
    while lines.next().is_some_and(|line| line.is_ok()) {}
}

fn hangs_up(stream: TcpStream) {
    drop(stream);
}

fn speaks_http(stream: TcpStream) {
    answer_lines(stream, |_, _| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
}

fn never_ends_a_line(mut stream: TcpStream) {
    while stream.write_all(&[b'x'; 4096]).is_ok() {}
}

fn promises_too_much(stream: TcpStream) {
    answer_lines(stream, |_, opaque| format!("VA 18446744073709551615 {opaque}\r\n").into_bytes());
}

fn sends_less_than_it_says(stream: TcpStream) {
    answer_lines(stream, |_, opaque| format!("VA 65536 {opaque}\r\nshort\r\n").into_bytes());
}

fn sends_the_wrong_bytes(stream: TcpStream) {
    answer_lines(stream, |_, opaque| {
        [format!("VA 65536 {opaque}\r\n").as_bytes(), &vec![1; 65536], b"\r\n"].concat()
    });
}

fn answers_what_was_not_asked(stream: TcpStream) {
    answer_lines(stream, |_, _| b"VA 3 O999999\r\nabc\r\n".to_vec());
}

fn drips(mut stream: TcpStream) {
    while stream.write_all(b"V").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_out_of_memory(stream: TcpStream) {
    answer_lines(stream, |_, _| b"SERVER_ERROR out of memory writing get response\r\n".to_vec());
}

const MANNERS: &[(Manner, &str)] = &[
    (an_old_memcached, "does not know the meta commands"),
    (says_nothing, "not a byte for 500 ms"),
    (hangs_up, "connection"),
    (speaks_http, "answered \"HTTP/1.1 400 Bad Request\""),
    (never_ends_a_line, "a line of at most"),
    (promises_too_much, "VA 18446744073709551615"),
    (sends_less_than_it_says, ""),
    (sends_the_wrong_bytes, ""),
    (answers_what_was_not_asked, "O999999"),
    (drips, "not a byte for"),
    (is_out_of_memory, "SERVER_ERROR out of memory"),
];

#[test]
fn a_peer_that_misbehaves_costs_its_replica_only() {
    let fixture = Fixture::new(3 << 20, 64 << 10);
    let good = Memcached::start();
    // Two nodes, so that each holds all: published while the other is down.
    for (manner, _) in MANNERS {
        let bad = pretender(*manner);
        let url = format!("memcached://{},{}", good.address, bad);
        let published =
            fixture.publish(&cluster(&format!("memcached://{},{}", good.address, nobody())));
        assert_eq!(published.unwrap().nodes_down.len(), 1);
        let report = fixture.check(cluster(&url));
        assert!(report.nodes.iter().all(|node| node.name != bad || node.chunks == 0), "{report:?}");
    }
}

#[test]
fn a_peer_that_misbehaves_alone_is_named_with_what_it_did() {
    let fixture = Fixture::new(3 << 20, 64 << 10);
    for (manner, words) in MANNERS {
        let bad = pretender(*manner);
        let url = format!("memcached://{bad}").parse().unwrap();
        let options = imgcache::transport::cluster::ClusterOptions {
            load_deadline: Duration::from_secs(3),
            ..options()
        };
        let cluster = imgcache::transport::cluster::Cluster::open(&url, options, None).unwrap();
        let error = fixture.check_with(cluster, None).unwrap_err().to_string();
        assert!(error.contains(&bad), "{error}");
        if !error.contains("not done in the time") {
            assert!(error.contains(words), "{error}");
        }
    }
}
