//! A switch beside a model of it, under random requests.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vswitch::{Change, Hold, Limit, SwitchError};

use crate::rig::{PATIENCE, Rig, own, vid};

/// How many identifiers there are, and how many frames a hold has room for.
const VIDS: u16 = 4;
const ROOM: u32 = 3;

#[derive(Clone, Debug)]
enum Request {
    Change(Change),
    Sync(Vec<Change>),
    Hold(u16, usize, u64),
    Release(u16, u64),
    Cancel(u16, u64),
    Send(u16),
}

/// What a request is made of: its kind, changes (kind, identifier, port), identifier, port, owner.
type Drawn = (u8, Vec<(u8, u16, usize)>, u16, usize, u64);

/// Port 3 is one that is gone.
fn change() -> impl Strategy<Value = (u8, u16, usize)> {
    (0..3_u8, 0..VIDS, prop_oneof![9 => 0..3_usize, 1 => Just(3)])
}

fn request() -> impl Strategy<Value = Drawn> {
    (0..12_u8, proptest::collection::vec(change(), 1..6), 0..VIDS, 0..3_usize, 0..2_u64)
}

#[derive(Clone, Default)]
struct Model {
    homes: BTreeMap<u16, usize>,
    held: BTreeMap<u16, (usize, u64, VecDeque<u32>)>,
    /// What guests are to receive.
    due: BTreeMap<usize, VecDeque<u32>>,
    unknown: u64,
    overflow: u64,
}

impl Model {
    fn change(&mut self, kind: u8, vid: u16, port: usize) -> bool {
        if self.held.contains_key(&vid) {
            return false;
        }
        let known = self.homes.contains_key(&vid);
        match kind {
            0 if !known && port < 3 => _ = self.homes.insert(vid, port),
            1 if known && port < 3 => _ = self.homes.insert(vid, port),
            2 if known => _ = self.homes.remove(&vid),
            _ => return false,
        }
        true
    }

    fn send(&mut self, vid: u16, content: u32) {
        let Some(home) = self.homes.get(&vid) else {
            self.unknown += 1;
            return;
        };
        match self.held.get_mut(&vid) {
            Some((_, _, frames)) if frames.len() == ROOM as usize => self.overflow += 1,
            Some((_, _, frames)) => frames.push_back(content),
            // It would be sent back to who has sent it.
            None if *home == 0 => {}
            None => self.due.entry(*home).or_default().push_back(content),
        }
    }

    fn end(&mut self, vid: u16, owner: u64, commit: bool) -> Option<usize> {
        let (to, _, _) = self.held.get(&vid).filter(|(_, by, _)| *by == owner)?;
        let to = *to;
        let (_, _, frames) = self.held.remove(&vid)?;
        if commit {
            self.homes.insert(vid, to);
        }
        let home = self.homes[&vid];
        self.due.entry(home).or_default().extend(frames);
        Some(home)
    }
}

