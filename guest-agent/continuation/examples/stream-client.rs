//! A client of the streaming service, as any other would be: it knows of no agent and of no move. It sends
//! numbered words of 64 bits, which come back, and verifies each.
//!
//! Each second and at the end it prints a line of JSON: words that came back and were right, words that were
//! wrong, the longest time in which nothing came back (in milliseconds, of the last second or of all), resets.
//! It ends with 1 if a word was wrong, lost or doubled, or the connection broke.

#[path = "stream-server/words.rs"]
mod words;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::json;

/// Exchanges numbered words with a stream-server, and verifies each.
#[derive(Debug, Parser)]
struct Options {
    /// Where the service is.
    #[arg(value_name = "ADDRESS:PORT")]
    service: SocketAddr,
    /// How words are sent.
    #[arg(long, value_enum, default_value_t = Mode::PingPong)]
    mode: Mode,
    /// For how long, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// How long the service is waited for, in seconds.
    #[arg(long, value_name = "S", default_value_t = 30)]
    wait: u64,
    /// How long an answer is waited for, in seconds.
    #[arg(long, value_name = "S", default_value_t = 30)]
    patience: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Eight words, which must be back before the next are sent.
    PingPong,
    /// A thousand words each 10 ms.
    Paced,
    /// As fast as it goes.
    Bulk,
}

impl Mode {
    /// Bytes that are sent at once.
    fn piece(self) -> usize {
        match self {
            Self::PingPong => 64,
            Self::Paced => 8000,
            Self::Bulk => 64 << 10,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Bytes that came back and were right.
    right: AtomicU64,
    /// The longest time without an answer, in microseconds: since it was printed last, and of all.
    gap: AtomicU64,
    longest: AtomicU64,
}

impl Shared {
    fn note(&self, last: &mut Instant, bytes: usize) {
        let now = Instant::now();
        let gap = u64::try_from(now.duration_since(*last).as_micros()).unwrap_or(u64::MAX);
        self.gap.fetch_max(gap, Ordering::AcqRel);
        self.longest.fetch_max(gap, Ordering::AcqRel);
        self.right.fetch_add(bytes as u64, Ordering::AcqRel);
        *last = now;
    }

    fn print(&self, second: u64, end: Option<&Outcome>) {
        let milliseconds = |gap: u64| Duration::from_micros(gap).as_secs_f64() * 1e3;
        let gap = self.gap.swap(0, Ordering::AcqRel);
        let words = self.right.load(Ordering::Acquire) / 8;
        let longest = milliseconds(self.longest.load(Ordering::Acquire));
        let line = match end {
            None => json!({ "second": second, "words": words, "gap_ms": milliseconds(gap) }),
            Some(end) => json!({
                "end": true, "second": second, "words": words, "sent": end.sent / 8,
                "wrong": end.wrong, "lost": end.sent.saturating_sub(words * 8) / 8,
                "gap_ms": longest, "resets": u32::from(end.reset), "error": end.error,
            }),
        };
        // Nobody who reads it is no error of the service.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

#[derive(Debug, Default)]
struct Outcome {
    sent: u64,
    wrong: u64,
    reset: bool,
    error: Option<String>,
}

impl Outcome {
    fn is_right(&self, back: u64) -> bool {
        self.error.is_none() && self.wrong == 0 && self.sent == back
    }
}

fn connect(options: &Options) -> io::Result<TcpStream> {
    let (since, wait) = (Instant::now(), Duration::from_secs(options.wait));
    loop {
        match TcpStream::connect_timeout(&options.service, Duration::from_secs(1)) {
            Err(_) if since.elapsed() < wait => thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

/// Sends until it is told to stop; how many bytes.
fn send(mut stream: &TcpStream, shared: &Shared, mode: Mode) -> (u64, io::Result<()>) {
    let (mut sent, mut buffer) = (0, vec![0; mode.piece()]);
    let mut next = Instant::now();
    let result = loop {
        // All words that were begun are sent.
        if shared.stop.load(Ordering::Acquire) {
            break stream.shutdown(Shutdown::Write);
        }
        words::fill(sent, &mut buffer);
        if let Err(error) = stream.write_all(&buffer) {
            break Err(error);
        }
        sent += buffer.len() as u64;
        match mode {
            Mode::Bulk => {}
            Mode::Paced => {
                next += Duration::from_millis(10);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Mode::PingPong => {
                while shared.right.load(Ordering::Acquire) < sent {
                    if shared.stop.load(Ordering::Acquire) {
                        break;
                    }
                    thread::park_timeout(Duration::from_millis(100));
                }
            }
        }
    };
    (sent, result)
}

/// Verifies what comes back until the stream ends; where the first wrong byte is.
fn receive(
    mut stream: &TcpStream,
    shared: &Shared,
    sender: &thread::Thread,
) -> io::Result<Option<u64>> {
    let (mut done, mut last, mut buffer) = (0, Instant::now(), vec![0; 256 << 10]);
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(None);
        }
        if let Some(at) = words::wrong(done, buffer.get(..length).unwrap_or_default()) {
            return Ok(Some(at));
        }
        done += length as u64;
        shared.note(&mut last, length);
        sender.unpark();
    }
}

fn run(options: &Options, shared: &Arc<Shared>) -> io::Result<Outcome> {
    let stream = connect(options)?;
    let patience = Some(Duration::from_secs(options.patience));
    stream.set_nodelay(true)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let (sending, mode) = (stream.try_clone()?, options.mode);
    let of_sender = Arc::clone(shared);
    let sender = thread::spawn(move || send(&sending, &of_sender, mode));
    let receiver = {
        let (shared, handle) = (Arc::clone(shared), sender.thread().clone());
        thread::spawn(move || {
            let result = receive(&stream, &shared, &handle);
            if !matches!(result, Ok(None)) {
                // What is still to be sent has nobody to come back to.
                let _ = stream.shutdown(Shutdown::Both);
                shared.stop.store(true, Ordering::Release);
            }
            result
        })
    };
    for second in 1..=options.seconds {
        // A line is printed for each second.
        thread::sleep(Duration::from_secs(1));
        if receiver.is_finished() {
            break;
        }
        shared.print(second, None);
    }
    shared.stop.store(true, Ordering::Release);
    sender.thread().unpark();
    let ended = |_| io::Error::other("a thread has ended");
    let (sent, sending) = sender.join().map_err(ended)?;
    let received = receiver.join().map_err(ended)?;
    let mut outcome = Outcome { sent, ..Outcome::default() };
    // What was received says why, where both failed.
    match (received, sending) {
        (Ok(Some(at)), _) => {
            outcome.wrong = 1;
            outcome.error = Some(format!("byte {at} is wrong"));
        }
        (Err(error), _) | (Ok(None), Err(error)) => {
            outcome.reset = error.kind() == io::ErrorKind::ConnectionReset;
            outcome.error = Some(error.to_string());
        }
        (Ok(None), Ok(())) => {}
    }
    Ok(outcome)
}

fn main() -> ExitCode {
    let (options, shared, begun) = (Options::parse(), Arc::default(), Instant::now());
    let outcome = run(&options, &shared)
        .unwrap_or_else(|error| Outcome { error: Some(error.to_string()), ..Outcome::default() });
    shared.print(begun.elapsed().as_secs(), Some(&outcome));
    let back = shared.right.load(Ordering::Acquire);
    if outcome.is_right(back) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
