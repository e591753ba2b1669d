//! Machines as network namespaces without names: when the last of their threads and files is gone, so are they.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::switch::Switch;

/// Of the endpoint, wherever its home is.
pub const MAC: [u8; 6] = [0x0e, 0x53, 0, 0, 0, 1];
pub const SERVICE: &str = "10.7.0.100:7000";
pub const SERVICE6: &str = "[fd07::100]:7000";

pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let make = || {
            // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::spawn(make).join().unwrap()
    }

    pub fn another(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    /// This thread, and processes that it starts, are there from now on.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs the lines of `batch` by ip(8).
    pub fn ip(&self, batch: &str) {
        self.run(|| {
            let mut ip = Command::new("ip");
            let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
            assert!(ip.wait().unwrap().success(), "{batch}");
        });
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A client, and two homes with the same addresses, at a switch that leads to one of them.
pub struct Lab {
    pub client: Namespace,
    pub homes: [Namespace; 2],
    pub switch: Arc<Switch>,
}

impl Lab {
    pub fn new() -> Self {
        let middle = Namespace::new();
        let client = Namespace::new();
        let homes = [Namespace::new(), Namespace::new()];
        let [a, b] = &homes;
        for (port, namespace) in [("client", &client), ("home0", a), ("home1", b)] {
            middle.ip(&format!(
                "link add name {port} type veth peer name eth netns {}\n\
                 link set {port} up",
                namespace.path(),
            ));
        }
        client.ip("link set eth address 0e:53:ff:00:00:01\naddr add 10.7.0.1/24 dev eth\n\
             addr add fd07::1/64 dev eth nodad\nlink set eth up\nlink set lo up\n\
             neigh replace 10.7.0.100 lladdr 0e:53:00:00:00:01 dev eth nud permanent\n\
             neigh replace fd07::100 lladdr 0e:53:00:00:00:01 dev eth nud permanent");
        for home in &homes {
            home.ip("link set eth address 0e:53:00:00:00:01\naddr add 10.7.0.100/24 dev eth\n\
                 addr add fd07::100/64 dev eth nodad\nlink set eth up\nlink set lo up\n\
                 neigh replace 10.7.0.1 lladdr 0e:53:ff:00:00:01 dev eth nud permanent\n\
                 neigh replace fd07::1 lladdr 0e:53:ff:00:00:01 dev eth nud permanent");
        }
        let switch = Switch::start(&middle, &homes);
        Self { client, homes, switch }
    }
}
