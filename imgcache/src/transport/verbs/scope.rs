//! Loading into borrowed memory, and writing out of it.
//!
//! As with [`std::thread::scope`], what borrows ends before the scope returns, whatever the caller does
//! with its handles: the scope destroys all its queues, then ends all registrations, also on a panic. Should
//! the device refuse both, which leaves it with access to memory that is no longer lent, the process is
//! aborted.
//!
//! What is registered here, guest memory, is registered without any remote right, and its queues accept
//! none either.
#![expect(unsafe_code, reason = "memory that the device uses while it is borrowed")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{Refused, VerbsError};
use super::fabric::Domain;
use super::pair::Pair;
use super::queue::{Queue, sealed};
use super::region::{LOCAL_WRITE, Registration, Span};
use super::request::{Local, Operation, Remote, Work};
use super::settings::check_depth;
use super::status::Status;

/// What borrows memory of lifetime `'m`, for `'scope`.
#[derive(Debug)]
pub struct Scope<'scope, 'm: 'scope> {
    domain: Domain,
    held: &'scope Held,
    /// Neither lifetime can be taken for a longer or shorter one.
    lifetimes: PhantomData<(&'scope mut &'scope (), &'m mut &'m ())>,
}

/// What a scope ends.
#[derive(Debug, Default)]
struct Held {
    queues: Mutex<Vec<Arc<Pair>>>,
    registrations: Mutex<Vec<Registration>>,
}

/// Borrowed memory that the device may write to when it is asked to.
///
/// Invariant: `start` and `length` are of a `&'m mut [u8]` that was given up for this. No reference to it
/// is kept, because none may be while the device writes.
#[derive(Debug)]
pub struct Buffer<'scope, 'm> {
    start: NonNull<u8>,
    length: usize,
    lkey: u32,
    lifetimes: PhantomData<(&'scope mut &'scope (), &'m mut [u8])>,
}

// SAFETY: it is a `&'m mut [u8]` (invariant).
unsafe impl Send for Buffer<'_, '_> {}
// SAFETY: as above.
unsafe impl Sync for Buffer<'_, '_> {}

/// Borrowed memory that the device may read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'scope, 'm> {
    bytes: &'m [u8],
    lkey: u32,
    scope: PhantomData<&'scope mut &'scope ()>,
}

/// A queue that reads into buffers and writes from sources of the scope.
pub type LoadQueue<'scope, 'm> = Queue<Loading<'scope, 'm>>;

/// The purpose of a [`LoadQueue`].
#[derive(Debug)]
pub struct Loading<'scope, 'm> {
    lifetimes: PhantomData<(&'scope mut &'scope (), &'m mut &'m ())>,
}

/// What a request lends the device.
#[derive(Debug)]
pub enum Lent<'scope, 'm> {
    /// To be read into. After a failure it holds what it held, or part of what was read.
    Buffer(Buffer<'scope, 'm>),
    /// To be written to the peer.
    Source(Source<'scope, 'm>),
}

/// A request to be posted.
#[derive(Debug)]
pub struct Transfer<'scope, 'm> {
    /// The caller's number of it.
    pub id: u64,
    /// This host's memory: a buffer is read into, a source is written.
    pub local: Lent<'scope, 'm>,
    /// The peer's memory; as many bytes as the local has.
    pub remote: Remote,
}

impl Domain {
    /// Runs `body` with a scope for memory of lifetime `'m`. When it returns, the device has done with
    /// all of that memory.
    ///
    /// Buffers and queues do not leave the scope:
    /// ```compile_fail
    /// # fn leak(domain: &imgcache::transport::verbs::Domain, memory: &mut [u8]) {
    /// let buffers = domain.scope(|scope| scope.register(vec![memory]).unwrap());
    /// # }
    /// ```
    /// and the memory that they borrow is not to be had while there is one:
    /// ```compile_fail
    /// # fn alias(domain: &imgcache::transport::verbs::Domain, memory: &mut [u8]) {
    /// domain.scope(|scope| {
    ///     let buffers = scope.register(vec![&mut *memory]).unwrap();
    ///     memory[0] = 1;
    ///     drop(buffers);
    /// });
    /// # }
    /// ```
    /// while this is fine:
    /// ```
    /// # fn fine(domain: &imgcache::transport::verbs::Domain, memory: &mut [u8]) {
    /// domain.scope(|scope| {
    ///     let buffers = scope.register(vec![&mut *memory]).unwrap();
    ///     drop(buffers);
    /// });
    /// memory[0] = 1;
    /// # }
    /// ```
    pub fn scope<'m, R>(&self, body: impl for<'scope> FnOnce(&'scope Scope<'scope, 'm>) -> R) -> R {
        // Dropped after the scope, also while a panic goes by.
        let held = Held::default();
        body(&Scope { domain: self.clone(), held: &held, lifetimes: PhantomData })
    }
}

