//! What becomes of a frame: a state machine without descriptors or threads.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::mpsc::Sender;
use std::time::Instant;

use endpoint::vid::Vid;

use super::faults::{Faults, Way};
use crate::frame::{Header, MAX_BYTES};
use crate::mark::{self, Kind};
use crate::switch::{Limit, Statistics};

/// How many marks of one port can be waited for; of more, the oldest is given up.
const MOST_MARKS: usize = 64;

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A guest: it may send by the identifiers that it is the home of, nothing else.
    Guest,
    /// A network: it may send by every address but those whose home is elsewhere.
    Uplink,
}

/// Frames for ports.
pub(super) type Out = Vec<(u32, Vec<u8>)>;

#[derive(Debug)]
struct PortState {
    role: Role,
    muted: bool,
    way: Way,
    /// Marks that are underway, in the order in which they were sent.
    marks: VecDeque<(u64, Sender<()>)>,
}

#[derive(Debug)]
struct Buffer {
    to: u32,
    limit: Limit,
    bytes: u64,
    frames: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Entry {
    home: u32,
    held: Option<Buffer>,
}

#[derive(Debug, Default)]
struct Counts {
    forwarded: u64,
    held: u64,
    holding: u64,
    overflow: u64,
    unknown: u64,
    stale: u64,
    spoofed: u64,
    muted: u64,
    forged: u64,
}

/// The switch, without its descriptors.
#[derive(Debug, Default)]
pub(super) struct Fabric {
    ports: BTreeMap<u32, PortState>,
    flows: HashMap<[u8; 6], Entry>,
    /// Ports to which frames may be underway.
    busy: HashSet<u32>,
    flood: bool,
    counts: Counts,
    /// Frames that ports did not take in time.
    pub(super) congested: u64,
}

impl Fabric {
    pub(super) fn add_port(&mut self, number: u32, role: Role) {
        let way = Way::new(Faults::default());
        let port = PortState { role, muted: false, way, marks: VecDeque::new() };
        self.ports.insert(number, port);
    }

    /// Whether there was one.
    pub(super) fn remove_port(&mut self, number: u32) -> bool {
        self.busy.remove(&number);
        let Some(port) = self.ports.remove(&number) else { return false };
        self.congested += port.way.congested;
        true
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.ports.contains_key(&number)
    }

    /// Whether there is such a port.
    pub(super) fn mute(&mut self, number: u32, muted: bool) -> bool {
        let port = self.ports.get_mut(&number);
        port.map(|port| port.muted = muted).is_some()
    }

    /// Whether there is such a port.
    pub(super) fn set_faults(&mut self, number: u32, faults: Faults) -> bool {
        let port = self.ports.get_mut(&number);
        port.map(|port| port.way.set(faults)).is_some()
    }

    pub(super) fn flood(&mut self, flood: bool) {
        self.flood = flood;
    }

    /// Gives identifiers their homes, or takes them away.
    ///
    /// # Errors
    /// Which has a home that is no port; nothing has changed.
    pub(super) fn point(&mut self, homes: &[(Vid, Option<u32>)]) -> Result<(), (usize, u32)> {
        let wrong = homes.iter().enumerate().find_map(|(index, (_, home))| {
            home.filter(|home| !self.has(*home)).map(|home| (index, home))
        });
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        for (vid, home) in homes {
            match home {
                Some(home) => self.flows.insert(vid.bytes(), Entry { home: *home, held: None }),
                None => self.flows.remove(&vid.bytes()),
            };
        }
        Ok(())
    }

    /// Whether there is such a flow.
    pub(super) fn hold(&mut self, vid: Vid, to: u32, limit: Limit) -> bool {
        let Some(entry) = self.flows.get_mut(&vid.bytes()) else { return false };
        entry.held = Some(Buffer { to, limit, bytes: 0, frames: VecDeque::new() });
        true
    }

    /// Delivers what is held, to where it was to go or where it was.
    pub(super) fn release(&mut self, vid: Vid, commit: bool, now: Instant, out: &mut Out) {
        let Some(entry) = self.flows.get_mut(&vid.bytes()) else { return };
        let Some(buffer) = entry.held.take() else { return };
        if commit {
            entry.home = buffer.to;
        }
        let home = entry.home;
        self.counts.holding -= u64::try_from(buffer.frames.len()).unwrap_or(0);
        for frame in buffer.frames {
            self.deliver(home, frame, now, out);
        }
    }

    /// Sends a mark through a port; whether there is such a port.
    pub(super) fn mark(
        &mut self,
        number: u32,
        nonce: u64,
        seen: Sender<()>,
        now: Instant,
        out: &mut Out,
    ) -> bool {
        let Some(port) = self.ports.get_mut(&number) else { return false };
        if port.marks.len() >= MOST_MARKS {
            port.marks.pop_front();
        }
        port.marks.push_back((nonce, seen));
        let marker = mark::frame(Kind::Mark, nonce);
        if port.way.is_clear() {
            out.push((number, marker));
        } else {
            port.way.send_last(marker, now);
            self.busy.insert(number);
        }
        true
    }

