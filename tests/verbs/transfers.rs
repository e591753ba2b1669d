//! READs and WRITEs that succeed, and the bounds of a queue.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use imgcache::transport::verbs::{
    DEPTH, Lent, LoadQueue, QueueState, Settings, Transfer, VerbsError,
};
use rustix::event::{PollFd, PollFlags, poll};

use super::sides::{CONTENT, LONG, Node, all, buffers, is_content, one, pattern};

/// 0 to `count`, in an order that no prefetcher expects.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 42_u64;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        order.swap(last, usize::try_from(state >> 33).unwrap() % (last + 1));
    }
    order
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn reads_of_every_size_land_in_their_places_in_any_order() {
    let node = Node::new();
    for (size, bytes) in
        [(4 << 10, 512 << 10), (64 << 10, 4 << 20), (256 << 10, 4 << 20), (1 << 20, CONTENT)]
    {
        for events in [false, true] {
            let mut memory = vec![0xab; bytes];
            node.domain.scope(|scope| {
                let (mut queue, _server) = node.connect(scope);
                let mut waiting: Vec<_> =
                    buffers(scope, &mut memory, size).into_iter().map(Some).collect();
                let mut order = shuffled(waiting.len()).into_iter();
                let (mut open, mut done) = (0, Vec::new());
                while done.len() < waiting.len() {
                    while open - done.len() < 16
                        && let Some(place) = order.next()
                    {
                        let buffer = waiting[place].take().unwrap();
                        queue.read(place as u64, buffer, node.at(place * size)).unwrap();
                        open += 1;
                    }
                    if events {
                        assert!(queue.wait(&mut done, LONG).unwrap() > 0);
                    } else {
                        queue.poll(&mut done).unwrap();
                    }
                }
                assert_eq!((queue.outstanding(), queue.room()), (0, DEPTH as usize));
                for completion in done {
                    assert!(completion.status.is_success(), "{}", completion.status);
                    let at = usize::try_from(completion.id).unwrap() * size;
                    assert!(is_content(completion.item.bytes(), at), "{size} at {at}");
                }
            });
            assert!(is_content(&memory, 0), "{size}");
        }
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_batch_is_posted_whole_or_comes_back_whole() {
    let node = Node::new();
    let mut memory = vec![0; (DEPTH as usize + 1) * 4096];
    node.domain.scope(|scope| {
        let (mut queue, _server) = node.connect(scope);
        let transfers = buffers(scope, &mut memory, 4096).into_iter().enumerate();
        let mut transfers: Vec<_> = transfers
            .map(|(place, buffer)| Transfer {
                id: place as u64,
                local: Lent::Buffer(buffer),
                remote: node.at(place * 4096),
            })
            .collect();
        let refused = queue.post(transfers).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Full { wanted: 129, room: 128, depth: 128 }));
        assert_eq!(queue.outstanding(), 0);
        transfers = refused.items;
        let last = transfers.pop().unwrap();
        queue.post(transfers).unwrap();
        assert_eq!(queue.room(), 0);
        let refused = queue.post(vec![last]).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Full { wanted: 1, room: 0, depth: 128 }));
        let mut ids: Vec<_> = all(&mut queue, DEPTH as usize).iter().map(|done| done.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..128).collect::<Vec<_>>());
        queue.post(refused.items).unwrap();
        all(&mut queue, 1);
    });
    assert!(is_content(&memory, 0));
}

