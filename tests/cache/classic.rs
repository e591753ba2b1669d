//! Every command of the classic protocol, each end of each.

use super::node::Node;

#[test]
fn storage_commands_store_where_they_should() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 7 0 3\r\none\r\n", "STORED\r\n");
    client.expect("get a\r\n", "VALUE a 7 3\r\none\r\nEND\r\n");
    client.expect("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.expect("add b 1 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("replace c 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.expect("replace b 2 0 0\r\n\r\n", "STORED\r\n");
    client.expect("get b\r\n", "VALUE b 2 0\r\n\r\nEND\r\n");
    client.expect("append a 9 0 3\r\ntwo\r\n", "STORED\r\n");
    client.expect("prepend a 9 0 4\r\nzero\r\n", "STORED\r\n");
    client.expect("get a\r\n", "VALUE a 7 10\r\nzeroonetwo\r\nEND\r\n");
    client.expect("append c 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.expect("prepend c 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
}

#[test]
fn cas_stores_what_nobody_changed() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("cas a 0 0 1 1\r\nx\r\n", "NOT_FOUND\r\n");
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    let answer = client.ask("gets a\r\n");
    let cas: u64 = answer.split_whitespace().nth(4).unwrap().parse().unwrap();
    client.expect(format!("cas a 0 0 1 {}\r\ny\r\n", cas + 1), "EXISTS\r\n");
    client.expect(format!("cas a 0 0 1 {cas}\r\ny\r\n"), "STORED\r\n");
    client.expect(format!("cas a 0 0 1 {cas}\r\nz\r\n"), "EXISTS\r\n");
    client.expect("get a\r\n", "VALUE a 0 1\r\ny\r\nEND\r\n");
}

#[test]
fn gets_answer_what_is_there_in_order() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 1 0 1\r\nA\r\n", "STORED\r\n");
    client.expect("set c 3 0 3\r\nCCC\r\n", "STORED\r\n");
    client.expect("get c b a\r\n", "VALUE c 3 3\r\nCCC\r\nVALUE a 1 1\r\nA\r\nEND\r\n");
    client.expect("get  a  \r\n", "VALUE a 1 1\r\nA\r\nEND\r\n");
    client.expect("get nothing\n", "END\r\n");
    client.expect("gat 100 a b\r\n", "VALUE a 1 1\r\nA\r\nEND\r\n");
    client.expect("gat 0\r\n", "END\r\n");
    client.expect("gat x a\r\n", "CLIENT_ERROR invalid exptime argument\r\n");
    assert!(client.ask("mg a t\r\n").starts_with("HD t"), "it has no TTL now");
    let answer = client.ask("gats 0 a\r\n");
    assert_eq!(answer.split_whitespace().count(), 7, "{answer}");
    client.expect("mg a t\r\n", "HD t-1\r\n");
    client.expect(
        format!("get a {}\r\n", "k".repeat(251)),
        "CLIENT_ERROR bad command line format\r\n",
    );
}

#[test]
fn deletes_and_touches_tell_whether_there_was_something() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("touch a 100\r\n", "TOUCHED\r\n");
    client.expect("touch b 100\r\n", "NOT_FOUND\r\n");
    client.expect("touch a x\r\n", "CLIENT_ERROR invalid exptime argument\r\n");
    client.expect("delete a 0\r\n", "DELETED\r\n");
    client.expect("delete a\r\n", "NOT_FOUND\r\n");
    let usage = "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n";
    client.expect("delete a 5\r\n", usage);
    client.expect("get a\r\n", "END\r\n");
}

#[test]
fn numbers_wrap_above_and_stop_below() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set n 5 0 20\r\n18446744073709551615\r\n", "STORED\r\n");
    client.expect("incr n 2\r\n", "1\r\n");
    client.expect("incr n 41\r\n", "42\r\n");
    client.expect("decr n 40\r\n", "2\r\n");
    client.expect("decr n 100\r\n", "0\r\n");
    assert!(client.ask("get n\r\n").starts_with("VALUE n 5 "), "the flags are lost");
    client.expect("incr nothing 1\r\n", "NOT_FOUND\r\n");
    client.expect("decr nothing 1\r\n", "NOT_FOUND\r\n");
    client.expect("incr n x\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n");
    client.expect("set t 0 0 1\r\nx\r\n", "STORED\r\n");
    let answer = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
    client.expect("incr t 1\r\n", answer);
}

