//! Groups of servers on a network that loses, delays and parts, with crashes at any time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::mac::Mac;

/// What lets time pass in small steps, in milliseconds.
const STEP: Millis = 20;

struct Host {
    replica: Option<Replica>,
    kept: Vec<Record>,
    start: Start,
    /// What its clock says more than the true time.
    offset: Millis,
    /// Changes that wait for their commit: the number of the step, the address and the client.
    waiting: VecDeque<(u64, Ipv4Addr, Mac)>,
    epoch: u64,
}

struct World {
    hosts: BTreeMap<Node, Host>,
    /// Messages on the way, with the time of their arrival.
    flying: Vec<(Millis, Node, Node, Message)>,
    parted: BTreeSet<(Node, Node)>,
    now: Millis,
    /// What clients were told: address and client.
    told: HashMap<Ipv4Addr, Mac>,
    next: u32,
}

impl World {
    fn new(mirrors: u64) -> Self {
        let host = |node| Host {
            replica: None,
            kept: Vec::new(),
            start: if node == 1 { Start::First(9) } else { Start::Again },
            offset: node * 1_000_000,
            waiting: VecDeque::new(),
            epoch: 0,
        };
        let hosts = (1..=mirrors + 1).map(|node| (node, host(node))).collect();
        let mut world = Self {
            hosts,
            flying: Vec::new(),
            parted: BTreeSet::new(),
            now: 1,
            told: HashMap::new(),
            next: 0,
        };
        for node in 1..=mirrors + 1 {
            world.start(node);
        }
        world.pass(1000);
        world
    }

    fn with(&mut self, node: Node, what: impl FnOnce(&mut Replica, Millis)) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let Some(replica) = &mut host.replica else { return };
        what(replica, now + host.offset);
        let effects = replica.take_effects();
        let mut sent = 0;
        for effect in effects {
            match effect {
                Effect::Keep(record) => host.kept.push(record),
                Effect::Send(to, message) => {
                    sent += 1;
                    self.flying.push((now + 1 + sent % 3, node, to, message));
                }
            }
        }
    }

    fn can_reach(&self, a: Node, b: Node) -> bool {
        let runs = |node| self.hosts.get(&node).is_some_and(|host| host.replica.is_some());
        runs(a) && runs(b) && !self.parted.contains(&(a.min(b), a.max(b)))
    }

    fn start(&mut self, node: Node) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&node) else { return };
        if host.replica.is_some() {
            return;
        }
        let records = host.kept.clone();
        host.replica = Some(Replica::new(node, records, host.start, now + host.offset));
        self.with(node, |_, _| {});
        self.join(node);
    }

    fn join(&mut self, node: Node) {
        for other in self.hosts.keys().copied().collect::<Vec<_>>() {
            if other != node && self.can_reach(node, other) {
                self.with(node, |replica, now| replica.connected(other, now));
                self.with(other, |replica, now| replica.connected(node, now));
            }
        }
    }

    fn crash(&mut self, node: Node) {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.replica = None;
            host.waiting.clear();
        }
        self.flying.retain(|(_, from, to, _)| *from != node && *to != node);
        for other in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.with(other, |replica, _| replica.disconnected(node));
        }
    }

    /// Parts `node` from all others; a connection that has lost something is lost.
    fn part(&mut self, node: Node) {
        for other in self.hosts.keys().copied().filter(|other| *other != node).collect::<Vec<_>>() {
            self.parted.insert((node.min(other), node.max(other)));
            self.with(other, |replica, _| replica.disconnected(node));
            self.with(node, |replica, _| replica.disconnected(other));
        }
        self.flying.retain(|(_, from, to, _)| *from != node && *to != node);
    }

    fn heal(&mut self) {
        let parted = std::mem::take(&mut self.parted);
        for (a, b) in parted {
            if self.can_reach(a, b) {
                self.with(a, |replica, now| replica.connected(b, now));
                self.with(b, |replica, now| replica.connected(a, now));
            }
        }
    }

    /// A client asks whoever serves.
    fn ask(&mut self) {
        self.next += 1;
        let number = self.next;
        let address = Ipv4Addr::from(0x0a00_0000 + number % 50);
        let [.., a, b] = number.to_be_bytes();
        let client = Mac::new([2, 0, 0, 0, a, b]).unwrap();
        for node in self.hosts.keys().copied().collect::<Vec<_>>() {
            let mut index = None;
            self.with(node, |replica, now| {
                if replica.is_serving(now) && replica.table().is_free_for(address, client) {
                    let (name, port, seconds) = (None, 0, u32::MAX);
                    let change = Change::Lease { address, client, seconds, name, port };
                    index = Some(replica.propose(vec![change], now));
                }
            });
            if let (Some(index), Some(host)) = (index, self.hosts.get_mut(&node)) {
                host.waiting.push_back((index, address, client));
            }
        }
    }

    fn pass(&mut self, millis: Millis) {
        let end = self.now + millis;
        while self.now < end {
            self.now += STEP.min(end - self.now);
            let now = self.now;
            let mut due: Vec<_> = Vec::new();
            self.flying.retain(|message| {
                let arrives = message.0 <= now;
                if arrives {
                    due.push(message.clone());
                }
                !arrives
            });
            for (_, from, to, message) in due {
                if self.can_reach(from, to) {
                    self.with(to, |replica, now| replica.receive(from, message, now));
                }
            }
            for node in self.hosts.keys().copied().collect::<Vec<_>>() {
                self.with(node, Replica::tick);
            }
            self.check();
        }
    }

    /// At most one serves, knows of all that clients were told, and gives none of it to others.
    fn check(&mut self) {
        let now = self.now;
        let mut serving = 0;
        for (node, host) in &mut self.hosts {
            let Some(replica) = &host.replica else { continue };
            if replica.config().epoch != host.epoch {
                // What was not committed when another epoch began is answered to nobody.
                host.waiting.clear();
                host.epoch = replica.config().epoch;
            }
            if replica.stage(now + host.offset) != Stage::Serving {
                continue;
            }
            serving += 1;
            for (address, client) in &self.told {
                let entry = replica.table().entry(*address).map(|entry| entry.client);
                assert_eq!(entry, Some(*client), "{node} lost {address} at {now}");
            }
            while let Some((index, address, client)) = host.waiting.front().copied() {
                if index > replica.committed() {
                    break;
                }
                host.waiting.pop_front();
                let before = self.told.insert(address, client);
                assert!(before.is_none_or(|before| before == client), "{address} given twice");
            }
        }
        assert!(serving <= 1, "{serving} serve at {now}");
    }

    fn stages(&self) -> Vec<Option<Stage>> {
        let stage = |host: &Host| Some(host.replica.as_ref()?.stage(self.now + host.offset));
        self.hosts.values().map(stage).collect()
    }
}

