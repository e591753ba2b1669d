//! Memory that is registered with a device.
//!
//! Registration pins the pages: what is unmapped, discarded (`MADV_DONTNEED` of private memory) or
//! punched out of its file meanwhile leaves the device with pages that are nobody's, and what it then
//! brings is lost without an error.
//!
//! Two kinds of memory are registered, by functions that cannot be taken for one another: memory that is
//! borrowed ([`super::Scope`]), with the right of the local device to write and no other, and memory that
//! a node owns ([`Memory`]), which others may be given rights to. Guest memory is borrowed.
#![expect(unsafe_code, reason = "registration of memory by its address")]

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_mummy_sys::{ibv_access_flags, ibv_mr};
use rustix::process::{Resource, getrlimit};

use super::context::DomainHandle;
use super::error::VerbsError;
use super::fabric::Domain;
use super::library::object;

/// The local device may write.
pub(super) const LOCAL_WRITE: u32 = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
/// Others may read.
pub(super) const REMOTE_READ: u32 = ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
/// Others may write.
pub(super) const REMOTE_WRITE: u32 = ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
/// Windows may be bound in it.
const WINDOWS: u32 = ibv_access_flags::IBV_ACCESS_MW_BIND.0;

/// Where bytes are in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Address of the first.
    pub address: usize,
    /// How many.
    pub length: usize,
}

impl Span {
    /// The end, exclusive; none if it is past the last address.
    fn end(self) -> Option<usize> {
        self.address.checked_add(self.length)
    }

    pub(super) fn check_inside(self, whole: Self) -> Result<(), VerbsError> {
        let inside = self.address >= whole.address
            && self.end().is_some_and(|end| whole.end().is_some_and(|last| end <= last));
        if inside {
            return Ok(());
        }
        Err(VerbsError::Outside {
            start: self.address as u64,
            length: self.length as u64,
            base: whole.address as u64,
            whole: whole.length as u64,
        })
    }
}

/// Memory that devices may be let into for as long as this lives.
///
/// # Safety
/// `span` is always the same. Its bytes are mapped, for reading and writing, and stay the same pages
/// from now until the value is dropped. That remote hosts read any of them at any moment is taken into
/// account by whoever writes them.
pub unsafe trait Memory: fmt::Debug + Send + Sync {
    /// Where it is.
    fn span(&self) -> Span;
}

/// Part of a [`Memory`] that has this one owner.
///
/// # Safety
/// `span` is always the same, also when the value is moved. Its bytes are there until the value is
/// dropped. References to them are made only through the value: while nobody touches it, a device may
/// write.
pub unsafe trait Part: fmt::Debug + Send + 'static {
    /// Where it is.
    fn span(&self) -> Span;
}

/// What others may do with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// Read all of it, with the region's key, through any queue of the domain. Windows for reading may be
    /// bound in it.
    Readable,
    /// Nothing but through windows for reading: no right to write can be given.
    ReadWindows,
    /// Nothing but through windows, of both kinds.
    WindowsOnly,
}

/// Memory that others may be given rights to.
#[derive(Debug)]
pub struct Region {
    registration: Registration,
    memory: Option<Arc<dyn Memory>>,
    span: Span,
    export: Export,
    domain: Domain,
}

impl Domain {
    /// Registers the bytes `part` of `memory`, as offsets into it, which is kept until the region is
    /// dropped. Some pages of it may not be there yet: they are taken, which is what takes the time.
    ///
    /// # Errors
    /// `part` is not inside, or the device does not take it.
    pub fn export(
        &self,
        memory: Arc<dyn Memory>,
        part: Range<usize>,
        export: Export,
    ) -> Result<Arc<Region>, VerbsError> {
        let whole = memory.span();
        let span = Span {
            address: whole.address.saturating_add(part.start),
            length: part.end.saturating_sub(part.start),
        };
        span.check_inside(whole)?;
        let access = match export {
            Export::Readable => REMOTE_READ | WINDOWS,
            Export::ReadWindows => WINDOWS,
            // A window can only be written through where the local device may write.
            Export::WindowsOnly => LOCAL_WRITE | WINDOWS,
        };
        // SAFETY: the region keeps `memory` until the registration has ended, and that remote
        // reads do no harm is what `Memory` promises. For writing there are `Part`s.
        let registration = unsafe { Registration::new(&self.handle, span, access) }?;
        let memory = Some(memory);
        Ok(Arc::new(Region { registration, memory, span, export, domain: self.clone() }))
    }
}

