//! Servers that carry out the errands of a host: live connections move back and forth, with errands repeated and
//! moves that go back, and no byte is wrong, lost or doubled.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::clients::{Client, Load};
use common::home::Home;
use common::network::{Lab, SERVICE};
use common::server::{Order, Server};
use common::single::own;
use common::switch::TestRoute;
use continuation::errand::{Errands, Host};
use continuation::mover::Route;
use control_abi::operation::Operation;
use control_abi::status::Error;
use guest_agent::calls::endpoint::{Errand, ErrandKind, Form};
use guest_agent::driver::DriverError;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Table {
    /// Of each home.
    errands: [VecDeque<Errand>; 2],
    answers: HashMap<(usize, u64, ErrandKind), Result<(), String>>,
    /// What was sent in each move.
    states: HashMap<u64, Vec<u8>>,
    /// Answers are lost, and the errand comes again, as often as this says.
    losses: u32,
}

/// The hosts of both homes.
#[derive(Default)]
struct Hosts {
    table: Mutex<Table>,
    changes: Condvar,
}

/// One of them, as a server sees it.
struct Side(Arc<Hosts>, usize);

impl Side {
    fn answer(
        &self,
        number: u64,
        errand: ErrandKind,
        how: Result<(), String>,
    ) -> Result<(), DriverError> {
        let mut table = self.0.table.lock().unwrap();
        if table.losses > 0 {
            table.losses -= 1;
            return Err(DriverError::Lost { operation: Operation::Done, generation: 2 });
        }
        table.errands[self.1].retain(|one| (one.number, one.errand) != (number, errand));
        table.answers.insert((self.1, number, errand), how);
        self.0.changes.notify_all();
        Ok(())
    }
}

impl Host for Side {
    fn next_errand(&mut self, _: &str) -> Result<Option<Errand>, DriverError> {
        Ok(self.0.table.lock().unwrap().errands[self.1].front().cloned())
    }

    fn wait(&mut self, most: Duration) -> Result<(), DriverError> {
        let table = self.0.table.lock().unwrap();
        let none = |table: &mut Table| table.errands[self.1].is_empty();
        drop(self.0.changes.wait_timeout_while(table, most, none).unwrap());
        Ok(())
    }

    fn prepared(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.answer(number, errand, Ok(()))
    }

    fn done(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.answer(number, errand, Ok(()))
    }

    fn abort(&mut self, number: u64, errand: ErrandKind, why: &str) -> Result<(), DriverError> {
        self.answer(number, errand, Err(why.to_owned()))
    }

    fn piece(&mut self) -> usize {
        4096
    }

