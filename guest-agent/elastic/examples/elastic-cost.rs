//! What split, merge, mirror and move cost, beside Table IV of the paper, and what an elastic server serves
//! beside a standard one: the same protocol in front of a map, without ranges, sessions and transfers.
//!
//! *Local* is between servers of one process, which hand objects over; *remote* is over TCP. Servers keep
//! their objects in memory. The paper's figures include starting and ending processes.
//!
//! *TCP* is what the machine itself can do: as many bytes over one connection, from memory to memory where they
//! stay. No transfer can be faster than that by much, so each is given as a multiple of it, too.
//!
//! Before each measurement as much memory is used and freed. A virtual machine may have given free memory back
//! to its host, and getting it again would be most of what is measured: two seconds and more for a gibibyte.
//! `--cold` leaves that out.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use elastic::Peer;
use elastic::client::Client;
use elastic::node::{Limits, Op, Outcome};
use elastic::range::{Key, Range};
use elastic::routes::{MemoryRoutes, Routes};
use elastic::server::{Command, Config, FrameReader, Local, Report, Server};
use elastic::wire::{Encoded, Frame};
use memmap2::{Advice, MmapMut};
use serde::Serialize;

/// Memory is taken in pieces of so many bytes: huge pages, where there are any.
const PIECE: usize = 2 << 20;

/// Measures elastic operations.
#[derive(Debug, Parser)]
struct Arguments {
    /// The state of the first server, in MiB.
    #[arg(long, default_value_t = 1024)]
    megabytes: u64,
    /// Bytes of each object.
    #[arg(long, default_value_t = 65_536)]
    object: usize,
    /// How often each is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Clients that make requests to measure throughput.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Do not see to it before each measurement that there is memory.
    #[arg(long)]
    cold: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Cost {
    operation: &'static str,
    place: &'static str,
    seconds: f64,
    worst: f64,
    /// How often as long as the same bytes over TCP.
    of_tcp: Option<f64>,
    paper: Option<f64>,
    /// At most a tenth of the paper's figure.
    within: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Results {
    megabytes: u64,
    object: usize,
    /// Seconds that as many bytes take over TCP: median and worst.
    tcp: (f64, f64),
    costs: Vec<Cost>,
    standard_per_second: f64,
    elastic_per_second: f64,
}

fn median(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() - 1])
}