    /// A frame has come out of port `from`.
    pub(super) fn frame(&mut self, from: u32, frame: &[u8], now: Instant, out: &mut Out) {
        let Some(port) = self.ports.get_mut(&from) else { return };
        // What is no frame is nobody's.
        let Some(header) = Header::of(frame).filter(|_| frame.len() <= MAX_BYTES) else {
            self.counts.spoofed += 1;
            return;
        };
        if header.kind == mark::ETHERTYPE {
            let mark = match mark::read(frame) {
                Some((Kind::Answer, nonce)) => port.marks.iter().position(|(own, _)| *own == nonce),
                _ => None,
            };
            match mark.and_then(|place| port.marks.remove(place)) {
                // Who asked may have stopped waiting.
                Some((_, seen)) => _ = seen.send(()),
                None => self.counts.forged += 1,
            }
            return;
        }
        if port.muted {
            self.counts.muted += 1;
            return;
        }
        let role = port.role;
        if !self.may_send(from, role, header.source) {
            self.counts.spoofed += 1;
            return;
        }
        if header.is_group() {
            self.flood_from(from, frame, now, out);
            return;
        }
        match self.flows.get_mut(&header.destination) {
            Some(Entry { held: Some(buffer), .. }) => {
                let bytes = u64::try_from(frame.len()).unwrap_or(u64::MAX);
                let frames = u32::try_from(buffer.frames.len()).unwrap_or(u32::MAX);
                let all = buffer.bytes.saturating_add(bytes);
                if frames >= buffer.limit.frames || all > buffer.limit.bytes {
                    self.counts.overflow += 1;
                    return;
                }
                buffer.bytes = all;
                buffer.frames.push_back(frame.to_vec());
                self.counts.held += 1;
                self.counts.holding += 1;
            }
            // Who sends to itself has it already.
            Some(Entry { home, .. }) if *home == from => {}
            Some(Entry { home, .. }) => {
                let home = *home;
                self.deliver(home, frame.to_vec(), now, out);
            }
            None if self.flood => self.flood_from(from, frame, now, out),
            None => self.counts.unknown += 1,
        }
    }

    fn may_send(&self, from: u32, role: Role, source: [u8; 6]) -> bool {
        match self.flows.get(&source) {
            // In a move both may send: the old home until it stops, the new one as soon as it is not muted.
            Some(entry) => {
                entry.home == from || entry.held.as_ref().is_some_and(|held| held.to == from)
            }
            None => role == Role::Uplink && source[0] & 1 == 0,
        }
    }

    fn flood_from(&mut self, from: u32, frame: &[u8], now: Instant, out: &mut Out) {
        let numbers: Vec<_> = self.ports.keys().copied().filter(|to| *to != from).collect();
        for number in numbers {
            self.deliver(number, frame.to_vec(), now, out);
        }
    }

    fn deliver(&mut self, number: u32, frame: Vec<u8>, now: Instant, out: &mut Out) {
        let Some(port) = self.ports.get_mut(&number) else {
            self.counts.unknown += 1;
            return;
        };
        if port.way.is_clear() {
            self.counts.forwarded += 1;
            out.push((number, frame));
        } else {
            port.way.send(frame, now);
            self.busy.insert(number);
        }
    }

    /// What has arrived at its port by `now`; when to ask again.
    pub(super) fn arrived(&mut self, now: Instant, out: &mut Out) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let Self { ports, busy, flows, counts, .. } = self;
        busy.retain(|number| {
            let Some(port) = ports.get_mut(number) else { return false };
            while let Some(frame) = port.way.arrived(now) {
                let flow = frame.first_chunk().and_then(|vid| flows.get(vid));
                if flow.is_some_and(|flow| flow.home != *number) {
                    // As on a real way: what is underway arrives where it was sent.
                    counts.stale += 1;
                }
                counts.forwarded += 1;
                out.push((*number, frame));
            }
            let due = port.way.next();
            next = next.into_iter().chain(due).min();
            due.is_some()
        });
        next
    }