#[test]
fn a_server_waits_for_its_mirror_and_then_serves() {
    let mut world = World::new(1);
    assert_eq!(world.stages(), [Some(Stage::Serving), Some(Stage::Mirror)]);
    world.ask();
    world.pass(100);
    assert_eq!(world.told.len(), 1);
    let world = World::new(0);
    assert_eq!(world.stages(), [Some(Stage::Waiting)], "it was not told to serve alone");
}

#[test]
fn the_mirror_takes_over_within_two_seconds_and_the_old_server_becomes_its_mirror() {
    let mut world = World::new(1);
    world.ask();
    world.pass(100);
    world.crash(1);
    world.pass(2000);
    assert_eq!(world.stages(), [None, Some(Stage::Serving)]);
    world.ask();
    world.pass(100);
    assert_eq!(world.told.len(), 2);
    world.start(1);
    world.pass(2000);
    assert_eq!(world.stages(), [Some(Stage::Mirror), Some(Stage::Serving)]);
    // And the other way round.
    world.crash(2);
    world.pass(2000);
    assert_eq!(world.stages(), [Some(Stage::Serving), None]);
}

#[test]
fn a_server_that_is_cut_off_is_silent_before_its_mirror_speaks() {
    let mut world = World::new(1);
    world.part(1);
    world.pass(1000);
    assert_eq!(world.stages(), [Some(Stage::Waiting), Some(Stage::Mirror)]);
    world.pass(1000);
    assert_eq!(world.stages(), [Some(Stage::Waiting), Some(Stage::Serving)]);
    world.heal();
    world.pass(1000);
    assert_eq!(world.stages(), [Some(Stage::Mirror), Some(Stage::Serving)]);
}

#[test]
fn a_server_that_comes_back_at_once_goes_on() {
    let mut world = World::new(1);
    world.ask();
    world.pass(100);
    world.crash(1);
    world.pass(100);
    world.start(1);
    world.pass(300);
    assert_eq!(world.stages(), [Some(Stage::Serving), Some(Stage::Mirror)]);
}

#[test]
fn without_a_majority_of_mirrors_nobody_recovers() {
    let mut world = World::new(3);
    for node in [1, 2, 3] {
        world.crash(node);
    }
    world.pass(10_000);
    assert_eq!(world.stages()[3], Some(Stage::Asking));
    assert_eq!(world.hosts[&4].replica.as_ref().unwrap().reached(), (1, 2));
    world.start(3);
    world.pass(4000);
    let serving = world.stages().into_iter().filter(|stage| *stage == Some(Stage::Serving));
    assert_eq!(serving.count(), 1);
}

#[test]
fn a_mirror_that_was_cut_off_unites_with_the_others() {
    let mut world = World::new(3);
    world.part(2);
    world.pass(5000);
    assert_eq!(world.stages()[0], Some(Stage::Serving));
    world.heal();
    world.pass(1000);
    assert_eq!(world.stages()[0], Some(Stage::Serving));
    assert_eq!(world.stages()[1], Some(Stage::Mirror));
}

#[test]
fn a_server_that_ends_in_order_hands_over_at_once() {
    let mut world = World::new(1);
    world.with(1, |replica, _| replica.stop());
    world.pass(100);
    assert_eq!(world.stages()[1], Some(Stage::Serving));
}

#[derive(Clone, Debug)]
enum Event {
    Ask,
    Pass(Millis),
    Crash(u64),
    Start(u64),
    Part(u64),
    Heal,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Ask),
        6 => (1..400_u64).prop_map(Event::Pass),
        2 => (1400..2500_u64).prop_map(Event::Pass),
        2 => (1..5_u64).prop_map(Event::Crash),
        4 => (1..5_u64).prop_map(Event::Start),
        1 => (1..5_u64).prop_map(Event::Part),
        2 => Just(Event::Heal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        if std::env::var_os("VMM_TEST_LONG").is_some() { 5000 } else { 150 }
    ))]
    #[test]
    fn never_two_serve_and_nothing_that_was_told_is_lost(
        mirrors in 1..4_u64,
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let mut world = World::new(mirrors);
        for event in events {
            match event {
                Event::Ask => world.ask(),
                Event::Pass(millis) => world.pass(millis),
                Event::Crash(node) => world.crash(node),
                Event::Start(node) => world.start(node),
                Event::Part(node) => world.part(node),
                Event::Heal => world.heal(),
            }
        }
        world.heal();
        for node in 1..=mirrors + 1 {
            world.start(node);
        }
        world.pass(8000);
        let serving = world.stages().into_iter().filter(|s| *s == Some(Stage::Serving)).count();
        prop_assert_eq!(serving, 1, "all are there and none serves: {:?}", world.stages());
    }
}