    fn send(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<(), DriverError> {
        let mut table = self.0.table.lock().unwrap();
        let state = table.states.entry(number).or_default();
        if at != state.len() as u64 {
            let operation = Operation::MoveSend;
            return Err(DriverError::Refused { operation, error: Error::BadField });
        }
        state.extend(bytes);
        Ok(())
    }

    fn receive(&mut self, number: u64, at: u64, bytes: &mut [u8]) -> Result<usize, DriverError> {
        let table = self.0.table.lock().unwrap();
        let rest = &table.states[&number][usize::try_from(at).unwrap()..];
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// Two homes of one service, and the hosts that move it.
struct Pair {
    lab: Lab,
    hosts: Arc<Hosts>,
    servers: [common::server::Handle; 2],
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    at: usize,
    moves: u64,
}

impl Pair {
    fn new() -> Self {
        let (lab, hosts) = (Lab::new(), Arc::new(Hosts::default()));
        let (stop, mut workers) = (Arc::new(AtomicBool::new(false)), Vec::new());
        let servers = [0, 1].map(|home| {
            let (server, handle) = Server::new(own()).unwrap();
            let namespace = lab.homes[home].another();
            thread::spawn(move || {
                namespace.enter();
                server.run().unwrap();
            });
            let namespace = lab.homes[home].another();
            let service = SERVICE.parse().unwrap();
            let mut service = Home { server: handle.another().unwrap(), service };
            let (mut side, stop) = (Side(Arc::clone(&hosts), home), Arc::clone(&stop));
            workers.push(thread::spawn(move || {
                namespace.enter();
                let mut errands = Errands::new("stream", own());
                errands.run(&mut side, &mut service, &stop).unwrap();
            }));
            handle
        });
        Self { lab, hosts, servers, stop, workers, at: 0, moves: 0 }
    }

    fn connect(&self, load: Load) -> Client {
        let listener = self.lab.homes[self.at].run(|| TcpListener::bind(SERVICE).unwrap());
        let stream = self.lab.client.run(|| std::net::TcpStream::connect(SERVICE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.servers[self.at].tell(Order::Accept(listener.accept().unwrap().0));
        Client::start(stream, load)
    }

    /// Has a home do something, and waits for its answer.
    fn ask(&self, home: usize, errand: ErrandKind) -> Result<(), String> {
        let mut table = self.hosts.table.lock().unwrap();
        let bytes = match errand {
            ErrandKind::Resume => table.states[&self.moves].len() as u64,
            _ => 0,
        };
        table.errands[home].push_back(Errand {
            errand,
            number: self.moves,
            service: "stream".to_owned(),
            form: Form::Prefix,
            low: 0,
            high: 0,
            vid: None,
            bytes,
        });
        self.hosts.changes.notify_all();
        let key = (home, self.moves, errand);
        let wait = |table: &mut Table| !table.answers.contains_key(&key);
        let (mut table, late) =
            self.hosts.changes.wait_timeout_while(table, PATIENCE, wait).unwrap();
        assert!(!late.timed_out(), "{errand} is not answered");
        table.answers.remove(&key).unwrap()
    }

    fn lose_answers(&self, losses: u32) {
        self.hosts.table.lock().unwrap().losses = losses;
    }

    /// A move that goes as far as `end` and then back, or all the way.
    fn try_move(&mut self, end: Option<ErrandKind>) -> Result<(), String> {
        use ErrandKind::{Continue, Discard, Free, Open, Prepare, Resume, Stop};
        self.moves += 1;
        let (from, to) = (self.at, 1 - self.at);
        let mut route = TestRoute::new(&self.lab, from, to);
        self.ask(to, Prepare)?;
        route.hold().unwrap();
        route.drain().unwrap();
        let mut result = self.ask(from, Stop);
        let stopped = result.is_ok();
        if stopped && end != Some(Stop) {
            route.seal().unwrap();
            result = self.ask(to, Resume);
        }
        if result.is_err() || end.is_some() {
            self.ask(to, Discard)?;
            // It is heard again before it speaks.
            route.revert().unwrap();
            if stopped {
                self.ask(from, Continue)?;
            }
            return result;
        }
        route.point().unwrap();
        self.ask(to, Open)?;
        route.release().unwrap();
        self.ask(from, Free)?;
        self.at = to;
        Ok(())
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Release);
        for worker in self.workers {
            worker.join().unwrap();
        }
    }
}

fn moves(load: Load) {
    let mut pair = Pair::new();
    let client = pair.connect(load);
    for number in 0..common::repeats(20, 200) {
        assert!(client.goes_on(256), "it stands still before move {number}");
        // Each third move some answers do not come through, and the errand comes again.
        pair.lose_answers(if number % 3 == 2 { 4 } else { 0 });
        pair.try_move(None).unwrap();
        assert!(client.goes_on(256), "it stands still after move {number}");
    }
    assert!(client.finish().unwrap() > 0);
    pair.finish();
}

#[test]
fn ping_pong() {
    moves(Load::PingPong);
}

#[test]
fn paced() {
    moves(Load::Paced);
}

#[test]
fn bulk() {
    moves(Load::Bulk);
}

#[test]
fn moves_that_go_back_leave_all_where_it_was() {
    let mut pair = Pair::new();
    let clients = [Load::PingPong, Load::Paced, Load::Bulk].map(|load| pair.connect(load));
    for number in 0..common::repeats(12, 60) {
        let end = [Some(ErrandKind::Stop), Some(ErrandKind::Resume), None][number % 3];
        pair.lose_answers(u32::from(number % 2 == 1));
        let before = pair.at;
        pair.try_move(end).unwrap();
        assert_eq!(pair.at == before, end.is_some());
        for client in &clients {
            assert!(client.goes_on(256), "it stands still after move {number}");
        }
    }
    for client in clients {
        assert!(client.finish().unwrap() > 0);
    }
    pair.finish();
}
