use std::fs::File;
use std::process::Command;
use std::thread;

use proptest::prelude::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;
use crate::directory::conformance::{home, name, open};
use crate::directory::local::LocalDirectory;
use crate::frames::Segment;
use crate::frames::packet::Interface;
use crate::range::Form;

const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

struct World {
    directory: Arc<dyn Directory>,
    cache: Cache,
}

impl World {
    fn new() -> Self {
        let directory: Arc<dyn Directory> = Arc::new(LocalDirectory::new(Vec::new()).unwrap());
        let cache = Cache::new(&*directory).unwrap();
        Self { directory, cache }
    }

    fn server(&self, frames: Box<dyn Frames>, owner: &str) -> Server {
        let lease = open(&*self.directory, owner);
        Server::new(frames, Arc::clone(&self.directory), lease, home(&format!("{owner}/p")))
    }

    fn client(&self, frames: Box<dyn Frames>) -> Client {
        Client::new(frames, self.cache.clone())
    }

    fn wait_for(&self, count: usize) {
        assert!(self.cache.wait(PATIENCE, |cache| cache.list().len() == count));
    }
}

fn port(segment: &Segment, number: u8) -> Box<dyn Frames> {
    Box::new(segment.port([2, 0, 0, 0, 0, number]))
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

/// A request and its answer.
fn talk(client: &Client, server: &Server, vid: Vid) {
    let token = client.bind(vid).unwrap();
    client.send(token, b"how are you?").unwrap();
    let peer = server.accept(PATIENCE).unwrap().unwrap();
    assert_eq!(peer.vid, vid);
    assert_eq!(server.recv(peer, PATIENCE).unwrap().unwrap(), b"how are you?");
    server.send(peer, b"well").unwrap();
    assert_eq!(client.recv(token, PATIENCE).unwrap().unwrap(), b"well");
    client.close(token);
    assert!(matches!(client.send(token, b""), Err(SocketError::NoToken(_))));
}

#[test]
fn clients_reach_who_listens_to_what_they_have_resolved() {
    let (world, segment) = (World::new(), Segment::default());
    let (one, other) = (world.server(port(&segment, 1), "a"), world.server(port(&segment, 2), "b"));
    let client = world.client(port(&segment, 3));
    assert!(matches!(client.resolve(&pattern("kv"), 7), Err(SocketError::Unknown(_))));
    let whole = Range::whole(Form::Prefix, &name("kv"));
    let (low, high) = whole.split(1 << 23).unwrap();
    one.announce(&name("kv"), &[low]).unwrap();
    other.announce(&name("kv"), &[high]).unwrap();
    world.wait_for(2);
    for request in [0, 1 << 22, (1 << 23) - 1, 1 << 23, (1 << 24) - 1, 1 << 24, u64::MAX] {
        let vid = client.resolve(&pattern("kv"), request).unwrap();
        let server = if low.contains(vid) { &one } else { &other };
        talk(&client, server, vid);
    }
    // Each was handed only what is its own.
    assert!(one.accept(SHORT).unwrap().is_none() && other.accept(SHORT).unwrap().is_none());

    // Another listens to it now: the token stays.
    let token = client.bind(low.first()).unwrap();
    let records: Vec<_> = world.cache.list().into_iter().map(|entry| entry.record).collect();
    one.listen(Vec::new());
    other.listen(records);
    client.send(token, b"again").unwrap();
    let peer = other.accept(PATIENCE).unwrap().unwrap();
    other.send(peer, b"here").unwrap();
    assert_eq!(client.recv(token, PATIENCE).unwrap().unwrap(), b"here");
    assert!(matches!(client.send(token, &[0; MOST_BYTES + 1]), Err(SocketError::TooLong(_))));
    client.send(token, &[7; MOST_BYTES]).unwrap();
    assert_eq!(other.recv(peer, PATIENCE).unwrap().unwrap(), b"again");
    assert_eq!(other.recv(peer, PATIENCE).unwrap().unwrap(), [7; MOST_BYTES]);
}

#[test]
fn what_is_announced_is_withdrawn() {
    let (world, segment) = (World::new(), Segment::default());
    let server = world.server(port(&segment, 1), "a");
    server.announce(&name("kv.a"), &[Range::whole(Form::Suffix, &name("kv.a"))]).unwrap();
    world.wait_for(1);
    assert!(world.client(port(&segment, 2)).resolve(&pattern("kv.*"), 5).is_ok());
    server.withdraw().unwrap();
    world.wait_for(0);
    server.withdraw().unwrap();
}

/// A network namespace with a pair of interfaces, which end with it.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let this = Self(format!("endpoint-{}", std::process::id()));
        ip(&["netns", "add", &this.0]);
        ip(&["-n", &this.0, "link", "add", "left", "type", "veth", "peer", "name", "right"]);
        ip(&["-n", &this.0, "link", "set", "left", "up"]);
        ip(&["-n", &this.0, "link", "set", "right", "up"]);
        this
    }

    /// This thread is in it from now on.
    fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

#[test]
fn interfaces_carry_them() {
    let namespace = Namespace::new();
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            namespace.enter();
            assert!(Interface::open("missing").is_err());
            let world = World::new();
            let server = world.server(Box::new(Interface::open("left").unwrap()), "a");
            let client = world.client(Box::new(Interface::open("right").unwrap()));
            server.announce(&name("kv"), &[Range::whole(Form::Prefix, &name("kv"))]).unwrap();
            world.wait_for(1);
            for request in 0..100 {
                talk(&client, &server, client.resolve(&pattern("kv"), request << 16).unwrap());
            }
            assert!(server.accept(SHORT).unwrap().is_none());
        });
        inside.join().unwrap();
    });
}

proptest! {
    #[test]
    fn no_frame_is_too_odd(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Datagram::read(&frame);
    }

    #[test]
    fn what_is_written_is_read(destination: [u8; 6], source: [u8; 6], number: u16, data: Vec<u8>, fill in 0..60usize) {
        let mut frame = Datagram::write(destination, source, number, &data).unwrap();
        frame.extend(vec![0; fill]);
        let read = Datagram::read(&frame).unwrap();
        prop_assert_eq!((read.destination, read.source, read.number, read.data), (destination, source, number, data));
        frame.truncate(HEAD - 1);
        prop_assert!(Datagram::read(&frame).is_none());
    }
}
