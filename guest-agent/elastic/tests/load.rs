//! Servers over loopback under a load of put, get and delete on 256 keys, while their ranges are split,
//! merged, mirrored and moved, and while servers are killed.
//!
//! Each key is written by one client only, so that the writes of a key are a sequence of versions. Every
//! client checks what it reads against what was acknowledged before it asked and begun before it was
//! answered: a history of registers with one writer is linearizable if no read returns an older version
//! than the last one acknowledged, or read by anybody, before it began, nor one that was not begun. What
//! `tests/interleavings.rs` says of deletions holds here too.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{SECRET, serve};
use elastic::Peer;
use elastic::client::{self, Client};
use elastic::node::Limits;
use elastic::range::Range;
use elastic::routes::{FileRoutes, MemoryRoutes, Routes};
use elastic::server::{Command, Config, Local, Report, Server};

const KEYS: usize = 256;

/// The versions of a key.
struct History {
    versions: Vec<bool>,
    floor: usize,
}

struct Load {
    stop: AtomicBool,
    requests: AtomicUsize,
    history: Vec<Mutex<History>>,
}

impl Load {
    fn new() -> Self {
        let key = || Mutex::new(History { versions: vec![false], floor: 0 });
        Self {
            stop: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            history: (0..KEYS).map(|_| key()).collect(),
        }
    }

    fn client(&self, routes: Arc<dyn Routes>, number: usize, clients: usize) {
        let mut client = Client::new(routes).unwrap();
        let mut random = number as u64 + 1;
        while !self.stop.load(Ordering::Relaxed) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let choice = usize::try_from(random >> 40).unwrap();
            let mut key = choice % KEYS;
            let name = |key: usize| format!("key {key}").into_bytes();
            if (choice / KEYS).is_multiple_of(2) {
                let floor = self.history[key].lock().unwrap().floor;
                let value = client.get(&name(key)).unwrap();
                let mut history = self.history[key].lock().unwrap();
                let version = match value {
                    Some(value) => {
                        usize::try_from(u64::from_le_bytes(*value.first_chunk().unwrap())).unwrap()
                    }
                    None => (floor..history.versions.len())
                        .find(|it| !history.versions[*it])
                        .unwrap_or(usize::MAX),
                };
                assert!(
                    (floor..history.versions.len()).contains(&version),
                    "{key}: {version}, but {floor} was known"
                );
                assert!(value_of(version, key, &value_bytes(version, key)), "{key}");
                history.floor = history.floor.max(version);
            } else {
                key = key / clients * clients + number;
                if key >= KEYS {
                    continue;
                }
                let put = !(choice / KEYS / 2).is_multiple_of(4);
                let (version, before) = {
                    let mut history = self.history[key].lock().unwrap();
                    history.versions.push(put);
                    let version = history.versions.len() - 1;
                    (version, history.versions[version - 1])
                };
                let existed = if put {
                    client.put(&name(key), value_bytes(version, key)).unwrap()
                } else {
                    client.delete(&name(key)).unwrap()
                };
                assert_eq!(
                    existed, before,
                    "{key}: version {version} was done twice, or one was lost"
                );
                let mut history = self.history[key].lock().unwrap();
                history.floor = history.floor.max(version);
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So many clients make requests while `act` runs; how many requests were answered.
    fn run(&self, routes: &Arc<dyn Routes>, clients: usize, act: impl FnOnce()) -> usize {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..clients)
                .map(|number| scope.spawn(move || self.client(Arc::clone(routes), number, clients)))
                .collect();
            // The clients end also when this fails.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            self.stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().unwrap();
            }
            result.unwrap();
        });
        self.requests.load(Ordering::Relaxed)
    }

    /// Every key has its last version.
    fn check(&self, routes: Arc<dyn Routes>) {
        let mut client = Client::new(routes).unwrap();
        for key in 0..KEYS {
            let history = self.history[key].lock().unwrap();
            let last = history.versions.len() - 1;
            let value = client.get(format!("key {key}").as_bytes()).unwrap();
            assert_eq!(value, history.versions[last].then(|| value_bytes(last, key)), "{key}");
        }
    }
}

/// A version's value: its number, then bytes by number and key.
fn value_bytes(version: usize, key: usize) -> Bytes {
    let mut value = (version as u64).to_le_bytes().to_vec();
    let byte = u8::try_from((version + key) % 251).unwrap();
    value.resize(8 + (version * 31 + key) % 700, byte);
    value.into()
}

fn value_of(version: usize, key: usize, value: &Bytes) -> bool {
    *value == value_bytes(version, key)
}

fn config(number: u32) -> Config {
    Config {
        me: Peer(number),
        listen: "127.0.0.1:0".parse().unwrap(),
        secret: SECRET,
        journal: None,
        sync: false,
        limits: Limits { repeat: 100, patience: 2000, ..Limits::default() },
    }
}

