//! Networks of namespaces, and servers as processes in them.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dhcp::mirror::replica::Stage;
use dhcp::mirror::session::Secret;
use dhcp::serve::{Options, Report, Server, ask};
use dhcp::settings::{Settings, Told};

/// How long anything may take that should take a moment.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace: that of a thread, which is gone with it.
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, work) = channel::<Job>();
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            // SAFETY: only this thread is elsewhere, and it has no file descriptors of its own.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("network namespaces need root");
            let thread = rustix::thread::gettid();
            tell.send(format!("/proc/self/task/{}/ns/net", thread.as_raw_nonzero())).unwrap();
            for job in work {
                job();
            }
        });
        let path = told.recv().unwrap().replace("self", &std::process::id().to_string());
        Self { jobs: Some(jobs), thread: Some(thread), path: path.into() }
    }

    /// Has `what` done there.
    pub fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = Box::new(move || drop(tell.send(what())));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().unwrap()
    }

    pub fn ip(&self, words: &str) {
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let status = self.run(move || Command::new("ip").args(&words).status().unwrap());
        assert!(status.success());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A bridge with ports, each of which leads into a namespace with an interface `eth0`.
pub struct Network {
    pub hosts: Vec<Namespace>,
    _hub: Namespace,
}

/// The secret of all tests' mirrors.
const SECRET: &[u8] = b"of these tests";

impl Network {
    /// `count` hosts; host n has 10.77.0.n+2.
    pub fn new(count: usize) -> Self {
        let hub = Namespace::new();
        hub.ip("link add br0 type bridge forward_delay 0");
        hub.ip("link set br0 up");
        let host = |number: usize| {
            let host = Namespace::new();
            hub.ip(&format!("link add p{number} type veth peer name q{number}"));
            hub.ip(&format!("link set q{number} netns {}", host.path.display()));
            hub.ip(&format!("link set p{number} master br0 up"));
            host.ip(&format!("link set q{number} name eth0"));
            host.ip(&format!("link set eth0 address 02:77:00:00:00:{:02x} up", number + 2));
            host.ip(&format!("address add 10.77.0.{}/16 dev eth0", number + 2));
            host.ip("link set lo up");
            host
        };
        Self { hosts: (0..count).map(host).collect(), _hub: hub }
    }
}

/// What the tests' servers serve.
pub fn settings() -> Settings {
    Settings {
        subnet: "10.77.0.0/16".parse().unwrap(),
        ranges: vec!["10.77.1.0-10.77.40.255".parse().unwrap()],
        identity: [10, 77, 0, 1].into(),
        lease_seconds: 3600,
        told: Told {
            router: Some([10, 77, 0, 1].into()),
            dns: vec![[10, 77, 0, 1].into()],
            domain: Some("example".into()),
            mtu: Some(1450),
            ..Told::default()
        },
        relays: Vec::new(),
        most_per_port: 100_000,
    }
}

/// Which server to be, in the environment of a process.
const STATE: &str = "DHCP_TEST_STATE";
const LISTEN: &str = "DHCP_TEST_LISTEN";
const MIRRORS: &str = "DHCP_TEST_MIRRORS";
const HOW: &str = "DHCP_TEST_HOW";

/// Is the server that the environment says; returns at once if it says none.
pub fn be_server() {
    let Some(state) = std::env::var_os(STATE).map(PathBuf::from) else { return };
    let word = |name: &str| std::env::var(name).unwrap_or_default();
    let addresses = |name: &str| -> Vec<SocketAddr> {
        word(name).split(',').filter(|w| !w.is_empty()).map(|w| w.parse().unwrap()).collect()
    };
    let records = state.join("records.json");
    let options = Options {
        interface: "eth0".into(),
        settings: settings(),
        records: records.exists().then_some(records),
        state,
        mirrors: addresses(MIRRORS),
        listen: addresses(LISTEN).first().copied(),
        secret: Some(Secret::new(SECRET)),
        first: word(HOW).contains("first"),
        alone: word(HOW).contains("alone"),
        sync: word(HOW).contains("sync"),
    };
    Server::new(options).unwrap().run(&AtomicBool::new(false)).unwrap();
}

/// A server as a process.
pub struct Node {
    child: Child,
    state: PathBuf,
}

impl Node {
    /// Runs this program again with `words`, which have it call [`be_server`].
    pub fn start(
        host: &Namespace,
        number: u8,
        state: &Path,
        how: &str,
        all: u8,
        words: &[&str],
    ) -> Self {
        let address = |number: u8| format!("{}:6767", Ipv4Addr::new(10, 77, 0, number + 2));
        let mirrors: Vec<_> = (0..all).filter(|other| *other != number).map(address).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(words.iter().map(OsString::from)).stdin(Stdio::null()).stdout(Stdio::null());
        command.env(STATE, state).env(HOW, how).env(MIRRORS, mirrors.join(","));
        if all > 1 {
            command.env(LISTEN, address(number));
        }
        let child = host.run(move || command.spawn().unwrap());
        Self { child, state: state.to_owned() }
    }

    pub fn report(&self) -> Option<Report> {
        ask(&self.state).ok()
    }

    /// Waits until it is at `stage`, and has `mirrors` if it serves.
    pub fn wait_for(&self, stage: Stage, mirrors: usize) -> Report {
        let start = Instant::now();
        loop {
            if let Some(report) = self.report()
                && report.stage == stage
                && report.mirrors.len() >= mirrors
            {
                return report;
            }
            assert!(start.elapsed() < PATIENCE, "no {stage:?}: {:?}", self.report());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
