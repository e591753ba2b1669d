//! Measures switches: what a re-point costs, how long a message to random identifiers takes there and back, and
//! what it costs a receiver that it is handed what is not for it. Beside each is what the seed measured
//! (Kulkarni et al., "Virtualized, elastic system services", tables II and III, figure 10).
//!
//! Needs root, for network namespaces; with the feature `ovs`, Open vSwitch.
#![allow(clippy::unwrap_used)]

mod receivers;
// The tests use more of it than a measurement does.
#[path = "../../tests/switch/rig.rs"]
#[allow(dead_code)]
mod rig;

#[cfg(feature = "ovs")]
#[path = "../../tests/switch/ovs.rs"]
mod ovs;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use endpoint::vid::Vid;
use serde_json::{Value, json};
use vswitch::Change;
use vswitch::frame::Header;

use rig::{PATIENCE, Rig, content, frame, in_namespace, own, vid};

/// In how many parts the messages to each set of identifiers are sent.
const ROUNDS: u32 = 8;

/// Measures switches that forward by virtual identifier.
#[derive(Parser, Debug)]
struct Options {
    /// Re-points of each backend.
    #[arg(long, default_value_t = 2_000)]
    moves: u32,
    /// Messages to each set of identifiers.
    #[arg(long, default_value_t = 4_000)]
    messages: u32,
    /// Identifiers.
    #[arg(long, default_value_t = 8_192)]
    identifiers: u32,
    /// Requests to receivers.
    #[arg(long, default_value_t = 10_000)]
    requests: u32,
    /// Receivers.
    #[arg(long, default_value_t = 8)]
    receivers: u16,
    /// Write every figure there, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Median and 99th percentile, in microseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |share: usize| {
        let place = (times.len() * share / 100).min(times.len().saturating_sub(1));
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    (at(50), at(99))
}

/// What a re-point costs who asks for it.
fn repoint(rig: &Rig, moves: u32) -> (f64, f64) {
    rig.switch.add(vid(1), rig.ports[1]).unwrap();
    let times = (0..moves).map(|turn| {
        let to = rig.ports[if turn % 2 == 0 { 2 } else { 1 }];
        let start = Instant::now();
        rig.switch.update(vid(1), to).unwrap();
        start.elapsed()
    });
    let times = times.collect();
    rig.switch.delete(vid(1)).unwrap();
    percentiles(times)
}

/// Which part of an identifier names the service.
#[derive(Clone, Copy)]
enum Form {
    Prefix,
    Suffix,
}

fn identifier(form: Form, request: u32) -> Vid {
    let [_, high, middle, low] = request.to_be_bytes();
    let bytes = match form {
        Form::Prefix => [0x5e, 0x12, 0x34, high, middle, low],
        Form::Suffix => [(high << 4) | 0x0e, middle, low, 0, 0x12, 0x34],
    };
    Vid::new(bytes).unwrap()
}

