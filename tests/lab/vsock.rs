//! Programs of the host and of a stock guest that talk by the socket device, both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::Bench;
use crate::common::ramdisk::{example, push_script};

/// 100 MB each way.
const LARGE: u64 = 100_000_000;
/// More than there is room for on the way.
const UNREAD: u64 = 3_000_000;
/// What each of many sends.
const SMALL: u64 = 200_000;

/// A guest that runs.
struct Guest {
    child: Child,
    console: BufReader<ChildStdout>,
    said: String,
    socket: PathBuf,
    report: PathBuf,
}

impl Guest {
    fn boot(bench: &Bench, script: &str) -> Self {
        let modules = "modprobe -a virtio_mmio vmw_vsock_virtio_transport";
        let script = format!("set -e\n{modules}\n{script}\necho script: done\n");
        push_script(bench, "guest", &script, &[example("vsock")]);
        let (socket, report) = (bench.path().join("v.sock"), bench.path().join("report"));
        let device = format!("cid=3,socket={}", socket.display());
        let mut child = bench
            .vmm(&["boot", "--image", "guest", "--vsock", &device])
            .args(["--report", report.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let console = BufReader::new(child.stdout.take().unwrap());
        Self { child, console, said: String::new(), socket, report }
    }

    /// Waits for a line that the guest says.
    fn wait_for(&mut self, line: &str) {
        let mut read = String::new();
        while !read.contains(line) {
            self.said.push_str(&read);
            read.clear();
            let count = self.console.read_line(&mut read).unwrap();
            assert!(count > 0, "no '{line}' in {}", self.said);
        }
    }

    /// A connection to a port of the guest, with a first line for the program there.
    fn connect(&self, port: u32, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        write!(stream, "CONNECT {port}\n{line}\n").unwrap();
        let answer = read_line(&mut stream);
        assert!(answer.starts_with("OK "), "{answer:?}");
        stream
    }

    /// Waits for its end; the report's part about the sockets.
    fn end(mut self) -> Value {
        self.wait_for("script: done");
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.said);
        let report: Value = serde_json::from_slice(&std::fs::read(&self.report).unwrap()).unwrap();
        assert!(!self.socket.exists());
        report["guest"]["vsock"].clone()
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while !line.ends_with('\n') && stream.read(&mut byte).unwrap() > 0 {
        line.push(byte[0].into());
    }
    line
}

/// The pattern of the guest's program.
fn fill(at: u64, bytes: &mut [u8]) {
    for (place, byte) in (at..).zip(bytes) {
        *byte = (place ^ place >> 8 ^ place >> 16 ^ place >> 24).to_le_bytes()[0];
    }
}

fn send(stream: &mut UnixStream, bytes: u64) {
    let (mut at, mut chunk) = (0, vec![0; 64 << 10]);
    while at < bytes {
        let count = chunk.len().min(usize::try_from(bytes - at).unwrap());
        fill(at, &mut chunk[..count]);
        stream.write_all(&chunk[..count]).unwrap();
        at += count as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn check(stream: &mut UnixStream, bytes: u64) {
    let (mut at, mut chunk, mut wanted) = (0, vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        fill(at, &mut wanted[..count]);
        assert!(chunk[..count] == wanted[..count], "wrong content near byte {at}");
        at += count as u64;
    }
    assert_eq!(at, bytes);
}

/// Sends and checks what comes back, both at a time.
fn exchange(mut stream: UnixStream, bytes: u64) {
    let mut sender = stream.try_clone().unwrap();
    let sending = thread::spawn(move || send(&mut sender, bytes));
    check(&mut stream, bytes);
    sending.join().unwrap();
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn programs_of_the_host_reach_those_of_the_guest_many_at_a_time() {
    let bench = Bench::new();
    let mut guest = Guest::boot(&bench, "vsock serve 52 68");
    guest.wait_for("serving");
    // Two that read nothing, here and there, and hold up nobody.
    let mut unread = guest.connect(52, &format!("stream {UNREAD}"));
    let mut full = guest.connect(52, "keep");
    full.set_nonblocking(true).unwrap();
    while full.write(&[0; 4096]).is_ok() {}
    // Nobody listens there.
    let mut nobody = UnixStream::connect(&guest.socket).unwrap();
    nobody.write_all(b"CONNECT 53\n").unwrap();
    assert_eq!(read_line(&mut nobody), "");

    let begun = std::time::Instant::now();
    let mut streams: Vec<_> = (0..64).map(|_| guest.connect(52, "echo")).collect();
    let threads: Vec<_> =
        streams.drain(..).map(|stream| thread::spawn(move || exchange(stream, SMALL))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    eprintln!("64 echoes of {SMALL} bytes: {:?}", begun.elapsed());

    let begun = std::time::Instant::now();
    check(&mut guest.connect(52, &format!("stream {LARGE}")), LARGE);
    eprintln!("{LARGE} bytes from the guest: {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    let mut stream = guest.connect(52, &format!("check {LARGE}"));
    send(&mut stream, LARGE);
    assert_eq!(read_line(&mut stream), "whole\n");
    eprintln!("{LARGE} bytes to the guest: {:?}", begun.elapsed());

    check(&mut unread, UNREAD);
    guest.wait_for("vsock: ok 68");
    // It is gone with its program, which had not read it.
    drop(full);
    let report = guest.end();
    assert_eq!((&report["accepted"], &report["refused"]), (&68.into(), &1.into()), "{report}");
    assert_eq!((&report["violations"], &report["malformed"]), (&0.into(), &0.into()), "{report}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn programs_of_the_guest_reach_those_of_the_host_many_at_a_time() {
    let bench = Bench::new();
    let listener =
        |port: u32| UnixListener::bind(bench.path().join(format!("v.sock_{port}"))).unwrap();
    let (echoes, streams, checks) = (listener(1024), listener(1025), listener(1026));
    let script = format!(
        "vsock connect 9999 1 echo && exit 1
         vsock connect 1024 64 echo
         vsock connect 1025 1 'stream {LARGE}'
         vsock connect 1026 1 'check {LARGE}'"
    );
    let mut guest = Guest::boot(&bench, &script);
    let accept = |listener: &UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let line = read_line(&mut stream);
        (stream, line)
    };
    guest.wait_for("vsock: FAILED");
    let threads: Vec<_> = (0..64)
        .map(|_| accept(&echoes).0)
        .map(|stream| thread::spawn(move || exchange(stream, SMALL)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    guest.wait_for("vsock: ok 64");
    let (mut stream, line) = accept(&streams);
    assert_eq!(line, format!("stream {LARGE}\n"));
    check(&mut stream, LARGE);
    drop(stream);
    guest.wait_for("vsock: ok 1");
    let (mut stream, _) = accept(&checks);
    send(&mut stream, LARGE);
    assert_eq!(read_line(&mut stream), "whole\n");
    drop(stream);
    guest.wait_for("vsock: ok 1");
    let report = guest.end();
    assert_eq!((&report["dialled"], &report["refused"]), (&66.into(), &1.into()), "{report}");
    assert_eq!(report["violations"], 0, "{report}");
}

/// The guest takes its driver away and puts it back: what was open ends, and new connections work.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_driver_that_is_taken_away_ends_its_connections() {
    let bench = Bench::new();
    let script = "
        vsock serve 52 1 &
        vsock serve 54 1
        cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport
        device=$(echo virtio*)
        echo $device >unbind
        echo taken: away
        echo $device >bind
        vsock serve 53 1";
    let mut guest = Guest::boot(&bench, script);
    guest.wait_for("serving");
    guest.wait_for("serving");
    let mut held = guest.connect(52, "hold");
    // Now it may go on.
    exchange(guest.connect(54, "echo"), 1);
    guest.wait_for("taken: away");
    assert_eq!(held.read(&mut [0]).unwrap_or(0), 0);
    guest.wait_for("serving");
    exchange(guest.connect(53, "echo"), SMALL);
    let report = guest.end();
    assert_eq!((&report["accepted"], &report["open"]), (&3.into(), &0.into()), "{report}");
}
