//! The agent as a service: it says when it is ready, and ends without its VMs.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::agent::{Agent, HANG};

#[test]
fn the_service_manager_is_told_and_vms_outlive_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    let told = || {
        let mut text = [0; 64];
        let count = manager.recv(&mut text).unwrap();
        String::from_utf8(text[..count].to_vec()).unwrap()
    };
    let mut agent = Agent::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(told(), "READY=1");
    agent.hold("web");
    let pid = |agent: &Agent| agent.get("/v1/vms/web").json()["pid"].as_u64();
    let before = pid(&agent);
    // Who listens is told that it is over.
    let mut stream = agent.connect();
    let request = b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n";
    std::io::Write::write_all(&mut stream, request).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 15]).unwrap();
    agent.end();
    assert_eq!(told(), "STOPPING=1");
    std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
    assert!(!agent.socket().exists());
    agent.start_again(&[], |_| {});
    assert!(before.is_some() && pid(&agent) == before);
    assert!(agent.text(&["ps"]).contains("ready"));
}

#[test]
fn a_socket_that_a_killed_agent_left_is_taken_over_and_one_in_use_is_not() {
    let agent = Agent::start(&[]);
    let second = agent.vmm(&["node"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert_eq!(agent.get("/v1/health").status, 200);
}

/// The unit is one that systemd takes, where systemd is.
#[test]
fn the_unit_is_valid() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/systemd/vmm-node.service");
    let text = std::fs::read_to_string(unit).unwrap();
    for line in ["Type=notify", "KillMode=process", "OOMPolicy=continue"] {
        assert!(text.lines().any(|found| found == line), "no {line}");
    }
    // It looks for the program too.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("vmm-node.service");
    std::fs::write(&copy, text.replace("/usr/bin/vmm", "/bin/true")).unwrap();
    let Ok(output) =
        Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&copy).output()
    else {
        eprintln!("there is no systemd-analyze here: the unit is not verified");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // It warns of other units of this host too.
    assert!(!said.contains("vmm-node.service"), "{said}");
    assert!(output.status.success(), "{said}");
}