/// However much is posted without polling, nothing is lost: the queue refuses what it could not tell of.
#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn completions_cannot_overrun() {
    let node = Node::new();
    let mut memory = vec![0; 1000 * 512];
    node.domain.scope(|scope| {
        let (mut queue, _server) = node.connect(scope);
        let (mut posted, mut refused) = (0, 0);
        for (place, buffer) in buffers(scope, &mut memory, 512).into_iter().enumerate() {
            match queue.read(place as u64, buffer, node.at(place * 512)) {
                Ok(()) => posted += 1,
                Err(error) => {
                    assert!(matches!(error.error, VerbsError::Full { .. }), "{error}");
                    refused += 1;
                }
            }
        }
        assert_eq!((posted, refused), (128, 872));
        assert!(all(&mut queue, 128).iter().all(|done| done.status.is_success()));
        assert_eq!(queue.state().unwrap(), QueueState::Ready);
    });
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn a_caller_can_wait_for_completions_and_a_socket_together() {
    let node = Node::new();
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut memory = vec![0; 8 << 10];
    node.domain.scope(|scope| {
        let (mut queue, _server) = node.connect(scope);
        let mut completions = Vec::new();
        let ready = |queue: &LoadQueue<'_, '_>| {
            let mut both = [
                PollFd::new(&near, PollFlags::IN),
                PollFd::from_borrowed_fd(queue.as_fd(), PollFlags::IN),
            ];
            poll(&mut both, Some(&LONG.try_into().unwrap())).unwrap();
            both.map(|one| one.revents().contains(PollFlags::IN))
        };
        let mut parts = buffers(scope, &mut memory, 4096);
        queue.arm().unwrap();
        assert_eq!(queue.poll(&mut completions).unwrap(), 0);
        far.write_all(b"x").unwrap();
        assert_eq!(ready(&queue), [true, false]);
        (&near).read_exact(&mut [0]).unwrap();
        for round in 1..=2 {
            queue.read(round, parts.pop().unwrap(), node.at(0)).unwrap();
            assert_eq!(ready(&queue), [false, true]);
            // Armed again, what was told of is taken back.
            queue.arm().unwrap();
            assert_eq!(queue.poll(&mut completions).unwrap(), 1);
            assert_eq!(completions.pop().unwrap().id, round);
        }
        // With nothing outstanding there is nothing to wait for.
        assert_eq!(queue.wait(&mut completions, LONG).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn what_is_written_arrives() {
    let node = Node::new();
    let data: Vec<u8> = (0..1 << 20).map(|at| !pattern(at)).collect();
    for (offset, size) in [(0, 4096), (2 << 20, 1 << 20)] {
        node.domain.scope(|scope| {
            let (mut queue, mut server) = node.connect(scope);
            let slot = node.slot(offset, size).unwrap();
            let window = node.domain.window().unwrap();
            let remote = server.bind_write(1, window, &node.windows, slot).unwrap();
            super::windows::served(&mut server, true);
            let source = scope.register_sources(&[&data[..size]]).unwrap()[0];
            queue.write(3, source, remote).unwrap();
            assert!(all(&mut queue, 1)[0].status.is_success());
            assert!(node.slot(offset, size).is_none(), "the window has it");
            server.invalidate(2, remote.key).unwrap();
            let slot = super::windows::served(&mut server, false).unwrap();
            assert_eq!(slot.bytes(), &data[..size]);
        });
    }
}

#[test]
#[ignore = "needs RDMA devices: scripts/lab"]
fn what_cannot_be_posted_comes_back() {
    let node = Node::new();
    let mut memory = vec![0; 4096];
    node.domain.scope(|scope| {
        let mut queue = scope.queue(4).unwrap();
        assert_eq!(queue.state().unwrap(), QueueState::Initialised);
        let mut parts = buffers(scope, &mut memory, 4096);
        let refused = queue.read(1, parts.remove(0), node.at(0)).unwrap_err();
        assert!(matches!(refused.error, VerbsError::State(_)), "{refused}");
        let Lent::Buffer(buffer) = refused.items.into_iter().next().unwrap().local else {
            panic!()
        };
        assert_eq!(buffer.len(), 4096);
        let (empty, buffer) = buffer.split_at(0).unwrap();
        let buffer = buffer.split_at(4097).unwrap_err();

        let (mut queue, _server) = node.connect(scope);
        let refused = queue.read(1, empty, node.at(0)).unwrap_err();
        assert!(matches!(refused.error, VerbsError::Length { length: 0, .. }), "{refused}");
        let (status, _) = one(&mut queue, Lent::Buffer(buffer), node.at(0));
        assert!(status.is_success());

        assert!(matches!(scope.queue(0), Err(VerbsError::Setting { name: "depth", .. })));
        assert!(matches!(scope.queue(1 << 30), Err(VerbsError::Setting { name: "depth", .. })));
        let settings = Settings::for_device(node.domain.fabric().device());
        let again = queue.connect(&queue.endpoint(), &settings);
        assert!(matches!(again, Err(VerbsError::State(_))));
    });
}
