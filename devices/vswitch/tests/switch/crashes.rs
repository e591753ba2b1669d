//! What becomes of a move when one of its ends goes without a word.

use std::time::Instant;

use vswitch::bridge::{BridgeSwitch, Role, links, netlink::Route};
use vswitch::user::{self, UserSwitch, channel};
use vswitch::{Hold, Limit, Port, Switch, sys};

use crate::rig::{Guest, PATIENCE, TapGuest, content, frame, in_namespace, own, vid};

fn hold(to: Port) -> Hold {
    Hold { owner: 1, to, deadline: Instant::now() + PATIENCE, limit: Limit::default() }
}

#[test]
fn a_source_that_is_gone_stops_no_move_on_a_bridge() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        let index = links::create_bridge(&mut route, "sw0").unwrap();
        links::up(&mut route, index).unwrap();
        let switch = BridgeSwitch::open("sw0").unwrap();
        let add = || {
            let (tap, name) = sys::tap("guest%d").unwrap();
            (switch.attach(&name, Role::Guest(None)).unwrap(), TapGuest(tap))
        };
        let ((client_port, mut client), (old_port, old), (new_port, mut new)) =
            (add(), add(), add());
        switch.add(own(0), client_port).unwrap();
        switch.add(vid(1), old_port).unwrap();
        switch.hold(vid(1), hold(new_port)).unwrap();
        client.send(&frame(own(0), vid(1), 1));
        drop(old);
        client.send(&frame(own(0), vid(1), 2));
        assert_eq!(switch.release(vid(1), 1).unwrap(), new_port);
        assert_eq!(content(&new.receive(PATIENCE).unwrap()), 1);
        assert_eq!(content(&new.receive(PATIENCE).unwrap()), 2);
        switch.detach(old_port).unwrap();
        assert!(switch.add(vid(2), old_port).is_err());
    });
}

#[test]
fn a_destination_that_is_gone_gives_back_what_was_held() {
    let switch = UserSwitch::start().unwrap();
    let add = || {
        let (line, end) = channel(100).unwrap();
        (switch.add_port(Box::new(line), user::Role::Guest).unwrap(), end)
    };
    let ((client_port, mut client), (old_port, mut old), (new_port, new)) = (add(), add(), add());
    switch.add(own(0), client_port).unwrap();
    switch.add(vid(1), old_port).unwrap();
    switch.hold(vid(1), hold(new_port)).unwrap();
    Guest::send(&mut client, &frame(own(0), vid(1), 1));
    drop(new);
    let until = Instant::now() + PATIENCE;
    while switch.statistics().unwrap().holding != Some(1) || switch.mute(new_port).is_ok() {
        assert!(Instant::now() < until, "the frame is held, and the port is gone");
    }
    assert!(switch.add(vid(2), new_port).is_err());
    assert_eq!(switch.cancel(vid(1), 1).unwrap(), old_port);
    assert_eq!(content(&Guest::receive(&mut old, PATIENCE).unwrap()), 1);
}