impl<'scope, 'm> Scope<'scope, 'm> {
    /// Makes a queue for `depth` requests, in which the peer has no rights.
    ///
    /// # Errors
    /// The device's, or a depth that it has not.
    pub fn queue(&'scope self, depth: u32) -> Result<LoadQueue<'scope, 'm>, VerbsError> {
        check_depth(self.domain.fabric().device(), depth)?;
        let pair = Arc::new(Pair::new(&self.domain, depth, 0)?);
        locked(&self.held.queues).push(Arc::clone(&pair));
        Queue::new(pair, Loading { lifetimes: PhantomData }, depth)
    }

    /// Registers buffers, all at once, with the memory that lies between them, which nobody accesses
    /// through that. Takes the pages that are not there yet, so best for 16 to 32 MiB at a time.
    ///
    /// # Errors
    /// The device's, or that something between them is not mapped; the buffers come back.
    pub fn register(
        &'scope self,
        buffers: Vec<&'m mut [u8]>,
    ) -> Result<Vec<Buffer<'scope, 'm>>, Refused<&'m mut [u8]>> {
        let spans = buffers.iter().map(|bytes| span_of(bytes));
        match self.register_span(spans, LOCAL_WRITE) {
            Ok(lkey) => {
                let buffer = |bytes| Buffer::new(bytes, lkey);
                Ok(buffers.into_iter().map(buffer).collect())
            }
            Err(error) => Err(Refused::new(error, buffers)),
        }
    }

    /// Registers memory that is to be written to peers, all at once. Private or writable memory: shared
    /// mappings without the right to write cannot be registered with kernels before 6.2.
    ///
    /// # Errors
    /// As [`Scope::register`].
    pub fn register_sources(
        &'scope self,
        sources: &[&'m [u8]],
    ) -> Result<Vec<Source<'scope, 'm>>, VerbsError> {
        let lkey = self.register_span(sources.iter().map(|bytes| span_of(bytes)), 0)?;
        let source = |bytes: &&'m [u8]| Source { bytes, lkey, scope: PhantomData };
        Ok(sources.iter().map(source).collect())
    }

    fn register_span(
        &self,
        spans: impl Iterator<Item = Span> + Clone,
        access: u32,
    ) -> Result<u32, VerbsError> {
        let Some(start) = spans.clone().map(|span| span.address).min() else { return Ok(0) };
        let end = spans.map(|span| span.address + span.length).max().unwrap_or(start);
        let span = Span { address: start, length: end - start };
        // SAFETY: nobody else gets any right. The device itself uses what requests name, and these
        // name what their items own (`post`); the scope ends that before the memory goes.
        let registration = unsafe { Registration::new(&self.domain.handle, span, access) }?;
        let lkey = registration.lkey();
        locked(&self.held.registrations).push(registration);
        Ok(lkey)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut stopped = true;
        for queue in locked(&self.queues).iter() {
            // SAFETY: queues cannot be used outside of `'scope`, which ends here.
            if let Err(error) = unsafe { queue.destroy() } {
                log::error!("{error}");
                stopped = false;
            }
        }
        for registration in locked(&self.registrations).iter_mut() {
            if let Err(error) = registration.end() {
                log::error!("{error}");
                if !stopped {
                    // The memory is about to be somebody else's, and the device can write to it.
                    std::process::abort();
                }
            }
        }
    }
}

impl<'scope, 'm> LoadQueue<'scope, 'm> {
    /// Posts one READ of as many bytes as `buffer` has.
    ///
    /// # Errors
    /// As [`LoadQueue::post`].
    pub fn read(
        &mut self,
        id: u64,
        buffer: Buffer<'scope, 'm>,
        remote: Remote,
    ) -> Result<(), Refused<Transfer<'scope, 'm>>> {
        self.post(vec![Transfer { id, local: Lent::Buffer(buffer), remote }])
    }

