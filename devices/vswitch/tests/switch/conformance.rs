//! What every backend does alike.

use std::thread;
use std::time::{Duration, Instant};

use vswitch::mark::{self, Kind};
use vswitch::{Change, Hold, Limit, Port, SwitchError};

use crate::rig::{PATIENCE, QUIET, Rig, frame, in_namespace, own, vid};

/// The same test for each backend.
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        mod user {
            $(#[test] fn $test() { super::$test(&mut super::Rig::user()) })*
        }
        mod bridge {
            $(#[test] fn $test() {
                super::in_namespace(|| super::$test(&mut super::Rig::bridge()));
            })*
        }
        #[cfg(feature = "ovs")]
        mod ovs {
            $(#[test] fn $test() {
                super::in_namespace(|| super::$test(&mut crate::ovs::rig()));
            })*
        }
    };
}

on_every_backend!(
    frames_reach_their_home_only,
    requests_that_fit_nothing_are_refused,
    a_batch_is_all_or_nothing,
    what_is_held_comes_first_and_in_order,
    what_is_held_goes_back,
    a_hold_ends_at_its_deadline,
    only_its_owner_ends_a_hold,
    a_full_hold_drops_and_counts,
    nobody_hears_who_is_muted,
    a_mark_passes_when_it_is_answered,
    nobody_sends_as_another,
);

fn hold(rig: &Rig, to: usize, time: Duration) -> Hold {
    let limit = Limit::default();
    Hold { owner: 7, to: rig.ports[to], deadline: Instant::now() + time, limit }
}

fn frames_reach_their_home_only(rig: &mut Rig) {
    rig.settle_guests();
    rig.send(0, own(1), 1);
    assert_eq!(rig.receive(1), 1);
    rig.is_quiet(2);
    rig.is_quiet(0);

    let before = rig.switch.statistics().unwrap().unknown.unwrap();
    rig.send(0, vid(1), 2);
    rig.is_quiet(1);
    rig.is_quiet(2);
    rig.switch.flood_unknown(true).unwrap();
    rig.wait();
    rig.send(0, vid(1), 3);
    assert_eq!((rig.receive(1), rig.receive(2)), (3, 3));
    rig.switch.flood_unknown(false).unwrap();
    rig.wait();
    rig.send(0, vid(1), 4);
    rig.is_quiet(1);
    let until = Instant::now() + PATIENCE;
    while rig.switch.statistics().unwrap().unknown.unwrap() - before < 2 {
        assert!(Instant::now() < until, "two frames were unknown");
        thread::sleep(QUIET);
    }
    assert_eq!(rig.switch.statistics().unwrap().unknown.unwrap() - before, 2);

    // Groups are heard by all.
    let mut to_all = frame(own(0), own(1), 5);
    to_all[..6].fill(0xff);
    rig.guests[0].send(&to_all);
    assert_eq!((rig.receive(1), rig.receive(2)), (5, 5));
    rig.is_quiet(0);
}

fn requests_that_fit_nothing_are_refused(rig: &mut Rig) {
    rig.settle_guests();
    let switch = &rig.switch;
    assert!(matches!(switch.add(own(0), rig.ports[1]), Err(SwitchError::Exists { .. })));
    assert!(matches!(switch.update(vid(1), rig.ports[1]), Err(SwitchError::Unknown(_))));
    assert!(matches!(switch.delete(vid(1)), Err(SwitchError::Unknown(_))));
    assert!(matches!(switch.add(vid(1), Port::Local(999_999)), Err(SwitchError::Plane(_))));
    assert!(matches!(switch.mute(Port::Local(999_999)), Err(SwitchError::Plane(_))));
    assert!(switch.mark(Port::Local(999_999)).is_err());
    assert!(matches!(switch.release(own(0), 7), Err(SwitchError::NotHeld(_))));
    assert!(matches!(switch.hold(vid(1), hold(rig, 1, PATIENCE)), Err(SwitchError::Unknown(_))));
    let late = Hold { deadline: Instant::now(), ..hold(rig, 1, PATIENCE) };
    assert!(matches!(switch.hold(own(0), late), Err(SwitchError::Late(_))));
    let limit = Limit { frames: 0, ..Limit::default() };
    let none = Hold { limit, ..hold(rig, 1, PATIENCE) };
    assert!(matches!(switch.hold(own(0), none), Err(SwitchError::NoRoom(_))));
    assert_eq!(switch.update(own(0), rig.ports[0]).unwrap(), rig.ports[0]);
    assert_eq!(switch.delete(own(0)).unwrap(), rig.ports[0]);
    assert_eq!(switch.flows().len(), 2);
}

