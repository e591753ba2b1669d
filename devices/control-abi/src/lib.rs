//! The interface between a guest and its VMM: the control device's registers, commands, events and
//! error numbers, for both sides. `docs/control-device.md` tells the same to people.
//!
//! The device is a bank of 32-bit registers, after the virtual device control registers by which
//! Kehne's management VM calls its hypervisor ("A distributed cache for fast VM booting in tightly
//! interconnected cloud environments", section 4.3): what does not fit into a register is a structure
//! in guest memory, whose guest-physical address is written into one.
//!
//! | Module | What |
//! |---|---|
//! | [`register`] | the registers, and where they are found |
//! | [`command`] | the structure that a command is |
//! | [`operation`] | what can be asked for, and by whom |
//! | [`field`] | the encoding of arguments and results |
//! | [`event`] | the ring in which the device tells of what happened |
//! | [`status`] | outcomes and error numbers |
//! | [`rights`] | what a guest may do |
//!
//! All numbers are little-endian. What is reserved is zero, and an error if it is not, so that it can
//! be given a meaning later.

#![no_std]
#![forbid(unsafe_code)]

pub mod command;
pub mod event;
pub mod field;
pub mod operation;
pub mod register;
pub mod rights;
pub mod status;

/// Major version: a driver refuses another one.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version: a higher one has more, and nothing less.
pub const VERSION_MINOR: u16 = 0;
