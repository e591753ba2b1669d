//! Rights to parts of a region, for one queue, until they are taken back.

use std::time::Duration;

use imgcache::node::arena::Slot;
use imgcache::transport::verbs::{Lent, Remote, ServeQueue, Served, VerbsError};

use super::rights::refused;
use super::sides::{LONG, Node, all, buffers, is_content, one};

const SIZE: usize = 4096;
/// Where the windows of these tests are in the content.
const START: usize = 1 << 20;

/// Waits for one change of a window: that it was bound, or that it is free, which gives its part back.
pub fn served(server: &mut ServeQueue<Slot>, bound: bool) -> Option<Slot> {
    let mut completions = Vec::new();
    assert_eq!(server.wait(&mut completions, LONG).unwrap(), 1);
    let done = completions.remove(0);
    assert!(done.status.is_success(), "{}", done.status);
    match done.item {
        Served::Bound { key } => {
            assert!(bound && server.keys().any(|other| other == key));
            None
        }
        Served::Free { window, part } => {
            assert!(!bound && window.is_some());
            part
        }
    }
}

/// Binds a window for reading `SIZE * 4` bytes at `START`.
fn readable(node: &Node, server: &mut ServeQueue<Slot>) -> Remote {
    let window = node.domain.window().unwrap();
    let part = START as u64..(START + SIZE * 4) as u64;
    let remote = server.bind_read(1, window, &node.windows, part).unwrap();
    served(server, true);
    remote
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_window_opens_its_part_to_its_queue_until_it_is_invalidated() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE];
    node.domain.scope(|scope| {
        let mut local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        let (mut queue, mut server) = node.connect(scope);
        let remote = readable(&node, &mut server);
        for _ in 0..2 {
            let status;
            (status, local) = one(&mut queue, local, remote);
            assert!(status.is_success() && is_content(local.bytes(), START), "{status}");
            let (mut other, _server) = node.connect(scope);
            local = refused(&mut other, local, remote, "the window of another queue");
        }
        server.invalidate(2, remote.key).unwrap();
        assert!(served(&mut server, false).is_none());
        assert_eq!(server.keys().count(), 0);
        assert!(matches!(server.invalidate(3, remote.key), Err(VerbsError::NoWindow(_))));
        refused(&mut queue, local, remote, "a window that is dead");
    });
}

/// A window that is bound again has another key; the old one stays dead.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_window_can_be_bound_again_and_its_old_key_is_dead() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE];
    node.domain.scope(|scope| {
        let (mut queue, mut server) = node.connect(scope);
        let old = readable(&node, &mut server);
        server.invalidate(2, old.key).unwrap();
        let mut completions = Vec::new();
        server.wait(&mut completions, LONG).unwrap();
        let Served::Free { window: Some(window), .. } = completions.remove(0).item else {
            panic!()
        };
        let new = server.bind_read(3, window, &node.windows, 0..SIZE as u64).unwrap();
        served(&mut server, true);
        assert_ne!(new.key, old.key);
        let local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        let (status, local) = one(&mut queue, local, new);
        assert!(status.is_success() && is_content(local.bytes(), 0), "{status}");
        refused(&mut queue, local, Remote { key: old.key, ..new }, "the old key");
    });
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_window_is_for_what_it_was_bound_for() {
    let node = Node::new();
    let (mut memory, data) = (vec![0xab; SIZE], vec![0xcd; SIZE]);
    node.domain.scope(|scope| {
        let source = scope.register_sources(&[&data]).unwrap()[0];
        let (mut queue, mut server) = node.connect(scope);
        let remote = readable(&node, &mut server);
        refused(&mut queue, Lent::Source(source), remote, "a WRITE through a window for reading");

        let (mut queue, mut server) = node.connect(scope);
        let slot = node.slot(START, SIZE).unwrap();
        let window = node.domain.window().unwrap();
        let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
        served(&mut server, true);
        let local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        refused(&mut queue, local, remote, "a READ through a window for writing");
    });
    assert!(is_content(node.slot(START, SIZE).unwrap().bytes(), START), "something was written");
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn nothing_is_written_once_a_window_is_dead_or_its_queue_gone() {
    let node = Node::new();
    let data = vec![0xcd; SIZE];
    node.domain.scope(|scope| {
        let source = scope.register_sources(&[&data]).unwrap()[0];
        for close in [false, true] {
            let (mut queue, mut server) = node.connect(scope);
            let slot = node.slot(START, SIZE).unwrap();
            let window = node.domain.window().unwrap();
            let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
            served(&mut server, true);
            if close {
                assert!(server.close().unwrap().is_empty());
                let slot = node.slot(START, SIZE).expect("the part is given back");
                queue.write(7, source, remote).unwrap();
                assert!(all(&mut queue, 1)[0].status.is_retry_exceeded());
                assert!(is_content(slot.bytes(), START), "it was written to");
            } else {
                server.invalidate(2, remote.key).unwrap();
                let slot = served(&mut server, false).unwrap();
                refused(&mut queue, Lent::Source(source), remote, "a WRITE to a dead window");
                assert!(is_content(slot.bytes(), START), "it was written to");
            }
        }
    });
}

/// A WRITE that is under way when its window dies is cut off: what was given back does not change, but
/// for one packet that soft-RoCE may be at.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_write_is_cut_off_when_its_window_dies() {
    const LARGE: usize = 4 << 20;
    let node = Node::new();
    let data = vec![0xcd; LARGE];
    node.domain.scope(|scope| {
        let source = scope.register_sources(&[&data]).unwrap()[0];
        for milliseconds in [0, 5, 15, 30] {
            let (mut queue, mut server) = node.connect(scope);
            let mut slot = node.slot(START, LARGE).unwrap();
            slot.bytes_mut().fill(0);
            let window = node.domain.window().unwrap();
            let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
            served(&mut server, true);
            // Soft-RoCE sends in the caller's time.
            let (slot, when_dead) = std::thread::scope(|threads| {
                let queue = &mut queue;
                threads.spawn(move || queue.write(7, source, remote).unwrap());
                std::thread::sleep(Duration::from_millis(milliseconds));
                server.invalidate(2, remote.key).unwrap();
                let slot = served(&mut server, false).unwrap();
                let when_dead = slot.bytes().to_vec();
                (slot, when_dead)
            });
            let status = all(&mut queue, 1)[0].status;
            assert!(status.is_success() || status.is_remote_access(), "{status}");
            let changed = slot.bytes().iter().zip(&when_dead).filter(|(now, then)| now != then);
            assert!(changed.count() <= 4096, "it was written to after {milliseconds} ms");
            assert_eq!(status.is_success(), slot.bytes() == data, "{status}");
        }
    });
}