#[test]
fn cycles_of_split_merge_mirror_and_move_give_no_wrong_answer() {
    let routes = MemoryRoutes::default();
    let shared: Arc<dyn Routes> = Arc::new(routes.clone());
    // Apart, so that all goes over TCP.
    let servers: Vec<_> = (0..3)
        .map(|number| {
            Server::start(config(number), Arc::clone(&shared), &Local::default()).unwrap()
        })
        .collect();
    servers[0].announce(Range::ALL).unwrap();
    let done = |server: usize, command: Command| {
        let report = servers[server].command(&command);
        assert_eq!(report, Report::Done, "{command:?}");
    };
    let load = Load::new();
    let requests = load.run(&shared, 4, || {
        let cycles = if std::env::var_os("VMM_TEST_LONG").is_some() { 1000 } else { 100 };
        for cycle in 0..cycles {
            let upper = Range::ALL.halves().unwrap().1;
            done(0, Command::Split(Peer(1), upper));
            done(1, Command::Mirror(Peer(2)));
            thread::sleep(Duration::from_millis(2));
            done(1, Command::Abort);
            done(1, Command::Move(Peer(2)));
            done(0, Command::Merge(Peer(2)));
            assert!(
                routes.ranges(Peer(1)).is_empty() && routes.ranges(Peer(2)).is_empty(),
                "cycle {cycle}"
            );
        }
    });
    println!("{requests} requests answered");
    assert!(requests > 100);
    load.check(shared);
}

/// A move goes to and fro between two processes; one of them is killed at any moment of it and starts again
/// from its journal.
#[test]
fn servers_that_are_killed_lose_no_acknowledged_write() {
    let folder = tempfile::tempdir().unwrap();
    let routes = FileRoutes::new(folder.path());
    let shared: Arc<dyn Routes> = Arc::new(routes.clone());
    let start = |number| serve(folder.path(), number, &["--announce"]).0;
    let mut servers = [start(0), start(1)];
    let load = Load::new();
    let kills = if std::env::var_os("VMM_TEST_LONG").is_some() { 300 } else { 12 };
    let requests = load.run(&shared, 3, || {
        thread::sleep(Duration::from_millis(100));
        for round in 0..kills {
            let home = routes.home(0).unwrap().0;
            let other = Peer(1 - home.0);
            let address = routes.address(home).unwrap();
            let mover =
                thread::spawn(move || client::command(&address, SECRET, &Command::Move(other)));
            // A move takes some milliseconds: kills are spread over it and a little more.
            thread::sleep(Duration::from_micros(u64::try_from(round % 12).unwrap() * 700));
            let victim = usize::try_from(if round % 2 == 0 { home.0 } else { other.0 }).unwrap();
            let dead = &mut servers[victim];
            dead.0.kill().unwrap();
            dead.0.wait().unwrap();
            *dead = start(victim);
            let _ = mover.join().unwrap(); // it may have succeeded or not
            let before = load.requests.load(Ordering::Relaxed);
            let end = Instant::now() + Duration::from_secs(30);
            while load.requests.load(Ordering::Relaxed) < before + 30 {
                assert!(Instant::now() < end, "no requests are answered after kill {round}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    println!("{requests} requests answered, {kills} servers killed");
    load.check(shared);
}

/// A mirror becomes the owner when its home, which kept nothing in a file, is gone.
#[test]
fn a_mirror_takes_over_all_that_was_acknowledged() {
    let shared: Arc<dyn Routes> = Arc::new(MemoryRoutes::default());
    let home = Server::start(config(0), Arc::clone(&shared), &Local::default()).unwrap();
    let mirror = Server::start(config(1), Arc::clone(&shared), &Local::default()).unwrap();
    home.announce(Range::ALL).unwrap();
    let load = Load::new();
    let requests = load.run(&shared, 3, || {
        thread::sleep(Duration::from_millis(50));
        assert_eq!(home.command(&Command::Mirror(Peer(1))), Report::Done);
        thread::sleep(Duration::from_millis(200));
        drop(home);
        assert_eq!(mirror.command(&Command::Promote(Peer(0))), Report::Done);
        thread::sleep(Duration::from_millis(200));
    });
    println!("{requests} requests answered");
    load.check(shared);
}

#[test]
fn those_without_the_secret_are_no_peers_and_command_nothing() {
    let shared: Arc<dyn Routes> = Arc::new(MemoryRoutes::default());
    let server = Server::start(config(0), Arc::clone(&shared), &Local::default()).unwrap();
    server.announce(Range::ALL).unwrap();
    let address = server.address().to_string();
    assert!(client::command(&address, [1; 16], &Command::Move(Peer(1))).is_err());
    assert!(matches!(
        client::command(&address, SECRET, &Command::Status),
        Ok(Report::Status { .. })
    ));
    let report = client::command(&address, SECRET, &Command::Move(Peer(0))).unwrap();
    assert!(matches!(report, Report::Failed(why) if why.contains("this one")));
    assert_eq!(shared.home(7).unwrap().0, Peer(0));
}
