//! Nodes, clients and devices that fail.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cache::{Cache, chunks, queues, report, resources, wait};
use crate::common::node::Node;

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_that_dies_in_the_middle_of_a_load_costs_its_share_only() {
    let mut cache = Cache::new(2);
    let load = cache.begin(&["--transport", "rdma"]);
    wait("the load to connect", || queues(&cache.nodes[0]) > 0);
    cache.nodes[0].signal(Signal::KILL);
    let report = report(&load.wait_with_output().unwrap());
    assert!(chunks(&report, &cache.nodes[1], "rdma") > 0, "{report}");
    assert!(report["retries"].as_u64().unwrap() > 0, "{report}");
    // And without it from the start.
    cache.nodes[0].wait();
    cache.load(&["--transport", "rdma"]);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_frozen_node_is_read_on() {
    let cache = Cache::new(2);
    let load = cache.begin(&["--transport", "rdma"]);
    wait("the load to connect", || cache.nodes.iter().all(|node| queues(node) > 0));
    cache.nodes[0].signal(Signal::STOP);
    let report = report(&load.wait_with_output().unwrap());
    cache.nodes[0].signal(Signal::CONT);
    assert!(chunks(&report, &cache.nodes[0], "rdma") > 0, "{report}");
    assert_eq!(report["retries"], 0, "its processor is not needed: {report}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_without_rdma_is_read_by_tcp_and_the_report_says_why() {
    let cache = Cache::with(1, &["--rdma", "off"]);
    let report = cache.load(&[]);
    assert!(chunks(&report, &cache.nodes[0], "tcp") > 0, "{report}");
    assert_eq!(chunks(&report, &cache.nodes[0], "rdma"), 0);
    let reason = report["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("this node has no RDMA"), "{reason}");
    let output = cache.load_command(&["--transport", "rdma"]).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{words}");
    assert!(words.contains("this node has no RDMA"), "{words}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn too_small_a_limit_of_locked_memory_is_told_and_the_load_goes_on_by_tcp() {
    let cache = Cache::new(1);
    let inner = cache.load_command(&[]);
    // Who may lock memory is not limited.
    let mut command = Command::new("setpriv");
    command.args([
        "--bounding-set=-ipc_lock",
        "--inh-caps=-ipc_lock",
        "prlimit",
        "--memlock=65536",
    ]);
    command.arg("--").arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        value.map(|value| command.env(name, value));
    }
    let report = report(&command.output().unwrap());
    assert!(chunks(&report, &cache.nodes[0], "tcp") > 0, "{report}");
    let reason = report["nodes"][0]["link_reason"].as_str().unwrap();
    assert!(reason.contains("memlock"), "{reason}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_that_was_started_again_is_read_as_it_is_now() {
    let mut cache = Cache::new(2);
    cache.load(&["--transport", "rdma"]);
    let address = cache.nodes[0].address().to_string();
    cache.nodes[0].signal(Signal::KILL);
    cache.nodes[0].wait();
    let again = ["--memory", "128M", "--rdma", crate::cache::DEVICE, "--listen", &address];
    cache.nodes[0] = Node::start(cache.bench.path(), &again);
    // It is empty: what it lacks comes from the other.
    let report = cache.load(&["--transport", "rdma"]);
    let all = report["chunks_from_nodes"].as_u64().unwrap();
    assert_eq!(chunks(&report, &cache.nodes[1], "rdma"), all, "{report}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn killed_clients_leave_nothing_at_the_node() {
    let cache = Cache::new(1);
    cache.load(&["--transport", "rdma"]);
    wait("all queues to end", || queues(&cache.nodes[0]) == 0);
    let before = resources();
    for round in 0..12 {
        let mut load = cache.begin(&["--transport", "rdma"]);
        wait("the load to connect", || queues(&cache.nodes[0]) > 0);
        // At another point of the load each time.
        sleep(Duration::from_millis(round * 30));
        kill_process(Pid::from_child(&load), Signal::KILL).unwrap();
        load.wait().unwrap();
    }
    wait("all queues to end", || queues(&cache.nodes[0]) == 0);
    wait("the device to be as before", || resources() == before);
    // Leases of clients that are gone run out.
    wait("the leases to end", || cache.nodes[0].number("placement", "leased") == 0);
    cache.load(&["--transport", "rdma"]);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn whoever_writes_meanwhile_no_reader_takes_a_wrong_entry() {
    // Small chunks: many lookups for each byte. A small table: many of them meet the writer.
    let small = ["--rdma", crate::cache::DEVICE, "--index-entries", "16384"];
    let cache = Cache::in_chunks(1, &small, "4K");
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (node, is_done) = (&cache.nodes[0], &is_done);
        let writer = scope.spawn(move || {
            let mut writes = 0_u64;
            while !is_done.load(Ordering::Relaxed) {
                // Entries come and go in all buckets, and move between theirs.
                let mut requests = String::new();
                for key in 0..64 {
                    let key = (writes * 64 + key) % 5000;
                    let gone = (key + 2500) % 5000;
                    write!(requests, "ms noise{key} 8\r\n{writes:08}\r\n").unwrap();
                    write!(requests, "md noise{gone} q\r\n").unwrap();
                }
                node.ask((requests + "mn\r\n").as_bytes(), "MN\r\n");
                writes += 1;
            }
            writes
        });
        for _ in 0..8 {
            let report = cache.load(&["--transport", "rdma"]);
            // Content that is not what the entry said would be damaged.
            assert_eq!((&report["damaged"], &report["misses"]), (&0.into(), &0.into()), "{report}");
            let chunks = chunks(&report, node, "rdma") + chunks(&report, node, "tcp");
            assert_eq!(report["chunks_from_nodes"], chunks, "{report}");
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
}
