//! A switch that is not ours learns where an identifier is by what is said when it has moved.

use std::process::Command;
use std::time::Instant;

use vswitch::Switch;
use vswitch::bridge::{BridgeSwitch, Role, links, netlink::Route};
use vswitch::sys;

use crate::rig::{PATIENCE, in_namespace, ip, own};

/// By which of its ports the bridge "foreign" reaches the identifier.
fn learned() -> Option<String> {
    let output = Command::new("bridge").args(["fdb", "show", "br", "foreign"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let of_it = |line: &&str| line.starts_with(&own(0).to_string());
    let line = table.lines().find(of_it)?;
    line.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
}

#[test]
fn a_foreign_bridge_learns_where_an_identifier_is_now() {
    in_namespace(|| {
        ip("link add foreign type bridge");
        ip("link set foreign up");
        for host in ["one", "two"] {
            let mut route = Route::open().unwrap();
            let index = links::create_bridge(&mut route, host).unwrap();
            links::up(&mut route, index).unwrap();
            ip(&format!("link add up-{host} type veth peer name to-{host}"));
            ip(&format!("link set to-{host} master foreign up"));
            let switch = BridgeSwitch::open(host).unwrap();
            switch.attach(&format!("up-{host}"), Role::Uplink).unwrap();
            let (_tap, name) = sys::tap("guest%d").unwrap();
            let guest = switch.attach(&name, Role::Guest(None)).unwrap();
            switch.add(own(0), guest).unwrap();
            switch.announce([own(0)].into_iter()).unwrap();
            let begun = Instant::now();
            while learned().as_deref() != Some(&format!("to-{host}")) {
                assert!(begun.elapsed() < PATIENCE, "{:?}", learned());
            }
            switch.delete(own(0)).unwrap();
        }
    });
}
