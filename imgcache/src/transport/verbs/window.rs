//! Memory windows: rights to part of a region, for one queue, until they are taken back (type 2 windows,
//! InfiniBand specification volume 1, 10.6.7.2).
//!
//! A [`ServeQueue`] owns the windows that are bound to it, and with those for writing the [`Part`]s that the
//! peer may write to: they come back when the window is dead. A window dies with the completion of
//! [`ServeQueue::invalidate`], or with its queue.
//!
//! What is enforced where: the key, the queue, the kind of access and the region's bounds everywhere; the
//! window's own bounds not by soft-RoCE ([`super::Device::window_bounds_enforced`]). A WRITE that is under
//! way when its window dies is cut off. Soft-RoCE may still be at one packet of it for a moment, on another
//! processor; it waits for that packet when the queue is destroyed. So what has to be over everywhere, such
//! as before content is hashed, is ended with its queue ([`ServeQueue::end_writes`]).
#![expect(unsafe_code, reason = "rights to memory, given by its address")]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_mummy_sys::{ibv_alloc_mw, ibv_dealloc_mw, ibv_mr, ibv_mw, ibv_mw_type};

use super::context::DomainHandle;
use super::error::{Refused, VerbsError};
use super::fabric::Domain;
use super::library::{done, object};
use super::pair::Pair;
use super::queue::{Queue, sealed};
use super::region::{Export, Part, REMOTE_READ, REMOTE_WRITE, Region};
use super::request::{Operation, Remote, Work};
use super::settings::check_depth;
use super::status::Status;

/// A window that is not bound: a right that nobody has.
pub struct Window {
    raw: NonNull<ibv_mw>,
    domain: Arc<DomainHandle>,
}

// SAFETY: may be used from any thread, as the domain.
unsafe impl Send for Window {}
// SAFETY: as above; it is changed only through `&mut`.
unsafe impl Sync for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:#x})", self.key())
    }
}

impl Window {
    /// The key that it had last.
    fn key(&self) -> u32 {
        // SAFETY: the window is there, and only changed through `&mut self`.
        unsafe { self.raw.as_ref().rkey }
    }

    /// It was bound with `key`: drivers look here for the key that the device has.
    fn set_key(&mut self, key: u32) {
        // SAFETY: as above.
        unsafe { self.raw.as_mut().rkey = key };
    }
}

/// A queue in which the peer has what rights it is given.
pub type ServeQueue<P> = Queue<Serving<P>>;

/// The purpose of a [`ServeQueue`], with the windows that are bound to it, by their keys.
#[derive(Debug)]
pub struct Serving<P: Part> {
    bound: HashMap<u32, Bound<P>>,
}

/// A window in use: what it was bound in is kept until it is dead.
#[derive(Debug)]
struct Bound<P> {
    /// None when it was given back to the device, which kills it too.
    window: Option<Window>,
    key: u32,
    region: Arc<Region>,
    part: Option<P>,
}

/// What a queue keeps for a request.
#[derive(Debug)]
pub struct Pending<P>(Change<P>);

#[derive(Debug)]
enum Change<P> {
    Bind(Bound<P>),
    Invalidate(Bound<P>),
}

/// What became of a window.
#[derive(Debug)]
pub enum Served<P> {
    /// It is bound, and its key works; or does still, as it could not be invalidated.
    Bound {
        /// The key.
        key: u32,
    },
    /// It is dead: nobody has the right any more.
    Free {
        /// It can be bound again; none if it went with its queue.
        window: Option<Window>,
        /// What the peer could write to.
        part: Option<P>,
    },
}

/// Cannot be: what is bound anew has its window.
const NO_WINDOW: VerbsError = VerbsError::Rights("the window is gone");

/// What the device needs to bind a window.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) window: *mut ibv_mw,
    pub(super) key: u32,
    pub(super) region: *mut ibv_mr,
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) access: u32,
}

impl Domain {
    /// Makes a window.
    ///
    /// # Errors
    /// The device has none, or none left.
    pub fn window(&self) -> Result<Window, VerbsError> {
        let device = self.fabric().device();
        if device.limits.windows == 0 {
            let reason = "it has no memory windows of type 2";
            return Err(VerbsError::Unusable { device: device.name.clone(), reason });
        }
        // SAFETY: the domain is there.
        let raw = unsafe { ibv_alloc_mw(self.handle.raw(), ibv_mw_type::IBV_MW_TYPE_2) };
        let raw = object("ibv_alloc_mw", &device.name, raw)?;
        Ok(Window { raw, domain: Arc::clone(&self.handle) })
    }

