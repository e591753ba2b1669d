//! Clients of the streaming service: what they get back they verify, word by word.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::words;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// 64 bytes there and back.
    PingPong,
    /// 64 KiB each 2 ms.
    Paced,
    /// As fast as it goes.
    Bulk,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Bytes that came back and were right.
    verified: AtomicU64,
    /// The longest time, in microseconds, in which nothing came back.
    gap: AtomicU64,
}

/// A client at work.
pub struct Client {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<io::Result<u64>>>,
    reader: JoinHandle<io::Result<u64>>,
}

fn wrong(at: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("byte {at} that came back is wrong"))
}

impl Client {
    pub fn start(stream: TcpStream, load: Load) -> Self {
        stream.set_nodelay(true).unwrap();
        let shared = Arc::new(Shared::default());
        let writes = |load: Load| {
            let (shared, mut stream) = (Arc::clone(&shared), stream.try_clone().unwrap());
            move || {
                let (mut sent, mut buffer) = (0, vec![0; 64 << 10]);
                let mut next = Instant::now();
                while !shared.stop.load(Ordering::Acquire) {
                    words::fill(sent, &mut buffer);
                    stream.write_all(&buffer)?;
                    sent += buffer.len() as u64;
                    if load == Load::Paced {
                        next += Duration::from_millis(2);
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                }
                stream.shutdown(Shutdown::Write)?;
                Ok(sent)
            }
        };
        let writer = (load != Load::PingPong).then(|| thread::spawn(writes(load)));
        let mine = Arc::clone(&shared);
        let reader = if load == Load::PingPong {
            thread::spawn(move || ping_pong(stream, &mine))
        } else {
            thread::spawn(move || read_all(stream, &mine))
        };
        Self { shared, writer, reader }
    }

    pub fn verified(&self) -> u64 {
        self.shared.verified.load(Ordering::Acquire)
    }

    /// Waits until more has come back; false if nothing does.
    pub fn goes_on(&self, bytes: u64) -> bool {
        let (before, since) = (self.verified(), Instant::now());
        while self.verified() < before + bytes {
            if since.elapsed() > Duration::from_secs(15) || self.reader.is_finished() {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// The longest time without an answer since this was asked last.
    pub fn gap(&self) -> Duration {
        Duration::from_micros(self.shared.gap.swap(0, Ordering::AcqRel))
    }

    /// Ends the stream; how many bytes came back, which are all that were sent.
    pub fn finish(self) -> io::Result<u64> {
        self.shared.stop.store(true, Ordering::Release);
        let sent = self.writer.map(|writer| writer.join().unwrap()).transpose()?;
        let back = self.reader.join().unwrap()?;
        assert_eq!(sent.unwrap_or(back), back, "bytes were lost or doubled");
        Ok(back)
    }
}

/// Notes that something came back.
fn note(shared: &Shared, last: &mut Instant, bytes: usize) {
    let now = Instant::now();
    let gap = now.duration_since(*last).as_micros();
    shared.gap.fetch_max(u64::try_from(gap).unwrap(), Ordering::AcqRel);
    shared.verified.fetch_add(bytes as u64, Ordering::AcqRel);
    *last = now;
}

fn ping_pong(mut stream: TcpStream, shared: &Shared) -> io::Result<u64> {
    let (mut done, mut last) = (0, Instant::now());
    let (mut there, mut back) = ([0; 64], [0; 64]);
    while !shared.stop.load(Ordering::Acquire) {
        words::fill(done, &mut there);
        stream.write_all(&there)?;
        stream.read_exact(&mut back)?;
        if let Some(at) = words::wrong(done, &back) {
            return Err(wrong(at));
        }
        done += 64;
        note(shared, &mut last, 64);
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut back)? {
        0 => Ok(done),
        _ => Err(wrong(done)),
    }
}

fn read_all(mut stream: TcpStream, shared: &Shared) -> io::Result<u64> {
    let (mut done, mut last) = (0, Instant::now());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(done);
        }
        if let Some(at) = words::wrong(done, &buffer[..length]) {
            return Err(wrong(at));
        }
        done += length as u64;
        note(shared, &mut last, length);
    }
}