#[test]
fn what_has_expired_is_gone() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 -1 1\r\nx\r\n", "STORED\r\n");
    client.expect("get a\r\n", "END\r\n");
    // A time of 1970.
    client.expect("set a 0 2592001 1\r\nx\r\n", "STORED\r\n");
    client.expect("get a\r\n", "END\r\n");
    client.expect("set a 0 4000000000 1\r\nx\r\n", "STORED\r\n");
    client.expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    client.expect("touch a -1\r\n", "TOUCHED\r\n");
    client.expect("get a\r\n", "END\r\n");
}

#[test]
fn flush_all_removes_all() {
    let node = Node::start();
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("flush_all 1000\r\n", "OK\r\n");
    client.expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    client.expect("flush_all\r\n", "OK\r\n");
    client.expect("get a\r\n", "END\r\n");
    client.expect("set a 0 0 1\r\ny\r\n", "STORED\r\n");
    client.expect("get a\r\n", "VALUE a 0 1\r\ny\r\nEND\r\n");
    client.expect("flush_all x\r\n", "CLIENT_ERROR invalid exptime argument\r\n");
    client.expect("flush_all -5\r\n", "OK\r\n");
    client.expect("get a\r\n", "END\r\n");
}

#[test]
fn the_others_answer() {
    let node = Node::start();
    let mut client = node.connect();
    let version = concat!("VERSION 1.6.18-imgcached-", env!("CARGO_PKG_VERSION"), "\r\n");
    client.expect("version\r\n", version);
    client.expect("verbosity 1\r\n", "OK\r\n");
    client.expect("verbosity x\r\n", "CLIENT_ERROR bad command line format\r\n");
    client.expect("mn\r\n", "MN\r\n");
    client.expect("watch\r\n", "CLIENT_ERROR watch commands not allowed\r\n");
    client.expect("shutdown\r\n", "ERROR: shutdown not enabled\r\n");
    client.expect("slabs reassign 1 2\r\n", "CLIENT_ERROR slab reassignment disabled\r\n");
    client.expect("lru_crawler metadump all\r\n", "CLIENT_ERROR lru crawler disabled\r\n");
    let answer = "MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n";
    client.expect("cache_memlimit 64\r\n", answer);
    client.expect("nonsense\r\n", "ERROR\r\n");
    client.expect("\r\n", "ERROR\r\n");
    client.send("get nothing\r\nquit\r\nget nothing\r\n");
    assert_eq!(client.rest(), b"END\r\n");
}

#[test]
fn noreply_says_nothing_even_of_errors() {
    let node = Node::start();
    let mut client = node.connect();
    for request in [
        "set a 0 0 1 noreply\r\n1\r\n",
        "add a 0 0 1 noreply\r\nx\r\n",
        "replace b 0 0 1 noreply\r\nx\r\n",
        "append a 0 0 1 noreply\r\n2\r\n",
        "prepend a 0 0 1 noreply\r\n3\r\n",
        "cas a 0 0 1 1 noreply\r\nx\r\n",
        "incr a 1 noreply\r\n",
        "decr b 1 noreply\r\n",
        "incr a x noreply\r\n",
        "touch a 0 noreply\r\n",
        "delete b noreply\r\n",
        "delete b 0 noreply\r\n",
        "verbosity 1 noreply\r\n",
        "flush_all 100 noreply\r\n",
        "set a 0 0 x noreply\r\n",
        "set big 0 0 9999999 noreply\r\n",
    ] {
        let mut data = String::new();
        if request.contains("9999999") {
            data = "x".repeat(9_999_999) + "\r\n";
        }
        client.expect(request.to_owned() + &data, "");
    }
    client.expect("get a big\r\n", "VALUE a 0 3\r\n313\r\nEND\r\n");
}
