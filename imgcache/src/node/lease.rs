//! Leases and pins: what keeps items from going.
//!
//! A lease is for one load of one client: it holds the content of the items that the client is about
//! to read, by TCP or from afar, until it is released or its time is up. A pin holds the content of
//! an image's items until somebody unpins it. Both hold *content*: an item can still be deleted or
//! replaced meanwhile, its content stays in its place until the last lease, pin or reader is gone.
//!
//! Time is monotonic and handed in; nothing here looks at a clock. Lookups never renew a lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::node::cache::{HoldError, LeaseInfo, PinInfo};

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

/// Contents, by where they are.
type Set<C> = HashMap<usize, Arc<C>>;

#[derive(Debug)]
struct Lease<C> {
    since: Duration,
    until: Duration,
    renewals: u32,
    bytes: u64,
    contents: Set<C>,
}

#[derive(Debug)]
struct Pin<C> {
    bytes: u64,
    contents: Set<C>,
}

/// All leases and pins.
#[derive(Debug)]
pub struct Holds<C> {
    limits: Limits,
    leases: HashMap<u64, Lease<C>>,
    pins: HashMap<[u8; 32], Pin<C>>,
    leased: u64,
    pinned: u64,
    items: usize,
}

/// How a content is counted among those that are held.
type Counter<C> = fn(&C) -> &AtomicU32;

/// Counts one more holder of each; returns the bytes that were not held before.
fn hold<'a, C: Holdable + 'a>(
    contents: impl Iterator<Item = &'a Arc<C>>,
    counter: Counter<C>,
) -> u64 {
    let first = contents.filter(|content| counter(content).fetch_add(1, Ordering::Relaxed) == 0);
    first.map(|content| content.capacity()).sum()
}

/// Counts one holder less of each; returns the bytes that are not held any more.
fn drop_hold<C: Holdable>(contents: &Set<C>, counter: Counter<C>) -> u64 {
    let last =
        contents.values().filter(|content| counter(content).fetch_sub(1, Ordering::Relaxed) == 1);
    last.map(|content| content.capacity()).sum()
}

/// Bytes of those that nobody holds yet.
fn extra<C: Holdable>(contents: &Set<C>, counter: Counter<C>) -> u64 {
    let fresh = contents.values().filter(|content| counter(content).load(Ordering::Relaxed) == 0);
    fresh.map(|content| content.capacity()).sum()
}

fn bytes<C: Holdable>(contents: &Set<C>) -> u64 {
    contents.values().map(|content| content.capacity()).sum()
}

impl<C: Holdable> Holds<C> {
    /// None, and at most so many.
    pub fn new(limits: Limits) -> Self {
        let (leases, pins) = (HashMap::new(), HashMap::new());
        Self { limits, leases, pins, leased: 0, pinned: 0, items: 0 }
    }

    /// Gives the lease `id`, or renews it and adds what it does not hold yet. Returns for how long.
    ///
    /// # Errors
    /// Over the limits, or `draining` and there is no such lease yet; what there is stays.
    pub fn lease(
        &mut self,
        id: u64,
        ttl: Duration,
        contents: impl IntoIterator<Item = Arc<C>>,
        draining: bool,
        now: Duration,
    ) -> Result<Duration, HoldError> {
        let old = self.leases.get(&id);
        if draining && old.is_none() {
            return Err(HoldError::Draining);
        }
        let held = |content: &Arc<C>| {
            old.is_some_and(|lease| lease.contents.contains_key(&content.offset()))
        };
        let fresh: Set<C> = contents
            .into_iter()
            .filter(|content| !held(content))
            .map(|content| (content.offset(), content))
            .collect();
        let (extra, limit) = (extra(&fresh, C::leases), self.limits.leased);
        if extra > limit {
            return Err(HoldError::TooMuch { wanted: extra, limit });
        }
        let too_many = old.is_none() && self.leases.len() >= self.limits.leases;
        let over = self.leased.saturating_add(extra) > limit;
        if too_many || over || self.items + fresh.len() > self.limits.items {
            return Err(HoldError::Busy { retry_after: self.retry_after(now) });
        }
        self.leased += hold(fresh.values(), C::leases);
        self.items += fresh.len();
        let ttl = ttl.clamp(MIN_TTL, MAX_TTL);
        let until = now.saturating_add(ttl);
        let (more, renewed) = (bytes(&fresh), old.is_some());
        let lease = self.leases.entry(id).or_insert_with(|| Lease {
            since: now,
            until,
            renewals: 0,
            bytes: 0,
            contents: HashMap::new(),
        });
        lease.until = until;
        lease.renewals = lease.renewals.saturating_add(renewed.into());
        lease.bytes += more;
        lease.contents.extend(fresh);
        Ok(ttl)
    }

