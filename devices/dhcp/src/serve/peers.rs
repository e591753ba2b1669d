//! The streams to the other servers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use crate::mirror::session::{Heard, Intro, Secret, Session, SessionError};
use crate::mirror::{Message, Node};
use crate::table::Millis;

/// How long to wait before a server is dialled again, in milliseconds.
const REDIAL_MILLIS: Millis = 200;
/// How long a stream may be silent, in milliseconds: whoever serves speaks ten times a second, and is answered.
const SILENT_MILLIS: Millis = 3000;
/// The most streams that nobody is known to be at the end of.
const MOST_UNKNOWN: usize = 16;
/// The most bytes that wait for a server that does not take them.
const MOST_WAITING: usize = 256 << 20;
const READ_BYTES: usize = 64 << 10;
/// The most that is read of one stream before others have their turn, in bytes.
const TURN_BYTES: usize = 4 << 20;

/// What happens to streams.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// A server can be reached.
    Up(Node),
    /// It cannot any more.
    Down(Node),
    /// It said something.
    Said(Node, Message),
}

struct Stream {
    tcp: TcpStream,
    session: Session,
    /// Which of the addresses it was dialled at.
    dialled: Option<usize>,
    node: Option<Node>,
    connecting: bool,
    heard: Millis,
}

struct Dial {
    address: SocketAddr,
    /// Who was there.
    node: Option<Node>,
    at: Millis,
    /// What was said of it last, so that it is not said again.
    said: Option<String>,
}

/// All streams.
pub(super) struct Peers {
    me: Node,
    secret: Secret,
    settings: [u8; 32],
    listener: Option<TcpListener>,
    dials: Vec<Dial>,
    streams: BTreeMap<u64, Stream>,
    next: u64,
    buffer: Vec<u8>,
}

