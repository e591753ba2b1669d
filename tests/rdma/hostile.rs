//! Clients that push what they should not, or when they should not.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use imgcache::key::ChunkKey;
use rustix::process::{Pid, Signal, kill_process};

use crate::cache::{resources, wait};
use crate::common::node::Node;
use crate::push::{Nodes, number};
use crate::writer::{Writer, push, write_as_reader};

/// Where the client that is to be killed finds the node.
const NODE: &str = "RDMA_TEST_NODE";
/// What it says when it has written.
const WRITTEN: &str = "written by the client that is to be killed";

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + usize::from(seed)) % 253).unwrap()).collect()
}

/// The content that the node has under `key`, by TCP; none if nobody sees any.
fn seen(node: &Node, key: &ChunkKey) -> Option<usize> {
    let answer = node.ask(format!("mg c/{key} s\r\nmn\r\n").as_bytes(), "MN\r\n");
    let size = answer.strip_prefix("HD s")?;
    size.split_whitespace().next()?.parse().ok()
}

/// Waits until so much of the node's memory is in use; it looks at what came back once a second.
fn used(node: &Node, bytes: u64) {
    wait("memory to be free again", || node.number("placement", "used") == bytes);
}

/// Whether the node has exactly `content`.
fn has(node: &Node, content: &[u8]) -> bool {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let request = format!("mg c/{} v\r\nquit\r\n", ChunkKey::of(content));
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = format!("VA {}\r\n", content.len());
    answer.strip_prefix(head.as_bytes()).and_then(|rest| rest.strip_suffix(b"\r\n"))
        == Some(content)
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn what_is_not_what_its_key_says_is_refused_and_never_seen() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let [good, bad] = [1, 2].map(|seed| content(seed, 100_000));
    let keys = [&good, &bad].map(|content| ChunkKey::of(content));
    // The second has its first byte wrong.
    let mut wrong = bad.clone();
    wrong[0] ^= 1;
    let lines = push(node, &keys, &[&good, &wrong], |writer| {
        for (at, key) in keys.iter().enumerate() {
            let slot = writer.push.slot(at);
            assert!(writer.pen.write(at, slot).is_success());
            assert_eq!(seen(node, key), None, "before its end");
        }
        writer.push.end(2)
    });
    assert_eq!(lines[..2], ["PUSHED 2", "STORED"], "{lines:?}");
    assert!(lines[2].starts_with("SERVER_ERROR") && lines[2].contains("damaged"), "{lines:?}");
    assert!(has(node, &good));
    assert_eq!(seen(node, &keys[1]), None);
    assert_eq!((number(node, "push_damaged"), number(node, "push_stored")), (1, 1));
    assert_eq!(number(node, "push_exposed"), 0);
    // As much memory as the good one takes: that of the other is free.
    used(node, 128 << 10);
}

/// By its old key a client reaches nothing, be it what it wrote itself.
#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn nothing_is_written_after_the_end() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let [good, other] = [1, 2].map(|seed| content(seed, 65_536));
    let key = ChunkKey::of(&good);
    push(node, &[key, ChunkKey::of(&other)], &[&good, &other], |writer| {
        let slot = writer.push.slot(0);
        assert!(writer.pen.write(0, slot).is_success());
        assert_eq!(writer.push.end(1), ["PUSHED 1", "STORED"]);
        // Its queue has nobody at the other end any more.
        let status = writer.pen.write(1, slot);
        assert!(status.is_retry_exceeded() || status.is_remote_access(), "{status}");
        // With a new queue, of its own push, the old key is as dead.
        let old = slot;
        push(node, &[ChunkKey::of(&other)], &[&other], |writer| {
            assert_ne!(writer.push.slot(0).key, old.key);
            let status = writer.pen.write(0, old);
            assert!(status.is_remote_access(), "{status}");
        });
        assert_eq!(writer.push.end(1), ["NOT_FOUND"], "once only");
    });
    assert!(has(node, &good), "published content has changed");
    wait("all to end", || number(node, "push_exposed") == 0);
}