    /// Makes a queue for `depth` changes of windows, whose peer may use the keys of the domain's
    /// [readable](Export::Readable) regions and of the windows that are bound to it.
    ///
    /// # Errors
    /// The device's, or a depth that it has not.
    pub fn serve<P: Part>(&self, depth: u32) -> Result<ServeQueue<P>, VerbsError> {
        check_depth(self.fabric().device(), depth)?;
        let pair = Arc::new(Pair::new(self, depth, REMOTE_READ | REMOTE_WRITE)?);
        Queue::new(pair, Serving { bound: HashMap::new() }, depth)
    }
}

impl<P: Part> ServeQueue<P> {
    /// Gives the peer the right to read the bytes `part` of `region`, as offsets into it. Returns where
    /// and with which key it can once this completes.
    ///
    /// # Errors
    /// `part` is not inside, the region is another domain's, or as [`ServeQueue::invalidate`]; the window
    /// comes back.
    pub fn bind_read(
        &mut self,
        id: u64,
        window: Window,
        region: &Arc<Region>,
        part: Range<u64>,
    ) -> Result<Remote, Refused<Window>> {
        let length = part.end.saturating_sub(part.start);
        let inside = part.end <= region.length() && length > 0;
        let checked = if inside {
            self.check_region(&window, region)
        } else {
            let (start, base) = (region.address().saturating_add(part.start), region.address());
            Err(VerbsError::Outside { start, length, base, whole: region.length() })
        };
        if let Err(error) = checked {
            return Err(Refused::new(error, vec![window]));
        }
        let address = region.address() + part.start;
        let bound = Bound { window: Some(window), key: 0, region: Arc::clone(region), part: None };
        self.bind(id, bound, address, length, REMOTE_READ)
            .map_err(|refused| refused.filter_map(|bound| bound.window))
    }

    /// Gives the peer the right to write to `part`, which lies in `region`, until the window is dead.
    /// Returns where and with which key it can once this completes.
    ///
    /// # Errors
    /// As [`ServeQueue::bind_read`], or the region is for reading only; window and part come back.
    pub fn bind_write(
        &mut self,
        id: u64,
        window: Window,
        region: &Arc<Region>,
        part: P,
    ) -> Result<Remote, Refused<(Window, P)>> {
        let span = part.span();
        let checked = self
            .check_region(&window, region)
            .and_then(|()| span.check_inside(region.span()))
            .and_then(|()| match region.rights() {
                Export::WindowsOnly if span.length > 0 => Ok(()),
                Export::WindowsOnly => {
                    Err(VerbsError::Rights("a window for writing has at least one byte"))
                }
                Export::Readable | Export::ReadWindows => {
                    Err(VerbsError::Rights("the region is for reading only, also through windows"))
                }
            });
        if let Err(error) = checked {
            return Err(Refused::new(error, vec![(window, part)]));
        }
        let (address, length) = (span.address as u64, span.length as u64);
        let bound =
            Bound { window: Some(window), key: 0, region: Arc::clone(region), part: Some(part) };
        self.bind(id, bound, address, length, REMOTE_WRITE)
            .map_err(|refused| refused.filter_map(|bound| Some((bound.window?, bound.part?))))
    }

    /// Takes the right with `key` back; it is gone when this completes.
    ///
    /// # Errors
    /// No such window is bound, the queue has no room or is not connected, or the device's.
    pub fn invalidate(&mut self, id: u64, key: u32) -> Result<(), VerbsError> {
        let bound = self.purpose_mut().bound.remove(&key).ok_or(VerbsError::NoWindow(key))?;
        let item = Pending(Change::Invalidate(bound));
        // SAFETY: names no memory.
        let posted = unsafe {
            self.post_work(vec![Work { id, operation: Operation::Invalidate(key), item }])
        };
        posted.map_err(|Refused { error, items }| {
            for Work { item: Pending(Change::Bind(bound) | Change::Invalidate(bound)), .. } in items
            {
                self.purpose_mut().bound.insert(key, bound);
            }
            error
        })
    }

