//! Every register in every width, at every offset, by ports and in memory.

use control_abi::event::RING_DOWN;
use control_abi::register::{Access, REGISTERS, Register};

use crate::Failure;
use crate::shared::Shared;

pub fn all(shared: &mut Shared) -> Result<(), Failure> {
    let before = constants(shared);
    widths(shared)?;
    values(shared);
    let after = constants(shared);
    if before == after {
        Ok(())
    } else {
        Err(format!("registers that are only read have changed: {before:x?}, {after:x?}").into())
    }
}

/// Reads all that no write may change.
fn constants(shared: &Shared) -> Vec<u32> {
    use Register::{Features, Generation, Magic, Rights, Version};
    [Magic, Version, Features, Rights, Generation]
        .map(|register| shared.registers.read(register))
        .to_vec()
}

fn all_ones(found: u64, width: u16, what: &str, offset: u16) -> Result<(), Failure> {
    if found == u64::MAX >> (64 - 8 * u32::from(width)) {
        return Ok(());
    }
    Err(format!("{what} at {offset:#x}, {width} bytes wide, reads {found:#x}").into())
}

fn widths(shared: &mut Shared) -> Result<(), Failure> {
    let raw = &shared.raw;
    for offset in 0..64 {
        for width in [1, 2, 4] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            // What reaches beyond the window's end is split, or another device's.
            if offset + width <= 64 {
                raw.port_write(offset, width, 0xffff_ffff);
                all_ones(raw.port_read(offset, width).into(), width, "the port", offset)?;
            }
        }
    }
    for offset in (0..80).chain([1000, 2048, 4087, 4088]) {
        for width in [1, 2, 4, 8] {
            if width == 4 && offset % 4 == 0 && offset < 64 {
                continue;
            }
            raw.memory_write(offset, width, u64::MAX);
            all_ones(raw.memory_read(offset, width), width, "memory", offset)?;
        }
    }
    Ok(())
}

/// Values of all kinds in all registers, which must take them in their stride.
fn values(shared: &mut Shared) {
    for register in REGISTERS {
        for value in [0, 1, 0x40, 0x1000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffc0, u32::MAX] {
            if *register == Register::CommandLow {
                shared.commands += 2;
            }
            shared.raw.port_write(*register as u16, 4, value);
            shared.raw.memory_write(*register as u16, 4, value.into());
            if register.access() != Access::Write {
                shared.registers.read(*register);
            }
            // A ring at one of these places would be written to, and it is not ours.
            shared.registers.write(Register::RingLow, RING_DOWN);
        }
    }
}