/// Round trips to random ones of `count` identifiers of each form, in turn: microseconds of each, and of
/// setting one identifier up.
fn round_trips(mut rig: Rig, options: &Options) -> Value {
    rig.settle_guests();
    let sets = [
        ("prefix, 2 ids", Form::Prefix, 2),
        ("suffix, 2 ids", Form::Suffix, 2),
        ("prefix", Form::Prefix, options.identifiers),
        ("suffix", Form::Suffix, options.identifiers),
    ];
    let end = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = rig
        .guests
        .drain(1..)
        .map(|mut guest| {
            let end = Arc::clone(&end);
            thread::spawn(move || {
                while !end.load(Ordering::Acquire) {
                    let Some(frame) = guest.receive(Duration::from_millis(50)) else { continue };
                    let header = Header::of(&frame).unwrap();
                    let back =
                        Header { destination: header.source, source: header.destination, ..header };
                    guest.send(&back.frame(&frame[14..]));
                }
            })
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut times = vec![Vec::new(); sets.len()];
    let mut set_up = vec![Duration::MAX; sets.len()];
    // In turn: who runs on which processor changes, and must not favour one set.
    for _ in 0..ROUNDS {
        for (place, (_, form, count)) in sets.iter().enumerate() {
            let changes: Vec<_> = (0..*count)
                .map(|request| {
                    let port = rig.ports[if request % 2 == 0 { 1 } else { 2 }];
                    Change::Add { vid: identifier(*form, request), port }
                })
                .collect();
            let start = Instant::now();
            rig.switch.sync(&changes).unwrap();
            set_up[place] = set_up[place].min(start.elapsed());
            rig.wait();
            for number in 0..options.messages / ROUNDS {
                let to = identifier(*form, random.u32(0..*count));
                let start = Instant::now();
                rig.guests[0].send(&frame(own(0), to, number));
                assert_eq!(content(&rig.guests[0].receive(PATIENCE).unwrap()), number);
                times[place].push(start.elapsed());
            }
            let back: Vec<_> =
                changes.iter().map(|change| Change::Delete { vid: change.vid() }).collect();
            rig.switch.sync(&back).unwrap();
        }
    }
    let mut results = serde_json::Map::new();
    for (((name, _, count), times), set_up) in sets.into_iter().zip(times).zip(set_up) {
        let set_up = set_up.as_secs_f64() * 1e6 / f64::from(count);
        let (p50, p99) = percentiles(times);
        println!("  {name:<16} {p50:>9.1} {p99:>9.1}   set-up {set_up:.1} us/id");
        let figures = json!({ "p50_us": p50, "p99_us": p99, "set_up_us": set_up });
        results.insert(name.into(), figures);
    }
    end.store(true, Ordering::Release);
    for server in servers {
        server.join().unwrap();
    }
    results.into()
}

fn measure(name: &'static str, rig: Rig, options: &Options) -> Value {
    let (p50, p99) = repoint(&rig, options.moves);
    println!("{name}: re-point {p50:.1} us, p99 {p99:.1}; round trips, us: p50, p99");
    let trips = round_trips(rig, options);
    json!({ "repoint_us": { "p50": p50, "p99": p99 }, "round_trip": trips })
}

fn main() {
    let options = Arc::new(Options::parse());
    let mut backends = serde_json::Map::new();
    let result = measure("user space", Rig::user(), &options);
    backends.insert("user".into(), result);
    let own_options = Arc::clone(&options);
    let result = in_namespace(move || measure("Linux bridge", Rig::bridge(), &own_options));
    backends.insert("bridge".into(), result);
    #[cfg(feature = "ovs")]
    {
        let own_options = Arc::clone(&options);
        let result = in_namespace(move || measure("Open vSwitch", ovs::rig(), &own_options));
        backends.insert("ovs".into(), result);
    }
    println!("seed, 16 nodes: prefix 28.64 learning, 57.44 spoofing; suffix 27.85 and 76.80");
    println!("seed, 1024 nodes: prefix 28.84 learning, 9988.92 spoofing; suffix 27.48 and 77.16");

    println!("receivers, seconds for {} requests", options.requests);
    let (receivers, requests) = (options.receivers, options.requests);
    let filters = in_namespace(move || receivers::measure(receivers, requests));
    println!("seed: the switch is close to 3 times as fast as filtering in user space");

    let all = json!({
        "backends": backends,
        "receivers": filters,
        "seed": {
            "round_trip_us": {
                "prefix": { "learning_16": 28.64, "spoofing_16": 57.44,
                            "learning_1024": 28.84, "spoofing_1024": 9988.92 },
                "suffix": { "learning_16": 27.85, "spoofing_16": 76.80,
                            "learning_1024": 27.48, "spoofing_1024": 77.16 },
            },
            "receivers_switch_against_promiscuous": 3,
        },
    });
    if let Some(path) = &options.json {
        fs::write(path, format!("{all:#}\n")).unwrap();
    }
}