    /// Ends the queue, and with it all rights of the peer: on return it writes nothing more, on any device,
    /// whatever was under way. Returns what it could write to.
    ///
    /// # Errors
    /// The device does not end the queue: what the peer can write to stays its own, for good.
    pub fn end_writes(mut self) -> Result<Vec<P>, VerbsError> {
        self.end()?;
        let posted = self.take_posted();
        let changing = posted
            .into_iter()
            .map(|Pending(Change::Bind(bound) | Change::Invalidate(bound))| bound);
        let bound = std::mem::take(&mut self.purpose_mut().bound).into_values();
        Ok(bound.chain(changing).filter_map(|bound| bound.part).collect())
    }

    /// The keys of the windows that are bound.
    pub fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        self.purpose().bound.keys().copied()
    }

    fn check_region(&self, window: &Window, region: &Region) -> Result<(), VerbsError> {
        let same =
            region.domain().is(self.domain()) && Arc::ptr_eq(&window.domain, &self.domain().handle);
        same.then_some(()).ok_or(VerbsError::Rights(
            "the window, the region and the queue are not of one protection domain",
        ))
    }

    fn bind(
        &mut self,
        id: u64,
        mut bound: Bound<P>,
        address: u64,
        length: u64,
        access: u32,
    ) -> Result<Remote, Refused<Bound<P>>> {
        let Some(window) = &bound.window else {
            return Err(Refused::new(NO_WINDOW, vec![bound]));
        };
        // The low byte of a key is the binder's; a new one each time keeps old keys from working.
        let old = window.key();
        let key = (old & !0xff) | (old.wrapping_add(1) & 0xff);
        bound.key = key;
        let operation = Operation::Bind(Binding {
            window: window.raw.as_ptr(),
            key,
            region: bound.region.raw(),
            address,
            length,
            access,
        });
        let item = Pending(Change::Bind(bound));
        // SAFETY: what the peer may write to is the part, which the item owns; for reading the
        // region's memory is open (`Memory`). Window and region are there while the item is.
        let posted = unsafe { self.post_work(vec![Work { id, operation, item }]) };
        posted.map(|()| Remote { address, key }).map_err(|refused| {
            refused.filter_map(|Work { item: Pending(change), .. }| {
                let (Change::Bind(bound) | Change::Invalidate(bound)) = change;
                Some(bound)
            })
        })
    }
}

impl<P: Part> sealed::Purpose for Serving<P> {
    type Posted = Pending<P>;
    type Done = Served<P>;

    fn finish(&mut self, Pending(change): Pending<P>, status: Status) -> Served<P> {
        match change {
            Change::Bind(mut bound) if status.is_success() => {
                let key = bound.key;
                if let Some(window) = &mut bound.window {
                    window.set_key(key);
                }
                self.bound.insert(key, bound);
                Served::Bound { key }
            }
            Change::Bind(bound) => bound.free(),
            Change::Invalidate(bound) if status.is_success() || bound.window.is_none() => {
                bound.free()
            }
            Change::Invalidate(bound) => {
                let key = bound.key;
                self.bound.insert(key, bound);
                Served::Bound { key }
            }
        }
    }

    fn revoke(&mut self, Pending(change): &mut Pending<P>) {
        let (Change::Bind(bound) | Change::Invalidate(bound)) = change;
        bound.window = None;
    }

    fn revoke_all(&mut self) {
        self.bound.values_mut().for_each(|bound| bound.window = None);
    }

    fn keep_for_good(&mut self) {
        std::mem::forget(std::mem::take(&mut self.bound));
    }
}

impl<P> Bound<P> {
    fn free(self) -> Served<P> {
        Served::Free { window: self.window, part: self.part }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let name = self.domain.context().name();
        // SAFETY: made once, and given back once; requests that name it are not made any more, as the
        // queue that it is bound to keeps it.
        let code = unsafe { ibv_dealloc_mw(self.raw.as_ptr()) };
        if let Err(error) = done("ibv_dealloc_mw", name, code) {
            // Its queue is the only one that could use it; the domain cannot go while it is there.
            log::error!("{error}");
            std::mem::forget(Arc::clone(&self.domain));
        }
    }
}