fn a_batch_is_all_or_nothing(rig: &mut Rig) {
    rig.settle_guests();
    rig.switch.add(vid(1), rig.ports[1]).unwrap();
    rig.switch.add(vid(2), rig.ports[1]).unwrap();
    let before = rig.switch.flows();
    let good = [
        Change::Update { vid: vid(1), port: rig.ports[2] },
        Change::Delete { vid: vid(2) },
        Change::Add { vid: vid(3), port: rig.ports[2] },
        Change::Add { vid: vid(2), port: rig.ports[2] },
    ];
    let bad = Change::Add { vid: vid(4), port: rig.gone };
    for place in 0..=good.len() {
        let mut changes = good.to_vec();
        changes.insert(place, bad);
        let error = rig.switch.sync(&changes).unwrap_err();
        assert_eq!((error.index, error.change), (place, bad), "{error}");
        assert_eq!(error.unrestored, []);
        assert_eq!(rig.switch.flows(), before);
    }
    rig.wait();
    for number in 1..3 {
        rig.send(0, vid(number), u32::from(number));
        assert_eq!(rig.receive(1), u32::from(number));
    }
    rig.send(0, vid(3), 3);
    rig.is_quiet(2);

    rig.switch.sync(&good).unwrap();
    rig.wait();
    for number in 1..4 {
        rig.send(0, vid(number), u32::from(number));
        assert_eq!(rig.receive(2), u32::from(number));
    }
    rig.is_quiet(1);
}

fn what_is_held_comes_first_and_in_order(rig: &mut Rig) {
    rig.settle_guests();
    rig.switch.add(vid(1), rig.ports[1]).unwrap();
    rig.wait();
    rig.send(0, vid(1), 0);
    assert_eq!(rig.receive(1), 0);
    rig.switch.hold(vid(1), hold(rig, 2, PATIENCE)).unwrap();
    rig.wait();
    for number in 1..=100 {
        rig.send(0, vid(1), number);
    }
    rig.is_quiet(1);
    if rig.counts_held {
        let statistics = rig.switch.statistics().unwrap();
        assert_eq!((statistics.held, statistics.holding), (Some(100), Some(100)));
    }
    assert_eq!(rig.switch.release(vid(1), 7).unwrap(), rig.ports[2]);
    for number in 101..=200 {
        rig.send(0, vid(1), number);
    }
    for number in 1..=200 {
        assert_eq!(rig.receive(2), number);
    }
    rig.is_quiet(1);
    assert_eq!(rig.switch.statistics().unwrap().released, 1);
}

fn what_is_held_goes_back(rig: &mut Rig) {
    rig.settle_guests();
    rig.switch.hold(own(1), hold(rig, 2, PATIENCE)).unwrap();
    rig.wait();
    for number in 0..100 {
        rig.send(0, own(1), number);
    }
    // What was sent has been held.
    rig.is_quiet(1);
    assert_eq!(rig.switch.cancel(own(1), 7).unwrap(), rig.ports[1]);
    rig.wait();
    for number in 100..200 {
        rig.send(0, own(1), number);
    }
    for number in 0..200 {
        assert_eq!(rig.receive(1), number);
    }
    rig.is_quiet(2);
    // It goes on as if nothing had been.
    rig.send(1, own(0), 5);
    assert_eq!(rig.receive(0), 5);
}

fn a_hold_ends_at_its_deadline(rig: &mut Rig) {
    rig.settle_guests();
    rig.switch.hold(own(1), hold(rig, 2, Duration::from_millis(300))).unwrap();
    rig.wait();
    rig.send(0, own(1), 1);
    assert_eq!(rig.receive(1), 1);
    // The thread that ends it counts it after the frames have gone.
    let until = Instant::now() + PATIENCE;
    while rig.switch.statistics().unwrap().expired == 0 {
        assert!(Instant::now() < until, "the hold ends");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(rig.switch.release(own(1), 7), Err(SwitchError::NotHeld(_))));
    let flows = rig.switch.flows();
    assert!(flows.iter().all(|flow| flow.moving.is_none()));
    assert_eq!(flows[1].home, rig.ports[1]);
    rig.is_quiet(2);
}

