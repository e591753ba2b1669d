//! The end of writes: with the queue, on every device.

use std::thread::{scope, sleep};
use std::time::Duration;

use super::sides::{Node, all};

/// A WRITE that is under way when its queue is destroyed is over then: not a byte comes later. This is what
/// content may be hashed after.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn nothing_is_written_once_a_queue_has_ended_in_the_middle_of_a_write() {
    const LARGE: usize = 4 << 20;
    let node = Node::new();
    let data = vec![0xcd; LARGE];
    let mut cut_off = 0;
    node.domain.scope(|registered| {
        let source = registered.register_sources(&[&data]).unwrap()[0];
        for milliseconds in 0..40 {
            let (mut queue, mut server) = node.connect(registered);
            let mut slot = node.slot(1 << 20, LARGE).unwrap();
            slot.bytes_mut().fill(0);
            let window = node.domain.window().unwrap();
            let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
            super::windows::served(&mut server, true);
            let (slot, when_ended) = scope(|threads| {
                let queue = &mut queue;
                // Soft-RoCE sends in the caller's time.
                threads.spawn(move || queue.write(7, source, remote).unwrap());
                sleep(Duration::from_millis(milliseconds));
                let slot = server.end_writes().unwrap().remove(0);
                let when_ended = slot.bytes().to_vec();
                (slot, when_ended)
            });
            let status = all(&mut queue, 1)[0].status;
            assert!(slot.bytes() == when_ended, "it was written to after {milliseconds} ms");
            assert!(!status.is_success() || slot.bytes() == data, "{status}");
            let written = slot.bytes().iter().filter(|byte| **byte != 0).count();
            cut_off += usize::from(written > 0 && written < LARGE);
        }
    });
    println!("{cut_off} of 40 were cut off in the middle");
}

/// A window that is still being bound is ended, too, and its part comes back.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn all_parts_come_back_in_whatever_state_their_windows_are() {
    const SIZE: usize = 4096;
    let node = Node::new();
    node.domain.scope(|registered| {
        let (_queue, mut server) = node.connect(registered);
        let mut bind = |number: usize| {
            let window = node.domain.window().unwrap();
            let slot = node.slot(number * SIZE, SIZE).unwrap();
            let remote = server.bind_write(number as u64, window, &node.windows, slot).unwrap();
            if number < 2 {
                super::windows::served(&mut server, true);
            }
            remote
        };
        let first = bind(0);
        bind(1);
        bind(2); // nobody has looked whether it is bound
        server.invalidate(3, first.key).unwrap(); // nor whether this is dead
        assert!(node.slot(0, SIZE).is_none());
        assert_eq!(server.end_writes().unwrap().len(), 3);
        assert!((0..3).all(|number| node.slot(number * SIZE, SIZE).is_some()));
    });
}
