use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use control_abi::operation::Operation;
use guest_agent::calls::endpoint::{ErrandKind::*, Form};

use super::*;
use crate::privilege::Own;

/// A host that gives errands, forgets no answer, and refuses what it is told to.
#[derive(Default)]
struct FakeHost {
    errands: VecDeque<Errand>,
    answers: Vec<(u64, ErrandKind, String)>,
    blob: Vec<u8>,
    /// Pieces that it takes before it refuses one.
    takes: Option<usize>,
}

fn refused(operation: Operation) -> DriverError {
    DriverError::Refused { operation, error: Error::Timeout }
}

impl FakeHost {
    fn give(&mut self, number: u64, errand: ErrandKind) {
        self.errands.push_back(Errand {
            errand,
            number,
            service: "web".to_owned(),
            form: Form::Prefix,
            low: 0,
            high: 0,
            vid: None,
            bytes: self.blob.len() as u64,
        });
    }

    fn answer(&mut self, number: u64, errand: ErrandKind, how: &str) {
        self.errands.pop_front();
        self.answers.push((number, errand, how.to_owned()));
    }
}

impl Host for FakeHost {
    fn next_errand(&mut self, service: &str) -> Result<Option<Errand>, DriverError> {
        assert_eq!(service, "web");
        Ok(self.errands.front().cloned())
    }

    fn wait(&mut self, _: Duration) -> Result<(), DriverError> {
        Ok(())
    }

    fn prepared(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.answer(number, errand, "prepared");
        Ok(())
    }

    fn done(&mut self, number: u64, errand: ErrandKind) -> Result<(), DriverError> {
        self.answer(number, errand, "done");
        Ok(())
    }

    fn abort(&mut self, number: u64, errand: ErrandKind, why: &str) -> Result<(), DriverError> {
        self.answer(number, errand, why);
        Ok(())
    }

    fn piece(&mut self) -> usize {
        100
    }

    fn send(&mut self, _: u64, at: u64, bytes: &[u8]) -> Result<(), DriverError> {
        if let Some(left) = &mut self.takes {
            *left = left.checked_sub(1).ok_or_else(|| refused(Operation::MoveSend))?;
        }
        assert_eq!(at, self.blob.len() as u64);
        assert!(bytes.len() <= 100);
        self.blob.extend(bytes);
        Ok(())
    }

