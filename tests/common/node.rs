//! A storage node for tests: the real program, on a port of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A running `imgcached`.
#[derive(Debug)]
pub struct Node {
    /// None if somebody else started it.
    child: Option<Child>,
    address: SocketAddr,
}

impl Node {
    /// Starts one; `arguments` come on top of the address, if they have none.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let log = folder.join(format!("node-{}.log", number()));
        let somewhere = ["--listen", "127.0.0.1:0"];
        let address = if arguments.contains(&"--listen") { &[][..] } else { &somewhere };
        let mut child = Command::new(program())
            .args(["--no-populate", "--backing", "4k"])
            .args(address)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.split_whitespace().find_map(|word| word.strip_prefix("listen=")?.parse().ok());
        let address = address.unwrap_or_else(|| {
            panic!("no node: {line:?}: {}", std::fs::read_to_string(&log).unwrap())
        });
        Self { child: Some(child), address }
    }

    /// One that somebody else has started, or will.
    pub fn elsewhere(address: SocketAddr) -> Self {
        Self { child: None, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end after a signal; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.as_mut().unwrap().wait().unwrap().code()
    }

    /// The statistics `group`, as (name, value).
    pub fn stats(&self, group: &str) -> Vec<(String, String)> {
        let answer = self.ask(format!("stats {group}\r\n").as_bytes(), "END\r\n");
        let stat = |line: &str| {
            let (name, value) = line.strip_prefix("STAT ")?.split_once(' ')?;
            Some((name.to_owned(), value.to_owned()))
        };
        answer.lines().filter_map(stat).collect()
    }

    /// One number of the statistics.
    pub fn number(&self, group: &str, name: &str) -> u64 {
        let stats = self.stats(group);
        let found = stats.iter().find(|(stat, _)| stat == name);
        found.unwrap_or_else(|| panic!("no {name} in {stats:?}")).1.parse().unwrap()
    }

    /// Sends `request` and reads until `end`.
    pub fn ask(&self, request: &[u8], end: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !answer.ends_with(end.as_bytes()) {
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The storage node's program, which is built with this one.
fn program() -> PathBuf {
    let path = std::env::var_os("VMM_TEST_IMGCACHED").map_or_else(
        || Path::new(env!("CARGO_BIN_EXE_vmm")).with_file_name("imgcached"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: cargo build -p imgcache", path.display());
    path
}

/// A number for the name of a file, another each time.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
