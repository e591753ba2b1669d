//! A running agent, and raw requests to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{Bench, stdout};

/// What takes longer hangs, however slow the host.
pub const HANG: Duration = Duration::from_secs(120);

/// An agent with a store of its own, in which is the image `small`.
#[derive(Debug)]
pub struct Agent {
    pub bench: Bench,
    child: Option<Child>,
    /// What it said when it was ready.
    pub ready: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Agent {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |_| {})
    }

    /// One whose command is changed first.
    pub fn start_with(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let bench = Bench::new();
        bench.push("small", "vmlinuz", "initrd-small.cpio.gz");
        let mut agent = Self { bench, child: None, ready: String::new() };
        agent.start_again(arguments, change);
        agent
    }

    /// Starts another, in the same folder, where there is none any more.
    pub fn start_again(&mut self, arguments: &[&str], change: impl FnOnce(&mut Command)) {
        assert!(self.child.is_none());
        let room = if arguments.contains(&"--max-vms") { &[][..] } else { &["--max-vms", "20"] };
        let all = [&["node", "--pool", "512M"], room, arguments].concat();
        let mut command = self.vmm(&all);
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        command.stdout(Stdio::piped()).stderr(log);
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready socket="), "{line:?}: {}", self.logged());
        self.child = Some(child);
        self.ready = line;
    }

    /// The program, which asks this agent.
    pub fn vmm(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.vmm(arguments);
        command.env("VMM_RUN_DIR", self.folder()).env_remove("VMM_NODE");
        command
    }

    pub fn run(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.vmm(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "vmm {arguments:?}: {output:?}");
        output
    }

    pub fn text(&self, arguments: &[&str]) -> String {
        stdout(&self.run(0, arguments))
    }

    pub fn folder(&self) -> PathBuf {
        self.bench.path().join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder().join("node.sock")
    }

    fn log(&self) -> PathBuf {
        self.bench.path().join("log")
    }

    /// All that it logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap()
    }

    /// Has it end, and waits for that.
    pub fn end(&mut self) {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.logged());
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream
    }

    /// Sends text as it is, and reads all that comes until the end.
    pub fn raw(&self, text: &[u8]) -> String {
        let mut stream = self.connect();
        // It may have had enough of it before it has it all.
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\
             {headers}\r\n",
            body.len()
        );
        answer(&self.raw(&[head.as_bytes(), body].concat()))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    /// A VM that is held and ready.
    pub fn hold(&self, name: &str) {
        let arguments =
            ["boot", "--node", "--detach", "--hold", "--image", "small", "--name", name];
        assert_eq!(self.text(&arguments), format!("{name}\n"));
        let path = format!("/v1/vms/{name}/wait?state=ready&timeout_ms=120000");
        let ready = self.get(&path);
        assert_eq!(ready.json()["state"], "ready", "{ready:?}");
    }
}

/// Takes an answer to pieces; one that comes in chunks is left as it is.
pub fn answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // VMs outlive their agent, and would outlive the test.
        if let Ok(output) = self.vmm(&["ps", "--json"]).output()
            && let Ok(Value::Array(vms)) = serde_json::from_slice(&output.stdout)
        {
            for vm in vms {
                let _ = self.vmm(&["rm", "--force", vm["name"].as_str().unwrap()]).output();
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}
