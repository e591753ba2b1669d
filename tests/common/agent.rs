//! A node agent of a test's own, and what can be seen of its VMs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Bench, stderr};

/// What takes longer hangs, however slow the host.
pub const HANG: Duration = Duration::from_secs(120);

/// A node agent, and a store with a small image called `small`.
pub struct Agent {
    pub bench: Bench,
    child: Option<Child>,
    options: Vec<String>,
    /// Environment variables that it is started with.
    pub environment: Vec<(String, String)>,
}

/// Whether machines can be made here at all; says so where they cannot.
pub fn has_kvm() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("this host has no KVM, so no agent can be tried");
    }
    there
}

impl Agent {
    /// Starts one with these options; none where there is no KVM.
    pub fn start(options: &[&str]) -> Option<Self> {
        if !has_kvm() {
            return None;
        }
        let bench = Bench::new();
        bench.push("small", "vmlinuz", "initrd-small.cpio.gz");
        Some(Self::with(bench, options))
    }

    /// One for a store that is there.
    pub fn with(bench: Bench, options: &[&str]) -> Self {
        Self::with_environment(bench, options, Vec::new())
    }

    /// The same with these environment variables.
    pub fn with_environment(
        bench: Bench,
        options: &[&str],
        environment: Vec<(String, String)>,
    ) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut agent = Self { bench, child: None, options, environment };
        agent.start_again();
        agent
    }

    /// One that is still to be started, by the command that comes with it, and ended, by who starts it.
    pub fn to_be_started(bench: Bench) -> (Self, Command) {
        let agent = Self { bench, child: None, options: Vec::new(), environment: Vec::new() };
        let command = agent.command();
        (agent, command)
    }

    /// Waits until it answers.
    pub fn answers(&self) {
        self.wait_until("answers", |agent| agent.vmm(&["ps"]).output().unwrap().status.success());
    }

    /// Its folder.
    pub fn run(&self) -> PathBuf {
        self.bench.path().join("run")
    }

    fn socket(&self) -> PathBuf {
        self.run().join("node.sock")
    }

    fn command(&self) -> Command {
        let log = File::create(self.bench.path().join("agent.log")).unwrap();
        let mut command = self.bench.vmm(&["node", "--run-dir"]);
        command.arg(self.run()).args(&self.options).stderr(log).stdout(Stdio::null());
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Starts the agent, which does not run.
    pub fn start_again(&mut self) {
        // A session of its own, as a service has.
        self.child = Some(self.command().spawn().unwrap());
        let begun = Instant::now();
        while !self.vmm(&["ps"]).output().unwrap().status.success() {
            let child = self.child.as_mut().unwrap();
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < HANG, "no agent: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// What the agent has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.bench.path().join("agent.log")).unwrap()
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        // `env`, by which it was started, has become it.
        self.child.as_ref().unwrap().id()
    }

    /// Sends it a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut child = self.child.take()?;
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap().code()
    }

    /// The program, talking to this agent.
    pub fn vmm(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.vmm(arguments);
        command.env("VMM_NODE", format!("unix:{}", self.socket().display()));
        command
    }

    /// Runs it; panics, with what it said, if it does not end with `code`.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.vmm(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), stderr(&output));
        let log = self.log();
        assert_eq!(
            output.status.code(),
            Some(code),
            "vmm {arguments:?}\n--- stdout\n{out}\n--- stderr\n{err}\n--- agent\n{log}"
        );
        output
    }

    /// Runs it and reads the JSON that it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.expect(0, arguments).stdout).unwrap()
    }

    /// Boots so many held VMs of an image, named after `name`.
    pub fn fleet(&self, name: &str, image: &str, count: u32) -> Value {
        self.fleet_of("64M", name, image, count)
    }

    /// As [`fleet`](Self::fleet), with so much RAM each.
    pub fn fleet_of(&self, memory: &str, name: &str, image: &str, count: u32) -> Value {
        let count = count.to_string();
        let words = ["fleet", "boot", "--hold", "--json", "--memory", memory, "--image", image];
        self.json(&[&words[..], &["--name", name, "--count", &count]].concat())
    }

    /// All VMs, as the agent knows them.
    pub fn vms(&self) -> Vec<Value> {
        self.json(&["ps", "--all", "--json"]).as_array().unwrap().clone()
    }

    /// The names of those in a state, in their order.
    pub fn in_state(&self, state: &str) -> Vec<String> {
        let vms = self.vms();
        let named = vms.iter().filter(|vm| vm["state"] == state);
        let mut names: Vec<_> = named.map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// The VM of this name.
    pub fn vm(&self, name: &str) -> Value {
        let vms = self.vms();
        vms.iter().find(|vm| vm["name"] == name).unwrap_or_else(|| panic!("{vms:?}")).clone()
    }

    /// The process of the VM of this name.
    pub fn vm_pid(&self, name: &str) -> Pid {
        let pid = self.vm(name)["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// What the pool has and did.
    pub fn pool(&self, key: &str) -> u64 {
        self.json(&["node", "info", "--json"])[0]["pool"][key].as_u64().unwrap()
    }

    /// Deletes all VMs.
    pub fn remove_all(&self) {
        let vms = self.vms();
        let names: Vec<_> = vms.iter().map(|vm| vm["name"].as_str().unwrap()).collect();
        if !names.is_empty() {
            self.expect(0, &[&["rm", "--force"], names.as_slice()].concat());
        }
    }

    /// Boots a VM of this name; it runs its guest.
    pub fn boot(&self, name: &str, image: &str, arguments: &[&str]) {
        let words = ["boot", "--node", "--detach", "--image", image, "--name", name];
        self.expect(0, &[&words[..], arguments].concat());
    }

    /// Waits for the end of a VM; what is known of it then.
    pub fn ended(&self, name: &str) -> Value {
        self.wait_until("ended", |agent| agent.in_state("ended").iter().any(|vm| vm == name));
        self.vm(name)
    }

    /// The folder of the VM of this name.
    pub fn vm_folder(&self, name: &str) -> PathBuf {
        self.run().join("node/vms").join(self.vm(name)["number"].to_string())
    }

    /// What a VM has printed.
    pub fn console(&self, name: &str) -> String {
        let bytes = fs::read(self.vm_folder(name).join("console")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < HANG, "never {what}: {}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Processes of this agent's VMs, by what they have open: whatever their parents and names are.
    pub fn processes(&self) -> BTreeSet<u32> {
        let vms = self.run().join("node/vms");
        let of_vm = |pid: &u32| {
            let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
            targets.any(|target| target.starts_with(&vms))
        };
        processes().filter(|pid| *pid != self.pid_or_none()).filter(of_vm).collect()
    }

    fn pid_or_none(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() && !std::thread::panicking() {
            self.remove_all();
        }
        for pid in self.processes() {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
        self.end(Signal::TERM);
        // Of an agent that was killed.
        let _ = rustix::mount::unmount(
            self.run().join("node/pool"),
            rustix::mount::UnmountFlags::DETACH,
        );
    }
}

/// All processes of the host.
pub fn processes() -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// How many entries a folder has.
pub fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}
