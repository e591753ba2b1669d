//! Guests from the distributed cache.

use rustix::process::Signal;

use crate::common::Bench;
use crate::common::guest::boot;
use crate::common::node::Node;

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_boots_from_three_storage_nodes_and_from_the_two_that_are_left() {
    let bench = Bench::new();
    let mut nodes: Vec<Node> =
        (0..3).map(|_| Node::start(bench.path(), &["--memory", "128M"])).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let cache = format!("memcached://{}", addresses.join(","));
    bench.push("guest", "vmlinuz", "initrd-small.cpio.gz");
    bench.expect(0, &["image", "publish", "guest", "--cache", &cache]);
    // The cache alone has it from now on.
    std::fs::remove_dir_all(bench.store()).unwrap();
    let boots = || {
        let booted = boot(&bench, "guest", &["--cache", &cache]);
        assert_eq!(booted.code, Some(0), "{booted:#?}");
        booted.self_test();
    };
    boots();
    nodes[0].signal(Signal::KILL);
    nodes[0].wait();
    boots();
}