fn only_its_owner_ends_a_hold(rig: &mut Rig) {
    rig.settle_guests();
    let switch = &rig.switch;
    switch.hold(own(1), hold(rig, 2, PATIENCE)).unwrap();
    let other = Hold { owner: 8, ..hold(rig, 2, PATIENCE) };
    let held = |error: SwitchError| matches!(error, SwitchError::Held { owner: 7, .. });
    assert!(held(switch.hold(own(1), other).unwrap_err()));
    assert!(held(switch.release(own(1), 8).unwrap_err()));
    assert!(held(switch.cancel(own(1), 8).unwrap_err()));
    assert!(held(switch.update(own(1), rig.ports[0]).unwrap_err()));
    assert!(held(switch.delete(own(1)).unwrap_err()));
    let error = switch.sync(&[Change::Delete { vid: own(0) }, Change::Delete { vid: own(1) }]);
    assert!(error.is_err_and(|error| error.index == 1 && held(error.source)));
    assert_eq!(switch.flows().len(), 3);
    assert_eq!(switch.release(own(1), 7).unwrap(), rig.ports[2]);
}

fn a_full_hold_drops_and_counts(rig: &mut Rig) {
    rig.settle_guests();
    let limit = Limit { frames: 16, ..Limit::default() };
    let before = rig.switch.statistics().unwrap().overflow;
    rig.switch.hold(own(1), Hold { limit, ..hold(rig, 2, PATIENCE) }).unwrap();
    rig.wait();
    for number in 0..40 {
        rig.send(0, own(1), number);
    }
    rig.is_quiet(1);
    rig.switch.release(own(1), 7).unwrap();
    for number in 0..16 {
        assert_eq!(rig.receive(2), number);
    }
    rig.is_quiet(2);
    if rig.counts_overflow {
        let after = rig.switch.statistics().unwrap().overflow;
        assert_eq!(after.unwrap() - before.unwrap(), 24);
    }
}

fn nobody_hears_who_is_muted(rig: &mut Rig) {
    rig.settle_guests();
    rig.switch.mute(rig.ports[1]).unwrap();
    rig.switch.mute(rig.ports[1]).unwrap();
    rig.wait();
    rig.send(1, own(0), 1);
    rig.is_quiet(0);
    // It hears.
    rig.send(0, own(1), 2);
    assert_eq!(rig.receive(1), 2);
    rig.switch.unmute(rig.ports[1]).unwrap();
    rig.wait();
    rig.send(1, own(0), 3);
    assert_eq!(rig.receive(0), 3);
}

fn a_mark_passes_when_it_is_answered(rig: &mut Rig) {
    rig.settle_guests();
    rig.send(0, own(1), 1);
    // It has gone on its way.
    thread::sleep(QUIET);
    let mut sent = rig.switch.mark(rig.ports[1]).unwrap();
    assert!(!sent.passed(QUIET).unwrap());
    // Whoever knows the nonce, at another port.
    let answer = mark::frame(Kind::Answer, sent.nonce);
    rig.guests[2].send(&answer);
    assert!(!sent.passed(QUIET).unwrap());
    // Another nonce, at the port.
    rig.guests[1].send(&mark::frame(Kind::Answer, sent.nonce ^ 1));
    assert!(!sent.passed(QUIET).unwrap());

    assert_eq!(rig.receive(1), 1);
    let marker = rig.guests[1].receive(PATIENCE).unwrap();
    assert_eq!(mark::read(&marker), Some((Kind::Mark, sent.nonce)));
    rig.switch.mute(rig.ports[1]).unwrap();
    rig.guests[1].send(&mark::answer(&marker).unwrap());
    assert!(sent.passed(PATIENCE).unwrap());
    let forged = rig.switch.statistics().unwrap().forged.unwrap();
    rig.guests[1].send(&answer);
    let until = Instant::now() + PATIENCE;
    while rig.switch.statistics().unwrap().forged.unwrap() == forged {
        assert!(Instant::now() < until, "a replay is counted");
        thread::sleep(Duration::from_millis(1));
    }
    // Nobody else has seen any of it.
    rig.is_quiet(0);
    rig.is_quiet(2);
    let mut next = rig.switch.mark(rig.ports[1]).unwrap();
    assert_ne!(next.nonce, sent.nonce);
    assert!(!next.passed(QUIET).unwrap());
}

fn nobody_sends_as_another(rig: &mut Rig) {
    rig.settle_guests();
    rig.guests[2].send(&frame(own(1), own(0), 1));
    rig.guests[2].send(&frame(vid(77), own(0), 2));
    rig.is_quiet(0);
    if rig.counts_spoofed {
        assert_eq!(rig.switch.statistics().unwrap().spoofed, Some(2));
    }
    rig.send(2, own(0), 3);
    assert_eq!(rig.receive(0), 3);
}