impl Region {
    /// The address of its first byte, as remote hosts name it.
    pub fn address(&self) -> u64 {
        self.span.address as u64
    }

    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.span.length as u64
    }

    /// The key with which it can be read; none where windows are needed.
    pub fn key(&self) -> Option<u32> {
        (self.export == Export::Readable).then(|| self.registration.rkey())
    }

    /// What others may do with it.
    pub fn rights(&self) -> Export {
        self.export
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    pub(super) fn domain(&self) -> &Domain {
        &self.domain
    }

    pub(super) fn raw(&self) -> *mut ibv_mr {
        self.registration.raw()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Err(error) = self.registration.end() {
            // The device may still reach it: it stays mapped for as long as this process lives.
            log::error!("{error}; its memory is kept");
            std::mem::forget(self.memory.take());
        }
    }
}

/// A registration, ended by `drop` or [`Registration::end`].
#[derive(Debug)]
pub(super) struct Registration {
    raw: Option<NonNull<ibv_mr>>,
    lkey: u32,
    rkey: u32,
    domain: Arc<DomainHandle>,
}

// SAFETY: may be used from any thread, as the domain.
unsafe impl Send for Registration {}
// SAFETY: as above; it is changed only through `&mut`.
unsafe impl Sync for Registration {}

impl Registration {
    /// # Safety
    /// What `access` lets devices do with these bytes is harmless until the registration has ended.
    pub(super) unsafe fn new(
        domain: &Arc<DomainHandle>,
        span: Span,
        access: u32,
    ) -> Result<Self, VerbsError> {
        let (library, device) = (domain.context().functions(), domain.context().name());
        let access = c_int::try_from(access).unwrap_or(0);
        let address = std::ptr::with_exposed_provenance_mut(span.address);
        // SAFETY: the domain is there; the kernel checks the address; the rest was promised.
        let raw = unsafe { (library.reg_mr)(domain.raw(), address, span.length, access) };
        let raw = object("ibv_reg_mr", device, raw).map_err(|error| why(error, span))?;
        // SAFETY: what was just registered.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        Ok(Self { raw: Some(raw), lkey, rkey, domain: Arc::clone(domain) })
    }

    pub(super) fn lkey(&self) -> u32 {
        self.lkey
    }

    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn raw(&self) -> *mut ibv_mr {
        self.raw.map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    /// Ends it: afterwards the device does not reach the memory. If that fails it is as it was, for
    /// good.
    pub(super) fn end(&mut self) -> Result<(), VerbsError> {
        let Some(raw) = self.raw.take() else { return Ok(()) };
        let context = self.domain.context();
        // SAFETY: registered once, and ended once: `raw` was taken.
        let code = unsafe { (context.functions().dereg_mr)(raw.as_ptr()) };
        super::library::done("ibv_dereg_mr", context.name(), code).inspect_err(|_| {
            // The domain cannot go while this is in it.
            std::mem::forget(Arc::clone(&self.domain));
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("{error}");
        }
    }
}

/// Names the limit where that is the reason.
fn why(error: VerbsError, span: Span) -> VerbsError {
    let VerbsError::Call { device, source, .. } = error else { return error };
    let out_of_memory = source.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error());
    match getrlimit(Resource::Memlock).current {
        Some(limit) if out_of_memory => {
            VerbsError::MemoryLock { device, length: span.length, limit, source }
        }
        _ => {
            let Span { address, length } = span;
            let source = if out_of_memory {
                io::Error::other(format!("{source} (no limit is set: the host or device is full)"))
            } else {
                source
            };
            VerbsError::Register { device, address, length, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_be_inside() {
        let whole = Span { address: 4096, length: 4096 };
        for (address, length, inside) in [
            (4096, 4096, true),
            (8191, 1, true),
            (8192, 0, true),
            (4095, 1, false),
            (8191, 2, false),
            (4096, usize::MAX, false),
            (usize::MAX, 2, false),
        ] {
            let part = Span { address, length };
            assert_eq!(part.check_inside(whole).is_ok(), inside, "{part:?}");
        }
    }

    #[test]
    fn the_limit_is_named_only_where_it_is_the_reason() {
        let span = Span { address: 0, length: 64 << 20 };
        let call = |code: i32| VerbsError::Call {
            call: "ibv_reg_mr",
            device: "rxe0".to_owned(),
            source: io::Error::from_raw_os_error(code),
        };
        let limited = getrlimit(Resource::Memlock).current.is_some();
        let full = why(call(12), span);
        assert_eq!(matches!(full, VerbsError::MemoryLock { .. }), limited, "{full}");
        assert!(matches!(why(call(14), span), VerbsError::Register { length: 0x400_0000, .. }));
    }
}
