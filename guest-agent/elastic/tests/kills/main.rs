//! Servers as processes that are killed at every step of a split, merge, move and mirror.
//!
//! Nothing in a server helps with that. What servers say to each other goes through a relay of the test, which
//! reads it, and kills one of the two with SIGKILL at the message of a step: before it arrives, so that its
//! receiver, or its sender, never comes to the next one. A commit is no message, but a change of the routes' file:
//! the test holds the lock of the file, and kills while the change waits.
//!
//! # What is promised
//! - *With a journal* nothing that was acknowledged is lost, whoever is killed when. Before the commit the range
//!   is the source's, after it the destination's.
//! - *In memory* a server that is killed loses what it alone has; it still has its ranges, empty, when it starts
//!   again, and nobody else has them. That is: what the source has before the commit, and what the destination has
//!   from when it said that it is ready (the source may have let it go by then). What was mirrored when it was
//!   acknowledged is at the mirror, which can be promoted; a mirror that was not complete cannot.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod relay;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Running, SECRET};
use elastic::Peer;
use elastic::client::{self, Client};
use elastic::range::{Key, Range};
use elastic::routes::{FileRoutes, Routes};
use elastic::server::{Command, Report};
use relay::{Gate, Relay};

/// So many that there are several chunks of them in a half.
const KEYS: usize = 32;
const WAIT: Duration = Duration::from_secs(60);

/// Which step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum At {
    Begin,
    Begun,
    /// Not the first, nor the last.
    Chunk,
    Ack,
    /// A write to what is mirrored, when the mirror is complete.
    Update,
    Finish,
    Ready,
    /// The destination is ready, and the routes are being changed.
    Commit,
    Committed,
    Adopted,
}

impl At {
    fn is_of_source(self) -> bool {
        !matches!(self, Self::Begun | Self::Ack | Self::Ready | Self::Adopted)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Split,
    Merge,
    Move,
    Mirror,
}

/// What is killed when.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    operation: Operation,
    at: At,
    source_dies: bool,
    /// Whether the message of the step arrives, though its sender was killed.
    arrives: bool,
    memory: bool,
}

/// A running server, and its address.
fn serve(folder: &Path, number: usize, memory: bool) -> (Running, String) {
    let mut options = vec!["--patience-ms", "1000", "--chunk", "4096"];
    options.extend((number == 0).then_some("--announce"));
    options.extend(memory.then_some("--memory"));
    common::serve(folder, number, &options)
}

fn name(key: usize) -> Vec<u8> {
    format!("key {key}").into_bytes()
}

fn value(key: usize, version: u64) -> Bytes {
    let mut value = version.to_le_bytes().to_vec();
    value.resize(1024, u8::try_from(key).unwrap());
    value.into()
}

/// The versions of each key that were begun and acknowledged.
type Versions = Arc<Mutex<Vec<(u64, u64)>>>;

fn put(client: &mut Client, versions: &Versions, key: usize) {
    let version = {
        let mut versions = versions.lock().unwrap();
        versions[key].0 += 1;
        versions[key].0
    };
    client.put(&name(key), value(key, version)).unwrap();
    versions.lock().unwrap()[key].1 = version;
}

/// Two servers behind relays.
struct World {
    scenario: Scenario,
    folder: tempfile::TempDir,
    routes: FileRoutes,
    servers: [Arc<Mutex<Running>>; 2],
    /// Where they really listen.
    addresses: [String; 2],
    relays: [Relay; 2],
}

impl World {
    fn new(scenario: Scenario, gate: &Arc<Gate>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let routes = FileRoutes::new(folder.path());
        let started = [0, 1].map(|number| serve(folder.path(), number, scenario.memory));
        let addresses = [0, 1].map(|number: usize| started[number].1.clone());
        let servers = started.map(|(running, _)| Arc::new(Mutex::new(running)));
        let relays = [0, 1].map(|number| {
            Relay::new(addresses[number].parse().unwrap(), Arc::clone(gate), servers.clone())
        });
        let world = Self { scenario, folder, routes, servers, addresses, relays };
        (0..2).for_each(|number| world.hide(number));
        world
    }