    /// When the first lease ends, which makes room.
    fn retry_after(&self, now: Duration) -> Duration {
        let first = self.leases.values().map(|lease| lease.until.saturating_sub(now)).min();
        first.unwrap_or(RETRY.1).clamp(RETRY.0, RETRY.1)
    }

    /// Whether there is a lease `id`.
    pub fn has_lease(&self, id: u64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Ends the lease `id`. Returns whether there was one.
    pub fn release(&mut self, id: u64) -> bool {
        let lease = self.leases.remove(&id);
        if let Some(lease) = &lease {
            self.leased -= drop_hold(&lease.contents, C::leases);
            self.items -= lease.contents.len();
        }
        lease.is_some()
    }

    /// Ends the leases whose time is up. Returns how many.
    pub fn expire(&mut self, now: Duration) -> u64 {
        let over = self.leases.iter().filter(|(_, lease)| lease.until <= now);
        let over: Vec<u64> = over.map(|(id, _)| *id).collect();
        over.into_iter().filter(|id| self.release(*id)).count() as u64
    }

    /// Pins `contents` for `image`, in place of what was pinned for it.
    ///
    /// # Errors
    /// Over the limits; what was pinned stays.
    pub fn pin(
        &mut self,
        image: [u8; 32],
        contents: impl IntoIterator<Item = Arc<C>>,
    ) -> Result<(), HoldError> {
        let fresh: Set<C> =
            contents.into_iter().map(|content| (content.offset(), content)).collect();
        let old = self.pins.get(&image);
        let (wanted, limit) = (extra(&fresh, C::pins), self.limits.pinned);
        let too_many = old.is_none() && self.pins.len() >= self.limits.pins;
        let items = self.items - old.map_or(0, |pin| pin.contents.len()) + fresh.len();
        if too_many || items > self.limits.items {
            return Err(HoldError::Busy { retry_after: RETRY.1 });
        }
        // What the old pin alone holds is free by then; it is not counted off, to stay simple.
        if self.pinned.saturating_add(wanted) > limit {
            return Err(HoldError::TooMuch { wanted: self.pinned.saturating_add(wanted), limit });
        }
        self.pinned += hold(fresh.values(), C::pins);
        self.items += fresh.len();
        let pin = Pin { bytes: bytes(&fresh), contents: fresh };
        if let Some(old) = self.pins.insert(image, pin) {
            self.pinned -= drop_hold(&old.contents, C::pins);
            self.items -= old.contents.len();
        }
        Ok(())
    }

    /// Ends the pin of `image`. Returns whether there was one.
    pub fn unpin(&mut self, image: &[u8; 32]) -> bool {
        let pin = self.pins.remove(image);
        if let Some(pin) = &pin {
            self.pinned -= drop_hold(&pin.contents, C::pins);
            self.items -= pin.contents.len();
        }
        pin.is_some()
    }

    /// Bytes that at least one lease holds.
    pub fn leased(&self) -> u64 {
        self.leased
    }

    /// Bytes that at least one pin holds.
    pub fn pinned(&self) -> u64 {
        self.pinned
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// How many images are pinned.
    pub fn pin_count(&self) -> usize {
        self.pins.len()
    }

    /// The largest used part of a limit of leases, in thousandths.
    pub fn busy_permille(&self) -> u16 {
        let leases = self.leases.len() as u64 * 1000 / (self.limits.leases as u64).max(1);
        let bytes = u128::from(self.leased) * 1000 / u128::from(self.limits.leased.max(1));
        let bytes = u64::try_from(bytes).unwrap_or(1000);
        u16::try_from(leases.max(bytes).min(1000)).unwrap_or(1000)
    }

    /// The leases.
    pub fn lease_infos(&self, now: Duration) -> Vec<LeaseInfo> {
        let infos = self.leases.iter().map(|(id, lease)| LeaseInfo {
            id: *id,
            age: now.saturating_sub(lease.since),
            remaining: lease.until.saturating_sub(now),
            items: lease.contents.len() as u64,
            bytes: lease.bytes,
            renewals: lease.renewals,
        });
        infos.collect()
    }

    /// The pins.
    pub fn pin_infos(&self) -> Vec<PinInfo> {
        let infos = self.pins.iter().map(|(image, pin)| PinInfo {
            image: *image,
            items: pin.contents.len() as u64,
            bytes: pin.bytes,
        });
        infos.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Thing {
        offset: usize,
        leases: AtomicU32,
        pins: AtomicU32,
    }

    impl Holdable for Thing {
        fn offset(&self) -> usize {
            self.offset
        }
        fn capacity(&self) -> u64 {
            10
        }
        fn leases(&self) -> &AtomicU32 {
            &self.leases
        }
        fn pins(&self) -> &AtomicU32 {
            &self.pins
        }
    }

    const TTL: Duration = Duration::from_secs(10);

    fn things(count: usize) -> Vec<Arc<Thing>> {
        (0..count).map(|offset| Arc::new(Thing { offset, ..Thing::default() })).collect()
    }

    fn holds() -> Holds<Thing> {
        Holds::new(Limits { leases: 3, leased: 50, pins: 2, pinned: 30, items: 9 })
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn leases_hold_until_their_time_is_up() {
        let (mut holds, things) = (holds(), things(4));
        let lease = |holds: &mut Holds<Thing>, id, ttl, things: &[Arc<Thing>], at| {
            holds.lease(id, ttl, things.to_vec(), false, seconds(at))
        };
        assert_eq!(lease(&mut holds, 1, TTL, &things[..2], 0), Ok(TTL));
        assert_eq!(lease(&mut holds, 2, seconds(100), &things[1..3], 5), Ok(MAX_TTL));
        assert_eq!((holds.leased(), holds.busy_permille()), (30, 666));
        // Renewed with one of the old ones and a new one.
        assert_eq!(lease(&mut holds, 1, TTL, &[things[1].clone(), things[3].clone()], 9), Ok(TTL));
        assert_eq!(holds.expire(seconds(10)), 0);
        assert_eq!(holds.leased(), 40);
        assert_eq!(Arc::strong_count(&things[1]), 3);
        assert_eq!(holds.expire(seconds(19)), 1);
        assert_eq!((holds.leased(), holds.lease_count()), (20, 1));
        assert_eq!(Arc::strong_count(&things[0]), 1);
        let info = holds.lease_infos(seconds(20))[0];
        assert_eq!((info.id, info.items, info.bytes, info.remaining), (2, 2, 20, seconds(45)));
        assert!(holds.release(2) && !holds.release(2));
        assert_eq!((holds.leased(), holds.items), (0, 0));
    }

    #[test]
    fn limits_refuse_and_leave_all_as_it_was() {
        let (mut holds, things) = (holds(), things(9));
        let some = |from: usize, to: usize| things[from..to].to_vec();
        let refused = holds.lease(1, TTL, some(0, 6), false, seconds(0));
        assert_eq!(refused, Err(HoldError::TooMuch { wanted: 60, limit: 50 }));
        holds.lease(1, TTL, some(0, 4), false, seconds(0)).unwrap();
        let busy = Err(HoldError::Busy { retry_after: seconds(9) });
        assert_eq!(holds.lease(2, TTL, some(4, 6), false, seconds(1)), busy);
        // The same once more costs nothing: leases share what they hold.
        holds.lease(2, TTL, some(0, 4), false, seconds(1)).unwrap();
        assert_eq!(holds.lease(3, TTL, some(0, 4), false, seconds(1)), busy, "too many items");
        holds.lease(3, TTL, [], false, seconds(1)).unwrap();
        assert_eq!(holds.lease(4, TTL, [], false, seconds(1)), busy, "too many leases");
        assert_eq!((holds.leased(), holds.items, holds.busy_permille()), (40, 8, 1000));
        assert_eq!(holds.lease(5, TTL, [], true, seconds(1)), Err(HoldError::Draining));
        assert_eq!(holds.lease(1, TTL, [], true, seconds(1)), Ok(TTL), "renewed");
    }

    #[test]
    fn pins_hold_until_they_are_ended_or_replaced() {
        let (mut holds, things) = (holds(), things(5));
        let some = |from: usize, to: usize| things[from..to].to_vec();
        holds.pin([1; 32], some(0, 2)).unwrap();
        holds.pin([2; 32], some(1, 3)).unwrap();
        assert_eq!((holds.pinned(), holds.pin_count()), (30, 2));
        assert!(matches!(holds.pin([3; 32], []), Err(HoldError::Busy { .. })));
        assert!(matches!(
            holds.pin([1; 32], some(3, 4)),
            Err(HoldError::TooMuch { wanted: 40, .. })
        ));
        holds.pin([1; 32], some(1, 2)).unwrap();
        assert_eq!((holds.pinned(), Arc::strong_count(&things[0])), (20, 1));
        assert!(holds.unpin(&[2; 32]) && !holds.unpin(&[2; 32]));
        assert_eq!((holds.pinned(), Arc::strong_count(&things[1])), (10, 2));
        assert_eq!(holds.pin_infos()[0].bytes, 10);
    }
}
