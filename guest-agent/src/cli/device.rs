//! `status`, `ping` and `cancel`: whether the device is there and does what it should.

use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::Args;
use control_abi::register::Register;
use control_abi::register::feature::FEATURES;
use guest_agent::calls::{Identity, Rights};
use guest_agent::discover::Device;
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global, interrupt};

/// Have the device give up all commands that it works at.
///
/// A program that was killed while it waited for one has given its memory back, to which the device would
/// still write the result. Commands of others that wait are given up, too.
#[derive(Debug, Args)]
pub struct CancelCommand {}

impl CancelCommand {
    pub fn run(options: &Global) -> Result<Exit, CliError> {
        options.driver()?.cancel()?;
        Ok(Exit::Success)
    }
}

/// Show the device, this VM's identity and what it may do.
#[derive(Debug, Args)]
pub struct StatusCommand {}

#[derive(Debug, Serialize)]
struct Status {
    device: Device,
    registers: String,
    memory: &'static str,
    version: String,
    features: Vec<&'static str>,
    rights: Rights,
    generation: u32,
    credit: u32,
    events: bool,
    event_line: bool,
    /// Bytes that a buffer can have.
    largest_buffer: usize,
    identity: Identity,
}

impl StatusCommand {
    pub fn run(options: &Global) -> Result<Exit, CliError> {
        let device = options.find()?;
        let mut driver = options.driver()?;
        let (events, event_line) = driver.has_events();
        let identity = driver.identify()?;
        let largest_buffer = driver.largest_buffer();
        let read = |register| driver.registers().read(register);
        let version = read(Register::Version);
        let features = read(Register::Features);
        let status = Status {
            device,
            registers: driver.registers().way(),
            memory: driver.memory().way(),
            version: format!("{}.{}", version >> 16, version & 0xffff),
            features: names(features),
            rights: Rights(read(Register::Rights)),
            generation: read(Register::Generation),
            credit: read(Register::Credit),
            events,
            event_line,
            largest_buffer,
            identity,
        };
        options.print(&status, &describe(&status))?;
        Ok(Exit::Success)
    }
}

fn names(features: u32) -> Vec<&'static str> {
    FEATURES.iter().filter(|(bit, ..)| features >> bit & 1 != 0).map(|(_, name, _)| *name).collect()
}

fn describe(status: &Status) -> String {
    let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let rights: Vec<_> = status.rights.names().collect();
    let identity = &status.identity;
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let mut text = String::new();
    for (name, value) in [
        ("name", identity.name.clone()),
        ("image", identity.image.clone()),
        ("manifest", identity.manifest.to_string()),
        ("cpus", identity.cpus.to_string()),
        ("memory", format!("{} MiB", identity.memory >> 20)),
        ("started", format!("{} ms ago", identity.milliseconds)),
        ("generation", status.generation.to_string()),
        ("rights", list(&rights)),
        ("device", format!("version {}, by {}", status.version, status.registers)),
        ("features", list(&status.features)),
        ("events", format!("{}, announced: {}", yes_no(status.events), yes_no(status.event_line))),
        ("pinned by", status.memory.to_owned()),
        ("buffers", format!("up to {} bytes", status.largest_buffer)),
        ("credit", status.credit.to_string()),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<11} {value}");
    }
    text
}

/// Send bytes to the device and expect them back.
#[derive(Debug, Args)]
pub struct PingCommand {
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,

    /// How many bytes, up to 4032.
    #[arg(long, value_name = "BYTES", default_value_t = 32)]
    size: u16,
}

#[derive(Debug, Serialize)]
struct Pings {
    count: u32,
    bytes: u16,
    /// Nanoseconds that the fastest took, and all of them on average.
    least_ns: u64,
    mean_ns: u64,
}

impl PingCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        let mut bytes = vec![0; usize::from(self.size)];
        let (mut least, mut all) = (Duration::MAX, Duration::ZERO);
        for number in 0..self.count {
            interrupt::check()?;
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = number.to_le_bytes()[at % 4] ^ at.to_le_bytes()[0];
            }
            let begun = Instant::now();
            if !driver.ping(&bytes)? {
                return Err(CliError::Unequal("the device echoed other bytes than were sent"));
            }
            let took = begun.elapsed();
            least = least.min(took);
            all += took;
        }
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let pings = Pings {
            count: self.count,
            bytes: self.size,
            least_ns: if self.count == 0 { 0 } else { nanoseconds(least) },
            mean_ns: nanoseconds(all / self.count.max(1)),
        };
        let text = format!(
            "ping: ok {} commands of {} bytes, {} us each, {} us at least\n",
            pings.count,
            pings.bytes,
            pings.mean_ns / 1000,
            pings.least_ns / 1000
        );
        options.print(&pings, &text)?;
        Ok(Exit::Success)
    }
}
