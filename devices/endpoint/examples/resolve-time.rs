//! How long an identifier takes to be found in a host's copy of the directory, among 8,192 ranges.
#![expect(clippy::print_stdout, reason = "what it is for")]

use std::hint::black_box;
use std::time::Instant;

use endpoint::directory::cache::Cache;
use endpoint::directory::local::LocalDirectory;
use endpoint::directory::{Change, Directory};
use endpoint::name::Name;
use endpoint::range::{Form, Range};
use endpoint::record::{Home, Record};

const RANGES: u32 = 8192;
const EACH: u32 = 1 << 11;
const ASKED: u32 = 100_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = LocalDirectory::new(Vec::new())?;
    let lease = directory.open(&"a".parse()?, std::time::Duration::from_secs(3600))?;
    let name: Name = "kv".parse()?;
    let whole = Range::whole(Form::Prefix, &name);
    let mut records = Vec::new();
    for number in 0..RANGES {
        let range = Range::of(Form::Prefix, &name, number * EACH, (number + 1) * EACH - 1)?;
        let home = Home::new("h", &(number % 16).to_string())?;
        records.push(Record::new(range, name.clone(), home, lease.owner.clone()));
    }
    let begun = Instant::now();
    for some in records.chunks(32) {
        directory.change(&lease, &Change::announce(some.to_vec()))?;
    }
    println!("{RANGES} ranges announced in {:?}", begun.elapsed());
    let cache = Cache::new(&directory)?;
    let mut times: Vec<_> = (0..ASKED)
        .map(|number| {
            let vid = whole.pick(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let begun = Instant::now();
            black_box(cache.route(black_box(vid)));
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "one found: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    Ok(())
}
