//! What the other side's device refuses: the status says so, the local memory is as it was, and a new queue
//! works.

use imgcache::transport::verbs::{
    Export, Lent, LoadQueue, QueueState, Remote, Scope, Settings, Status,
};

use super::sides::{CONTENT, Node, buffers, connect, is_content, one};

const SIZE: usize = 4096;

/// Reads from `remote`, or writes to it, and expects to be refused.
pub fn refused<'scope, 'm>(
    queue: &mut LoadQueue<'scope, 'm>,
    local: Lent<'scope, 'm>,
    remote: Remote,
    what: &str,
) -> Lent<'scope, 'm> {
    let before = local.bytes().to_vec();
    let (status, local) = one(queue, local, remote);
    assert!(status.is_remote_access(), "{what}: {status}");
    assert_eq!(local.bytes(), before, "{what}: the local memory has changed");
    assert_eq!(queue.state().unwrap(), QueueState::Failed, "{what}");
    let (status, local) = one(queue, local, remote);
    assert!(status.is_flushed(), "{what}, the next one: {status}");
    local
}

/// As [`refused`], with a queue of its own; then sees that a new one works.
fn refused_once<'scope, 'm>(
    node: &Node,
    scope: &'scope Scope<'scope, 'm>,
    local: Lent<'scope, 'm>,
    remote: Remote,
    what: &str,
) -> Lent<'scope, 'm> {
    let (mut queue, _server) = node.connect(scope);
    refused(&mut queue, local, remote, what)
}

fn works<'scope, 'm>(
    node: &Node,
    scope: &'scope Scope<'scope, 'm>,
    local: Lent<'scope, 'm>,
) -> Lent<'scope, 'm> {
    let (mut queue, _server) = node.connect(scope);
    let (status, local) = one(&mut queue, local, node.at(SIZE));
    assert!(status.is_success() && is_content(local.bytes(), SIZE), "{status}");
    local
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn what_is_not_open_is_refused_and_the_next_queue_works() {
    let node = Node::new();
    let (mut memory, data) = (vec![0xab; SIZE], vec![0xcd; SIZE]);
    node.domain.scope(|scope| {
        let good = node.at(0);
        let mut local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        for (remote, what) in [
            (Remote { key: good.key ^ 0x10, ..good }, "a wrong key"),
            (
                Remote { address: good.address + (CONTENT - SIZE / 2) as u64, ..good },
                "past the end",
            ),
            (Remote { address: good.address - 1, ..good }, "before the start"),
            (Remote { address: 0, ..good }, "address 0"),
            (Remote { address: u64::MAX - 100, ..good }, "the end of all addresses"),
            (Remote { key: good.key ^ 0x100_0000, ..good }, "a key that nobody has"),
        ] {
            local = refused_once(&node, scope, local, remote, what);
            local = works(&node, scope, local);
        }
        let source = Lent::Source(scope.register_sources(&[&data]).unwrap()[0]);
        refused_once(&node, scope, source, good, "a WRITE to a region for reading");
        works(&node, scope, local);
    });
    assert!(is_content(node.slot(0, SIZE).unwrap().bytes(), 0), "something was written");
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_region_that_is_gone_is_refused() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE];
    let layout = node.arena.layout();
    let own =
        node.domain.export(node.arena.memory(), layout.content..layout.length, Export::Readable);
    let own = own.unwrap();
    let remote = Remote { address: own.address(), key: own.key().unwrap() };
    node.domain.scope(|scope| {
        let (mut queue, _server) = node.connect(scope);
        let buffer = buffers(scope, &mut memory, SIZE).remove(0);
        let (status, local) = one(&mut queue, Lent::Buffer(buffer), remote);
        assert!(status.is_success(), "{status}");
        drop(own);
        let local = refused(&mut queue, local, remote, "a region that is gone");
        works(&node, scope, local);
    });
}

/// Each tenant has a domain: another's keys are worth nothing to it.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn keys_of_another_domain_are_refused() {
    let node = Node::new();
    let other = node.domain.fabric().domain().unwrap();
    let layout = node.arena.layout();
    let region = other.export(node.arena.memory(), layout.content..layout.length, Export::Readable);
    let region = region.unwrap();
    let theirs = Remote { address: region.address(), key: region.key().unwrap() };
    let mut memory = vec![0xab; SIZE];
    node.domain.scope(|scope| {
        let (mut queue, _server) = connect(&other, scope);
        let local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        let (status, local) = one(&mut queue, local, theirs);
        assert!(status.is_success(), "{status}");
        let local = refused(&mut queue, local, node.at(0), "the key of another domain");
        let local = refused_once(&node, scope, local, theirs, "the key of the other domain");
        works(&node, scope, local);
    });
}

/// The side that loads gives no right away, not even to the node that it loads from.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_loading_queue_accepts_nothing() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE];
    let settings = Settings::for_device(node.domain.fabric().device());
    node.domain.scope(|scope| {
        // Two loading queues, and a key that would open the memory to a serving one.
        let (mut one_side, mut other) = (scope.queue(4).unwrap(), scope.queue(4).unwrap());
        let (near, far) = (one_side.endpoint(), other.endpoint());
        one_side.connect(&far, &settings).unwrap();
        other.connect(&near, &settings).unwrap();
        let local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        let (status, local) = one(&mut one_side, local, node.at(0));
        let refusals = [Status::RemoteAccess, Status::RemoteInvalidRequest];
        assert!(refusals.contains(&status), "{status}");
        assert!(local.bytes().iter().all(|byte| *byte == 0xab));
    });
}
