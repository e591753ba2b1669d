//! Contents that are held, and how much that is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Holdable, Limits};
use crate::parallel::lock;

/// What all leases and pins hold.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Bytes that at least one lease holds.
    pub leased: AtomicU64,
    /// Bytes that at least one pin holds.
    pub pinned: AtomicU64,
    /// Contents, each counted for each that holds it.
    pub items: AtomicUsize,
    /// Leases that ended and whose rights did not.
    pub closing: AtomicUsize,
}

/// What holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lease,
    Pin,
}

/// Why nothing was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// These bytes alone are more than may be held.
    TooMuch { wanted: u64, limit: u64 },
    /// With what others hold it is too much.
    Full,
}

/// What one lease or pin holds, for as long as this lives. It has a lock of its own: long lists are
/// gone through while nobody waits for it but who uses the same lease.
#[derive(Debug)]
pub(super) struct Held<C: Holdable> {
    kind: Kind,
    totals: Arc<Totals>,
    contents: Mutex<HashMap<usize, Arc<C>>>,
    items: AtomicUsize,
    bytes: AtomicU64,
}

impl<C: Holdable> Held<C> {
    pub fn new(kind: Kind, totals: &Arc<Totals>) -> Self {
        Self {
            kind,
            totals: Arc::clone(totals),
            contents: Mutex::default(),
            items: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// How many contents.
    pub fn items(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    /// Bytes of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Adds those of `contents` that it does not hold yet. `given_back` contents will be gone then.
    ///
    /// # Errors
    /// Over the limits; nothing was added.
    pub fn add(
        &self,
        contents: &[Arc<C>],
        given_back: usize,
        limits: &Limits,
    ) -> Result<(), Refused> {
        let mut held = lock(&self.contents);
        let mut fresh = HashMap::new();
        for content in contents.iter().filter(|content| !held.contains_key(&content.offset())) {
            fresh.entry(content.offset()).or_insert_with(|| Arc::clone(content));
        }
        let count = fresh.len();
        let items = self.totals.items.fetch_add(count, Ordering::Relaxed) + count;
        let extra = self.count_up(fresh.values());
        let total = self.total().fetch_add(extra, Ordering::Relaxed).saturating_add(extra);
        let limit = match self.kind {
            Kind::Lease => limits.leased,
            Kind::Pin => limits.pinned,
        };
        let refused = if extra > limit {
            Refused::TooMuch { wanted: extra, limit }
        } else if total > limit || items > limits.items.saturating_add(given_back) {
            Refused::Full
        } else {
            let bytes: u64 = fresh.values().map(|content| content.capacity()).sum();
            self.items.fetch_add(count, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            held.extend(fresh);
            return Ok(());
        };
        self.uncount(&fresh);
        Err(refused)
    }

    fn total(&self) -> &AtomicU64 {
        match self.kind {
            Kind::Lease => &self.totals.leased,
            Kind::Pin => &self.totals.pinned,
        }
    }

    fn holders<'a>(&self, content: &'a C) -> &'a AtomicU32 {
        match self.kind {
            Kind::Lease => content.leases(),
            Kind::Pin => content.pins(),
        }
    }

    /// Counts one more holder of each; returns the bytes that were not held before.
    fn count_up<'a>(&self, contents: impl Iterator<Item = &'a Arc<C>>) -> u64
    where
        C: 'a,
    {
        let fresh =
            contents.filter(|content| self.holders(content).fetch_add(1, Ordering::Relaxed) == 0);
        fresh.map(|content| content.capacity()).sum()
    }

    /// Takes back what was counted for these.
    fn uncount(&self, contents: &HashMap<usize, Arc<C>>) {
        let last = contents
            .values()
            .filter(|content| self.holders(content).fetch_sub(1, Ordering::Relaxed) == 1);
        let bytes: u64 = last.map(|content| content.capacity()).sum();
        self.total().fetch_sub(bytes, Ordering::Relaxed);
        self.totals.items.fetch_sub(contents.len(), Ordering::Relaxed);
    }
}

impl<C: Holdable> Drop for Held<C> {
    fn drop(&mut self) {
        self.uncount(&std::mem::take(&mut *lock(&self.contents)));
    }
}
