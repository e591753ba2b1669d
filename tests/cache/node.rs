//! A node for one test, and stock memcached to compare it with.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;

/// How long anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn imgcached() -> Command {
    Command::new(env!("CARGO_BIN_EXE_imgcached"))
}

/// A running `imgcached`, killed at the end of the test if it has not ended before.
#[derive(Debug)]
pub struct Node {
    child: Child,
    ready: String,
    log: Option<JoinHandle<String>>,
}

impl Node {
    /// With 64 MiB, on any free port.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::spawn(&mut Self::command(arguments))
    }

    /// What [`Self::start_with`] runs.
    pub fn command(arguments: &[&str]) -> Command {
        let mut command = imgcached();
        command.args(["--backing", "4k", "--no-populate"]);
        if !arguments.contains(&"--memory") {
            command.args(["--memory", "64M"]);
        }
        if !arguments.contains(&"--no-tcp") && !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(arguments);
        command
    }

    /// Starts `command` and waits until it is ready.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready"), "it did not start: {}", log.join().unwrap());
        Self { child, ready, log: Some(log) }
    }

    /// The values of `name=` in the line that it printed when it was ready.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let words = self.ready.split_whitespace();
        words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).collect()
    }

    fn announced(&self, name: &str) -> &str {
        self.all(name).first().unwrap_or_else(|| panic!("no {name} in {:?}", self.ready))
    }

    pub fn address(&self) -> SocketAddr {
        self.announced("listen").parse().unwrap()
    }

    pub fn http(&self) -> SocketAddr {
        self.announced("http").parse().unwrap()
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::connect(self.address())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; returns that and all that it logged.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let status = self.child.wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }

    /// Ends it in order; it must end well. Returns what it logged.
    pub fn stop(self) -> String {
        self.signal(Signal::TERM);
        let (status, log) = self.wait();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{log}");
        log
    }

    /// Its memory that is not shared with anybody, in bytes.
    pub fn private_memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = std::fs::read_to_string(path).unwrap();
        let line = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (line("Private_Clean:") + line("Private_Dirty:")) << 10
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stock memcached.
#[derive(Debug)]
pub struct Memcached {
    child: Child,
    address: SocketAddr,
}

impl Memcached {
    pub fn start() -> Self {
        // It cannot be told to take a free port and tell which: one that was just free is taken,
        // another one if somebody was faster.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = Command::new("memcached")
                .args(["-l", "127.0.0.1", "-U", "0", "-t", "2", "-m", "64"])
                .args(["-u", "nobody", "-p", &address.port().to_string()])
                .stderr(Stdio::null())
                .spawn()
                .expect("memcached is missing: run scripts/setup test");
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() {
                    return Self { child, address };
                }
                thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("memcached does not start");
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::connect(self.address)
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `imgcached` to its end, which it must come to by itself; returns its code and what it said.
pub fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = imgcached().args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// `path` as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
