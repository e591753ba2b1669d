//! memcached processes, and servers that only pretend to be one.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What takes longer hangs, however slow the host.
const HANG: Duration = Duration::from_secs(60);

/// A memcached of this test; killed at its end.
#[derive(Debug)]
pub struct Memcached {
    process: Child,
    pub address: String,
    pub folder: TempDir,
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(begun.elapsed() < HANG, "memcached does not start");
        sleep(Duration::from_millis(2));
    }
}

impl Memcached {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one on a free port with more arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("port");
        // -1 is any free port; which one, it writes to the file.
        let process = spawn(&["-l", "127.0.0.1", "-p", "-1"], arguments, &file);
        let port = wait_for(|| {
            let text = std::fs::read_to_string(&file).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("TCP INET: "))?;
            line.parse::<u16>().ok()
        });
        Self { process, address: format!("127.0.0.1:{port}"), folder }
    }

    /// Starts one on a socket of this host.
    pub fn on_socket() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let process = spawn(&["-s", socket.to_str().unwrap()], &[], Path::new("/dev/null"));
        wait_for(|| std::os::unix::net::UnixStream::connect(&socket).ok());
        Self { process, address: format!("unix:{}", socket.display()), folder }
    }

    /// Starts `count` of them.
    pub fn start_all(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends a command as it is, and reads one line.
    pub fn say(&self, command: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(command).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    /// Puts `value` under `key`, whatever is there.
    pub fn set(&self, key: &str, value: &[u8]) {
        let header = format!("set {key} 0 0 {}\r\n", value.len());
        let reply = self.say(&[header.as_bytes(), value, b"\r\n"].concat());
        assert_eq!(reply, "STORED\r\n");
    }

    /// Removes `key`; whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        self.say(format!("delete {key}\r\n").as_bytes()) == "DELETED\r\n"
    }

    /// A number of `stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"stats\r\n").unwrap();
        let wanted = format!("STAT {name} ");
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let found = lines
            .take_while(|line| line != "END")
            .find_map(|line| line.strip_prefix(&wanted).map(|value| value.parse().unwrap()));
        found.unwrap()
    }

    pub fn forget_everything(&self) {
        assert_eq!(self.say(b"flush_all\r\n"), "OK\r\n");
    }
}

fn spawn(place: &[&str], arguments: &[&str], port_file: &Path) -> Child {
    Command::new("memcached")
        .args(place)
        .args(["-u", "root", "-m", "256", "-I", "2m", "-t", "2"])
        .args(arguments)
        .env("MEMCACHED_PORT_FILENAME", port_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("memcached is needed: scripts/setup test installs it")
}

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The URL of a cache of all of these.
pub fn url(servers: &[Memcached]) -> String {
    let addresses: Vec<_> = servers.iter().map(|server| server.address.as_str()).collect();
    format!("memcached://{}", addresses.join(","))
}

/// What a server does with each connection.
pub type Manner = fn(TcpStream);

/// A server that pretends; it lives for as long as the test program.
pub fn pretender(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || manner(stream));
        }
    });
    address
}

/// A port at which nobody listens.
pub fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Writes a file of a test.
pub fn write(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}
