//! Servers as processes, for the tests that kill them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What servers and clients share.
pub const SECRET: [u8; 16] = *b"of the test only";

/// A server as a process, which is killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example() -> PathBuf {
    // Cargo builds examples beside the tests' folder.
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/elastic-kv")
}

/// Runs server `number` of the service in `folder`, with further options; also its address.
pub fn serve(folder: &Path, number: usize, options: &[&str]) -> (Running, String) {
    let mut child = Command::new(example())
        .args(["serve", "--server", &number.to_string(), "--folder"])
        .arg(folder)
        .args(options)
        .env("ELASTIC_SECRET", SECRET.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(':'), "server {number} does not run");
    (Running(child), line.trim().to_owned())
}
