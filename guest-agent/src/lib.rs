//! The guest's side of the control device: a driver in user space, for kernels as distributions ship
//! them. `docs/control-device.md` describes the device, `docs/guest-agent.md` the program.
//!
//! | Module | What |
//! |---|---|
//! | [`discover`] | where the device is |
//! | [`registers`] | its registers, through [`port`] or [`mmio`] |
//! | [`memory`] | memory that is shared with it; [`pinned`] is such that stays where it is |
//! | [`lock`] | one submitter at a time, over all processes |
//! | [`ring`] | events, and the [`line`](mod@line) that announces them |
//! | [`driver`] | commands: submitted, waited for, repeated |
//! | [`calls`] | a function for each operation |
//! | [`interface`] | the network interface of a virtual identifier |
//!
//! ```no_run
//! let device = guest_agent::discover::discover()?;
//! let registers = guest_agent::registers::open(&device, Default::default())?;
//! let mut driver = guest_agent::driver::Driver::new(registers, Default::default())?;
//! println!("{}", driver.identify()?.name);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

pub mod calls;
pub mod discover;
pub mod driver;
pub mod interface;
pub mod line;
pub mod lock;
pub mod memory;
pub mod mmio;
pub mod pagemap;
pub mod pinned;
pub mod port;
pub mod registers;
pub mod ring;

#[cfg(test)]
mod fake;
