//! Leases and pins on items.

use std::time::Duration;

use super::Cache;
use super::counters::{Granted, Held, LeaseInfo, PinInfo};
use super::error::HoldError;
use super::time::Now;
use crate::index::IndexKey;

impl Cache {
    /// Holds the items of `keys` until `ttl` (60 s at most) is over, or the lease is released. The
    /// same id again renews the lease, and adds what it does not hold yet; without keys it only
    /// renews.
    ///
    /// # Errors
    /// Over the limits, or draining; a lease that there is goes on as it was.
    pub fn lease(
        &self,
        id: u64,
        ttl: Duration,
        keys: &[IndexKey],
        now: Now,
    ) -> Result<Granted, HoldError> {
        let contents = self.contents(keys, now);
        let held = contents.len() as u64;
        let mut state = self.lock();
        let state = &mut *state;
        state.counts.leases_expired += state.holds.expire(now.monotonic);
        match state.holds.lease(id, ttl, contents, state.draining, now.monotonic) {
            Ok(ttl) => {
                state.counts.leases_granted += 1;
                let missing = keys.len() as u64 - held;
                Ok(Granted { ttl, held, missing, busy_permille: state.holds.busy_permille() })
            }
            Err(error) => {
                state.counts.leases_refused += 1;
                Err(error)
            }
        }
    }

    /// Ends a lease, whose holder read this many bytes. Returns whether there was one.
    pub fn release(&self, id: u64, bytes_read: u64) -> bool {
        let mut state = self.lock();
        let released = state.holds.release(id);
        if released {
            let counts = &mut state.counts;
            counts.leases_released += 1;
            counts.leased_bytes_read = counts.leased_bytes_read.saturating_add(bytes_read);
        }
        released
    }

    /// Whether there is such a lease.
    pub fn has_lease(&self, id: u64) -> bool {
        self.lock().holds.has_lease(id)
    }

    /// Holds the items of `keys` for an image until it is unpinned; in place of what was held for it
    /// before. Items that come later are not held: pin again. Pins end with the process.
    ///
    /// # Errors
    /// Over the limits; what was held before still is.
    pub fn pin(&self, image: [u8; 32], keys: &[IndexKey], now: Now) -> Result<Held, HoldError> {
        let contents = self.contents(keys, now);
        let items = contents.len() as u64;
        let bytes = contents.iter().map(|content| content.bytes().len() as u64).sum();
        self.lock().holds.pin(image, contents)?;
        Ok(Held { items, bytes, missing: keys.len() as u64 - items })
    }

    /// Ends the pin of an image. Returns whether there was one.
    pub fn unpin(&self, image: [u8; 32]) -> bool {
        self.lock().holds.unpin(&image)
    }

    /// Refuses new leases, or gives them again. Leases that there are can be renewed.
    pub fn set_draining(&self, draining: bool) {
        self.lock().draining = draining;
    }

    /// The leases.
    pub fn leases(&self, now: Now) -> Vec<LeaseInfo> {
        self.lock().holds.lease_infos(now.monotonic)
    }

    /// The pins.
    pub fn pins(&self) -> Vec<PinInfo> {
        self.lock().holds.pin_infos()
    }
}