/// The end of the queue is the end of the writes, also of one that is under way: what was hashed stays
/// what it is.
#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_push_that_is_ended_while_it_is_written_is_whole_or_refused() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let mut whole = 0;
    for round in 0..24_u8 {
        let content = content(round, 1 << 20);
        let key = ChunkKey::of(&content);
        let stored = push(node, &[key], &[&content], |writer| {
            let slot = writer.push.slot(0);
            let Writer { push, pen } = writer;
            thread::scope(|threads| {
                // Soft-RoCE sends in the caller's time.
                let write = threads.spawn(move || pen.write(0, slot));
                sleep(Duration::from_millis(u64::from(round % 12)));
                let lines = push.end(1);
                let status = write.join().unwrap();
                assert!(
                    status.is_success() || status.is_retry_exceeded() || status.is_remote_access(),
                    "{status}"
                );
                assert_eq!(lines[0], "PUSHED 1");
                lines[1] == "STORED"
            })
        });
        assert_eq!(seen(node, &key).is_some(), stored);
        assert!(!stored || has(node, &content), "what was verified has changed");
        whole += u8::from(stored);
    }
    println!("{whole} of 24 were whole");
    assert_eq!(number(node, "push_exposed"), 0);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn two_writers_of_one_chunk_both_succeed() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let content = content(1, 65_536);
    let key = ChunkKey::of(&content);
    push(node, &[key], &[&content], |first| {
        push(node, &[key], &[&content], |second| {
            let slots = [first.push.slot(0), second.push.slot(0)];
            assert_ne!(slots[0].address, slots[1].address);
            assert!(first.pen.write(0, slots[0]).is_success());
            assert!(second.pen.write(0, slots[1]).is_success());
            assert_eq!(first.push.end(1), ["PUSHED 1", "STORED"]);
            assert_eq!(second.push.end(1), ["PUSHED 1", "STORED"]);
        });
    });
    assert!(has(node, &content));
    assert_eq!(node.number("", "curr_items"), 1);
    used(node, 65_536);
    // The third does not write.
    push(node, &[key], &[&content], |third| assert_eq!(third.push.answers, ["HAVE"]));
}

/// What a reader is given, a writer cannot use; nor one client what another was given.
#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn rights_are_for_one_purpose_and_one_client() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let [mine, theirs] = [1, 2].map(|seed| content(seed, 65_536));
    let (my_key, their_key) = (ChunkKey::of(&mine), ChunkKey::of(&theirs));
    push(node, &[their_key], &[&theirs], |owner| {
        let slot = owner.push.slot(0);
        push(node, &[my_key], &[&mine], |thief| {
            let status = thief.pen.write(0, slot);
            assert!(status.is_remote_access(), "{status}");
        });
        assert!(owner.pen.write(0, slot).is_success());
        assert_eq!(owner.push.end(1), ["PUSHED 1", "STORED"]);
    });
    assert!(has(node, &theirs));
    // What is given for reading.
    let before = node.stats("rdma");
    let status = write_as_reader(node, &mine);
    assert!(status.is_remote_access(), "{status}");
    assert!(has(node, &theirs));
    let announcement = |stats: &[(String, String)]| stats[0].clone();
    assert_eq!(announcement(&node.stats("rdma")), announcement(&before));
}

/// Is killed by the next test, when it has written.
#[test]
#[ignore = "is run by another test"]
fn the_client_that_is_killed() {
    let Ok(address) = std::env::var(NODE) else { return };
    let node = Node::elsewhere(address.parse().unwrap());
    let content = content(1, 100_000);
    push(&node, &[ChunkKey::of(&content)], &[&content], |writer| {
        let slot = writer.push.slot(0);
        assert!(writer.pen.write(0, slot).is_success());
        println!("{WRITTEN}");
        sleep(Duration::from_secs(600));
    });
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn what_a_killed_client_has_written_is_seen_by_nobody() {
    let all = Nodes::new(1);
    let node = &all.nodes[0];
    let before = resources();
    for round in 1..=3 {
        let mut client = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "hostile::the_client_that_is_killed", "--nocapture"])
            .env(NODE, node.address().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains(WRITTEN)), "it did not write");
        assert_eq!((number(node, "push_open"), number(node, "push_exposed")), (1, 128 << 10));
        kill_process(Pid::from_child(&client), Signal::KILL).unwrap();
        client.wait().unwrap();
        wait("the push to end", || number(node, "push_open") == 0);
        assert_eq!((number(node, "push_exposed"), number(node, "push_abandoned")), (0, round));
        assert_eq!(node.number("", "curr_items"), 0);
        used(node, 0);
    }
    wait("the device to be as before", || resources() == before);
}
