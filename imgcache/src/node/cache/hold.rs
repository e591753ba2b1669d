//! Leases and pins on items.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::{Granted, Held};
use super::time::Now;
use super::{Cache, HoldError, LeaseInfo, PinInfo};
use crate::index::IndexKey;
use crate::node::lease::{Asked, Rights};

impl Cache {
    /// Holds the items of `keys` until the time of the lease is over, or it is released. The same id
    /// again renews the lease, and adds what it does not hold yet; without keys it only renews.
    ///
    /// # Errors
    /// Over the limits, or draining; a lease that there is goes on as it was.
    pub fn lease(
        &self,
        asked: &Asked<'_>,
        keys: &[IndexKey],
        now: Now,
    ) -> Result<Granted, HoldError> {
        let contents = self.contents(keys, true, now);
        self.end_leases(now);
        let is_draining = self.is_draining.load(Ordering::Relaxed);
        let given = self.holds.lease(asked, &contents, is_draining, now.monotonic);
        let counts = &mut self.lock().counts;
        match given {
            Ok(_) => counts.leases_granted += 1,
            Err(_) => counts.leases_refused += 1,
        }
        let held = contents.len() as u64;
        let missing = keys.len() as u64 - held;
        given.map(|ttl| Granted { ttl, held, missing, busy_permille: self.holds.busy_permille() })
    }

    /// Has `rights` told when the lease `id` ends: its contents stay in their place until nobody has
    /// rights on them any more. Returns whether there is such a lease, without rights so far.
    pub fn grant(&self, id: u64, rights: Arc<dyn Rights>) -> bool {
        self.holds.grant(id, rights)
    }

    /// The rights on the lease `id` have ended, and the lease goes on.
    pub fn take_rights(&self, id: u64) -> Option<Arc<dyn Rights>> {
        self.holds.take_rights(id)
    }

    /// Ends a lease, whose holder read this many bytes. Returns whether there was one.
    pub fn release(&self, id: u64, bytes_read: u64) -> bool {
        let released = self.holds.release(id);
        if released {
            let counts = &mut self.lock().counts;
            counts.leases_released += 1;
            counts.leased_bytes_read = counts.leased_bytes_read.saturating_add(bytes_read);
        }
        released
    }

    /// Ends the leases whose time is up. Returns how many.
    pub(super) fn end_leases(&self, now: Now) -> u64 {
        let ended = self.holds.expire(now.monotonic);
        if ended > 0 {
            self.lock().counts.leases_expired += ended;
        }
        ended
    }

    /// How many items the lease `id` holds.
    pub fn items_of_lease(&self, id: u64) -> usize {
        self.holds.items_of_lease(id)
    }

    /// How many items the pin of an image holds.
    pub fn items_of_pin(&self, image: &[u8; 32]) -> usize {
        self.holds.items_of_pin(image)
    }

    /// Holds the items of `keys` for an image until it is unpinned; in place of what was held for it
    /// before. Items that come later are not held: pin again. Pins end with the process.
    ///
    /// # Errors
    /// Over the limits; what was held before still is.
    pub fn pin(&self, image: [u8; 32], keys: &[IndexKey], now: Now) -> Result<Held, HoldError> {
        let contents = self.contents(keys, false, now);
        let items = contents.len() as u64;
        let bytes = contents.iter().map(|content| content.bytes().len() as u64).sum();
        self.holds.pin(image, &contents)?;
        Ok(Held { items, bytes, missing: keys.len() as u64 - items })
    }

    /// Ends the pin of an image. Returns whether there was one.
    pub fn unpin(&self, image: [u8; 32]) -> bool {
        self.holds.unpin(&image)
    }

    /// Refuses new leases, or gives them again. Leases that there are can be renewed.
    pub fn set_draining(&self, draining: bool) {
        self.is_draining.store(draining, Ordering::Relaxed);
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.holds.lease_count()
    }

    /// The leases.
    pub fn leases(&self, now: Now) -> Vec<LeaseInfo> {
        self.holds.lease_infos(now.monotonic)
    }

    /// The pins.
    pub fn pins(&self) -> Vec<PinInfo> {
        self.holds.pin_infos()
    }
}
