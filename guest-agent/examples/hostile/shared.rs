//! Memory that the device may write to, among memory that it may not.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use control_abi::command::{Header, STATUS_OFFSET};
use control_abi::event::{ALL_KINDS, RING_DOWN};
use control_abi::operation::Operation;
use control_abi::register::{MAGIC, Register};
use control_abi::status::{ACCEPTED, DONE, Error, PENDING};
use guest_agent::discover::Device;
use guest_agent::memory::{Memory, PAGE};
use guest_agent::pinned;
use guest_agent::registers::{self, Access, Registers};

use crate::Failure;
use crate::raw::Raw;

/// What guard words are.
const GUARD: u32 = 0x5aa5_c33c;
/// Pages: a guard, the command, a guard, the ring, a guard, the buffer, a guard.
const PAGES: usize = 7;
/// Where things are in the memory.
pub const COMMAND: usize = PAGE;
pub const RING: usize = 3 * PAGE;
pub const BUFFER: usize = 5 * PAGE;
/// An accepted command takes no longer.
const MOST: Duration = Duration::from_secs(60);

/// The device and the memory.
pub struct Shared {
    pub registers: Box<dyn Registers>,
    pub raw: Raw,
    pub memory: Arc<Memory>,
    /// Start and end of pieces of RAM, as the kernel has them.
    pub ram: Vec<(u64, u64)>,
    /// How many were submitted.
    pub commands: u64,
    sequence: u64,
}

impl Shared {
    pub fn new(device: &Device) -> Result<Self, Failure> {
        let memory = pinned::pages(PAGES)?;
        for word in memory.words() {
            word.store(GUARD, Ordering::Relaxed);
        }
        let table = fs::read_to_string("/proc/iomem")?;
        let mut shared = Self {
            registers: registers::open(device, Access::Ports)?,
            raw: Raw::open(device)?,
            memory: Arc::new(memory),
            ram: table.lines().filter_map(ram).collect(),
            commands: 0,
            sequence: 0,
        };
        if shared.ram.is_empty() {
            return Err("/proc/iomem shows no RAM".into());
        }
        shared.settle()?;
        Ok(shared)
    }

    /// The guest-physical address of an offset of the memory.
    pub fn address(&self, offset: usize) -> u64 {
        self.memory.address(offset, 1).unwrap_or(0)
    }

    /// Submits what is at a guest-physical address, and returns what `RESULT` then says, which must be
    /// something that there is.
    pub fn submit(&mut self, address: u64) -> Result<u32, Failure> {
        self.commands += 1;
        let [high, low] = [address >> 32, address & 0xffff_ffff];
        self.registers.write(Register::CommandHigh, u32::try_from(high)?);
        self.registers.write(Register::CommandLow, u32::try_from(low)?);
        let result = self.registers.read(Register::Result);
        known(result)?;
        Ok(result)
    }

    /// Puts a command and its input into place.
    pub fn place(&self, header: &[u8], input: &[u8]) {
        self.memory.write(COMMAND + 64, input);
        self.memory.write(COMMAND, header);
    }

    /// Submits the command that is in place, again while there are too many, and waits for its end; its
    /// status, which is the register's if the device could not write to the command.
    pub fn command(&mut self) -> Result<u32, Failure> {
        let begun = Instant::now();
        let status = COMMAND + usize::from(STATUS_OFFSET);
        loop {
            let result = self.submit(self.address(COMMAND))?;
            let mut outcome = result;
            while outcome == ACCEPTED {
                outcome = self.memory.load(status);
                known(outcome)?;
                if begun.elapsed() > MOST {
                    return Err("an accepted command does not end".into());
                }
                if outcome == ACCEPTED {
                    sleep(Duration::from_micros(200));
                }
            }
            if ![Error::RateLimited.status(), Error::Busy.status()].contains(&outcome) {
                return Ok(outcome);
            }
            if begun.elapsed() > MOST {
                return Err("the device has no room for a command, ever".into());
            }
            self.memory.store(status, PENDING);
            sleep(Duration::from_millis(2));
        }
    }

    /// Submits the command that is in place, and waits only for the end of what is accepted: what is too
    /// much is just so.
    pub fn command_once(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut outcome = self.submit(self.address(COMMAND))?;
        while outcome == ACCEPTED {
            outcome = self.memory.load(COMMAND + usize::from(STATUS_OFFSET));
            known(outcome)?;
            if begun.elapsed() > MOST {
                return Err("an accepted command does not end".into());
            }
        }
        Ok(())
    }

    /// Submits this header with input behind it, which must end with this error.
    pub fn expect(&mut self, header: &[u8], input: &[u8], error: Error) -> Result<(), Failure> {
        self.place(header, input);
        let outcome = self.command()?;
        if outcome == error.status() {
            return Ok(());
        }
        Err(format!("{outcome:#010x} instead of {error} for the header {header:02x?}").into())
    }

    /// Looks that no guard was touched, and that the device answers as it should.
    pub fn settle(&mut self) -> Result<(), Failure> {
        self.registers.write(Register::RingLow, RING_DOWN);
        self.registers.write(Register::EventEnable, ALL_KINDS);
        let words = self.memory.words();
        for page in [0, 2, 4, 6] {
            let page = &words[page * PAGE / 4..][..PAGE / 4];
            if let Some(at) = page.iter().position(|word| word.load(Ordering::Relaxed) != GUARD) {
                return Err(format!("guard word {at} was overwritten").into());
            }
        }
        if self.registers.read(Register::Magic) != MAGIC {
            return Err("the register MAGIC has changed".into());
        }
        self.sequence += 1;
        let nonce = self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let header = Header::inline(Operation::Ping.number(), self.sequence, 8, 8)?;
        self.place(&header.encode(), &nonce);
        let outcome = self.command()?;
        let mut echo = [0; 8];
        self.memory.read(COMMAND + 72, &mut echo);
        if outcome == DONE && echo == nonce {
            Ok(())
        } else {
            Err(format!("a ping is answered with {outcome:#010x} and {echo:02x?}").into())
        }
    }
}

/// A status must be one that there is.
pub fn known(status: u32) -> Result<(), Failure> {
    let is_known =
        matches!(status, PENDING | DONE | ACCEPTED) || Error::from_status(status).is_some();
    if is_known { Ok(()) } else { Err(format!("{status:#010x} is no status").into()) }
}

fn ram(line: &str) -> Option<(u64, u64)> {
    let (range, name) = line.split_once(" : ")?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    // Lines that are indented are parts of others.
    let is_ram = name == "System RAM" && !line.starts_with(' ');
    is_ram.then_some((number(start)?, number(end)?.checked_add(1)?))
}
