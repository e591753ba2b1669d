//! Leases and pins: what keeps items from going.
//!
//! A lease is for one load of one client: it holds the content of the items that the client is about
//! to read, by TCP or from afar, until it is released or its time is up. A pin holds the content of
//! an image's items until somebody unpins it. Both hold *content*: an item can still be deleted or
//! replaced meanwhile, its content stays in its place until the last lease, pin or reader is gone.
//!
//! Time is monotonic and handed in; nothing here looks at a clock. Lookups never renew a lease.
//!
//! - `held`: what one of them holds;
//! - `rights`: who else has to let go first.
//!
//! The one lock here is held for as long as it takes to look at the list of leases. Contents are
//! counted before it is taken, and given back after.

mod held;
mod rights;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use held::{Held, Kind, Refused, Totals};
pub use rights::{Closing, Rights};

use crate::parallel::lock;

/// The longest time that a lease holds.
pub const MAX_TTL: Duration = Duration::from_secs(60);
/// The shortest: less is over before the answer has arrived.
pub const MIN_TTL: Duration = Duration::from_millis(1);
/// The shortest and the longest time after which a refused client is told to come again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// What can be held.
pub trait Holdable {
    /// Where it is: what tells it from all others that are held.
    fn offset(&self) -> usize;
    /// Bytes of memory that it takes.
    fn capacity(&self) -> u64;
    /// How many leases hold it.
    fn leases(&self) -> &AtomicU32;
    /// How many pins hold it.
    fn pins(&self) -> &AtomicU32;
}

/// How much may be held.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Leases at once.
    pub leases: usize,
    /// Bytes that leases may hold.
    pub leased: u64,
    /// Images pinned at once.
    pub pins: usize,
    /// Bytes that pins may hold.
    pub pinned: u64,
    /// Items over all leases and pins, each counted for each; bounds the memory for lists.
    pub items: usize,
}

/// Why a lease or pin was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Over the limits for now.
    #[error("busy: retry after {} ms", retry_after.as_millis())]
    Busy {
        /// When it may be given.
        retry_after: Duration,
    },
    /// The node gives no leases any more.
    #[error("draining")]
    Draining,
    /// What is asked for is more than can ever be given.
    #[error("too much to be held: {wanted} bytes, at most {limit}")]
    TooMuch {
        /// Bytes of the items that were named and are here.
        wanted: u64,
        /// The most that may be held.
        limit: u64,
    },
}

/// A lease as it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its id, chosen by the client.
    pub id: u64,
    /// For how long, at most [`MAX_TTL`].
    pub ttl: Duration,
    /// Who asks, for people.
    pub owner: &'a str,
}

/// A lease, for `stats leases`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its id. Whoever knows it can end the lease.
    pub id: u64,
    /// Who asked for it first.
    pub owner: Arc<str>,
    /// Time since it was given first.
    pub age: Duration,
    /// Time left.
    pub remaining: Duration,
    /// Items that it holds.
    pub items: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// How often it was renewed.
    pub renewals: u32,
}

/// An image's pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinInfo {
    /// The image's manifest id.
    pub image: [u8; 32],
    /// Items that it holds.
    pub items: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

#[derive(Debug)]
struct Lease<C: Holdable> {
    since: Duration,
    until: Duration,
    renewals: u32,
    owner: Arc<str>,
    held: Arc<Held<C>>,
    rights: Option<Arc<dyn Rights>>,
}

#[derive(Debug)]
struct Lists<C: Holdable> {
    leases: HashMap<u64, Lease<C>>,
    pins: HashMap<[u8; 32], Arc<Held<C>>>,
}

/// All leases and pins. Any number of threads may use them at once.
#[derive(Debug)]
pub struct Holds<C: Holdable> {
    limits: Limits,
    totals: Arc<Totals>,
    lists: Mutex<Lists<C>>,
}

