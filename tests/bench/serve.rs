//! Measures what a node sends: pipelined `mg` of large values over one and several connections,
//! `imgcached` beside stock memcached, in turns in one run.
//!
//! Usage: `bench-serve IMGCACHED [ROUNDS]`; stock memcached is found in the path.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]
#![expect(clippy::cast_precision_loss, reason = "rates are printed with two digits")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const VALUE: usize = 256 << 10;
const KEYS: usize = 400;
const CONNECTIONS: [usize; 2] = [1, 4];
/// Requests on their way.
const WINDOW: usize = 16;
/// Bytes that each measurement reads.
const BYTES: usize = 2 << 30;

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn imgcached(program: &str) -> Server {
    let mut child = Command::new(program)
        .args(["--memory", "256M", "--threads", "2", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("ready listen=").unwrap().parse().unwrap();
    Server { child, address }
}

fn memcached() -> Server {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new("memcached")
        .args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-t", "2", "-m", "256"])
        .args(["-p", &address.port().to_string()])
        .spawn()
        .unwrap();
    let server = Server { child, address };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "memcached does not start");
        thread::sleep(Duration::from_millis(10));
    }
    server
}

fn fill(address: SocketAddr) {
    let mut stream = connect(address);
    let value = vec![b'x'; VALUE];
    for key in 0..KEYS {
        write!(stream, "ms k{key:03} {VALUE}\r\n").unwrap();
        stream.write_all(&value).unwrap();
        stream.write_all(b"\r\n").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HD\r\n");
    }
}

/// Reads `count` values; returns when all have come.
fn read(address: SocketAddr, first: usize, count: usize) {
    let mut stream = connect(address);
    let reply = format!("VA {VALUE}\r\n").len() + VALUE + 2;
    let mut buffer = vec![0; VALUE];
    let request = |number: usize| format!("mg k{:03} v\r\n", (first + number) % KEYS);
    let window: String = (0..WINDOW.min(count)).map(request).collect();
    stream.write_all(window.as_bytes()).unwrap();
    let (mut sent, mut received) = (WINDOW.min(count), 0_usize);
    while received < count * reply {
        let length = stream.read(&mut buffer).unwrap();
        assert_ne!(length, 0, "closed");
        received += length;
        let wanted = (received / reply + WINDOW).min(count);
        if wanted > sent {
            let requests: String = (sent..wanted).map(request).collect();
            stream.write_all(requests.as_bytes()).unwrap();
            sent = wanted;
        }
    }
    assert_eq!(received, count * reply);
}

impl Server {
    /// Seconds of processor time so far (`proc_pid_stat(5)`, fields 14 and 15).
    fn processor_time(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }
}

/// GB/s of all connections together, and the server's processor time in seconds for each GB.
fn rate(server: &Server, connections: usize) -> (f64, f64) {
    let address = server.address;
    let each = BYTES / VALUE / connections;
    let (start, used) = (Instant::now(), server.processor_time());
    thread::scope(|scope| {
        for number in 0..connections {
            scope.spawn(move || read(address, number * KEYS / connections, each));
        }
    });
    let gigabytes = (each * connections * VALUE) as f64 / 1e9;
    let rate = gigabytes / start.elapsed().as_secs_f64();
    (rate, (server.processor_time() - used) / gigabytes)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().expect("Usage: bench-serve IMGCACHED [ROUNDS]");
    let rounds: usize = arguments.next().map_or(5, |rounds| rounds.parse().unwrap());
    let (ours, theirs) = (imgcached(&program), memcached());
    fill(ours.address);
    fill(theirs.address);
    println!(
        "| connections | imgcached GB/s | memcached GB/s | ratio | CPU s/GB | CPU s/GB | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    for connections in CONNECTIONS {
        let (mut our, mut their) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            our.push(rate(&ours, connections));
            their.push(rate(&theirs, connections));
        }
        let [(our, our_cost), (their, their_cost)] = [our, their].map(|rates| {
            let (rates, costs) = rates.into_iter().unzip();
            (median(rates), median(costs))
        });
        println!(
            "| {connections} | {our:.2} | {their:.2} | {:.2} | {our_cost:.3} | {their_cost:.3} | {:.2} |",
            our / their,
            our_cost / their_cost
        );
    }
}
