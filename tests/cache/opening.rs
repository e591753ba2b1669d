//! While the arena of before is verified: health is told, and it can be ended.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::http;
use super::node::{Node, text};

/// A node that cannot go on opening, because the service manager does not listen.
struct Held {
    child: Child,
    http: SocketAddr,
    manager: UnixDatagram,
    arena: PathBuf,
    _folder: TempDir,
}

fn filled_arena(path: &Path) {
    let node = Node::start_with(&["--arena", text(path)]);
    node.connect().expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    node.stop();
}

impl Held {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (arena, socket) = (folder.path().join("arena"), folder.path().join("notify"));
        filled_arena(&arena);
        let manager = UnixDatagram::bind(&socket).unwrap();
        let full = UnixDatagram::unbound().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.send_to(b"full", &socket).is_ok() {}
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Node::command(&["--arena", text(&arena), "--http", &http.to_string()])
            .env("NOTIFY_SOCKET", text(&socket))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while TcpStream::connect(http).is_err() {
            thread::sleep(Duration::from_millis(2));
        }
        Self { child, http, manager, arena, _folder: folder }
    }

    /// What the service manager is told, until `last`, or until there is nothing.
    fn told(&self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(length) = self.manager.recv(&mut buffer) {
            all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            if all.last().unwrap() == last {
                break;
            }
        }
        all
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn health_is_told_and_the_service_manager_asked_for_time() {
    let held = Held::start();
    assert_eq!(http::get_from(held.http, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(http::get_from(held.http, "/readyz"), (503, "opening\n".to_owned()));
    let all = "imgcached_opening{entries=\"all\"} 16384\n";
    while !http::get_from(held.http, "/metrics").1.contains(all) {
        thread::yield_now();
    }
    held.manager.set_read_timeout(Some(super::node::PATIENCE)).unwrap();
    let told = held.told("READY=1");
    let extended = told.iter().filter(|state| state.starts_with("EXTEND_TIMEOUT_USEC=60000000\n"));
    assert!(extended.count() > 0 && told.last().unwrap() == "READY=1", "{told:?}");
    while http::get_from(held.http, "/readyz") != (200, "ready\n".to_owned()) {
        thread::yield_now();
    }
}

#[test]
fn a_signal_ends_it_and_the_file_stays_as_it_was() {
    let mut held = Held::start();
    assert_eq!(http::get_from(held.http, "/readyz").0, 503);
    kill_process(Pid::from_child(&held.child), Signal::TERM).unwrap();
    // The service manager listens again when the signal was seen, not before.
    let mut log = BufReader::new(held.child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("ended before the memory was there")));
    held.manager.set_read_timeout(Some(super::node::PATIENCE)).unwrap();
    let told = held.told("STOPPING=1");
    assert!(told.last().unwrap() == "STOPPING=1" && !told.contains(&"READY=1".to_owned()));
    assert_eq!(held.child.wait().unwrap().code(), Some(0), "{:?}", log.collect::<Vec<_>>());
    let mut said = String::new();
    held.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    let node = Node::start_with(&["--arena", text(&held.arena)]);
    node.connect().expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
}
