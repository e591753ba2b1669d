//! Accesses of any width, by ports and in memory, at addresses that are no multiples of anything.
#![expect(unsafe_code, reason = "port instructions, and accesses to a mapping of device registers")]

use std::arch::asm;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{NonNull, null_mut};

use guest_agent::discover::Device;
use rustix::mm::{MapFlags, ProtFlags, mmap};

const PAGE: usize = 4096;

/// Both ways to the device's window.
pub struct Raw {
    port: u16,
    page: NonNull<u8>,
}

impl Raw {
    /// Opens both; the page stays mapped until the program ends.
    pub fn open(device: &Device) -> io::Result<Self> {
        let (Some(port), Some(address)) = (device.port, device.address) else {
            return Err(io::Error::other("the device has no ports, or no page"));
        };
        // SAFETY: grants access to 64 ports of the device, and the next 8; no memory is involved.
        let result = unsafe {
            libc::syscall(libc::SYS_ioperm, libc::c_ulong::from(port), 72 as libc::c_ulong, 1)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let memory =
            File::options().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe { mmap(null_mut(), PAGE, protection, MapFlags::SHARED, memory, address) };
        Ok(Self { port, page: NonNull::new(page?.cast()).ok_or(io::ErrorKind::OutOfMemory)? })
    }

    /// Reads a port at `offset`, which is at most 64, `width` bytes wide: 1, 2 or 4.
    pub fn port_read(&self, offset: u16, width: u16) -> u32 {
        let port = self.port + offset.min(64);
        let value: u32;
        // SAFETY: the ports were opened; the device writes to no memory when it is read.
        unsafe {
            match width {
                1 => {
                    asm!("xor eax, eax", "in al, dx", in("dx") port, out("eax") value, options(nostack));
                }
                2 => {
                    asm!("xor eax, eax", "in ax, dx", in("dx") port, out("eax") value, options(nostack));
                }
                _ => asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)),
            }
        }
        value
    }

    /// Writes a port.
    pub fn port_write(&self, offset: u16, width: u16, value: u32) {
        let port = self.port + offset.min(64);
        // SAFETY: the ports were opened. What the device may write to is atomic words that are shared
        // with it.
        unsafe {
            match width {
                1 => asm!("out dx, al", in("dx") port, in("eax") value, options(nostack)),
                2 => asm!("out dx, ax", in("dx") port, in("eax") value, options(nostack)),
                _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)),
            }
        }
    }

    /// Reads the page at `offset`, `width` bytes wide: 1, 2, 4 or 8.
    pub fn memory_read(&self, offset: u16, width: u16) -> u64 {
        let offset = usize::from(offset).min(PAGE - 8);
        let value: u64;
        // SAFETY: within the mapped page. The instructions may be unaligned, as those of the language
        // may not.
        unsafe {
            let at = self.page.add(offset).as_ptr();
            match width {
                1 => {
                    asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack));
                }
                2 => {
                    asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack));
                }
                4 => {
                    asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at, options(nostack));
                }
                _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
            }
        }
        value
    }

    /// Writes the page.
    pub fn memory_write(&self, offset: u16, width: u16, value: u64) {
        let offset = usize::from(offset).min(PAGE - 8);
        // SAFETY: as for reading; what the device may write to is shared with it.
        unsafe {
            let at = self.page.add(offset).as_ptr();
            match width {
                1 => {
                    asm!("mov byte ptr [{1}], {0}", in(reg_byte) value.to_le_bytes()[0], in(reg) at, options(nostack));
                }
                2 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack)),
                4 => {
                    asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack));
                }
                _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at, options(nostack)),
            }
        }
    }
}
