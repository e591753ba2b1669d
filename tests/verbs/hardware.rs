//! What soft-RoCE does not do: the bounds of memory windows (InfiniBand specification, volume 1, 10.6.7.2).

use imgcache::transport::verbs::{Lent, Remote};

use super::rights::refused;
use super::sides::{Node, all, buffers, is_content, one};
use super::windows::served;

const SIZE: usize = 4096;
/// Where the windows of these tests are in the content, and how long they are.
const START: usize = 1 << 20;
const LENGTH: usize = 4 * SIZE;

fn node() -> Node {
    let node = Node::new();
    let device = node.domain.fabric().device();
    assert!(device.window_bounds_enforced(), "{} does not enforce them", device.name);
    node
}

/// Where [`SIZE`] bytes are not all inside a window that begins at `window`.
fn outside(window: Remote) -> [(Remote, &'static str); 5] {
    let at = |offset: usize| Remote { address: window.address + offset as u64, ..window };
    let before = |bytes: u64| Remote { address: window.address - bytes, ..window };
    [
        (before(1), "a byte before the window"),
        (before(SIZE as u64), "all before the window"),
        (at(LENGTH - SIZE + 1), "a byte behind the window"),
        (at(LENGTH), "all behind the window"),
        (at(1 << 20), "far behind the window"),
    ]
}

#[test]
#[ignore = "needs an RDMA adapter that enforces window bounds"]
fn nothing_is_read_outside_of_a_window() {
    let node = node();
    let mut memory = vec![0xab; SIZE];
    node.domain.scope(|scope| {
        let mut local = Lent::Buffer(buffers(scope, &mut memory, SIZE).remove(0));
        for number in 0..5 {
            let (mut queue, mut server) = node.connect(scope);
            let window = node.domain.window().unwrap();
            let part = START as u64..(START + LENGTH) as u64;
            let remote = server.bind_read(1, window, &node.windows, part).unwrap();
            served(&mut server, true);
            let (elsewhere, what) = outside(remote)[number];
            local = refused(&mut queue, local, elsewhere, what);
            // All of it can be read, to its last byte.
            let (mut queue, mut server) = node.connect(scope);
            let window = node.domain.window().unwrap();
            let part = START as u64..(START + LENGTH) as u64;
            let remote = server.bind_read(1, window, &node.windows, part).unwrap();
            served(&mut server, true);
            let last = Remote { address: remote.address + (LENGTH - SIZE) as u64, ..remote };
            let status;
            (status, local) = one(&mut queue, local, last);
            assert!(status.is_success(), "{status}");
            assert!(is_content(local.bytes(), START + LENGTH - SIZE));
        }
    });
}

#[test]
#[ignore = "needs an RDMA adapter that enforces window bounds"]
fn nothing_is_written_outside_of_a_window() {
    let node = node();
    let data = vec![0xcd; SIZE];
    node.domain.scope(|scope| {
        let source = scope.register_sources(&[&data]).unwrap()[0];
        for number in 0..5 {
            let (mut queue, mut server) = node.connect(scope);
            let slot = node.slot(START, LENGTH).unwrap();
            let window = node.domain.window().unwrap();
            let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
            served(&mut server, true);
            let (elsewhere, what) = outside(remote)[number];
            refused(&mut queue, Lent::Source(source), elsewhere, what);
            assert!(server.close().unwrap().is_empty());
        }
        // Inside, to its last byte, it is.
        let (mut queue, mut server) = node.connect(scope);
        let slot = node.slot(START, LENGTH).unwrap();
        let window = node.domain.window().unwrap();
        let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
        served(&mut server, true);
        let last = Remote { address: remote.address + (LENGTH - SIZE) as u64, ..remote };
        queue.write(7, source, last).unwrap();
        assert!(all(&mut queue, 1)[0].status.is_success());
        server.invalidate(2, remote.key).unwrap();
        let slot = served(&mut server, false).unwrap();
        let (before, written) = slot.bytes().split_at(LENGTH - SIZE);
        assert!(is_content(before, START) && written == data);
    });
    let end = START + LENGTH;
    for (offset, length) in [(0, START), (end, super::sides::CONTENT - end)] {
        assert!(
            is_content(node.slot(offset, length).unwrap().bytes(), offset),
            "it was written to"
        );
    }
}
