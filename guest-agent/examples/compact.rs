//! Has the kernel move memory about while commands go on; for the test suite. As root of a guest.
//!
//! `compact [COUNT]`: fills memory, makes holes in it, and forces COUNT compactions (1,000), while another
//! thread submits commands all the time. None may be lost, no page of the driver may move, and the
//! kernel must have moved others, or nothing was shown.
//!
//! Prints `compact: ok ...` at the end, or what went wrong, with status 1.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use guest_agent::discover::discover;
use guest_agent::driver::{Driver, Options};
use guest_agent::memory::PAGE;
use guest_agent::pagemap::addresses;
use guest_agent::registers::{self, Access};
use rustix::fs::{FallocateFlags, fallocate};

/// What went wrong.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Memory that is filled, of which every other page is given back; and memory of this program's own that
/// nothing holds.
const FILLED: u64 = 48 << 20;
const PLAIN: usize = 4 << 20;
/// Compactions between two fillings.
const ROUND: u32 = 20;
const FILLER: &str = "/run/guest-agent-compact";

fn main() -> ExitCode {
    let count = std::env::args().nth(1).map_or(Ok(1000), |argument| argument.parse());
    let result = match count {
        Ok(count) => run(count),
        Err(_) => Err("usage: compact [COUNT]".into()),
    };
    let _ = fs::remove_file(FILLER);
    match result {
        Ok(result) => {
            println!("compact: ok {result}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("compact: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(count: u32) -> Result<String, Failure> {
    let registers = registers::open(&discover()?, Access::Any)?;
    let mut driver = Driver::new(registers, Options::default())?;
    // Of kernels that have it: pages that are locked are moved too.
    let _ = fs::write("/proc/sys/vm/compact_unevictable_allowed", "1");
    let plain = vec![1_u8; PLAIN];
    let pages = |driver: &Driver| {
        addresses(driver.memory().words().as_ptr().addr(), driver.memory().pages().len())
    };
    let plain_pages = || addresses(plain.as_ptr().addr(), PLAIN / PAGE);
    let (before, plain_before, moved_before) = (pages(&driver)?, plain_pages()?, moved()?);

    let compactor: JoinHandle<Result<(), Failure>> = thread::spawn(move || compact(count));
    let (mut commands, mut bytes) = (0_u64, [0; 1500]);
    while !compactor.is_finished() {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = commands.to_le_bytes()[at % 3] ^ at.to_le_bytes()[0];
        }
        if !driver.ping(&bytes)? {
            return Err(format!("command {commands} was echoed wrongly").into());
        }
        commands += 1;
        // One that is accepted, and ends later.
        if commands.is_multiple_of(16) {
            driver.image_stat(None)?;
            commands += 1;
        }
    }
    compactor.join().map_err(|_| "the compacting thread has failed")??;

    if pages(&driver)? != before || before != driver.memory().pages() {
        return Err("pages of the driver have moved".into());
    }
    let changes = plain_pages()?.iter().zip(&plain_before).filter(|(a, b)| a != b).count();
    let moved = moved()?.saturating_sub(moved_before);
    if moved == 0 {
        return Err("the kernel has moved nothing: this shows nothing".into());
    }
    Ok(format!(
        "{count} compactions, {commands} commands, none lost; the kernel moved {moved} pages, {changes} \
         of {} plain pages, 0 of {} that are held by {}",
        plain_before.len(),
        before.len(),
        driver.memory().way()
    ))
}

/// Forces compactions, of memory that has become full of holes.
fn compact(count: u32) -> Result<(), Failure> {
    let filler = File::options().read(true).write(true).create(true).truncate(true).open(FILLER)?;
    let block = vec![0x55; 1 << 20];
    for number in 0..count {
        if number % ROUND == 0 {
            filler.set_len(0)?;
            for at in (0..FILLED).step_by(1 << 20) {
                filler.write_all_at(&block, at)?;
            }
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let first = u64::from(number / ROUND % 2) * PAGE as u64;
            for at in (first..FILLED).step_by(2 * PAGE) {
                fallocate(&filler, hole, at, PAGE as u64)?;
            }
        }
        fs::write("/proc/sys/vm/compact_memory", "1")?;
    }
    Ok(())
}

/// Pages that the kernel has moved since it was started.
fn moved() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("pgmigrate_success "));
    Ok(line.ok_or("this kernel does not count what it moves")?.parse()?)
}