    /// Those who look for the server find the relay.
    fn hide(&self, number: usize) {
        let relay = self.relays[number].address().to_string();
        self.routes.set_address(Peer(u32::try_from(number).unwrap()), &relay);
    }

    fn restart(&mut self, number: usize) {
        let (running, address) = serve(self.folder.path(), number, self.scenario.memory);
        *self.servers[number].lock().unwrap() = running;
        self.relays[number].point_to(address.parse().unwrap());
        self.addresses[number] = address;
        self.hide(number);
    }

    fn command(&self, number: usize, command: &Command) -> Report {
        client::command(&self.addresses[number], SECRET, command)
            .unwrap_or_else(|error| Report::Failed(error.to_string()))
    }

    /// Waits until no move is under way, and says what each server has: all is had by one, as the routes say.
    fn settled(&self) -> [Vec<Range>; 2] {
        let end = Instant::now() + WAIT;
        loop {
            let states = [0, 1].map(|number| self.command(number, &Command::Status));
            let [
                Report::Status { owned: one, incoming: 0, outgoing: 0, .. },
                Report::Status { owned: other, incoming: 0, outgoing: 0, .. },
            ] = &states
            else {
                assert!(Instant::now() < end, "{:?}: {states:?}", self.scenario);
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            let mut all = [&one[..], &other[..]].concat();
            all.sort_unstable();
            let whole = all.iter().copied().try_fold(None, |whole: Option<Range>, next| {
                whole.map_or(Some(Some(next)), |whole| {
                    (!whole.overlaps(next)).then(|| whole.joined(next)).map(|it| it.or(Some(next)))
                })
            });
            assert_eq!(whole, Some(Some(Range::ALL)), "{:?}: {all:?}", self.scenario);
            for (number, owned) in [one, other].into_iter().enumerate() {
                for range in owned {
                    let home = self.routes.home(range.first()).unwrap().0;
                    assert_eq!(home, Peer(u32::try_from(number).unwrap()), "{:?}", self.scenario);
                }
            }
            return [one.clone(), other.clone()];
        }
    }
}

/// The servers that are source and destination, and the range.
fn roles(operation: Operation) -> (usize, usize, Range) {
    let upper = Range::ALL.halves().unwrap().1;
    match operation {
        Operation::Split => (0, 1, upper),
        Operation::Merge => (1, 0, upper),
        Operation::Move | Operation::Mirror => (0, 1, Range::ALL),
    }
}

fn run(scenario: Scenario) {
    let Scenario { operation, at, source_dies, arrives, memory } = scenario;
    let (source, destination, range) = roles(operation);
    let (victim, survivor) =
        if source_dies { (source, destination) } else { (destination, source) };
    let gate = Arc::new(Gate::new(at, victim, arrives));
    let mut world = World::new(scenario, &gate);
    gate.lock_of(world.folder.path().join("routes.lock"));

    let shared: Arc<dyn Routes> = Arc::new(world.routes.clone());
    let mut client = Client::new(Arc::clone(&shared)).unwrap();
    let versions: Versions = Arc::new(Mutex::new(vec![(0, 0); KEYS]));
    (0..KEYS).for_each(|key| put(&mut client, &versions, key));
    let split = Command::Split(Peer(1), roles(Operation::Split).2);
    if operation == Operation::Merge {
        assert_eq!(world.command(0, &split), Report::Done);
    }

    // In memory it is told exactly what is lost: nothing is written meanwhile, but what the step needs.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = (!memory || at == At::Update).then(|| {
        let (stop, versions) = (Arc::clone(&stop), Arc::clone(&versions));
        let mut client = Client::new(Arc::clone(&shared)).unwrap();
        thread::spawn(move || {
            for key in (0..KEYS).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                put(&mut client, &versions, key);
            }
        })
    });

    if at != At::Update {
        gate.arm();
    }
    let command = match operation {
        Operation::Split => split,
        Operation::Merge => Command::Merge(Peer(1)),
        Operation::Move => Command::Move(Peer(1)),
        Operation::Mirror => Command::Mirror(Peer(1)),
    };
    let address = world.addresses[0].clone();
    let commander = thread::spawn(move || client::command(&address, SECRET, &command));
    if at == At::Update {
        assert_eq!(commander.join().unwrap().unwrap(), Report::Done);
        gate.arm();
        gate.wait(scenario);
    } else {
        gate.wait(scenario);
        drop(commander); // its server may be dead
    }

    let promotes = operation == Operation::Mirror && source_dies && memory;
    if promotes {
        let report =
            world.command(survivor, &Command::Promote(Peer(u32::try_from(source).unwrap())));
        assert_eq!(report == Report::Done, at == At::Update, "{scenario:?}: {report:?}");
    }
    world.restart(victim);
    if operation == Operation::Mirror && !source_dies {
        world.command(source, &Command::Abort); // else it would go on
    }
    let owned = world.settled();
    stop.store(true, Ordering::Relaxed);
    if let Some(writer) = writer {
        writer.join().unwrap();
    }

    let moved = owned[destination].iter().any(|its| its.overlaps(range));
    let committed = at >= At::Committed && operation != Operation::Mirror;
    if promotes {
        assert_eq!(moved, at == At::Update, "{scenario:?}");
    } else if committed {
        assert!(moved, "{scenario:?}: it was committed");
    } else if source_dies {
        assert!(!moved, "{scenario:?}: nothing was committed");
    }
    let lost = memory
        && match (source_dies, moved) {
            (true, false) => true,
            (true, true) => false,
            // The destination was killed before it said that it is ready, and began again.
            (false, true) => at >= At::Commit || at == At::Ready && arrives,
            (false, false) => false,
        };
    for (key, (begun, acknowledged)) in versions.lock().unwrap().iter().enumerate() {
        let got = client.get(&name(key)).unwrap();
        // What else the killed server had is lost with it, too.
        let there = Key::of(&name(key)).id();
        if lost && (range.contains(there) || owned[victim].iter().any(|it| it.contains(there))) {
            assert_eq!(got, None, "{scenario:?}: key {key}");
            continue;
        }
        if memory && owned[victim].iter().any(|it| it.contains(there)) && !range.contains(there) {
            assert_eq!(got, None, "{scenario:?}: key {key} was only there");
            continue;
        }
        let version = got.as_ref().map_or(0, |got| u64::from_le_bytes(*got.first_chunk().unwrap()));
        assert!(
            (*acknowledged..=*begun).contains(&version),
            "{scenario:?}: key {key} has version {version}, {acknowledged} was acknowledged"
        );
        assert_eq!(got, Some(value(key, version)), "{scenario:?}: key {key}");
    }
    // It goes on, whoever has it.
    put(&mut client, &versions, 0);
}

