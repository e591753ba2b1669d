//! What VMs' networks are made of on the host: interfaces, bridges, address translation. No guest runs;
//! each test has a network namespace of its own, in a process of its own, as root of a user namespace where
//! it is not root anyhow.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod bridge;
mod dhcp;
mod given;
mod nat;

use std::os::fd::AsFd;
use std::process::Command;

use devices::virtio::net::mac::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use vmm::net::{Attachment, NetError, Network};
use vmm::spec::net::NetSpec;

/// Set in the process that a test runs in.
const INSIDE: &str = "VMM_TEST_NAMESPACE";

/// Runs `test`, which is the one called `name`, in a namespace of its own.
fn isolated(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return test();
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--net").arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(program: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(program, arguments)).unwrap()
}

/// How many interfaces of VMs there are.
fn taps() -> usize {
    run("ip", &["-br", "link"]).lines().filter(|line| line.starts_with("vmtap")).count()
}

fn open(spec: &str, name: &str) -> Result<Attachment, NetError> {
    let spec: NetSpec = spec.parse().unwrap();
    vmm::net::open(&spec, name).map(|attachment| attachment.expect("a network"))
}

/// A VM's end of its cable, without its device before it: what it can do if that did not look.
struct Bare {
    tap: std::fs::File,
    network: Network,
}

impl Bare {
    fn open(spec: &str, name: &str) -> Self {
        let (tap, network) = open(spec, name).unwrap().into_parts();
        Self { tap: tap.into(), network }
    }

    fn send(&self, destination: [u8; 6], source: [u8; 6], kind: u16, content: &[u8]) {
        let mut frame = vec![0; 12];
        frame.extend(destination);
        frame.extend(source);
        frame.extend(kind.to_be_bytes());
        frame.extend(content);
        assert_eq!(rustix::io::write(&self.tap, &frame).unwrap(), frame.len());
    }

    /// Whether a frame with `mark` in it comes; what comes besides is passed over.
    fn hears(&self, mark: &[u8], wait: bool) -> bool {
        let mut buffer = vec![0; 70_000];
        loop {
            while let Ok(length) = rustix::io::read(&self.tap, &mut buffer) {
                if buffer[..length].windows(mark.len()).any(|part| part == mark) {
                    return true;
                }
            }
            let timeout = Timespec { tv_sec: if wait { 60 } else { 0 }, tv_nsec: 0 };
            let tap = self.tap.as_fd();
            if poll(&mut [PollFd::new(&tap, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                return false;
            }
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.network.device.mac.octets()
    }
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<MacAddress>().unwrap().octets()
}