impl Peers {
    pub(super) fn new(
        me: Node,
        secret: Secret,
        settings: [u8; 32],
        listener: Option<TcpListener>,
        mirrors: &[SocketAddr],
    ) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        let dial = |address: &SocketAddr| Dial { address: *address, node: None, at: 0, said: None };
        Ok(Self {
            me,
            secret,
            settings,
            listener,
            dials: mirrors.iter().map(dial).collect(),
            streams: BTreeMap::new(),
            next: 0,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// What to wait for, and by which number it is told that it has come.
    pub(super) fn polled(&mut self) -> Vec<(u64, BorrowedFd<'_>, PollFlags)> {
        let mut polled = Vec::new();
        if let Some(listener) = &self.listener {
            polled.push((u64::MAX, listener.as_fd(), PollFlags::IN));
        }
        for (number, stream) in &mut self.streams {
            let mut flags = PollFlags::IN;
            if stream.connecting || !stream.session.outbox().is_empty() {
                flags |= PollFlags::OUT;
            }
            polled.push((*number, stream.tcp.as_fd(), flags));
        }
        polled
    }

    /// Something has come that was waited for.
    pub(super) fn ready(
        &mut self,
        number: u64,
        flags: PollFlags,
        group: u64,
        now: Millis,
    ) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        if number == u64::MAX {
            self.accept(group, now);
            return events;
        }
        let Some(mut stream) = self.streams.remove(&number) else { return events };
        let mut result = Ok(());
        if stream.connecting {
            if !flags.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                self.streams.insert(number, stream);
                return events;
            }
            result = match stream.tcp.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(error)) | Err(error) => Err(error.to_string()),
            };
            stream.connecting = false;
        }
        if result.is_ok() && flags.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP) {
            result = self.read(&mut stream, now, &mut events);
        }
        if result.is_ok() {
            result = write(&mut stream);
        }
        match result {
            Ok(()) => {
                self.streams.insert(number, stream);
            }
            Err(reason) => self.lose(&stream, &reason, now, &mut events),
        }
        events
    }

    fn read(
        &mut self,
        stream: &mut Stream,
        now: Millis,
        events: &mut Vec<PeerEvent>,
    ) -> Result<(), String> {
        let mut turn = 0;
        while turn < TURN_BYTES {
            let length = match stream.tcp.read(&mut self.buffer) {
                Ok(0) => return Err("it has closed the connection".into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            turn += length;
            stream.heard = now;
            stream.session.receive(self.buffer.get(..length).unwrap_or_default());
            while let Some(heard) = stream.session.hear().map_err(|error| error.to_string())? {
                match (heard, stream.node) {
                    (Heard::Peer(node), _) => self.meet(stream, node, events)?,
                    (Heard::Message(message), Some(node)) => {
                        events.push(PeerEvent::Said(node, message));
                    }
                    (Heard::Message(_), None) => return Err(SessionError::Form.to_string()),
                }
            }
        }
        Ok(())
    }

    /// Somebody is known now. Of two streams with the same, both ends keep the one that the smaller has dialled.
    fn meet(
        &mut self,
        stream: &mut Stream,
        node: Node,
        events: &mut Vec<PeerEvent>,
    ) -> Result<(), String> {
        if let Some(dial) = stream.dialled.and_then(|number| self.dials.get_mut(number)) {
            (dial.node, dial.said) = (Some(node), None);
        }
        let of_smaller = |dialled: bool| dialled == (self.me < node);
        let other = self.streams.iter().find(|(_, other)| other.node == Some(node));
        if let Some((number, other)) = other {
            let number = *number;
            // Of two from the same side, the first has died and does not know it yet.
            let keep_other = of_smaller(other.dialled.is_some())
                && other.dialled.is_some() != stream.dialled.is_some();
            if keep_other {
                return Err("there is a connection already".into());
            }
            self.streams.remove(&number);
            events.push(PeerEvent::Down(node));
        }
        stream.node = Some(node);
        log::info!("server {node:016x} is there");
        events.push(PeerEvent::Up(node));
        Ok(())
    }

    fn lose(&mut self, stream: &Stream, reason: &str, now: Millis, events: &mut Vec<PeerEvent>) {
        if let Some(node) = stream.node {
            log::info!("server {node:016x} is gone: {reason}");
            events.push(PeerEvent::Down(node));
        }
        if let Some(dial) = stream.dialled.and_then(|number| self.dials.get_mut(number)) {
            dial.at = now + REDIAL_MILLIS;
            if dial.said.as_deref() != Some(reason) {
                log::warn!("no mirror at {}: {reason}", dial.address);
                dial.said = Some(reason.to_owned());
            }
        }
    }

    fn accept(&mut self, group: u64, now: Millis) {
        let Some(listener) = &self.listener else { return };
        let Ok((tcp, from)) = listener.accept() else { return };
        let unknown = self.streams.values().filter(|stream| stream.node.is_none()).count();
        if unknown >= MOST_UNKNOWN || tcp.set_nonblocking(true).is_err() {
            log::debug!("{from} is not listened to: too many are not known yet");
            return;
        }
        self.add(tcp, None, false, group, now);
    }

    fn add(
        &mut self,
        tcp: TcpStream,
        dialled: Option<usize>,
        connecting: bool,
        group: u64,
        now: Millis,
    ) {
        let _ = tcp.set_nodelay(true); // it is only slower without
        let intro = Intro { group, settings: self.settings };
        let Ok(nonce) = super::random() else { return };
        let session = Session::new(self.me, dialled.is_some(), nonce, self.secret.clone(), intro);
        let stream = Stream { tcp, session, dialled, node: None, connecting, heard: now };
        self.streams.insert(self.next, stream);
        self.next += 1;
    }

    /// Dials those that are not there, and gives up streams on which nothing is heard.
    pub(super) fn tick(&mut self, group: u64, now: Millis) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        let silent: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| now >= stream.heard + SILENT_MILLIS)
            .map(|(number, _)| *number)
            .collect();
        for number in silent {
            if let Some(stream) = self.streams.remove(&number) {
                self.lose(&stream, "nothing is heard of it", now, &mut events);
            }
        }
        for number in 0..self.dials.len() {
            let Some(dial) = self.dials.get_mut(number) else { continue };
            let there = self.streams.values().any(|stream| {
                stream.dialled == Some(number)
                    || (stream.node.is_some() && stream.node == dial.node)
            });
            if there || now < dial.at {
                continue;
            }
            dial.at = now + REDIAL_MILLIS;
            match dial_to(dial.address) {
                Ok(tcp) => self.add(tcp, Some(number), true, group, now),
                Err(error) => log::debug!("no mirror at {}: {error}", dial.address),
            }
        }
        events
    }

    /// Says `message` to `node`, if it is there.
    pub(super) fn send(&mut self, node: Node, message: Message) {
        let stream = self.streams.values_mut().find(|stream| stream.node == Some(node));
        if let Some(stream) = stream {
            stream.session.send(message);
        }
    }

    /// Writes what was said as far as it goes at once.
    pub(super) fn flush(&mut self, now: Millis) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        let numbers: Vec<_> = self.streams.keys().copied().collect();
        for number in numbers {
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            if stream.connecting {
                continue;
            }
            if let Err(reason) = write(stream)
                && let Some(stream) = self.streams.remove(&number)
            {
                self.lose(&stream, &reason, now, &mut events);
            }
        }
        events
    }
}

fn write(stream: &mut Stream) -> Result<(), String> {
    let outbox = stream.session.outbox();
    let mut written = 0;
    while let Some(left) = outbox.get(written..).filter(|left| !left.is_empty()) {
        match stream.tcp.write(left) {
            Ok(length) => written += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    outbox.drain(..written);
    if outbox.len() > MOST_WAITING {
        Err("it does not take what it is told".into())
    } else {
        Ok(())
    }
}

fn dial_to(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