    /// Posts one WRITE of all of `source`.
    ///
    /// # Errors
    /// As [`LoadQueue::post`].
    pub fn write(
        &mut self,
        id: u64,
        source: Source<'scope, 'm>,
        remote: Remote,
    ) -> Result<(), Refused<Transfer<'scope, 'm>>> {
        self.post(vec![Transfer { id, local: Lent::Source(source), remote }])
    }

    /// Posts transfers, telling the device once.
    ///
    /// # Errors
    /// The queue has no room for all of them or is not connected, one is empty or longer than the port can
    /// send, or the device's. What was not posted comes back, in order.
    pub fn post(
        &mut self,
        transfers: Vec<Transfer<'scope, 'm>>,
    ) -> Result<(), Refused<Transfer<'scope, 'm>>> {
        let mut lengths =
            transfers.iter().map(|transfer| self.check_length(transfer.local.bytes().len()));
        if let Some(error) = lengths.find_map(Result::err) {
            return Err(Refused::new(error, transfers));
        }
        let work = transfers.into_iter().map(Transfer::work).collect();
        // SAFETY: `work` names the bytes of its item, of this scope: a buffer's are nobody else's,
        // a source's nobody writes.
        unsafe { self.post_work(work) }
            .map_err(|refused| refused.filter_map(|work| Some(Transfer::of(work))))
    }
}

impl<'scope, 'm> Transfer<'scope, 'm> {
    fn work(self) -> Work<Lent<'scope, 'm>> {
        let Self { id, local: item, remote } = self;
        let (span, lkey) = match &item {
            Lent::Buffer(buffer) => {
                // Exposed: from here on the memory is written to by others.
                let address = buffer.start.as_ptr().expose_provenance();
                (Span { address, length: buffer.length }, buffer.lkey)
            }
            Lent::Source(source) => (span_of(source.bytes), source.lkey),
        };
        let length = u32::try_from(span.length).unwrap_or(0);
        let local = Local { address: span.address as u64, length, lkey };
        let operation = match item {
            Lent::Buffer(_) => Operation::Read(local, remote),
            Lent::Source(_) => Operation::Write(local, remote),
        };
        Work { id, operation, item }
    }

    fn of(work: Work<Lent<'scope, 'm>>) -> Self {
        let remote = match work.operation {
            Operation::Read(_, remote) | Operation::Write(_, remote) => remote,
            Operation::Bind(_) | Operation::Invalidate(_) => Remote { address: 0, key: 0 },
        };
        Self { id: work.id, local: work.item, remote }
    }
}

impl<'scope, 'm> Lent<'scope, 'm> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer,
            Self::Source(source) => source.bytes,
        }
    }

    /// The buffer, of a READ.
    pub fn into_buffer(self) -> Option<Buffer<'scope, 'm>> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::Source(_) => None,
        }
    }
}

impl<'m> Buffer<'_, 'm> {
    fn new(bytes: &'m mut [u8], lkey: u32) -> Self {
        let length = bytes.len();
        Self { start: NonNull::from(bytes).cast(), length, lkey, lifetimes: PhantomData }
    }

    /// The memory alone, no longer to be read into by RDMA.
    pub fn into_bytes(self) -> &'m mut [u8] {
        // SAFETY: what was given up (invariant), given back.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Two buffers in its place, the first of `middle` bytes.
    ///
    /// # Errors
    /// It has not that many; it comes back.
    pub fn split_at(self, middle: usize) -> Result<(Self, Self), Self> {
        if middle > self.length {
            return Err(self);
        }
        let lkey = self.lkey;
        let (first, second) = self.into_bytes().split_at_mut(middle);
        Ok((Self::new(first, lkey), Self::new(second, lkey)))
    }
}

impl Deref for Buffer<'_, '_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: nobody else has it (invariant); while it is borrowed here it is in no queue.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer<'_, '_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<'scope, 'm> sealed::Purpose for Loading<'scope, 'm> {
    type Posted = Lent<'scope, 'm>;
    type Done = Lent<'scope, 'm>;

    fn finish(&mut self, posted: Self::Posted, _: Status) -> Self::Done {
        posted
    }

    fn revoke(&mut self, _: &mut Self::Posted) {}

    fn revoke_all(&mut self) {}

    fn keep_for_good(&mut self) {}
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn span_of(bytes: &[u8]) -> Span {
    Span { address: bytes.as_ptr().addr(), length: bytes.len() }
}
