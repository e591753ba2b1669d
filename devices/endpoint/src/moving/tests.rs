//! A world of a source, a destination, switches and a directory, in which everything that can fails.
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::directory::conformance::{announce, home, record};
use crate::directory::local::LocalDirectory;
use crate::directory::{Directory, DirectoryError, Lease};

/// More orders than any move has, with all that fails here.
const MOST_ORDERS: usize = 500;

/// What becomes of the next order, or happens before it.
#[derive(Debug, Clone)]
enum Fate {
    Done,
    Refused,
    /// The order comes late, or never.
    OrderLost,
    /// It is done, but nobody hears of it.
    AnswerLost,
    /// One of the orders that were lost comes now.
    Late(usize),
    /// A side sees a record of now or before.
    Seen(bool, usize),
    Abort,
    TimedOut,
    SourceDies,
    DestinationDies,
    ControllerDies,
    HoldEnds,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        20 => Just(Fate::Done),
        2 => Just(Fate::Refused),
        3 => Just(Fate::OrderLost),
        3 => Just(Fate::AnswerLost),
        3 => any::<usize>().prop_map(Fate::Late),
        3 => (any::<bool>(), any::<usize>()).prop_map(|(side, which)| Fate::Seen(side, which)),
        1 => Just(Fate::Abort),
        1 => Just(Fate::TimedOut),
        1 => Just(Fate::SourceDies),
        1 => Just(Fate::DestinationDies),
        1 => Just(Fate::ControllerDies),
        1 => Just(Fate::HoldEnds),
    ]
}

/// How far the service is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Service {
    None,
    Ready,
    /// All state is there; it does not run.
    Whole,
    /// It runs without a voice.
    Quiet,
    /// It runs, with a voice.
    Open,
}

#[derive(Debug)]
struct Place {
    home: Home,
    lease: Lease,
    is_alive: bool,
    service: Service,
    seen: Ticket,
}

impl Place {
    /// Whether an order is to be done.
    fn heeds(&mut self, ticket: Ticket) -> bool {
        let is_new = ticket >= self.seen;
        self.seen = self.seen.max(ticket);
        is_new
    }

    fn see(&mut self, revision: u64, record: Option<&Record>) {
        if !self.is_alive || revision < self.seen.revision {
            return;
        }
        self.seen = self.seen.max(Ticket { revision, number: 0 });
        match duty(&self.home, record) {
            Duty::Serve if self.service >= Service::Whole => self.service = Service::Open,
            Duty::Serve | Duty::Stay => {}
            Duty::Forget => self.service = Service::None,
        }
    }
}

#[derive(Debug)]
struct World {
    directory: LocalDirectory,
    /// All that the record has been.
    history: Vec<Record>,
    source: Place,
    destination: Place,
    is_held: bool,
    switch_seen: Ticket,
    late: Vec<(Ticket, Task)>,
    /// The controller's place is the source's; the destination's after that has died.
    is_at_source: bool,
    is_controlled: bool,
}

impl World {
    fn new() -> Self {
        let directory = LocalDirectory::new(Vec::new()).unwrap();
        let place = |at: &str, owner: &str, service| {
            let lease = directory.open(&owner.parse().unwrap(), Duration::from_secs(3600)).unwrap();
            Place { home: home(at), lease, is_alive: true, service, seen: Ticket::default() }
        };
        let source = place("h1/p", "a", Service::Open);
        let destination = place("h2/p", "b", Service::None);
        let first = announce(&directory, &source.lease, record("kv", "h1/p", &source.lease));
        Self {
            directory,
            history: vec![first],
            source,
            destination,
            is_held: false,
            switch_seen: Ticket::default(),
            late: Vec::new(),
            is_at_source: true,
            is_controlled: true,
        }
    }

    fn record(&self) -> Record {
        self.directory.find(self.history[0].range.first()).unwrap().unwrap().record
    }

