//! Open vSwitch, with daemons and a folder of its own for each test.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long a daemon may take to begin.
const BEGINNING: Duration = Duration::from_secs(60);

/// What forwards frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// The daemon itself, whatever the kernel has.
    User,
    /// The kernel's.
    Kernel,
}

/// The two daemons, with a bridge.
pub struct Daemons {
    folder: PathBuf,
    /// The folder, if it is to go with them.
    own: Option<TempDir>,
    datapath: Datapath,
    database: Child,
    switch: Child,
}

impl Daemons {
    /// In this thread's network namespace, with a bridge of this name, which has what `settings` says besides.
    pub fn start(datapath: Datapath, bridge: &str, settings: &str) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut this = Self::start_in(own.path(), datapath, bridge, settings);
        this.own = Some(own);
        this
    }

    /// The same in a folder, which stays.
    pub fn start_in(folder: &Path, datapath: Datapath, bridge: &str, settings: &str) -> Self {
        let folder = folder.to_owned();
        let path = |name: &str| folder.join(name).display().to_string();
        let (content, socket) = (path("conf.db"), path("db.sock"));
        run(command(&folder, "ovsdb-tool").args(["create", &content, SCHEMA]));
        let mut database = command(&folder, "ovsdb-server");
        let database = database.arg(format!("--remote=punix:{socket}")).arg(&content).spawn();
        wait_for(Path::new(&socket));
        let switch = spawn_switch(&folder, datapath);
        let database = database.unwrap();
        let this = Self { folder, own: None, datapath, database, switch };
        this.control("--no-wait init");
        let kind = if datapath == Datapath::User { "netdev" } else { "system" };
        this.control(&format!(
            "add-br {bridge} -- set bridge {bridge} datapath_type={kind} {settings}"
        ));
        wait_for(Path::new(&this.path(&format!("{bridge}.mgmt"))));
        this
    }

    /// A command of Open vSwitch in its folder.
    pub fn command(&self, program: &str) -> Command {
        command(&self.folder, program)
    }

    /// Its folder, that of the sockets too (`OVS_RUNDIR`).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file of its folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Has `ovs-vsctl` do something.
    pub fn control(&self, words: &str) {
        let socket = format!("--db=unix:{}", self.path("db.sock"));
        let mut command = self.command("ovs-vsctl");
        run(command.args([&socket, "--timeout=60"]).args(words.split_whitespace()));
    }

    /// Has `ovs-ofctl` do something with a bridge; what it says.
    pub fn flows(&self, bridge: &str, verb: &str, words: &[&str]) -> String {
        let socket = format!("unix:{}", self.path(&format!("{bridge}.mgmt")));
        let mut command = self.command("ovs-ofctl");
        let output = command.args([verb, &socket]).args(words).stdout(Stdio::piped()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "ovs-ofctl {verb} {words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether the daemon has its bridge.
    pub fn has(&self, bridge: &str) -> bool {
        let socket = format!("unix:{}", self.path(&format!("{bridge}.mgmt")));
        self.command("ovs-ofctl").args(["show", &socket]).status().unwrap().success()
    }

    /// Kills the daemon that forwards, or has the kernel do so.
    pub fn kill_switch(&mut self) {
        self.switch.kill().unwrap();
        self.switch.wait().unwrap();
    }

    /// Starts it again.
    pub fn start_switch(&mut self) {
        self.switch = spawn_switch(&self.folder, self.datapath);
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in [&mut self.switch, &mut self.database] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn command(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(name, folder);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let status = command.status().expect("Open vSwitch is installed (scripts/setup test)");
    assert!(status.success(), "{command:?}");
}

fn spawn_switch(folder: &Path, datapath: Datapath) -> Child {
    let mut switch = command(folder, "ovs-vswitchd");
    if datapath == Datapath::User {
        switch.arg("--disable-system");
    }
    switch.arg(format!("unix:{}", folder.join("db.sock").display())).spawn().unwrap()
}

fn wait_for(path: &Path) {
    let until = Instant::now() + BEGINNING;
    while !path.exists() {
        assert!(Instant::now() < until, "{} is there", path.display());
        sleep(Duration::from_millis(5));
    }
}
