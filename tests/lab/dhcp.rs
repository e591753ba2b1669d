//! Guests that get their addresses from `vmm dhcp`, by the client that their user space has.

use std::process::Command;

use super::endpoint::isolated;
use crate::common::agent::Agent;
use crate::common::dhcp::{Host, leases, serve, wait};
use crate::common::ramdisk::push_script;
use crate::common::{Bench, program};

/// The addresses that a guest said it was given, in their order.
fn given(console: &str) -> Vec<String> {
    let said = console.lines().filter_map(|line| line.trim().strip_prefix("net: "));
    said.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn guests_have_their_addresses_from_a_server_and_keep_them_when_its_mirror_goes_on() {
    isolated(|| {
        let bench = Bench::new();
        // Asks as one that has just booted does, again and again.
        push_script(&bench, "asks", "while :; do netup; sleep 2; done\n", &[]);
        for words in ["addr add 10.9.0.1/24 dev br77", "link set br77 up"] {
            super::endpoint::ip(words);
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("secret"), "not known to anybody").unwrap();
        let other = Host::new("br77", "other0", Some("10.9.0.2/24"));
        let own = Command::new(program());
        let mut server = serve(own, &["--first"], folder, "br77", ["10.9.0.1", "10.9.0.2"]);
        let addresses = ["10.9.0.2", "10.9.0.1"];
        let _mirror = serve(other.command(program()), &[], folder, "eth0", addresses);
        wait("a mirror", || leases(folder, "10.9.0.1")["reached"] == 1);
        let agent = Agent::with(bench, &[]);
        let names = ["one", "two"];
        for name in names {
            agent.boot(name, "asks", &["--net", "bridge=br77", "--memory", "256M"]);
        }
        let of = |name: &str| given(&agent.console(name));
        agent.wait_until("addresses for all", |_| names.iter().all(|name| !of(name).is_empty()));
        let first = names.map(|name| of(name)[0].clone());
        assert_ne!(first[0], first[1]);
        assert!(first.iter().all(|address| address.starts_with("10.9.0.")), "{first:?}");
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        let before = names.map(|name| of(name).len());
        // One answer may have been on its way.
        agent.wait_until("answers of the mirror", |_| {
            names.iter().zip(before).all(|(name, before)| of(name).len() > before + 1)
        });
        for (name, first) in names.iter().zip(&first) {
            assert!(of(name).iter().all(|address| address == first), "{:?}", of(name));
        }
        let report = leases(folder, "10.9.0.2");
        assert!(report["epoch"].as_u64() > Some(1), "{report}");
    });
}
