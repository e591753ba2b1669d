//! Guests that a node agent boots, out of its pool.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::Bench;
use crate::common::agent::Agent;
use crate::common::ramdisk::push_script;

/// An agent with the test guest, and the one with 100 MB to check.
fn agent() -> Agent {
    let bench = Bench::new();
    bench.push("small", "vmlinuz", "initrd-small.cpio.gz");
    bench.push("large", "vmlinuz", "initrd-100.cpio");
    Agent::with(bench, &[])
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn guests_that_share_an_image_find_it_whole_whatever_the_others_write() {
    let agent = agent();
    // Both unpack it, which overwrites all of it, and one never gets memory of its own for it.
    agent.boot("one", "large", &[]);
    agent.boot("two", "large", &["--kernel", "map", "--ramdisk", "map"]);
    for name in ["one", "two"] {
        let vm = agent.ended(name);
        let console = agent.console(name);
        assert_eq!(vm["end"]["code"], 0, "{vm} {console}");
        assert!(console.contains("selftest: payload=match"), "{console}");
        assert!(console.contains("selftest: ok"), "{console}");
    }
    assert_eq!((agent.pool("misses"), agent.pool("hits")), (1, 1));
    // It is in the pool as it was.
    agent.boot("three", "large", &[]);
    agent.ended("three");
    assert!(agent.console("three").contains("selftest: payload=match"));
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn guests_run_on_without_an_agent_and_the_next_one_sees_how_they_end() {
    let mut agent = agent();
    agent.boot("hangs", "small", &["--cmdline-append", "selftest.then=hang"]);
    agent.boot("panics", "small", &["--cmdline-append", "selftest.then=panic"]);
    assert_eq!(agent.ended("panics")["end"]["code"], 10);
    agent.wait_until("up", |agent| agent.console("hangs").contains("selftest: ok"));
    agent.boot("powers-off", "small", &[]);
    agent.end(Signal::KILL);
    assert!(!agent.processes().is_empty());
    agent.start_again();
    let vm = agent.ended("powers-off");
    assert_eq!(vm["end"]["reason"], "the guest powered off", "{vm}");
    assert_eq!(agent.in_state("running"), ["hangs"]);
    agent.expect(0, &["stop", "hangs"]);
    let vm = agent.ended("hangs");
    assert_eq!(vm["end"]["reason"], "ended by signal 15", "{vm}");
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_held_vm_begins_when_it_is_told_to_and_its_console_is_at_its_socket() {
    let agent = agent();
    agent.boot("held", "small", &["--hold", "--cmdline-append", "selftest.then=shell"]);
    agent.wait_until("ready", |agent| agent.in_state("ready") == ["held"]);
    assert_eq!(agent.console("held"), "");
    let mut console = UnixStream::connect(agent.vm_folder("held").join("socket")).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    console.write_all(b"console\n").unwrap();
    agent.expect(0, &["start", "held"]);
    let mut seen = String::new();
    let mut until = |console: &mut UnixStream, word: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(word) {
            let count = console.read(&mut buffer).unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    until(&mut console, "selftest: ok");
    console.write_all(b"echo typed $((40 + 2))\n").unwrap();
    until(&mut console, "typed 42");
    // Who comes later sees what was.
    let mut late = UnixStream::connect(agent.vm_folder("held").join("socket")).unwrap();
    late.write_all(b"console\n").unwrap();
    let mut buffer = [0; 4096];
    assert!(late.read(&mut buffer).unwrap() > 0);
    console.write_all(b"poweroff -f\n").unwrap();
    assert_eq!(agent.ended("held")["end"]["code"], 0);
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_guest_of_the_agent_has_its_network_from_within_a_jail_and_outlives_it() {
    let bench = Bench::new();
    let script = "netup\ngateway=$(ip route | awk '$1 == \"default\" { print $3 }')\n\
                  ping -c 1 -W 20 $gateway && echo script: reached\n\
                  while ping -c 1 -W 2 $gateway >/dev/null; do sleep 1; done\n\
                  tries=20\n\
                  until [ $(cat /sys/class/net/eth0/carrier) = 0 ] || [ $((tries -= 1)) = 0 ]; do sleep 1; done\n\
                  echo script: alone, carrier $(cat /sys/class/net/eth0/carrier)\nsleep 600\n";
    push_script(&bench, "netted", script, &[]);
    let agent = Agent::with(bench, &[]);
    agent.boot("web", "netted", &["--net", "nat", "--vsock", "cid=5", "--memory", "256M"]);
    agent.wait_until("reached or dead", |agent| {
        agent.console("web").contains("script: reached") || agent.in_state("running").is_empty()
    });
    assert_eq!(agent.in_state("running"), ["web"], "{} {}", agent.vm("web"), agent.console("web"));
    let pid = agent.vm_pid("web").as_raw_pid();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        assert_eq!(field("Seccomp:"), "2", "{status}");
        assert_eq!((field("CapEff:").trim_matches('0'), field("NoNewPrivs:").as_str()), ("", "1"));
        assert!(!field("Uid:").starts_with("0\t"), "{status}");
    }
    // Somebody takes its interface away: the guest hears nobody any more, sees why, and that is all.
    let tap =
        agent.json(&["inspect", "web", "--json"])["network"]["tap"].as_str().unwrap().to_owned();
    let deleted = Command::new("ip").args(["link", "del", &tap]).status().unwrap();
    assert!(deleted.success(), "{tap}");
    agent.wait_until("alone or dead", |agent| {
        agent.console("web").contains("script: alone, carrier 0")
            || agent.in_state("running").is_empty()
    });
    assert_eq!(agent.in_state("running"), ["web"], "{} {}", agent.vm("web"), agent.console("web"));
    agent.expect(0, &["stop", "web"]);
    assert_eq!(agent.ended("web")["end"]["reason"], "ended by signal 15");
}