/// Soft-RoCE does not check them: there the test says only that the module knows.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn the_bounds_of_a_window_hold_where_the_device_enforces_them() {
    let node = Node::new();
    let enforced = node.domain.fabric().device().window_bounds_enforced();
    let mut memory = vec![0xab; SIZE];
    node.domain.scope(|scope| {
        let local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        let (mut queue, mut server) = node.connect(scope);
        let remote = readable(&node, &mut server);
        let outside = Remote { address: remote.address + (SIZE * 4) as u64, ..remote };
        if enforced {
            refused(&mut queue, local, outside, "outside of the window");
        } else {
            let (status, local) = one(&mut queue, local, outside);
            assert!(
                status.is_success(),
                "enforced after all ({status}): tell window_bounds_enforced"
            );
            // The bounds of the region hold everywhere.
            let end = node.windows.address() + node.windows.length();
            refused(&mut queue, local, Remote { address: end, ..remote }, "outside of the region");
        }
    });
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn what_a_window_cannot_be_bound_to_comes_back() {
    let node = Node::new();
    let foreign = node.domain.fabric().domain().unwrap();
    node.domain.scope(|scope| {
        let (_queue, mut server) = node.connect(scope);
        let window = node.domain.window().unwrap();
        let length = node.windows.length();
        let part = length - 10..length + 1;
        let refused = server.bind_read(1, window, &node.windows, part).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Outside { length: 11, .. }), "{refused}");
        let window = refused.items.into_iter().next().unwrap();

        let slot = node.slot(0, SIZE).unwrap();
        let refused = server.bind_write(1, window, &node.readable, slot).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Rights(_)), "{refused}");
        let (_, slot) = refused.items.into_iter().next().unwrap();
        let window = foreign.window().unwrap();
        let refused = server.bind_write(1, window, &node.windows, slot).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Rights(_)), "{refused}");

        // A slot of another node's memory.
        let (_, slot) = refused.items.into_iter().next().unwrap();
        let other = Node::new();
        let window = node.domain.window().unwrap();
        let foreign_slot = other.slot(0, SIZE).unwrap();
        let refused = server.bind_write(1, window, &node.windows, foreign_slot).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Outside { .. }), "{refused}");
        assert!(node.slot(0, SIZE).is_none());
        drop(slot);
        assert!(node.slot(0, SIZE).is_some());
    });
}