    pub(super) fn statistics(&self) -> Statistics {
        let Counts { forwarded, held, holding, overflow, unknown, stale, spoofed, muted, forged } =
            self.counts;
        let ways: u64 = self.ports.values().map(|port| port.way.congested).sum();
        Statistics {
            forwarded: Some(forwarded),
            held: Some(held),
            holding: Some(holding),
            overflow: Some(overflow),
            unknown: Some(unknown),
            stale: Some(stale),
            spoofed: Some(spoofed),
            muted: Some(muted),
            forged: Some(forged),
            congested: Some(self.congested + ways),
            ..Statistics::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn fabric() -> Fabric {
        let mut fabric = Fabric::default();
        fabric.add_port(1, Role::Guest);
        fabric.add_port(2, Role::Guest);
        fabric.add_port(3, Role::Uplink);
        let homes = [1, 2].map(|home| (vid(home), Some(u32::from(home))));
        fabric.point(&homes).unwrap();
        fabric
    }

    fn vid(last: u8) -> Vid {
        Vid::new([0x0e, 0, 0, 0, 0, last]).unwrap()
    }

    fn frame(from: u8, to: u8, content: u8) -> Vec<u8> {
        let (destination, source) = (vid(to).bytes(), vid(from).bytes());
        Header { destination, source, kind: 0x88b6 }.frame(&[content])
    }

    #[test]
    fn nobody_sends_as_another() {
        let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
        fabric.frame(2, &frame(1, 2, 0), now, &mut out);
        fabric.frame(3, &frame(1, 2, 0), now, &mut out);
        fabric.frame(1, &frame(9, 2, 0), now, &mut out);
        fabric.frame(1, &[0; 13], now, &mut out);
        assert!(out.is_empty());
        assert_eq!(fabric.counts.spoofed, 4);
        // An address of the network, from the network.
        fabric.frame(3, &frame(9, 2, 0), now, &mut out);
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn in_a_move_the_old_home_goes_on_sending() {
        let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
        fabric.add_port(4, Role::Guest);
        fabric.mute(4, true);
        assert!(fabric.hold(vid(1), 4, Limit::default()));
        fabric.frame(1, &frame(1, 2, 0), now, &mut out);
        fabric.frame(4, &frame(1, 2, 0), now, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(fabric.counts.muted, 1);
        fabric.release(vid(1), true, now, &mut out);
        fabric.frame(1, &frame(1, 2, 0), now, &mut out);
        assert_eq!(fabric.counts.spoofed, 1);
    }

    #[test]
    fn bytes_are_limited_as_frames_are() {
        let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
        fabric.hold(vid(2), 1, Limit { frames: 100, bytes: 40 });
        for content in 0..4 {
            fabric.frame(1, &frame(1, 2, content), now, &mut out);
        }
        assert_eq!((fabric.counts.held, fabric.counts.overflow), (2, 2));
        fabric.release(vid(2), false, now, &mut out);
        let contents: Vec<_> = out.iter().map(|(port, frame)| (*port, frame[14])).collect();
        assert_eq!(contents, [(2, 0), (2, 1)]);
        assert_eq!(fabric.counts.holding, 0);
    }

    #[test]
    fn a_mark_is_answered_once_by_its_own_port() {
        let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
        let (seen, waits) = std::sync::mpsc::channel();
        assert!(fabric.mark(1, 77, seen, now, &mut out));
        assert_eq!(mark::read(&out[0].1), Some((Kind::Mark, 77)));
        let answer = mark::frame(Kind::Answer, 77);
        fabric.frame(2, &answer, now, &mut out);
        fabric.frame(1, &mark::frame(Kind::Answer, 78), now, &mut out);
        assert!(waits.try_recv().is_err());
        fabric.frame(1, &answer, now, &mut out);
        assert!(waits.try_recv().is_ok());
        fabric.frame(1, &answer, now, &mut out);
        assert_eq!(fabric.counts.forged, 3);
        assert_eq!(out.len(), 1, "no marker is forwarded");
    }

    #[test]
    fn what_is_underway_to_a_former_home_is_stale() {
        let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
        let delay = std::time::Duration::from_millis(3);
        fabric.set_faults(2, Faults { delay, ..Faults::default() });
        fabric.frame(1, &frame(1, 2, 0), now, &mut out);
        fabric.point(&[(vid(2), Some(3))]).unwrap();
        assert!(fabric.arrived(now, &mut out).is_some());
        assert!(out.is_empty());
        assert_eq!(fabric.arrived(now + delay, &mut out), None);
        assert_eq!((out.len(), fabric.counts.stale), (1, 1));
    }

    proptest! {
        #[test]
        fn hostile_bytes_reach_nobody_else(
            frames in proptest::collection::vec(
                (1..4_u32, proptest::collection::vec(any::<u8>(), 0..64)), 0..40)
        ) {
            let (mut fabric, mut out, now) = (fabric(), Out::new(), Instant::now());
            for (port, bytes) in &frames {
                fabric.frame(*port, bytes, now, &mut out);
            }
            for (port, bytes) in &out {
                prop_assert!(frames.iter().any(|(from, sent)| from != port && sent == bytes));
            }
        }
    }
}