    fn receive(&mut self, _: u64, at: u64, bytes: &mut [u8]) -> Result<usize, DriverError> {
        let rest = self.blob.get(usize::try_from(at).unwrap()..).unwrap_or_default();
        let length = rest.len().min(bytes.len()).min(70);
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

#[derive(Default)]
struct Server {
    connections: Vec<Continuation>,
    arrived: Vec<Arrived>,
    told: Vec<String>,
    closed: bool,
}

impl Service for Server {
    fn prepare(&mut self, _: &Errand) -> Result<(), String> {
        if self.closed { Err("it is closed".to_owned()) } else { Ok(()) }
    }

    fn stop(&mut self, _: &Errand) -> Result<Vec<Continuation>, String> {
        Ok(std::mem::take(&mut self.connections))
    }

    fn go_on(&mut self, connections: Vec<Continuation>) {
        self.connections.extend(connections);
    }

    fn takes(&self, state: &ConnectionState) -> Result<(), String> {
        if self.closed { Err(format!("{} is not served", state.local)) } else { Ok(()) }
    }

    fn arrive(&mut self, connections: Vec<Arrived>) {
        self.arrived.extend(connections);
    }

    fn tell(&mut self, text: &str) {
        self.told.push(text.to_owned());
    }
}

struct Home(FakeHost, Server, Errands);

impl Home {
    fn new() -> Self {
        Self(FakeHost::default(), Server::default(), Errands::new("web", Arc::new(Own)))
    }

    /// How the errand was answered.
    fn does(&mut self, number: u64, errand: ErrandKind) -> String {
        self.0.give(number, errand);
        assert_eq!(self.2.turn(&mut self.0, &mut self.1).unwrap(), Turn::Answered);
        let (of, kind, how) = self.0.answers.last().unwrap();
        assert_eq!((*of, *kind), (number, errand));
        how.clone()
    }

    /// A connection of its server, and the client's end.
    fn connect(&mut self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.1.connections.push(Continuation::create(listener.accept().unwrap().0));
        client
    }
}

#[test]
fn a_server_that_knows_nothing_of_a_move_says_so_where_it_matters() {
    let mut home = Home::new();
    // Nothing of it is here, and so it is already.
    for errand in [Continue, Free, Discard] {
        assert_eq!(home.does(u64::from(errand.number()), errand), "done");
    }
    assert!(home.does(8, Open).contains("not here"));
    assert!(home.does(9, Other(99)).contains("99"));
    assert!(home.1.told.is_empty() && home.1.arrived.is_empty());
}

#[test]
fn errands_of_others_and_none_are_left_alone() {
    let mut home = Home::new();
    assert_eq!(home.2.turn(&mut home.0, &mut home.1).unwrap(), Turn::Nothing);
    home.0.give(1, Stop);
    home.0.errands[0].service = "mail".to_owned();
    assert_eq!(home.2.turn(&mut home.0, &mut home.1).unwrap(), Turn::Another);
    assert!(home.0.answers.is_empty());
}

#[test]
fn a_move_goes_on_here_when_it_goes_back() {
    let mut home = Home::new();
    let mut client = home.connect();
    for _ in 0..3 {
        assert_eq!(home.does(1, Stop), "prepared");
    }
    assert!(home.1.connections.is_empty());
    assert_eq!(blob::decode(&home.0.blob).unwrap().len(), 1, "it was sent once");
    for _ in 0..2 {
        assert_eq!(home.does(1, Continue), "done");
    }
    client.write_all(b"ping").unwrap();
    let server = &mut home.1.connections[0];
    server.read_exact(&mut [0; 4]).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    // What was decided stays so.
    assert!(home.does(1, Free).contains("not one that leaves"));
    assert!(home.does(1, Stop).contains("not one that leaves"));
    assert!(home.does(1, Resume).contains("not one that comes"));
    assert_eq!(home.does(1, Continue), "done");
}

#[test]
fn a_state_goes_out_in_pieces_each_of_which_may_fail() {
    let mut home = Home::new();
    let _clients: Vec<TcpStream> = (0..5).map(|_| home.connect()).collect();
    home.0.takes = Some(2);
    home.0.give(1, Stop);
    assert!(home.2.turn(&mut home.0, &mut home.1).is_err());
    assert_eq!(home.0.blob.len(), 200);
    home.0.takes = None;
    assert_eq!(home.2.turn(&mut home.0, &mut home.1).unwrap(), Turn::Answered);
    assert_eq!(blob::decode(&home.0.blob).unwrap().len(), 5);
    assert_eq!(home.does(1, Free), "done");
    assert!(home.1.connections.is_empty());
}

#[test]
fn connections_that_leave_come_back_silently_until_they_are_let_speak() {
    let mut home = Home::new();
    let mut client = home.connect();
    client.write_all(b"before").unwrap();
    assert_eq!(home.does(1, Stop), "prepared");
    assert_eq!(home.does(1, Free), "done");
    for number in [2, 3] {
        assert_eq!(home.does(number, Prepare), "prepared");
        for _ in 0..2 {
            assert_eq!(home.does(number, Resume), "prepared");
        }
        if number == 2 {
            // What was to come is forgotten, and comes by another move.
            assert_eq!(home.does(number, Discard), "done");
            assert_eq!(home.does(number, Discard), "done");
            assert!(home.does(number, Open).contains("not here"));
        }
    }
    assert!(home.1.arrived.is_empty());
    for _ in 0..2 {
        assert_eq!(home.does(3, Open), "done");
    }
    assert!(home.does(3, Discard).contains("not one that comes"));
    let arrived = home.1.arrived.pop().unwrap();
    assert!(home.1.arrived.is_empty(), "it came once");
    let mut server =
        Continuation::import(TcpStream::from(arrived.socket), &arrived.continuation).unwrap();
    let mut found = [0; 6];
    server.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"before");
    server.write_all(b"after").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn what_does_not_belong_here_is_not_taken_up() {
    let mut home = Home::new();
    let _client = home.connect();
    assert_eq!(home.does(1, Stop), "prepared");
    // Its connection is still here.
    let found = home.does(2, Resume);
    assert!(found.contains("here already"), "{found}");
    home.1.closed = true;
    assert!(home.does(3, Prepare).contains("closed"));
    assert!(home.does(3, Resume).contains("not served"));
    home.1.closed = false;
    home.0.blob.pop();
    assert!(home.does(4, Resume).contains("bytes and says"), "a byte is missing");
    home.0.blob.clear();
    home.0.give(5, Resume);
    home.0.errands[0].bytes = u64::MAX;
    home.2.turn(&mut home.0, &mut home.1).unwrap();
    assert!(home.0.answers.last().unwrap().2.contains("too large"));
    home.0.give(6, Resume);
    home.0.errands[0].bytes = 9;
    home.2.turn(&mut home.0, &mut home.1).unwrap();
    assert!(home.0.answers.last().unwrap().2.contains("is said to have 9"));
}

#[test]
fn one_that_cannot_move_keeps_all_here() {
    let mut home = Home::new();
    let clients = [home.connect(), home.connect()];
    // The second is about to close: its state is none that moves.
    home.1.connections[1].stream().shutdown(std::net::Shutdown::Write).unwrap();
    let why = home.does(1, Stop);
    assert!(why.contains("ESTABLISHED"), "{why}");
    assert_eq!(home.1.connections.len(), 2);
    assert!(home.0.blob.is_empty());
    drop(clients);
}

#[test]
fn moves_are_forgotten_when_they_are_over() {
    let mut home = Home::new();
    let _client = home.connect();
    assert_eq!(home.does(0, Stop), "prepared");
    for number in 1..1000 {
        home.does(number, if number % 2 == 0 { Prepare } else { Free });
    }
    assert!(home.2.moves.len() <= MOST_REMEMBERED && home.2.order.len() <= MOST_REMEMBERED);
    // But not one that is not.
    assert_eq!(home.does(0, Continue), "done");
    assert_eq!(home.1.connections.len(), 1);
}
