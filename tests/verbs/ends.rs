//! Peers that are gone, handles that are forgotten, limits: what is left behind.

use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::Instant;

use imgcache::transport::verbs::{Fabric, Lent, QueueState, Settings, VerbsError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::sides::{DEVICE, LONG, Node, all, buffers, fabric, is_content, one};

const SIZE: usize = 4096;

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_peer_that_is_gone_is_found_out_by_the_settings() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE * 8];
    let settings = Settings { timeout: 14, retry: 2, reads: 16 };
    let elsewhere = Fabric::open("rxe1", None).unwrap().domain().unwrap();
    node.domain.scope(|scope| {
        let mut parts = buffers(scope, &mut memory, SIZE);
        // One whose queue was closed, and one that answers nobody, as no way leads there.
        let mut client = scope.queue(16).unwrap();
        let mut server = node.domain.serve::<imgcache::node::arena::Slot>(4).unwrap();
        client.connect(&server.endpoint(), &settings).unwrap();
        server.connect(&client.endpoint(), &settings).unwrap();
        server.close().unwrap();
        let mut lost = scope.queue(16).unwrap();
        let silent = elsewhere.serve::<imgcache::node::arena::Slot>(4).unwrap();
        lost.connect(&silent.endpoint(), &settings).unwrap();

        for mut queue in [client, lost] {
            let started = Instant::now();
            for id in 0..4 {
                queue.read(id, parts.pop().unwrap(), node.at(0)).unwrap();
            }
            let done = all(&mut queue, 4);
            // A timer of the device's, of which the specification allows four times the value.
            let bound = settings.patience() * 4 + LONG / 4;
            assert!(started.elapsed() < bound, "{:?}", started.elapsed());
            assert!(done[0].status.is_retry_exceeded(), "{}", done[0].status);
            assert!(done[1..].iter().all(|one| one.status.is_flushed()));
            assert!(done.iter().all(|one| one.item.bytes().iter().all(|byte| *byte == 0xab)));
            assert_eq!(queue.state().unwrap(), QueueState::Failed);
        }
    });
}

/// A load that has no time left gets its memory back, and the device is done with it.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn closing_gives_back_what_is_outstanding() {
    let node = Node::new();
    let mut memory = vec![0xab; SIZE * 8];
    let patient = Settings { timeout: 20, retry: 7, reads: 16 };
    node.domain.scope(|scope| {
        let mut lost = scope.queue(16).unwrap();
        let gone = node.domain.serve::<imgcache::node::arena::Slot>(4).unwrap();
        lost.connect(&gone.endpoint(), &patient).unwrap();
        drop(gone);
        for (id, buffer) in (0..).zip(buffers(scope, &mut memory, SIZE)) {
            lost.read(id, buffer, node.at(0)).unwrap();
        }
        let back = lost.close().unwrap();
        assert_eq!(back.iter().map(|one| one.id).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        let (mut queue, _server) = node.connect(scope);
        for one_back in back {
            assert!(one_back.status.is_flushed());
            let buffer = one_back.item.into_buffer().unwrap();
            let (status, local) = one(&mut queue, Lent::Buffer(buffer), node.at(0));
            assert!(status.is_success() && is_content(local.bytes(), 0), "{status}");
        }
    });
    assert!(memory.chunks(SIZE).all(|chunk| is_content(chunk, 0)));
}

/// The devices' objects, as the kernel counts them.
fn resources() -> String {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn nothing_is_left_behind_whatever_is_forgotten() {
    let node = Node::new();
    let mut memory = vec![0; SIZE * 2];
    let before = resources();
    assert!(before.contains(DEVICE), "{before}");
    for round in 0..100 {
        let run = AssertUnwindSafe(|| {
            node.domain.scope(|scope| {
                let (mut queue, mut server) = node.connect(scope);
                let mut parts = buffers(scope, &mut memory, SIZE);
                queue.read(0, parts.pop().unwrap(), node.at(0)).unwrap();
                let window = node.domain.window().unwrap();
                server.bind_read(1, window, &node.windows, 0..64).unwrap();
                match round % 3 {
                    0 => std::mem::forget((queue, parts)),
                    // A panic, of which nothing is printed.
                    1 => std::panic::resume_unwind(Box::new("on purpose")),
                    _ => assert!(all(&mut queue, 1)[0].status.is_success()),
                }
            });
        });
        let ended = std::panic::catch_unwind(run);
        assert_eq!(ended.is_err(), round % 3 == 1);
        // Nobody writes to it any more.
        memory.fill(0);
    }
    assert_eq!(resources(), before);
    assert!(memory.iter().all(|byte| *byte == 0));
    drop(node);
    assert!(resources().contains(" mr 0 "), "{}", resources());
}

/// Restores the limit.
struct Limit(Rlimit);

impl Drop for Limit {
    fn drop(&mut self) {
        setrlimit(Resource::Memlock, self.0).unwrap();
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn too_low_a_limit_of_locked_memory_is_named() {
    let domain = fabric().domain().unwrap();
    let mut memory = vec![0; 8 << 20];
    let limit = Limit(getrlimit(Resource::Memlock));
    setrlimit(Resource::Memlock, Rlimit { current: Some(1 << 20), ..limit.0 }).unwrap();
    // Privileges are a thread's.
    let ended = std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            set_capabilities(None, sets).unwrap();
            domain.scope(|scope| {
                let (small, large) = memory.split_at_mut(SIZE);
                scope.register(vec![small]).unwrap();
                let refused = scope.register(vec![large]).unwrap_err();
                assert_eq!(refused.items.len(), 1);
                refused.error
            })
        });
        thread.join()
    });
    let error = ended.unwrap();
    let text = error.to_string();
    let VerbsError::MemoryLock { length, limit, .. } = error else { panic!("{text}") };
    assert_eq!((length, limit), ((8 << 20) - SIZE, 1 << 20));
    assert!(text.contains("ulimit -l") && text.contains(DEVICE), "{text}");
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn what_is_not_mapped_cannot_be_registered_and_comes_back() {
    let domain = fabric().domain().unwrap();
    // The heap and the stack, with all that lies between.
    let (mut heap, mut stack) = (vec![0; SIZE], [0; 64]);
    domain.scope(|scope| {
        let refused = scope.register(vec![&mut heap[..], &mut stack[..]]).unwrap_err();
        assert!(
            matches!(refused.error, VerbsError::Register { .. } | VerbsError::MemoryLock { .. }),
            "{refused}"
        );
        assert_eq!(refused.items.len(), 2);
        assert_eq!(scope.register(refused.items.into_iter().take(1).collect()).unwrap().len(), 1);
    });
}
