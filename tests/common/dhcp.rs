//! Servers of `vmm dhcp`, and hosts that others are reached from, for tests.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::program;

/// What takes longer hangs, however slow the host.
const HANG: Duration = Duration::from_secs(60);

/// A host: a network namespace with one interface, on the bridge of this one.
pub struct Host(Child);

impl Host {
    /// One whose interface is `name` on the bridge `bridge` of this namespace.
    pub fn new(bridge: &str, name: &str, address: Option<&str>) -> Self {
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
        ip(&[&["link", "add", name, "type", "veth"], &peer[..]].concat());
        ip(&["link", "set", name, "master", bridge, "up"]);
        if let Some(address) = address {
            host.run("ip", &["addr", "add", address, "dev", "eth0"]);
        }
        host.run("ip", &["link", "set", "eth0", "up"]);
        host
    }

    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(program);
        command
    }

    /// Runs it there; panics if it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    /// The address that a client gets here; `None` if nobody answers it.
    pub fn ask(&self) -> Option<String> {
        let words = ["-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", "/bin/true"];
        let output = self.command("udhcpc").args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let (_, rest) = said.split_once("lease of ")?;
        Some(rest.split_whitespace().next()?.trim_end_matches(',').to_owned())
    }
}

/// A process that is ended with the test.
pub struct Served(pub Child);

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

/// Serves the addresses 10.9.0.10 to 10.9.0.99 at `interface`, with its state below `folder`; `addresses` are its
/// own and that of the other server.
pub fn serve(
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
pub fn leases(folder: &Path, address: &str) -> Value {
    let mut command = Command::new(program());
    command.args(["dhcp", "leases", "--json", "--state"]).arg(folder.join(address));
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until `condition` holds.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < HANG, "never {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}