    fn place(&mut self, side: Side) -> &mut Place {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// `change` at a side, if that is alive, may do it, and the order is not old.
    fn at(
        &mut self,
        side: Side,
        ticket: Ticket,
        change: impl FnOnce(Service) -> Option<Service>,
    ) -> Answer {
        let place = self.place(side);
        if !place.is_alive {
            return Answer::Unanswered;
        }
        if !place.heeds(ticket) {
            return Answer::Refused;
        }
        match change(place.service) {
            Some(service) => {
                place.service = service;
                Answer::Done
            }
            None => Answer::Refused,
        }
    }

    fn carry_out(&mut self, ticket: Ticket, task: &Task) -> Answer {
        let answer = match task {
            Task::Record(change) => {
                let side = if self.is_at_source { &self.source } else { &self.destination };
                match self.directory.change(&side.lease, change) {
                    Ok(mut records) => Answer::Record(records.pop().map(Box::new)),
                    Err(DirectoryError::Stale { .. }) => Answer::Refused,
                    // A late one of a controller that has died.
                    Err(DirectoryError::NotOwner { .. } | DirectoryError::LeaseLost(_)) => {
                        Answer::Refused
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Task::Look => Answer::Record(Some(Box::new(self.record()))),
            Task::Prepare => {
                self.at(Side::Destination, ticket, |now| Some(now.max(Service::Ready)))
            }
            Task::Hold | Task::Release => {
                if ticket < self.switch_seen {
                    return Answer::Refused;
                }
                self.switch_seen = ticket;
                self.is_held = *task == Task::Hold;
                Answer::Done
            }
            Task::EndMark if self.source.is_alive => Answer::Done,
            Task::EndMark => Answer::Unanswered,
            Task::Stop => self
                .at(Side::Source, ticket, |now| (now >= Service::Whole).then_some(Service::Whole)),
            Task::Send if !self.source.is_alive => Answer::Unanswered,
            Task::Send => {
                assert!(
                    self.source.service != Service::Open || ticket < self.source.seen,
                    "it is not stopped"
                );
                self.at(Side::Destination, ticket, |now| {
                    (now >= Service::Ready).then_some(Service::Whole)
                })
            }
            Task::Resume => self.at(Side::Destination, ticket, |now| {
                (now >= Service::Whole).then_some(now.max(Service::Quiet))
            }),
            Task::Open => self.at(Side::Destination, ticket, |now| {
                (now >= Service::Quiet).then_some(Service::Open)
            }),
            Task::Announce => self.at(Side::Destination, ticket, Some),
            Task::Continue => self
                .at(Side::Source, ticket, |now| (now >= Service::Whole).then_some(Service::Open)),
            Task::Free => self.at(Side::Source, ticket, |_| Some(Service::None)),
        };
        let now = self.record();
        if now.revision > self.history.last().unwrap().revision {
            self.history.push(now);
        }
        answer
    }

    fn come_late(&mut self) {
        for (ticket, task) in std::mem::take(&mut self.late) {
            self.carry_out(ticket, &task);
        }
    }

    fn dies(&mut self, side: Side) {
        let place = self.place(side);
        if !place.is_alive {
            return;
        }
        place.is_alive = false; // its keeper mutes it before its lease ends
        let lease = place.lease.clone();
        self.directory.close(&lease).unwrap();
    }

    fn check(&self) {
        let has_voice = |place: &Place| place.is_alive && place.service == Service::Open;
        assert!(
            !(has_voice(&self.source) && has_voice(&self.destination)),
            "two have a voice: {self:#?}"
        );
        for (before, after) in self.history.iter().zip(&self.history[1..]) {
            assert!(after.epoch >= before.epoch, "an epoch went back: {self:#?}");
            assert!(
                before.route() == after.route() || after.epoch > before.epoch,
                "another way, the same epoch"
            );
        }
    }
}

/// Runs a move to its end, with `fates`; then all works that is alive.
fn run(fates: Vec<Fate>) -> (World, Option<Outcome>) {
    let mut world = World::new();
    let to = world.destination.home.clone();
    let heir = world.destination.lease.owner.clone();
    let (mut moving, mut actions) = Move::begin(world.record(), to, heir).unwrap();
    let mut fates = fates.into_iter();
    let mut order = None;
    for _ in 0..MOST_ORDERS {
        for action in actions.drain(..) {
            match action {
                Action::Do(ticket, task) => order = Some((ticket, task)),
                Action::Discard(ticket) => {
                    world.at(Side::Destination, ticket, |_| Some(Service::None));
                }
                Action::Notify(_) => {}
            }
        }
        world.check();
        if moving.outcome().is_some() {
            break;
        }
        let (ticket, task) = order.clone().unwrap();
        let answered = |answer| Event::Answered(ticket, answer);
        let event = match fates.next().unwrap_or(Fate::Done) {
            Fate::Done => answered(world.carry_out(ticket, &task)),
            Fate::Refused => answered(Answer::Refused),
            Fate::OrderLost => {
                world.late.push((ticket, task));
                answered(Answer::Unanswered)
            }
            Fate::AnswerLost => {
                world.carry_out(ticket, &task);
                answered(Answer::Unanswered)
            }
            Fate::Late(which) => {
                if !world.late.is_empty() {
                    let (ticket, task) = world.late.swap_remove(which % world.late.len());
                    world.carry_out(ticket, &task);
                }
                continue;
            }
            Fate::Seen(is_source, which) => {
                let record = world.history[which % world.history.len()].clone();
                let side = if is_source { Side::Source } else { Side::Destination };
                world.place(side).see(record.revision, Some(&record));
                continue;
            }
            Fate::Abort => Event::Abort,
            Fate::TimedOut => Event::TimedOut,
            Fate::HoldEnds if world.is_held => {
                world.is_held = false;
                Event::HoldEnded
            }
            Fate::HoldEnds => continue,
            Fate::SourceDies => {
                world.dies(Side::Source);
                world.is_controlled &= !world.is_at_source;
                Event::Lost(Side::Source)
            }
            Fate::DestinationDies => {
                world.dies(Side::Destination);
                world.is_controlled &= world.is_at_source;
                Event::Lost(Side::Destination)
            }
            Fate::ControllerDies => {
                world.is_controlled = false;
                Event::Abort // nobody hears it
            }
        };
        if world.is_controlled {
            actions = moving.handle(event);
            // Who is dead does not come back, and it is known by now.
            continue;
        }
        // Another controller, if there is still somebody.
        world.late.extend(order.take());
        world.is_at_source = world.source.is_alive;
        world.is_controlled = true;
        let has_state = world.destination.is_alive && world.destination.service >= Service::Whole;
        if !world.source.is_alive && !world.destination.is_alive {
            break;
        }
        let mut again = Move::recover(world.record(), !world.source.is_alive, has_state);
        if again.is_none() {
            // There is none by the directory. A claim that is late is seen when it has come.
            world.come_late();
            again = Move::recover(world.record(), !world.source.is_alive, has_state);
        }
        match again {
            Some((again, first)) => {
                (moving, actions) = (again, first);
                if !world.destination.is_alive {
                    let more = moving.handle(Event::Lost(Side::Destination));
                    actions.extend(more);
                }
            }
            None => break,
        }
    }
    // What is late comes, holds end by their deadline if nobody ended them, and all see what the directory has.
    let outcome = moving.outcome();
    let is_left = world.is_held;
    world.come_late();
    if outcome.is_some() {
        assert!(!is_left && !world.is_held, "a hold is left behind: {world:#?}");
    }
    world.is_held = false;
    let record = world.record();
    world.source.see(record.revision, Some(&record));
    world.destination.see(record.revision, Some(&record));
    world.check();
    (world, outcome)
}

/// Where the directory says, there it runs; elsewhere nothing is left.
fn is_one(world: &World, outcome: Option<Outcome>) {
    let record = world.record();
    let (at, other) = if record.home == world.source.home {
        (&world.source, &world.destination)
    } else {
        (&world.destination, &world.source)
    };
    let is_claimed = record.phase.heir().is_some();
    assert!(!is_claimed || outcome.is_none(), "it is over, but not in the directory: {world:#?}");
    assert!(
        !at.is_alive || is_claimed || at.service == Service::Open,
        "it does not run: {world:#?}"
    );
    assert!(
        !other.is_alive || is_claimed || other.service == Service::None,
        "something is left: {world:#?}"
    );
    match outcome {
        Some(Outcome::Moved) => assert_eq!(record.home, world.destination.home),
        Some(Outcome::Aborted) => assert_eq!(record.home, world.source.home),
        Some(Outcome::Orphan) => assert!(!at.is_alive || at.service == Service::Open),
        Some(Outcome::Superseded) => panic!("there is nobody else: {world:#?}"),
        None => assert!(
            !is_claimed || !(world.source.is_alive || world.destination.is_alive),
            "{world:#?}"
        ),
    }
}

#[test]
fn a_move_without_failures_moves() {
    let (world, outcome) = run(Vec::new());
    assert_eq!(outcome, Some(Outcome::Moved));
    is_one(&world, outcome);
    let epochs: Vec<_> =
        world.history.iter().map(|record| record.epoch - world.history[0].epoch).collect();
    assert_eq!(epochs, [0, 0, 1, 1], "home, preparing, moving, home");
}

/// Each kind of failure at each step.
#[test]
fn whatever_fails_at_any_step_leaves_one_home() {
    let kinds = [
        Fate::Refused,
        Fate::OrderLost,
        Fate::AnswerLost,
        Fate::Abort,
        Fate::TimedOut,
        Fate::SourceDies,
        Fate::DestinationDies,
        Fate::ControllerDies,
        Fate::HoldEnds,
    ];
    let (mut moved, mut aborted) = (0, 0);
    for kind in kinds {
        for step in 0..14 {
            let mut fates = vec![Fate::Done; step];
            fates.push(kind.clone());
            let (world, outcome) = run(fates);
            is_one(&world, outcome);
            moved += usize::from(outcome == Some(Outcome::Moved));
            aborted += usize::from(outcome == Some(Outcome::Aborted));
        }
    }
    assert!(moved > 20 && aborted > 20, "{moved} moved, {aborted} aborted");
}

#[test]
fn the_destination_goes_on_when_the_source_dies_with_all_state_sent() {
    // Claimed, prepared, redirected, held, drained, stopped, sent.
    let fates = vec![Fate::Done; 7];
    for last in [Fate::SourceDies, Fate::DestinationDies] {
        let (world, outcome) = run(fates.iter().cloned().chain([last.clone()]).collect());
        let is_source_dead = !world.source.is_alive;
        let expected = if is_source_dead { Outcome::Moved } else { Outcome::Aborted };
        assert_eq!(outcome, Some(expected), "{last:?}");
        is_one(&world, outcome);
    }
}

#[test]
fn what_is_frozen_moving_or_there_is_not_moved() {
    let world = World::new();
    let (to, heir) = (world.destination.home.clone(), world.destination.lease.owner.clone());
    let begin = |phase| Move::begin(world.record().with_phase(phase), to.clone(), heir.clone());
    assert!(matches!(begin(Phase::Frozen), Err(NoMove::Frozen(_))));
    let moving = Phase::Moving { to: to.clone(), heir: heir.clone() };
    assert_eq!(begin(moving).unwrap_err(), NoMove::Busy("moving"));
    let there = Move::begin(world.record(), world.source.home.clone(), heir.clone());
    assert!(matches!(there, Err(NoMove::SamePlace(_))));
}

#[test]
fn what_somebody_else_changed_is_left_to_them() {
    let world = World::new();
    let (to, heir) = (world.destination.home.clone(), world.destination.lease.owner.clone());
    let (mut moving, actions) = Move::begin(world.record(), to, heir).unwrap();
    let [Action::Do(ticket, _)] = actions[..] else { panic!("{actions:?}") };
    moving.handle(Event::Answered(ticket, Answer::Refused));
    let elsewhere = Record { home: home("h9/p"), revision: 99, ..world.record() };
    let ticket = moving.ticket;
    moving.handle(Event::Answered(ticket, Answer::Record(Some(Box::new(elsewhere)))));
    assert_eq!(moving.outcome(), Some(Outcome::Superseded));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        if std::env::var_os("VMM_TEST_LONG").is_some() { 500_000 } else { 20_000 }
    ))]

    #[test]
    fn there_is_never_more_than_one_home(fates in vec(fate(), 0..60)) {
        let (world, outcome) = run(fates);
        is_one(&world, outcome);
    }
}
