//! Measures moves of live TCP connections between two homes in network namespaces: how long a server stands still,
//! and the longest time in which its client hears nothing. As root: `move-gap [MOVES] [--json]`.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "it uses what the tests have, and ends where they would fail"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::Homes;
use common::clients::{Client, Load};
use common::network::SERVICE;
use continuation::mover::Step;
use serde_json::json;

/// What the seed's own move takes (virtual servers and elastic services, Table IV), in milliseconds.
const SEED_MS: f64 = 3871.0;
/// Of the client's gap, for ping-pong and paced streams, in milliseconds: median and 99th percentile.
const BARS_MS: (f64, f64) = (5.0, 60.0);

/// Median, 99th percentile and maximum, in milliseconds.
fn summary(times: &mut [Duration]) -> [f64; 3] {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    [last / 2, last * 99 / 100, last].map(|at| times[at].as_secs_f64() * 1e3)
}

fn measure(load: Load, moves: usize) -> serde_json::Value {
    let mut homes = Homes::new();
    let client = Client::start(homes.connect(SERVICE.parse().unwrap()), load);
    let (mut blackouts, mut gaps, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    let mut steps: Vec<(Step, Vec<Duration>)> = Vec::new();
    for _ in 0..moves {
        // What the client sees without a move, beside what it sees with one.
        client.gap();
        assert!(client.goes_on(4096), "the client hears nothing");
        std::thread::sleep(Duration::from_millis(20));
        idle.push(client.gap());
        let times = homes.try_move().unwrap();
        assert!(client.goes_on(1), "the client hears nothing after a move");
        gaps.push(client.gap());
        blackouts.push(times.total());
        for (step, time) in times.0 {
            match steps.iter_mut().find(|(known, _)| *known == step) {
                Some((_, all)) => all.push(time),
                None => steps.push((step, vec![time])),
            }
        }
    }
    let bytes = client.finish().unwrap();
    let [p50, p99, max] = summary(&mut gaps);
    let holds = (load != Load::Bulk).then_some(p50 <= BARS_MS.0 && p99 <= BARS_MS.1);
    let parts: Vec<_> = steps
        .iter_mut()
        .map(|(step, all)| json!({ "step": format!("{step:?}"), "p50_p99_max_ms": summary(all) }))
        .collect();
    json!({
        "load": format!("{load:?}"), "moves": moves, "bytes_verified": bytes,
        "wrong_lost_or_doubled": 0, // or it would not have come here
        "blackout_p50_p99_max_ms": summary(&mut blackouts),
        "client_gap_p50_p99_max_ms": [p50, p99, max],
        "gap_without_a_move_p50_p99_max_ms": summary(&mut idle),
        "steps": parts, "within_bars": holds, "seed_move_ms": SEED_MS,
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut moves, mut as_json) = (200, false);
    for argument in &mut arguments {
        match argument.as_str() {
            "--json" => as_json = true,
            number => moves = number.parse().expect("move-gap [MOVES] [--json]"),
        }
    }
    let results: Vec<_> = [Load::PingPong, Load::Paced, Load::Bulk]
        .into_iter()
        .map(|load| measure(load, moves))
        .collect();
    if as_json {
        println!("{}", serde_json::to_string_pretty(&results).unwrap());
        return;
    }
    println!("p50 / p99 / max in ms; the seed's move: {SEED_MS} ms");
    for result in &results {
        let three = |name: &str| {
            let all = result[name].as_array().unwrap().iter();
            let all: Vec<_> = all.map(|time| format!("{:.2}", time.as_f64().unwrap())).collect();
            all.join(" / ")
        };
        println!(
            "{:9} {} moves, {} MB verified: blackout {}, client's gap {} (without a move {}){}",
            result["load"].as_str().unwrap(),
            result["moves"],
            result["bytes_verified"].as_u64().unwrap() / 1_000_000,
            three("blackout_p50_p99_max_ms"),
            three("client_gap_p50_p99_max_ms"),
            three("gap_without_a_move_p50_p99_max_ms"),
            match result["within_bars"].as_bool() {
                Some(true) => ", within 5 / 60",
                Some(false) => ", NOT within 5 / 60",
                None => "",
            },
        );
    }
}
