//! Who is asked next, and when a load ends.

use std::sync::Arc;

use super::*;
use crate::cluster::address::NodeAddress;
use crate::cluster::members::Members;
use crate::index::IndexKey;
use crate::transport::cluster::{Dialer, Topology};

const LONG: Duration = Duration::from_secs(60);

fn topology(nodes: u16) -> Topology {
    let address = |port| NodeAddress::Tcp { host: "h".into(), port };
    let addresses: Vec<_> = (1..=nodes).map(address).collect();
    let members = Members::of_addresses(&addresses, false);
    let dialer = Arc::new(Dialer { tls: None, connect: LONG, progress: LONG });
    Topology::new(&members, &dialer, None)
}

/// `count` chunks of one byte, four to a page; every node holds every chunk if there are two.
fn posted<'m>(
    memory: &'m mut [u8],
    topology: &Topology,
    has_origin: bool,
    node: usize,
) -> Board<'m> {
    let board = Board::new(topology.nodes.len(), &[], has_origin, Instant::now() + LONG);
    for (index, buffer) in (0_u32..).zip(memory.chunks_mut(1)) {
        let candidates = topology.candidates(&IndexKey::of(&index.to_le_bytes()));
        let task = Task::new(index, ChunkKey([0; 32]), candidates, index / 4);
        board.post(Work { task, buffer }, Some(node));
    }
    board
}

fn run(next: Next<'_>) -> Vec<Work<'_>> {
    match next {
        Next::Ask(run) => run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_is_one_page_and_no_more_than_there_is_room_for() {
    let topology = topology(2);
    let mut memory = [0; 10];
    let board = posted(&mut memory, &topology, false, 0);
    let lengths: Vec<usize> =
        [(2, 9), (9, 9), (9, 1), (0, 9)].map(|(b, c)| run(board.take(0, b, c, true)).len()).into();
    assert_eq!(lengths, [2, 2, 1, 1], "one chunk at least");
}

#[test]
fn an_idle_node_takes_over_from_the_end_what_it_holds() {
    let topology = topology(2);
    let mut memory = [0; 10];
    let board = posted(&mut memory, &topology, false, 0);
    let taken = run(board.take(1, 9, 9, true));
    assert_eq!((taken.len(), taken[0].task.index), (1, 9));
}

#[test]
fn what_fails_goes_on_to_the_other_then_the_origin_then_ends_the_load() {
    for has_origin in [true, false] {
        let topology = topology(2);
        let mut memory = [0; 1];
        let board = posted(&mut memory, &topology, has_origin, 0);
        let work = run(board.take(0, 9, 9, true)).remove(0);
        board.pass_on(work, 0, Outcome::Missed);
        assert!(matches!(board.take(0, 9, 9, false), Next::Nothing));
        let work = run(board.take(1, 9, 9, false)).remove(0);
        board.pass_on(work, 1, Outcome::Damaged);
        if has_origin {
            assert!(board.take_for_origin(Duration::ZERO).unwrap().is_some());
            board.arrived(1, None);
            assert!(board.take_for_origin(LONG).is_err());
            let (end, retries, switches) = board.end();
            assert!(end.is_ok());
            assert_eq!((retries, switches), (2, 1));
        } else {
            assert!(matches!(board.take(0, 9, 9, true), Next::End));
            let (Err((Stop::Nowhere(task), 1)), ..) = board.end() else { panic!() };
            let outcomes: Vec<_> = task.results().map(|(_, outcome)| outcome).collect();
            assert!(outcomes.contains(&Outcome::Missed) && outcomes.contains(&Outcome::Damaged));
        }
    }
}

#[test]
fn a_node_that_is_given_up_is_not_asked_and_its_work_goes_to_others() {
    let topology = topology(2);
    let mut memory = [0; 10];
    let board = posted(&mut memory, &topology, false, 0);
    let held = run(board.take(0, 9, 9, true));
    board.give_up(0);
    assert!(matches!(board.take(0, 9, 9, true), Next::End));
    for work in held {
        board.pass_on(work, 0, Outcome::Failed);
    }
    let mut seen = 0;
    while seen < 10 {
        seen += run(board.take(1, 9, 9, true)).len();
    }
    board.give_up(1);
    board.arrived(10, None);
    assert!(board.end().0.is_ok());
}

#[test]
fn a_node_is_left_with_its_last_worker_only() {
    let topology = topology(1);
    let mut memory = [0; 1];
    let board = posted(&mut memory, &topology, false, 0);
    board.join(0, 2);
    let work = run(board.take(0, 9, 9, true)).remove(0);
    board.leave(0);
    board.pass_on(work, 0, Outcome::Failed);
    assert_eq!(run(board.take(0, 9, 9, true)).len(), 1, "the other worker goes on");
    board.leave(0);
    assert!(matches!(board.take(0, 9, 9, true), Next::End));
}

#[test]
fn a_chunk_on_one_node_is_asked_for_again_but_not_for_ever() {
    let topology = topology(1);
    let mut memory = [0; 1];
    let board = posted(&mut memory, &topology, false, 0);
    for _ in 0..MAX_ATTEMPTS {
        let work = run(board.take(0, 9, 9, true)).remove(0);
        board.pass_on(work, 0, Outcome::Failed);
    }
    assert!(matches!(board.end().0, Err((Stop::Nowhere(_), 1))));
}

#[test]
fn waiting_ends_with_the_deadline() {
    let topology = topology(2);
    let mut memory = [0; 1];
    let board = posted(&mut memory, &topology, false, 0);
    let board = Board { deadline: Instant::now(), ..board };
    let _held = run(board.take(0, 9, 9, true));
    assert!(matches!(board.take(1, 9, 9, true), Next::End));
    assert!(matches!(board.end().0, Err((Stop::Deadline, 1))));
}

#[test]
fn a_slow_node_is_asked_only_for_what_nobody_else_has_and_then_until_the_end() {
    let topology = topology(2);
    let mut memory = [0; 10];
    let board = posted(&mut memory, &topology, false, 0);
    let held = run(board.take(0, 9, 9, true));
    board.avoid(0);
    for work in held {
        board.pass_on(work, 0, Outcome::Slow);
    }
    assert!(matches!(board.take(0, 9, 9, false), Next::Nothing), "the other has all of it");
    let mut held = Vec::new();
    while held.len() < 10 {
        held.extend(run(board.take(1, 9, 9, true)));
    }
    board.avoid(1);
    // However often both are slow, somebody is asked again.
    for _ in 0..9 {
        for work in held.drain(..) {
            board.pass_on(work, 1, Outcome::Slow);
        }
        for node in [0, 1] {
            while let Next::Ask(run) = board.take(node, 9, 9, false) {
                held.extend(run);
            }
        }
        assert_eq!(held.len(), 10);
    }
    board.arrived(10, None);
    assert!(board.end().0.is_ok());
}
