//! Registers in a window of I/O ports, which `ioperm(2)` opens to this thread.
#![expect(unsafe_code, reason = "port instructions, and a system call without a wrapper")]

use std::arch::asm;
use std::io;
use std::marker::PhantomData;

use control_abi::register::{Register, WINDOW_BYTES};

use crate::registers::Registers;

/// The window. The permission is of the thread that opened it, so this cannot be sent to another.
#[derive(Debug)]
pub struct PortIo {
    base: u16,
    of_this_thread: PhantomData<*const ()>,
}

impl PortIo {
    /// Opens the window at `base`.
    ///
    /// # Errors
    /// As `ioperm(2)`: without `CAP_SYS_RAWIO`, or from a kernel without `CONFIG_X86_IOPL_IOPERM`.
    pub fn open(base: u16) -> io::Result<Self> {
        if base.checked_add(WINDOW_BYTES - 1).is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: grants access to the ports of the control device; no memory is involved.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ioperm,
                libc::c_ulong::from(base),
                libc::c_ulong::from(WINDOW_BYTES),
                libc::c_int::from(true),
            )
        };
        if result == 0 {
            Ok(Self { base, of_this_thread: PhantomData })
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Registers for PortIo {
    fn read(&self, register: Register) -> u32 {
        let port = self.base + register as u16;
        let value: u32;
        // SAFETY: `open` got this thread access to the port. What the device does to memory it does to
        // such as was given to it, which is shared and never referenced but atomically; the block is
        // taken to change any memory.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
        }
        value
    }

    fn write(&self, register: Register, value: u32) {
        let port = self.base + register as u16;
        // SAFETY: as in `read`.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
        }
    }

    fn way(&self) -> String {
        format!("I/O ports {:#x}", self.base)
    }
}
