//! Talks to programs of the host by a virtio socket device; for the test suite, in a guest.
//!
//! - `vsock serve PORT COUNT`: accepts COUNT connections at PORT, all at a time, and does for each what its
//!   first line says, which is one of those below. Prints `serving` when it listens.
//! - `vsock connect PORT COUNT LINE`: makes COUNT connections to PORT of the host, all at a time, says LINE
//!   with each, and does what it says.
//!
//! Lines: `echo` (sends back what comes, until its end), `stream BYTES` (sends so many bytes of a pattern,
//! then ends), `check BYTES` (takes so many bytes of it, then the end, and answers `whole`), `hold` (reads
//! nothing until the other side is gone), `keep` (reads nothing, and is done; the connection stays for as
//! long as the program runs).
//!
//! Prints `vsock: ok COUNT` when all were as they should be, or what was not, with status 1.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::io::{Error, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// What went wrong.
type Failure = Box<dyn std::error::Error + Send + Sync>;

const CHUNK: usize = 64 << 10;

static KEPT: Mutex<Vec<VsockStream>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(count) => {
            println!("vsock: ok {count}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("vsock: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<usize, Failure> {
    let threads: Vec<JoinHandle<Result<(), Failure>>> = match words {
        ["serve", port, count] => {
            let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port.parse()?)?;
            println!("serving");
            let serve = |_| Ok(thread::spawn(move_in(listener.accept()?.0)));
            (0..count.parse()?).map(serve).collect::<Result<_, Failure>>()?
        }
        ["connect", port, count, line] => {
            let (port, count): (u32, usize) = (port.parse()?, count.parse()?);
            let begin = |_| {
                let line = (*line).to_owned();
                thread::spawn(move || {
                    let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
                    writeln!(stream, "{line}")?;
                    act(stream, &line)
                })
            };
            (0..count).map(begin).collect()
        }
        _ => return Err("usage: vsock serve PORT COUNT | connect PORT COUNT LINE".into()),
    };
    let count = threads.len();
    for thread in threads {
        thread.join().map_err(|_| "a thread has failed")??;
    }
    Ok(count)
}

/// What to do with a connection whose line is still to be read.
fn move_in(mut stream: VsockStream) -> impl FnOnce() -> Result<(), Failure> {
    move || {
        let (mut line, mut byte) = (String::new(), [0]);
        loop {
            stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                return act(stream, &line);
            }
            line.push(byte[0].into());
        }
    }
}

fn act(mut stream: VsockStream, line: &str) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK];
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["echo"] => loop {
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            stream.write_all(&chunk[..count])?;
        },
        ["stream", bytes] => {
            let bytes: u64 = bytes.parse()?;
            let mut at = 0;
            while at < bytes {
                let count = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
                fill(at, &mut chunk[..count]);
                stream.write_all(&chunk[..count])?;
                at += count as u64;
            }
        }
        ["check", bytes] => {
            let bytes: u64 = bytes.parse()?;
            let (mut at, mut wanted) = (0, vec![0; CHUNK]);
            loop {
                let count = stream.read(&mut chunk)?;
                if count == 0 {
                    break;
                }
                fill(at, &mut wanted[..count]);
                if chunk[..count] != wanted[..count] {
                    return Err(format!("wrong content near byte {at}").into());
                }
                at += count as u64;
            }
            if at != bytes {
                return Err(format!("{at} bytes have come, not {bytes}").into());
            }
            stream.write_all(b"whole\n")?;
        }
        ["hold"] => hold(&stream)?,
        ["keep"] => {
            KEPT.lock().map_err(|_| "a thread has failed")?.push(stream);
            return Ok(());
        }
        _ => return Err(format!("'{line}' says nothing").into()),
    }
    stream.shutdown(Shutdown::Write).or_else(|error| match error.raw_os_error() {
        // Both sides are done.
        Some(libc::ENOTCONN) => Ok(()),
        _ => Err(Error::into(error)),
    })
}

/// Waits for the other side to be gone, reading nothing.
fn hold(stream: &VsockStream) -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, poll};
    // Not for content, of which there is some.
    loop {
        let mut wait = [PollFd::new(stream, PollFlags::RDHUP)];
        poll(&mut wait, None)?;
        if wait[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Ok(());
        }
    }
}

/// The pattern: each byte tells its place.
fn fill(at: u64, bytes: &mut [u8]) {
    for (place, byte) in (at..).zip(bytes) {
        *byte = (place ^ place >> 8 ^ place >> 16 ^ place >> 24).to_le_bytes()[0];
    }
}
