//! Open vSwitch, with a daemon and a folder of its own for each test.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vswitch::bridge::{links, netlink::Route};
use vswitch::ovs::{OvsSwitch, Rest, Role};
use vswitch::sys;

use crate::rig::{Guest, PATIENCE, Rig, TapGuest};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// The two daemons.
pub struct Daemons {
    folder: TempDir,
    /// The database's, and the one that forwards.
    pub children: Vec<Child>,
}

impl Daemons {
    /// A command of Open vSwitch in its folder.
    pub fn command(&self, program: &str) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(program);
        for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(name, folder);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).status();
        let status = status.expect("Open vSwitch is installed (scripts/setup test)");
        assert!(status.success(), "{program} {arguments:?}");
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn wait_for(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        while !Path::new(&self.path(name)).exists() {
            assert!(Instant::now() < until, "{name} is there");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn start() -> Self {
        let mut daemons = Self { folder: tempfile::tempdir().unwrap(), children: Vec::new() };
        let database = daemons.path("conf.db");
        daemons.run("ovsdb-tool", &["create", &database, SCHEMA]);
        let socket = daemons.path("db.sock");
        let remote = format!("--remote=punix:{socket}");
        let child = daemons.command("ovsdb-server").args([&remote, &database]).spawn().unwrap();
        daemons.children.push(child);
        daemons.wait_for("db.sock");
        daemons.start_switch();
        daemons.control("--no-wait init");
        daemons.control("add-br sw0 -- set bridge sw0 datapath_type=netdev fail_mode=secure");
        daemons.wait_for("sw0.mgmt");
        daemons
    }

    pub fn start_switch(&mut self) {
        let mut command = self.command("ovs-vswitchd");
        // Without the kernel's datapath: what is forwarded is forwarded in the daemon.
        command.args(["--disable-system", &format!("unix:{}", self.path("db.sock"))]);
        self.children.push(command.spawn().unwrap());
    }

    pub fn control(&self, words: &str) {
        let socket = format!("--db=unix:{}", self.path("db.sock"));
        let mut arguments = vec![socket.as_str(), "--timeout=20"];
        arguments.extend(words.split(' '));
        self.run("ovs-vsctl", &arguments);
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Within a namespace.
pub fn rig() -> Rig {
    fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let daemons = Daemons::start();
    let switch = OvsSwitch::open(Path::new(&daemons.path("sw0.mgmt")), Rest::Dropped).unwrap();
    let mut route = Route::open().unwrap();
    let (mut taps, mut ports) = (Vec::new(), Vec::new());
    for number in 1..=3 {
        let (tap, name) = sys::tap("guest%d").unwrap();
        let index = links::named(&mut route, &name).unwrap().unwrap().index;
        links::up(&mut route, index).unwrap();
        daemons.control(&format!(
            "add-port sw0 {name} -- set interface {name} ofport_request={number}"
        ));
        let copy = tap.try_clone().unwrap();
        ports.push(switch.attach(&name, number, Role::Guest(Some(copy)), None).unwrap());
        taps.push(tap);
    }
    // A number that OpenFlow has for no port: Open vSwitch refuses the flow, not the port.
    let gone = switch.attach("guest0", 0xffff_ff10, Role::Guest(None), None).unwrap();
    let boxed = |tap: OwnedFd| -> Box<dyn Guest> { Box::new(TapGuest(tap)) };
    Rig {
        switch: Box::new(switch),
        ports,
        guests: taps.into_iter().map(boxed).collect(),
        gone,
        counts_spoofed: false,
        counts_held: false,
        counts_overflow: true,
        settle: Duration::from_millis(50),
        _keep: Some(Box::new(daemons)),
    }
}
