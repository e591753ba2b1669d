//! The helper has `CAP_NET_ADMIN` and nothing else; who asks it has nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use common::clients::{Client, Load};
use common::network::{Lab, SERVICE};
use common::single::pair;
use common::{Homes, repeats};
use continuation::helper::Helper;
use continuation::privilege::{Mode, Privilege};
use continuation::repair::{self, RepairError};
use rustix::thread::{CapabilitySet, CapabilitySets};

const PROGRAM: &str = env!("CARGO_BIN_EXE_continuation-helper");

/// This thread may nothing any more that not everybody may.
fn renounce() {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// The lines about capabilities of the processes that this one has started and that are the helper.
fn capabilities_of_helpers() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = format!("PPid:\t{}\n", std::process::id());
        // Names are cut to 15 bytes.
        if status.starts_with("Name:\tcontinuation-he\n") && status.contains(&parent) {
            found.push(
                status
                    .lines()
                    .filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"))
                    .map(|line| line.replace('\t', " "))
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn a_server_without_privilege_moves_its_clients_with_the_helpers() {
    let lab = Lab::new();
    // The helper is in the network of a home, as it would be in a guest's.
    let helper = lab.homes[0].run(|| Helper::start(Path::new(PROGRAM)).unwrap());
    let helper: Arc<dyn Privilege> = Arc::new(helper);
    let mut homes = Homes::with(&helper, lab);
    let client = Client::start(homes.connect(SERVICE.parse().unwrap()), Load::Paced);
    for _ in 0..repeats(10, 100) {
        assert!(client.goes_on(256));
        homes.try_move().unwrap();
    }
    assert!(client.goes_on(256));
    client.finish().unwrap();
}

#[test]
fn it_keeps_one_capability_and_its_client_needs_none() {
    let lab = Lab::new();
    let (mut client, server) = pair(&lab, SERVICE, true);
    let helper = lab.homes[0].run(|| Helper::start(Path::new(PROGRAM)).unwrap());
    let helper: Arc<dyn Privilege> = Arc::new(helper);
    let own: Arc<dyn Privilege> = Arc::new(continuation::privilege::Own);
    let server = lab.homes[0].run(move || {
        renounce();
        let (server, error) = repair::freeze(server, &own).unwrap_err();
        assert!(matches!(error, RepairError::Privilege { .. }), "{error}");
        let frozen = repair::freeze(server, &helper).unwrap();
        let alone = "CapPrm: 0000000000001000";
        let found = capabilities_of_helpers();
        assert!(found.iter().any(|lines| lines.iter().any(|line| line == alone)), "{found:?}");
        for lines in &found {
            for (name, value) in [
                ("CapInh", "0000000000000000"),
                ("CapEff", "0000000000001000"),
                ("CapBnd", "0000000000001000"),
                ("CapAmb", "0000000000000000"),
                ("NoNewPrivs", "1"),
            ] {
                assert!(lines.contains(&format!("{name}: {value}")), "{name}: {lines:?}");
            }
        }
        // What is no TCP socket it does not touch, and broken requests do not end it.
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(helper.repair(udp.as_fd(), Mode::On).is_err());
        frozen.thaw().unwrap().unwrap()
    });
    client.write_all(b"on").unwrap();
    let mut answer = [0; 2];
    (&server).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"on");
}

#[test]
fn it_serves_who_may_connect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("helper");
    let mut child = std::process::Command::new(PROGRAM).arg("--listen").arg(&path).spawn().unwrap();
    let since = std::time::Instant::now();
    let helper = loop {
        match Helper::connect(&path) {
            Ok(helper) => break helper,
            Err(error) => assert!(since.elapsed() < std::time::Duration::from_secs(10), "{error}"),
        }
        thread::sleep(std::time::Duration::from_millis(5));
    };
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = helper.buffers(udp.as_fd(), 1, 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPROTOTYPE));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    child.kill().unwrap();
    child.wait().unwrap();
}