fn check(requests: Vec<Drawn>) {
    let mut rig = Rig::user();
    rig.settle_guests();
    let mut model = Model::default();
    let ports = [rig.ports.clone(), vec![rig.gone]].concat();
    let changed = |(kind, number, port): (u8, u16, usize)| {
        let (vid, port) = (vid(number), ports[port]);
        match kind {
            0 => Change::Add { vid, port },
            1 => Change::Update { vid, port },
            _ => Change::Delete { vid },
        }
    };
    for (content, (kind, changes, number, port, owner)) in (0..).zip(requests) {
        let content: u32 = content;
        let request = match kind {
            0 => Request::Change(changed(changes[0])),
            1 | 2 => Request::Sync(changes.iter().copied().map(changed).collect()),
            3 | 4 => Request::Hold(number, port, owner),
            5 => Request::Release(number, owner),
            6 => Request::Cancel(number, owner),
            _ => Request::Send(number),
        };
        match request {
            Request::Change(change) => {
                let (kind, vid, port) = changes[0];
                let done = match change {
                    Change::Add { vid, port } => rig.switch.add(vid, port),
                    Change::Update { vid, port } => rig.switch.update(vid, port).map(|_| ()),
                    Change::Delete { vid } => rig.switch.delete(vid).map(|_| ()),
                };
                assert_eq!(done.is_ok(), model.change(kind, vid, port), "{done:?}");
            }
            Request::Sync(batch) => {
                let mut next = model.clone();
                let wrong =
                    changes.iter().position(|(kind, vid, port)| !next.change(*kind, *vid, *port));
                match (rig.switch.sync(&batch), wrong) {
                    (Ok(()), None) => model = next,
                    (Err(error), Some(wrong)) => assert_eq!(error.index, wrong, "{error}"),
                    (done, wrong) => panic!("{done:?}, but the model says {wrong:?}"),
                }
            }
            Request::Hold(number, port, owner) => {
                let limit = Limit { frames: ROOM, ..Limit::default() };
                let deadline = Instant::now() + PATIENCE;
                let hold = Hold { owner, to: ports[port], deadline, limit };
                let can = model.homes.contains_key(&number) && !model.held.contains_key(&number);
                assert_eq!(rig.switch.hold(vid(number), hold).is_ok(), can);
                if can {
                    model.held.insert(number, (port, owner, VecDeque::new()));
                }
            }
            Request::Release(number, owner) | Request::Cancel(number, owner) => {
                let commit = matches!(request, Request::Release(..));
                let done = if commit {
                    rig.switch.release(vid(number), owner)
                } else {
                    rig.switch.cancel(vid(number), owner)
                };
                match (done, model.end(number, owner, commit)) {
                    (Ok(home), Some(wanted)) => assert_eq!(home, ports[wanted]),
                    (Err(error), None) => assert!(matches!(
                        error,
                        SwitchError::NotHeld(_)
                            | SwitchError::Held { .. }
                            | SwitchError::Unknown(_)
                    )),
                    (done, wanted) => panic!("{done:?}, but the model says {wanted:?}"),
                }
            }
            Request::Send(number) => {
                rig.send(0, vid(number), content);
                model.send(number, content);
                // A frame and a request lie in different queues: the mark says that the frame is through.
                let mut through = rig.switch.mark(rig.ports[0]).unwrap();
                let marker = loop {
                    let frame = rig.guests[0].receive(PATIENCE).unwrap();
                    if let Some(answer) = vswitch::mark::answer(&frame) {
                        break answer;
                    }
                    let due = model.due.entry(0).or_default();
                    assert_eq!(due.pop_front(), Some(crate::rig::content(&frame)));
                };
                rig.guests[0].send(&marker);
                assert!(through.passed(PATIENCE).unwrap());
            }
        }
        let flows: BTreeMap<_, _> =
            rig.switch.flows().into_iter().map(|flow| (flow.vid, flow)).collect();
        assert_eq!(flows.len(), model.homes.len() + 3);
        for (number, home) in &model.homes {
            let flow = flows[&vid(*number)];
            let moving = model.held.get(number).map(|(to, owner, _)| (ports[*to], *owner));
            assert_eq!((flow.home, flow.moving), (ports[*home], moving));
        }
    }
    for (guest, due) in model.due {
        for content in due {
            assert_eq!(rig.receive(guest), content);
        }
        assert!(rig.guests[guest].receive(Duration::ZERO).is_none());
    }
    let statistics = rig.switch.statistics().unwrap();
    assert_eq!(statistics.unknown, Some(model.unknown));
    assert_eq!(statistics.overflow, Some(model.overflow));
    assert_eq!(statistics.stale, Some(0));
    assert_eq!(rig.switch.delete(own(0)).unwrap(), ports[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        if std::env::var_os("VMM_TEST_LONG").is_some() { 2_000 } else { 100 }
    ))]

    #[test]
    fn a_switch_does_as_its_model(requests in proptest::collection::vec(request(), 1..60)) {
        check(requests);
    }
}
