//! The registers, however they are reached: ports first, memory where the kernel refuses those.

use std::fmt::Debug;
use std::io;

use control_abi::register::{MAGIC, Register};
use control_abi::{VERSION_MAJOR, register};

use crate::discover::Device;
use crate::mmio::Mmio;
use crate::port::PortIo;

/// A bank of registers.
pub trait Registers: Debug {
    /// What a register reads as.
    fn read(&self, register: Register) -> u32;
    /// Writes a register. What the device does to memory has happened when this returns.
    fn write(&self, register: Register, value: u32);
    /// How they are reached, for people.
    fn way(&self) -> String;
}

/// How registers may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// By ports, else in memory.
    #[default]
    Any,
    /// By ports only.
    Ports,
    /// In memory only.
    Memory,
}

/// Why registers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No way is open.
    #[error("the registers cannot be reached. By ports: {ports}. By memory: {memory}")]
    Closed {
        /// Why not by ports.
        ports: Obstacle,
        /// Why not in memory.
        memory: Obstacle,
    },
    /// Something else is there.
    #[error("no control device at {way}: it reads {found:#010x} instead of {MAGIC:#010x}")]
    BadMagic {
        /// Where was looked.
        way: String,
        /// What the first register read as.
        found: u32,
    },
    /// A device of another major version.
    #[error(
        "the control device has version {}.{}, this driver is for {VERSION_MAJOR}: get the agent \
         that belongs to the host's vmm",
        .0 >> 16, .0 & 0xffff
    )]
    BadVersion(u32),
}

/// Why one way to the registers is closed.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// Nobody says where that would be.
    #[error("no place is known")]
    Unknown,
    /// The caller does not want it.
    #[error("not asked for")]
    NotWanted,
    /// Ports are not opened.
    #[error("ioperm {base:#x}: {source}{}", ioperm_advice(source))]
    Ports {
        /// First port.
        base: u16,
        /// The system's error.
        source: io::Error,
    },
    /// Memory is not mapped.
    #[error("/dev/mem at {address:#x}: {source}{}", mmap_advice(source))]
    Memory {
        /// Guest-physical address of the page.
        address: u64,
        /// The system's error.
        source: io::Error,
    },
}

fn ioperm_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            " (it needs root with CAP_SYS_RAWIO, and a kernel that is not locked down)"
        }
        Some(libc::ENOSYS) => " (this kernel has no CONFIG_X86_IOPL_IOPERM)",
        _ => "",
    }
}

fn mmap_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            " (it needs CAP_SYS_RAWIO, a kernel that is not locked down, and a page that no driver has)"
        }
        Some(libc::EACCES) => " (it needs root)",
        Some(libc::ENOENT) => " (this kernel has no CONFIG_DEVMEM, or /dev is not mounted)",
        _ => "",
    }
}

/// Opens the device's registers and looks that they are a control device's, of a version that is known.
///
/// # Errors
/// If they cannot be reached, with the reason for each way, or are none.
pub fn open(device: &Device, access: Access) -> Result<Box<dyn Registers>, RegisterError> {
    let ports = if access == Access::Memory { Err(Obstacle::NotWanted) } else { ports(device) };
    let ports = match ports {
        Ok(registers) => return check(registers),
        Err(obstacle) => obstacle,
    };
    let memory = if access == Access::Ports { Err(Obstacle::NotWanted) } else { memory(device) };
    match memory {
        Ok(registers) => check(registers),
        Err(memory) => Err(RegisterError::Closed { ports, memory }),
    }
}

fn ports(device: &Device) -> Result<Box<dyn Registers>, Obstacle> {
    let base = device.port.ok_or(Obstacle::Unknown)?;
    let ports = PortIo::open(base).map_err(|source| Obstacle::Ports { base, source })?;
    Ok(Box::new(ports))
}

fn memory(device: &Device) -> Result<Box<dyn Registers>, Obstacle> {
    let address = device.address.ok_or(Obstacle::Unknown)?;
    let page = Mmio::open(address).map_err(|source| Obstacle::Memory { address, source })?;
    Ok(Box::new(page))
}

/// Looks that these are the registers of a control device whose version is known.
///
/// # Errors
/// If they are not.
pub fn check(registers: Box<dyn Registers>) -> Result<Box<dyn Registers>, RegisterError> {
    let found = registers.read(Register::Magic);
    if found != MAGIC {
        return Err(RegisterError::BadMagic { way: registers.way(), found });
    }
    let version = registers.read(Register::Version);
    if version & 0xffff_0000 != register::version(VERSION_MAJOR, 0) {
        return Err(RegisterError::BadVersion(version));
    }
    Ok(registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Source;

    /// Registers that read as these, and all others as zero.
    #[derive(Debug)]
    struct Constant(u32, u32);

    impl Registers for Constant {
        fn read(&self, register: Register) -> u32 {
            match register {
                Register::Magic => self.0,
                Register::Version => self.1,
                _ => 0,
            }
        }
        fn write(&self, _: Register, _: u32) {}
        fn way(&self) -> String {
            "here".to_owned()
        }
    }

    #[test]
    fn other_devices_and_major_versions_are_refused() {
        assert!(check(Box::new(Constant(MAGIC, register::version(VERSION_MAJOR, 7)))).is_ok());
        let error = check(Box::new(Constant(u32::MAX, u32::MAX))).unwrap_err();
        assert!(error.to_string().contains("0xffffffff"), "{error}");
        let error = check(Box::new(Constant(MAGIC, register::version(2, 1)))).unwrap_err();
        assert!(error.to_string().contains("version 2.1"), "{error}");
    }

    #[test]
    fn both_ways_are_named_when_both_are_closed() {
        let nowhere = Device { port: None, address: None, source: Source::Caller };
        let error = open(&nowhere, Access::Any).unwrap_err();
        assert!(matches!(
            error,
            RegisterError::Closed { ports: Obstacle::Unknown, memory: Obstacle::Unknown }
        ));
        let error = open(&nowhere, Access::Memory).unwrap_err();
        assert!(error.to_string().contains("By ports: not asked for"), "{error}");
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        let text = Obstacle::Ports { base: 0xd00, source: denied }.to_string();
        assert!(text.contains("CAP_SYS_RAWIO") && text.contains("0xd00"), "{text}");
        let text = ioperm_advice(&io::Error::from_raw_os_error(libc::ENOSYS));
        assert!(text.contains("CONFIG_X86_IOPL_IOPERM"), "{text}");
    }
}
