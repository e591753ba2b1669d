//! `vmm dhcp`: a server, its mirror on another host, and a client that others wrote.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{isolated, run};

/// What takes longer hangs, however slow the host.
const HANG: Duration = Duration::from_secs(60);

/// A host: a network namespace with one interface, on the bridge of this one.
struct Host(Child);

impl Host {
    fn new(name: &str, address: Option<&str>) -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut host = Self(child);
        let mut ready = [0; 6];
        std::io::Read::read_exact(host.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let pid = host.0.id().to_string();
        let peer = ["peer", "name", "eth0", "netns", &pid];
        run("ip", &[&["link", "add", name, "type", "veth"], &peer[..]].concat());
        run("ip", &["link", "set", name, "master", "br0", "up"]);
        if let Some(address) = address {
            host.run("ip", &["addr", "add", address, "dev", "eth0"]);
        }
        host.run("ip", &["link", "set", "eth0", "up"]);
        host
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(program);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    /// The address that a client gets here; `None` if nobody answers it.
    fn ask(&self) -> Option<String> {
        let words = ["-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", "/bin/true"];
        let output = self.command("udhcpc").args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let (_, rest) = said.split_once("lease of ")?;
        Some(rest.split_whitespace().next()?.trim_end_matches(',').to_owned())
    }
}

/// A process that is ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vmm() -> String {
    std::env::var("VMM_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_vmm").into())
}

fn serve(
    mut command: Command,
    more: &[&str],
    folder: &Path,
    interface: &str,
    addresses: [&str; 2],
) -> Served {
    let [own, other] = addresses;
    let (state, secret) = (folder.join(own), folder.join("secret"));
    command.args(["dhcp", "serve", "--interface", interface, "--range", "10.9.0.10-10.9.0.99"]);
    command.args(["--identity", "10.9.0.1", "--listen-mirror", &format!("{own}:6767")]);
    command.args(["--mirror", &format!("{other}:6767")]).arg("--state").arg(state);
    command.args(more).arg("--secret-file").arg(secret).stdin(Stdio::null());
    Served(command.spawn().unwrap())
}

/// What the server whose state is in `folder` says of itself; `Null` if there is none.
fn leases(folder: &Path, address: &str) -> Value {
    let mut command = Command::new(vmm());
    command.args(["dhcp", "leases", "--json", "--state"]).arg(folder.join(address));
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < HANG, "never {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_client_keeps_its_address_when_the_server_is_killed_and_its_mirror_goes_on() {
    let name = "dhcp::a_client_keeps_its_address_when_the_server_is_killed_and_its_mirror_goes_on";
    isolated(name, || {
        run("ip", &["link", "add", "br0", "type", "bridge"]);
        run("ip", &["addr", "add", "10.9.0.1/24", "dev", "br0"]);
        run("ip", &["link", "set", "br0", "up"]);
        let other = Host::new("other0", Some("10.9.0.2/24"));
        let client = Host::new("client0", None);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("secret"), "not known to anybody").unwrap();
        let own = Command::new(vmm());
        let mut server = serve(own, &["--first"], folder, "br0", ["10.9.0.1", "10.9.0.2"]);
        let addresses = ["10.9.0.2", "10.9.0.1"];
        let _mirror = serve(other.command(&vmm()), &[], folder, "eth0", addresses);
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
