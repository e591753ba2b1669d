//! The two sides of a move agree, whatever fails between them; and a side that lies does no harm.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::Homes;
use common::clients::{Client, Load};
use common::network::{Lab, SERVICE};
use common::server::Order;
use common::single::{own, pair};
use common::switch::TestRoute;
use continuation::mover::{Arrived, Destination, Limits, MoverError, Route, Source};
use continuation::repair;
use continuation::state::ConnectionState;
use proptest::prelude::*;

/// A route of which one step fails.
struct Failing(TestRoute, &'static str);

impl Failing {
    fn step(&mut self, name: &str, step: fn(&mut TestRoute) -> io::Result<()>) -> io::Result<()> {
        if self.1 == name { Err(io::ErrorKind::TimedOut.into()) } else { step(&mut self.0) }
    }
}

impl Route for Failing {
    fn hold(&mut self) -> io::Result<()> {
        self.step("hold", TestRoute::hold)
    }

    fn drain(&mut self) -> io::Result<()> {
        self.step("drain", TestRoute::drain)
    }

    fn seal(&mut self) -> io::Result<()> {
        self.step("seal", TestRoute::seal)
    }

    fn point(&mut self) -> io::Result<()> {
        self.step("point", TestRoute::point)
    }

    fn release(&mut self) -> io::Result<()> {
        self.step("release", TestRoute::release)
    }

    fn revert(&mut self) -> io::Result<()> {
        self.0.revert()
    }
}

#[test]
fn whatever_step_fails_the_connections_run_at_the_source_and_move_when_asked_again() {
    let mut homes = Homes::new();
    let service = SERVICE.parse().unwrap();
    let clients =
        [Load::Paced, Load::PingPong].map(|load| Client::start(homes.connect(service), load));
    for step in ["hold", "drain", "seal", "point"] {
        for _ in 0..common::repeats(3, 20) {
            assert!(clients.iter().all(|client| client.goes_on(256)), "before {step}");
            let route = TestRoute::new(&homes.lab, homes.at, 1 - homes.at);
            let error = homes.move_by(Box::new(Failing(route, step))).unwrap_err();
            assert!(error.contains("timed out"), "{error}");
            assert!(!homes.lab.switch.is_holding());
            assert_eq!(homes.lab.switch.home(), homes.at);
            assert!(clients.iter().all(|client| client.goes_on(256)), "after {step}");
        }
        homes.try_move().unwrap();
    }
    // After its commit a move is not undone: what is held goes on when the hold ends.
    let route = TestRoute::new(&homes.lab, homes.at, 1 - homes.at);
    let route = route.with_patience(Duration::from_millis(300));
    homes.move_by(Box::new(Failing(route, "release"))).unwrap_err();
    homes.at = 1 - homes.at;
    assert!(clients.iter().all(|client| client.goes_on(256)), "after release");
    for client in clients {
        client.finish().unwrap();
    }
}

#[test]
fn a_destination_that_refuses_or_is_not_there_leaves_all_at_the_source() {
    let mut homes = Homes::new();
    let client = Client::start(homes.connect(SERVICE.parse().unwrap()), Load::Paced);
    assert!(client.goes_on(256));
    for connects in [false, true] {
        let (reply, replied) = std::sync::mpsc::channel();
        let connect = move || match UnixStream::pair() {
            // Nobody is at the other end.
            Ok((ours, _)) if connects => Ok(ours),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        };
        let route = TestRoute::new(&homes.lab, 0, 1);
        homes.tell(0, Order::Move(Box::new(connect), Box::new(route), reply));
        replied.recv().unwrap().unwrap_err();
        assert!(client.goes_on(256));
    }
    homes.try_move().unwrap();
    assert!(client.goes_on(256));
    client.finish().unwrap();

    let mut homes = Homes::new();
    let client = Client::start(homes.connect("10.7.0.100:7009".parse().unwrap()), Load::Paced);
    assert!(client.goes_on(256));
    let error = homes.try_move().unwrap_err();
    assert!(error.contains("port 7009 does not move here"), "{error}");
    assert!(client.goes_on(256));
    client.finish().unwrap();
}

/// A destination at the second home, by itself.
struct Side {
    destination: Arc<Destination>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl Side {
    fn new(patience: Duration) -> Self {
        let limits = Limits { patience, connections: 4, bytes: 1 << 20, ..Limits::default() };
        let policy = |_: &ConnectionState| Ok(());
        let destination = Arc::new(Destination::new(own(), limits, Box::new(policy)));
        Self { destination, arrived: Arc::default() }
    }

    fn connect(&self, lab: &Lab) -> UnixStream {
        let (ours, mut its) = UnixStream::pair().unwrap();
        let (destination, arrived) = (Arc::clone(&self.destination), Arc::clone(&self.arrived));
        let namespace = lab.homes[1].another();
        thread::spawn(move || {
            namespace.enter();
            let _ = destination.serve(&mut its, &mut |all| arrived.lock().unwrap().extend(all));
        });
        ours
    }
}

/// A stream of which nothing can be read.
struct Deaf(UnixStream);

impl Read for Deaf {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl Write for Deaf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A frozen connection, with the network ready for its move; and its client.
fn frozen(lab: &Lab) -> (Source<TcpStream>, TcpStream, TestRoute) {
    let (mut client, server) = pair(lab, SERVICE, true);
    client.write_all(b"unread").unwrap();
    server.peek(&mut [0; 6]).unwrap();
    let mut route = TestRoute::new(lab, 0, 1);
    route.hold().unwrap();
    route.drain().unwrap();
    let frozen = lab.homes[0].run(|| repair::freeze(server, &own())).unwrap();
    route.seal().unwrap();
    (Source::new(vec![(frozen, Vec::new())]), client, route)
}

fn echoes(client: &mut TcpStream, mut server: TcpStream) {
    let mut bytes = [0; 6];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"unread");
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
}

#[test]
fn what_is_asked_again_over_another_stream_is_done_once() {
    let (lab, side) = (Lab::new(), Side::new(Duration::from_secs(10)));
    let (mut source, mut client, mut route) = frozen(&lab);
    assert!(source.commit(&mut side.connect(&lab)).is_err(), "nothing was offered");
    assert!(!source.is_undecided());
    source.offer(&mut Deaf(side.connect(&lab))).unwrap_err();
    source.offer(&mut side.connect(&lab)).unwrap();
    source.offer(&mut side.connect(&lab)).unwrap();
    route.point().unwrap();
    source.commit(&mut Deaf(side.connect(&lab))).unwrap_err();
    assert!(source.is_undecided());
    source.commit(&mut side.connect(&lab)).unwrap();
    source.commit(&mut side.connect(&lab)).unwrap();
    assert!(!source.is_undecided());
    route.release().unwrap();
    assert!(source.abort(&mut side.connect(&lab)).is_empty(), "it is there");
    let arrived = side.arrived.lock().unwrap().pop().unwrap();
    assert!(side.arrived.lock().unwrap().is_empty(), "it has arrived once");
    echoes(&mut client, arrived.socket.into());
}

#[test]
fn a_decision_that_comes_too_late_is_taken_back() {
    let (lab, side) = (Lab::new(), Side::new(Duration::from_millis(50)));
    let (mut source, mut client, mut route) = frozen(&lab);
    source.offer(&mut side.connect(&lab)).unwrap();
    thread::sleep(Duration::from_millis(100));
    let error = source.commit(&mut side.connect(&lab)).unwrap_err();
    assert!(matches!(error, MoverError::Refused(_)), "{error}");
    assert!(!source.is_undecided());
    let server = source.abort(&mut side.connect(&lab)).pop().unwrap();
    route.revert().unwrap();
    echoes(&mut client, server);
}

#[test]
fn a_destination_that_has_lived_anew_does_not_give_a_connection_back() {
    let (lab, side) = (Lab::new(), Side::new(Duration::from_secs(10)));
    let (mut source, _client, _route) = frozen(&lab);
    source.offer(&mut side.connect(&lab)).unwrap();
    let another = Side::new(Duration::from_secs(10));
    let error = source.commit(&mut another.connect(&lab)).unwrap_err();
    assert!(matches!(error, MoverError::Forgotten(_)), "{error}");
    assert!(source.is_undecided());
    // Its first life may have started it: it is not to run here as well.
    assert!(source.abort(&mut another.connect(&lab)).is_empty());
}

#[test]
fn a_connection_that_is_offered_anew_replaces_what_was_offered() {
    let (lab, side) = (Lab::new(), Side::new(Duration::from_secs(10)));
    let (mut source, mut client, mut route) = frozen(&lab);
    source.offer(&mut side.connect(&lab)).unwrap();
    // The destination does not hear of the end.
    let server = source.abort(&mut Deaf(UnixStream::pair().unwrap().0)).pop().unwrap();
    let frozen = lab.homes[0].run(|| repair::freeze(server, &own())).unwrap();
    let mut source = Source::new(vec![(frozen, Vec::new())]);
    source.offer(&mut side.connect(&lab)).unwrap();
    route.point().unwrap();
    source.commit(&mut side.connect(&lab)).unwrap();
    route.release().unwrap();
    let arrived = side.arrived.lock().unwrap().pop().unwrap();
    echoes(&mut client, arrived.socket.into());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Neither side panics, waits for ever, or believes it.
    #[test]
    fn whatever_the_other_side_says(
        kind in 0..11_u8, body in proptest::collection::vec(any::<u8>(), 0..100), raw in any::<bool>(),
    ) {
        let mut bytes = vec![kind];
        if !raw {
            bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        }
        bytes.extend(body);
        let side = Side::new(Duration::from_secs(1));
        let mut stream = io::Cursor::new(bytes);
        let _ = side.destination.serve(&mut stream, &mut |_| panic!("nothing can arrive"));
        let mut source: Source<TcpStream> = Source::new(Vec::new());
        stream.set_position(0);
        prop_assert!(source.offer(&mut stream).is_err());
        prop_assert!(!source.is_undecided());
    }
}
