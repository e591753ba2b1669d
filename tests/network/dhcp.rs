//! `vmm dhcp`: a server, its mirror on another host, and a client that others wrote.

use std::path::Path;
use std::process::Command;

use crate::common::dhcp::{Host, leases, serve, wait};
use crate::common::program;
use crate::{isolated, run};

#[test]
fn a_client_keeps_its_address_when_the_server_is_killed_and_its_mirror_goes_on() {
    let name = "dhcp::a_client_keeps_its_address_when_the_server_is_killed_and_its_mirror_goes_on";
    isolated(name, || {
        run("ip", &["link", "add", "br0", "type", "bridge"]);
        run("ip", &["addr", "add", "10.9.0.1/24", "dev", "br0"]);
        run("ip", &["link", "set", "br0", "up"]);
        let other = Host::new("br0", "other0", Some("10.9.0.2/24"));
        let client = Host::new("br0", "client0", None);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("secret"), "not known to anybody").unwrap();
        let own = Command::new(program());
        let mut server = serve(own, &["--first"], folder, "br0", ["10.9.0.1", "10.9.0.2"]);
        let addresses = ["10.9.0.2", "10.9.0.1"];
        let _mirror = serve(other.command(program()), &[], folder, "eth0", addresses);
        wait("a mirror", || leases(folder, "10.9.0.1")["reached"] == 1);
        let address = client.ask().expect("an address");
        assert!(address.starts_with("10.9.0."), "{address}");
        let there = |folder: &Path, server: &str| {
            let report = leases(folder, server);
            let all = report["leases"].as_array().cloned().unwrap_or_default();
            all.iter().any(|lease| lease["address"] == address.as_str())
        };
        assert!(there(folder, "10.9.0.1") && there(folder, "10.9.0.2"));
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        wait("taken over", || client.ask().as_deref() == Some(&address));
        assert!(leases(folder, "10.9.0.2")["epoch"].as_u64() > Some(1));
    });
}
