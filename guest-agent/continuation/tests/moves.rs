//! Live connections move back and forth, and no byte is wrong, lost or doubled.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::clients::{Client, Load};
use common::network::{SERVICE, SERVICE6};
use common::{Homes, repeats};

fn moves(load: Load, service: &str) {
    let mut homes = Homes::new();
    let client = Client::start(homes.connect(service.parse().unwrap()), load);
    for number in 0..repeats(40, 200) {
        assert!(client.goes_on(256), "it stands still before move {number}");
        homes.try_move().unwrap();
        assert!(client.goes_on(256), "it stands still after move {number}");
    }
    assert!(client.finish().unwrap() > 0);
}

#[test]
fn ping_pong() {
    moves(Load::PingPong, SERVICE);
}

#[test]
fn paced() {
    moves(Load::Paced, SERVICE);
}

#[test]
fn bulk() {
    moves(Load::Bulk, SERVICE);
}

#[test]
fn ipv6() {
    moves(Load::Paced, SERVICE6);
}