/// All steps of the operations, with each of both killed.
fn scenarios(operations: &[Operation], memory: bool) -> VecDeque<Scenario> {
    let mut all = VecDeque::new();
    for operation in operations.iter().copied() {
        let steps: &[At] = if operation == Operation::Mirror {
            &[At::Begin, At::Begun, At::Chunk, At::Ack, At::Update]
        } else {
            &[
                At::Begin,
                At::Begun,
                At::Chunk,
                At::Ack,
                At::Finish,
                At::Ready,
                At::Commit,
                At::Committed,
                At::Adopted,
            ]
        };
        for at in steps.iter().copied() {
            for source_dies in [true, false] {
                let sent = source_dies == at.is_of_source() && at != At::Commit;
                for arrives in [false, true].into_iter().take(if sent { 2 } else { 1 }) {
                    all.push_back(Scenario { operation, at, source_dies, arrives, memory });
                }
            }
        }
    }
    all
}

fn run_all(all: VecDeque<Scenario>) {
    let count = all.len();
    let queue = Mutex::new(all);
    // Most of the time they wait.
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some(scenario) = next else { return };
                    run(scenario);
                }
            });
        }
    });
    println!("{count} kills");
}

#[test]
fn with_a_journal_nothing_is_lost_at_any_step() {
    run_all(scenarios(
        &[Operation::Split, Operation::Merge, Operation::Move, Operation::Mirror],
        false,
    ));
}

#[test]
fn in_memory_exactly_what_one_server_had_is_lost_with_it() {
    run_all(scenarios(
        &[Operation::Split, Operation::Merge, Operation::Move, Operation::Mirror],
        true,
    ));
}
