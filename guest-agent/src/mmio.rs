//! Registers in a page of memory, through `/dev/mem`.
#![expect(unsafe_code, reason = "a mapping of device registers")]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;

use control_abi::register::{MMIO_BYTES, Register};
use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::registers::Registers;

const LENGTH: usize = 4096;
const _: () = assert!(MMIO_BYTES == 4096, "what is mapped");

/// The page, mapped.
#[derive(Debug)]
pub struct Mmio {
    page: NonNull<u32>,
    address: u64,
}

impl Mmio {
    /// Maps the page at the guest-physical `address`.
    ///
    /// # Errors
    /// If there is no `/dev/mem`, or it refuses: it is root's, some kernels have none, and one that is
    /// locked down lets nobody map memory.
    pub fn open(address: u64) -> io::Result<Self> {
        if !address.is_multiple_of(MMIO_BYTES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = i32::try_from(OFlags::SYNC.bits()).map_err(io::Error::other)?;
        let memory = File::options().read(true).write(true).custom_flags(flags).open("/dev/mem")?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe {
            mmap(std::ptr::null_mut(), LENGTH, protection, MapFlags::SHARED, memory, address)
        }?;
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page, address })
    }

    fn register(&self, register: Register) -> NonNull<u32> {
        // SAFETY: registers are at multiples of 4 within the first 64 bytes of the mapped page.
        unsafe { self.page.byte_add(usize::from(register as u16)) }
    }
}

impl Drop for Mmio {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and nothing refers to it.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), LENGTH) };
    }
}

impl Registers for Mmio {
    fn read(&self, register: Register) -> u32 {
        // SAFETY: within the mapping, aligned. The fence keeps what was written to shared memory in
        // front of the access, for the compiler; x86 keeps it anyway.
        let value = unsafe { self.register(register).read_volatile() };
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        value
    }

    fn write(&self, register: Register, value: u32) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: as in `read`.
        unsafe { self.register(register).write_volatile(value) };
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn way(&self) -> String {
        format!("memory at {:#x}", self.address)
    }
}
