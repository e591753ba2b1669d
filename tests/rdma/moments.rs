//! What happens at a certain moment of a load: a node dies or is told to end, somebody else reads with a wrong
//! key.

use std::sync::Mutex;
use std::time::Instant;

use imgcache::transport::cluster::{CacheReport, ClusterOptions, LinkChoice, LinkKind};
use rustix::process::Signal;

use crate::cache::{Cache, DEVICE, resources, wait};
use crate::common::node::Node;
use crate::loading::{DEADLINE, RDMA, chunks_of, index_key, length, load, session, session_with};
use crate::reader::{Reader, domain};

/// Chunks that `node` supplied by RDMA.
fn by_rdma(report: &CacheReport, node: &Node) -> u64 {
    let name = node.address().to_string();
    report.nodes.iter().find(|one| one.name == name).map_or(0, |node| node.by.rdma)
}

/// Whether nothing of its process is left but its number: its first thread may end before the others, which have
/// all that it had open.
fn is_dead(node: &Node) -> bool {
    let process = format!("/proc/{}", node.pid().as_raw_nonzero());
    let threads = std::fs::read_dir(format!("{process}/task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(format!("{process}/stat"));
    // The state is behind the name, which is in brackets.
    threads == 1
        && stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// One of two nodes dies when `percent` of a load have come.
fn dies_at(percent: usize) {
    // What is under way is little beside what remains.
    let cache = Cache::in_chunks(2, &["--rdma", DEVICE], "64K");
    let options = ClusterOptions { link: RDMA, rdma_chunks: 4, ..ClusterOptions::default() };
    let session = session_with(&cache.url(), options);
    let (victim, begun) = (&cache.nodes[0], Instant::now());
    // What is left of a load may take less time than a process takes to die.
    let report = load(&*session, percent, &|| {
        victim.signal(Signal::KILL);
        wait("the node to die", || is_dead(victim));
    });
    assert!(begun.elapsed() < DEADLINE);
    assert!(by_rdma(&report, &cache.nodes[1]) > 0, "{report:?}");
    let victim = report.nodes.iter().find(|node| node.name == victim.address().to_string());
    assert!(victim.is_some_and(|node| node.failures > 0), "it did not die in time: {report:?}");
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_dies_at_the_beginning_of_a_load() {
    dies_at(10);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_dies_in_the_middle_of_a_load() {
    dies_at(50);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_dies_towards_the_end_of_a_load() {
    dies_at(90);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_is_leased_once_whatever_it_is_read_by() {
    let cache = Cache::new(1);
    for link in [LinkKind::Rdma, LinkKind::Tcp] {
        let session = session(&cache.url(), LinkChoice::Only(link));
        let leases = Mutex::new(Vec::new());
        load(&*session, 50, &|| *leases.lock().unwrap() = cache.nodes[0].stats("leases"));
        let leases = leases.into_inner().unwrap();
        let bytes: Vec<u64> = leases
            .iter()
            .filter(|(name, _)| name.ends_with(":bytes"))
            .map(|(_, bytes)| bytes.parse().unwrap())
            .collect();
        assert!(matches!(bytes[..], [bytes] if bytes > 0), "{link}: {leases:?}");
        wait("the lease to end", || cache.nodes[0].number("placement", "leased") == 0);
    }
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn a_node_that_is_told_to_end_lets_loads_end_and_leaves_nothing_behind() {
    let before = resources();
    let mut cache = Cache::new(1);
    {
        let session = session(&cache.url(), RDMA);
        let (node, answer) = (&cache.nodes[0], Mutex::new(String::new()));
        let report = load(&*session, 30, &|| {
            node.signal(Signal::TERM);
            let is_draining = || node.number("placement", "draining") == 1;
            wait("the node to be told", is_draining);
            let refused = node.ask(b"lease 00000000000000ff 1000 0\r\n\r\n", "\r\n");
            *answer.lock().unwrap() = refused;
        });
        assert_eq!(*answer.lock().unwrap(), "DRAINING\r\n");
        let all = report.chunks_from_nodes;
        assert_eq!((by_rdma(&report, node), report.retries), (all, 0), "{report:?}");
    }
    assert_eq!(cache.nodes[0].wait(), Some(0));
    wait("the device to be as before", || resources() == before);
}

#[test]
#[ignore = "needs an RDMA device: scripts/test runs it in the lab"]
fn who_reads_with_a_wrong_key_fails_alone() {
    let cache = Cache::new(1);
    let session = session(&cache.url(), RDMA);
    let chunks = chunks_of(&*session);
    let bytes = length(&chunks[0]);
    let report = load(&*session, 20, &|| {
        let mut memory = vec![0xab; 2 * bytes];
        domain().scope(|scope| {
            let mut reader = Reader::connect(scope, &cache.nodes[0], &[index_key(&chunks[0])]);
            let content = reader.announcement.exported.content;
            let mut parts = scope.register(memory.chunks_mut(bytes).collect()).unwrap();
            // While the load's READs are under way.
            let (status, good) = reader.read_one(parts.remove(0), content);
            assert!(status.is_success() && good.iter().any(|byte| *byte != 0xab), "{status}");
            reader.forge_key();
            let (status, refused) = reader.read_one(parts.remove(0), content);
            assert!(status.is_remote_access(), "{status}");
            assert!(refused.iter().all(|byte| *byte == 0xab), "something was read");
            // Nor does it get any further on that connection.
            let (status, _) = reader.read_one(refused, content);
            assert!(status.is_flushed(), "{status}");
        });
    });
    let all = report.chunks_from_nodes;
    assert_eq!((by_rdma(&report, &cache.nodes[0]), report.retries), (all, 0), "{report:?}");
}