/// Memory that is there.
fn memory(length: usize) -> io::Result<Vec<MmapMut>> {
    let mut pieces = Vec::new();
    for _ in 0..length.div_ceil(PIECE) {
        let mut piece = MmapMut::map_anon(PIECE)?;
        piece.advise(Advice::HugePage).ok(); // slower without
        piece.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Seconds that `length` bytes take from memory to memory over one connection.
fn tcp(length: usize, cold: bool) -> io::Result<f64> {
    let from = memory(length)?;
    if !cold {
        drop(memory(length)?);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut stream, _) = listener.accept()?;
    let began = Instant::now();
    thread::scope(|scope| {
        let sender = scope.spawn(move || from.iter().try_for_each(|piece| to.write_all(piece)));
        let mut kept = Vec::new();
        for _ in 0..length.div_ceil(PIECE) {
            let mut piece = MmapMut::map_anon(PIECE)?;
            piece.advise(Advice::HugePage).ok();
            stream.read_exact(&mut piece)?;
            kept.push(piece);
        }
        let seconds = began.elapsed().as_secs_f64();
        sender.join().map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(seconds)
    })
}

fn config(number: u32) -> Config {
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        me: Peer(number),
        listen,
        secret: [7; 16],
        journal: None,
        sync: false,
        limits: Limits::default(),
    }
}

fn costs(
    arguments: &Arguments,
    place: &'static str,
    paper: [Option<f64>; 4],
) -> Result<(Vec<Cost>, Vec<f64>), Box<dyn Error>> {
    let routes: Arc<dyn Routes> = Arc::new(MemoryRoutes::default());
    let local = Local::default();
    let start = |number| {
        let local = if place == "local" { local.clone() } else { Local::default() };
        Server::start(config(number), Arc::clone(&routes), &local)
    };
    let servers = [start(0)?, start(1)?];
    servers[0].announce(Range::ALL)?;
    let mut client = Client::new(Arc::clone(&routes))?;
    let count = (arguments.megabytes << 20) / u64::try_from(arguments.object)?;
    for number in 0..count {
        let byte = u8::try_from(number % 251)?;
        client.put(format!("object {number}").as_bytes(), vec![byte; arguments.object].into())?;
    }
    let bytes = usize::try_from(arguments.megabytes << 20)?;
    let timed = |server: usize, command: Command| -> Result<f64, Box<dyn Error>> {
        if !arguments.cold && place == "remote" {
            drop(memory(bytes)?);
        }
        let began = Instant::now();
        match servers[server].command(&command) {
            Report::Done => Ok(began.elapsed().as_secs_f64()),
            other => Err(format!("{command:?}: {other:?}").into()),
        }
    };
    let upper = Range::ALL.halves().ok_or("no halves")?.1;
    let (mut times, mut raw): ([Vec<f64>; 4], Vec<f64>) = Default::default();
    for _ in 0..arguments.repeat {
        if place == "remote" {
            raw.push(tcp(bytes, arguments.cold)?);
        }
        times[0].push(timed(0, Command::Mirror(Peer(1)))?);
        timed(0, Command::Abort)?;
        thread::sleep(Duration::from_millis(50)); // the mirror forgets its copy
        times[1].push(timed(0, Command::Split(Peer(1), upper))?);
        times[2].push(timed(0, Command::Merge(Peer(1)))?);
        times[3].push(timed(0, Command::Move(Peer(1)))?);
        timed(1, Command::Move(Peer(0)))?;
    }
    // What was moved is what was written.
    for number in (0..count).step_by(97) {
        let byte = u8::try_from(number % 251)?;
        let value = client.get(format!("object {number}").as_bytes())?;
        if value.is_none_or(|value| {
            value.len() != arguments.object || value.iter().any(|it| *it != byte)
        }) {
            return Err(format!("object {number} is not what it was").into());
        }
    }
    // Split and merge concern half of it.
    let names = [("mirror", 1.0), ("split", 0.5), ("merge", 0.5), ("move", 1.0)];
    let alone = (!raw.is_empty()).then(|| median(raw.clone()).0);
    let costs = names
        .into_iter()
        .zip(times)
        .zip(paper)
        .map(|(((operation, part), times), paper)| {
            let (seconds, worst) = median(times);
            let of_tcp = alone.map(|alone| seconds / (alone * part));
            let within = paper.map(|paper| seconds <= paper / 10.0);
            Cost { operation, place, seconds, worst, of_tcp, paper, within }
        })
        .collect();
    Ok((costs, raw))
}

/// The standard form: a map behind a lock, a thread for each connection.
fn standard(listener: &TcpListener) {
    let objects: Arc<Mutex<BTreeMap<Key, Bytes>>> = Arc::default();
    for stream in listener.incoming().map_while(Result::ok) {
        let objects = Arc::clone(&objects);
        thread::spawn(move || serve(stream, &objects));
    }
}

fn serve(mut stream: TcpStream, objects: &Mutex<BTreeMap<Key, Bytes>>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = FrameReader::new(stream.try_clone().ok()?);
    let Frame::Hello { .. } = reader.read().ok()? else { return None };
    loop {
        let Frame::Request(request) = reader.read().ok()? else { return None };
        let outcome = {
            let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
            match request.op {
                Op::Get => Outcome::Value(objects.get(&request.key).cloned()),
                Op::Put(value) => {
                    Outcome::Done { existed: objects.insert(request.key, value).is_some() }
                }
                Op::Delete => Outcome::Done { existed: objects.remove(&request.key).is_some() },
            }
        };
        let (session, seq, address) = (request.session, request.seq, String::new());
        let frame = Encoded::new(&Frame::Answer { session, seq, outcome, address });
        stream.write_all(&frame.pieces().concat()).ok()?;
    }
}

/// Requests per second of the paper's load: put, get and delete of 256 keys by chance.
fn throughput(routes: &Arc<dyn Routes>, clients: usize) -> f64 {
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for number in 0..clients {
            let (stop, total) = (&stop, &total);
            scope.spawn(move || {
                let mut client = Client::new(Arc::clone(routes)).expect("a client");
                let value = Bytes::from(vec![1; 100]);
                let mut random = 0x9e37_79b9 + number as u64;
                while !stop.load(Ordering::Relaxed) {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let name = format!("key {}", random >> 8 & 255);
                    let name = name.as_bytes();
                    match random >> 32 & 3 {
                        0 => drop(client.put(name, value.clone()).expect("an answer")),
                        1 => drop(client.delete(name).expect("an answer")),
                        _ => drop(client.get(name).expect("an answer")),
                    }
                    total.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
    });
    // Far below what a float holds exactly.
    f64::from(u32::try_from(total.into_inner()).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let (mut all, _) = costs(&arguments, "local", [Some(1.078), Some(1.289), Some(1.304), None])?;
    let (remote, raw) =
        costs(&arguments, "remote", [Some(3.336), Some(3.782), Some(2.544), Some(3.871)])?;
    all.extend(remote);

    let elastic: Arc<dyn Routes> = Arc::new(MemoryRoutes::default());
    let server = Server::start(config(0), Arc::clone(&elastic), &Local::default())?;
    server.announce(Range::ALL)?;
    let plain: Arc<dyn Routes> = Arc::new(MemoryRoutes::default());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    plain.set_address(Peer(0), &listener.local_addr()?.to_string());
    plain.announce(Range::ALL, Peer(0)).map_err(|reply| format!("{reply:?}"))?;
    thread::spawn(move || standard(&listener));
    // In turn, so that what else the machine does concerns both.
    let (mut of_standard, mut of_elastic) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeat {
        of_standard.push(throughput(&plain, arguments.clients));
        of_elastic.push(throughput(&elastic, arguments.clients));
    }
    let results = Results {
        megabytes: arguments.megabytes,
        object: arguments.object,
        tcp: median(raw),
        costs: all,
        standard_per_second: median(of_standard).0,
        elastic_per_second: median(of_elastic).0,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
        return Ok(());
    }
    println!("{} MiB of {} bytes each", results.megabytes, results.object);
    println!("                   median s   worst s   of TCP   paper s   at most a tenth");
    println!("all by TCP alone {:>12.4} {:>9.4}", results.tcp.0, results.tcp.1);
    for Cost { operation, place, seconds, worst, of_tcp, paper, within } in &results.costs {
        let of_tcp = of_tcp.map_or("-".into(), |of_tcp| format!("{of_tcp:.2}"));
        let paper = paper.map_or("-".into(), |paper| format!("{paper:.3}"));
        let within = within.map_or("-", |within| if within { "yes" } else { "no" });
        println!(
            "{operation:<8} {place:<8} {seconds:>11.4} {worst:>9.4} {of_tcp:>8} {paper:>9}   {within}"
        );
    }
    let (standard, elastic) = (results.standard_per_second, results.elastic_per_second);
    println!(
        "standard {standard:.0} requests/s, elastic {elastic:.0}, {:.3} of it",
        elastic / standard
    );
    Ok(())
}
