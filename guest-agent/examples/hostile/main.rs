//! Does to the control device what no driver would, as root of a guest; for the test suite.
//!
//! `hostile [COMMANDS [SEED]]`: every register in every width and order, commands in all places where
//! they cannot be, one that changes while it is read, a flood, and COMMANDS random ones. Each outcome
//! must be an error number or one of the others that there are; no byte may change that was not given
//! to the device; and at the end it must answer as at the beginning.
//!
//! Prints `hostile: ok N commands` at the end, or what went wrong, with status 1.
#![deny(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

mod bank;
mod commands;
mod raw;
mod shared;

use std::process::ExitCode;

use guest_agent::discover::discover;

/// What went wrong.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let count = arguments.next().unwrap_or(Ok(10_000));
    let seed = arguments.next().unwrap_or(Ok(1));
    let (Ok(count), Ok(seed)) = (count, seed) else {
        println!("hostile: usage: hostile [COMMANDS [SEED]]");
        return 2.into();
    };
    match run(count, seed) {
        Ok(commands) => {
            println!("hostile: ok {commands} commands");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("hostile: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(count: u64, seed: u64) -> Result<u64, Failure> {
    let device = discover()?;
    let mut shared = shared::Shared::new(&device)?;
    for (name, attempt) in [
        ("registers", bank::all as fn(&mut shared::Shared) -> Result<(), Failure>),
        ("places", commands::places),
        ("headers", commands::headers),
        ("texts", commands::texts),
        ("rings", commands::rings),
        ("changing", commands::changing),
        ("flood", commands::flood),
    ] {
        attempt(&mut shared).map_err(|failure| format!("{name}: {failure}"))?;
        shared.settle().map_err(|failure| format!("after {name}: {failure}"))?;
        println!("hostile: {name}: ok, {} commands so far", shared.commands);
    }
    commands::random(&mut shared, count, seed).map_err(|failure| format!("random: {failure}"))?;
    shared.settle().map_err(|failure| format!("after random: {failure}"))?;
    Ok(shared.commands)
}