impl<C: Holdable + Send + Sync + 'static> Holds<C> {
    /// None, and at most so many.
    pub fn new(limits: Limits) -> Self {
        let lists = Lists { leases: HashMap::new(), pins: HashMap::new() };
        Self { limits, totals: Arc::default(), lists: Mutex::new(lists) }
    }

    fn lists(&self) -> MutexGuard<'_, Lists<C>> {
        lock(&self.lists)
    }

    /// Gives a lease, or renews it and adds what it does not hold yet. Returns for how long.
    ///
    /// # Errors
    /// Over the limits, or `draining` and there is no such lease yet; what there is stays.
    pub fn lease(
        &self,
        asked: &Asked<'_>,
        contents: &[Arc<C>],
        draining: bool,
        now: Duration,
    ) -> Result<Duration, HoldError> {
        let ttl = asked.ttl.clamp(MIN_TTL, MAX_TTL);
        let until = now.saturating_add(ttl);
        loop {
            let there = self.lists().leases.get(&asked.id).map(|lease| Arc::clone(&lease.held));
            let held = if let Some(held) = there {
                held
            } else {
                self.may_begin(&self.lists(), draining, now)?;
                Arc::new(Held::new(Kind::Lease, &self.totals))
            };
            held.add(contents, 0, &self.limits).map_err(|refused| match refused {
                Refused::TooMuch { wanted, limit } => HoldError::TooMuch { wanted, limit },
                Refused::Full => busy(&self.lists(), now),
            })?;
            let mut lists = self.lists();
            match lists.leases.get_mut(&asked.id) {
                Some(lease) if Arc::ptr_eq(&lease.held, &held) => {
                    lease.until = until;
                    lease.renewals = lease.renewals.saturating_add(1);
                }
                // Somebody else was faster: theirs is gone on with.
                Some(_) => continue,
                None => {
                    let allowed = self.may_begin(&lists, draining, now);
                    if let Err(error) = allowed {
                        drop(lists);
                        return Err(error);
                    }
                    let (owner, rights) = (asked.owner.into(), None);
                    let lease = Lease { since: now, until, renewals: 0, owner, held, rights };
                    lists.leases.insert(asked.id, lease);
                }
            }
            return Ok(ttl);
        }
    }

    fn may_begin(&self, lists: &Lists<C>, draining: bool, now: Duration) -> Result<(), HoldError> {
        if draining {
            return Err(HoldError::Draining);
        }
        if lists.leases.len() >= self.limits.leases {
            return Err(busy(lists, now));
        }
        Ok(())
    }

    /// Has `rights` told when the lease `id` ends, and its contents kept until it says so. Returns
    /// whether there is such a lease, of which nobody else is told.
    pub fn grant(&self, id: u64, rights: Arc<dyn Rights>) -> bool {
        match self.lists().leases.get_mut(&id) {
            Some(lease) if lease.rights.is_none() => {
                lease.rights = Some(rights);
                true
            }
            _ => false,
        }
    }

    /// The rights on the lease `id` have ended, with the connection that had them; the lease goes on.
    pub fn take_rights(&self, id: u64) -> Option<Arc<dyn Rights>> {
        self.lists().leases.get_mut(&id)?.rights.take()
    }

    /// Ends what is in no list any more; the lock is not held.
    fn end(&self, lease: Lease<C>) {
        if let Some(rights) = lease.rights {
            rights.close(Closing::new(lease.held, Arc::clone(&self.totals)));
        }
    }

    /// Ends the lease `id`. Returns whether there was one.
    pub fn release(&self, id: u64) -> bool {
        let lease = self.lists().leases.remove(&id);
        lease.map(|lease| self.end(lease)).is_some()
    }

    /// Ends the leases whose time is up. Returns how many.
    pub fn expire(&self, now: Duration) -> u64 {
        let over: Vec<Lease<C>> = {
            let leases = &mut self.lists().leases;
            leases.extract_if(|_, lease| lease.until <= now).map(|(_, lease)| lease).collect()
        };
        let count = over.len() as u64;
        for lease in over {
            self.end(lease);
        }
        count
    }

    /// Pins `contents` for `image`, in place of what was pinned for it.
    ///
    /// # Errors
    /// Over the limits; what was pinned stays.
    pub fn pin(&self, image: [u8; 32], contents: &[Arc<C>]) -> Result<(), HoldError> {
        let busy = HoldError::Busy { retry_after: RETRY.1 };
        let old = self.lists().pins.get(&image).cloned();
        let given_back = old.as_ref().map_or(0, |old| old.items());
        let held = Arc::new(Held::new(Kind::Pin, &self.totals));
        // The bytes that the old pin alone holds are not counted off, to stay simple.
        held.add(contents, given_back, &self.limits).map_err(|refused| match refused {
            Refused::TooMuch { wanted, limit } => HoldError::TooMuch { wanted, limit },
            Refused::Full => busy,
        })?;
        let mut lists = self.lists();
        if lists.pins.len() >= self.limits.pins && !lists.pins.contains_key(&image) {
            drop(lists);
            return Err(busy);
        }
        let replaced = lists.pins.insert(image, held);
        drop(lists);
        drop((old, replaced));
        Ok(())
    }

    /// Ends the pin of `image`. Returns whether there was one.
    pub fn unpin(&self, image: &[u8; 32]) -> bool {
        let pin = self.lists().pins.remove(image);
        pin.is_some()
    }

    /// Bytes that at least one lease holds.
    pub fn leased(&self) -> u64 {
        self.totals.leased.load(Ordering::Relaxed)
    }

    /// Bytes that at least one pin holds.
    pub fn pinned(&self) -> u64 {
        self.totals.pinned.load(Ordering::Relaxed)
    }

    /// Items over all leases and pins, each counted for each.
    pub fn items(&self) -> usize {
        self.totals.items.load(Ordering::Relaxed)
    }

    /// Items of the lease `id`.
    pub fn items_of_lease(&self, id: u64) -> usize {
        self.lists().leases.get(&id).map_or(0, |lease| lease.held.items())
    }

    /// Items of the pin of `image`.
    pub fn items_of_pin(&self, image: &[u8; 32]) -> usize {
        self.lists().pins.get(image).map_or(0, |held| held.items())
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.lists().leases.len()
    }

    /// How many leases have ended on which somebody still has rights.
    pub fn closing(&self) -> usize {
        self.totals.closing.load(Ordering::Relaxed)
    }

    /// How many images are pinned.
    pub fn pin_count(&self) -> usize {
        self.lists().pins.len()
    }

    /// The largest used part of a limit of leases, in thousandths.
    pub fn busy_permille(&self) -> u16 {
        let leases = self.lease_count() as u64 * 1000 / (self.limits.leases as u64).max(1);
        let bytes = u128::from(self.leased()) * 1000 / u128::from(self.limits.leased.max(1));
        let bytes = u64::try_from(bytes).unwrap_or(1000);
        u16::try_from(leases.max(bytes).min(1000)).unwrap_or(1000)
    }

    /// The leases.
    pub fn lease_infos(&self, now: Duration) -> Vec<LeaseInfo> {
        let lists = self.lists();
        let infos = lists.leases.iter().map(|(id, lease)| LeaseInfo {
            id: *id,
            owner: Arc::clone(&lease.owner),
            age: now.saturating_sub(lease.since),
            remaining: lease.until.saturating_sub(now),
            items: lease.held.items() as u64,
            bytes: lease.held.bytes(),
            renewals: lease.renewals,
        });
        infos.collect()
    }

    /// The pins.
    pub fn pin_infos(&self) -> Vec<PinInfo> {
        let lists = self.lists();
        let infos = lists.pins.iter().map(|(image, held)| PinInfo {
            image: *image,
            items: held.items() as u64,
            bytes: held.bytes(),
        });
        infos.collect()
    }
}

/// When the first lease ends, which makes room.
fn busy<C: Holdable>(lists: &Lists<C>, now: Duration) -> HoldError {
    let first = lists.leases.values().map(|lease| lease.until.saturating_sub(now)).min();
    HoldError::Busy { retry_after: first.unwrap_or(RETRY.1).clamp(RETRY.0, RETRY.1) }
}
