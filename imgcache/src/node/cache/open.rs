//! Setting a cache up.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::config::{CacheConfig, MAX_ITEM_BYTES, OpenReport, Watch};
use super::counters::Counts;
use super::error::CacheError;
use super::item::Returns;
use super::key::PerKind;
use super::maintenance::Populating;
use super::quarantine::Quarantine;
use super::restore::Restored;
use super::state::State;
use super::table::Table;
use super::time::Now;
use super::{Cache, restore};
use crate::index::table::TableGeometry;
use crate::node::arena::{self, Arena, Layout, SLAB_BYTES};
use crate::node::lease::{Holds, Limits};
use crate::node::slab::Slabs;

/// Items that all leases and pins may list, at least and for each entry of the index.
const HELD_ITEMS: (usize, usize) = (65_536, 2);

impl Cache {
    /// Takes the memory, and what a file holds from before: of that, each item that is whole and has
    /// not expired is there again. Leases and pins are not: they end with the process.
    ///
    /// # Errors
    /// The memory cannot be had, the file is not fit, or the configuration makes no sense.
    pub fn open(config: &CacheConfig) -> Result<(Self, OpenReport), CacheError> {
        Self::open_at(config, Now::system())
    }

    /// As [`Cache::open`], at another time.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn open_at(config: &CacheConfig, now: Now) -> Result<(Self, OpenReport), CacheError> {
        Self::open_watched(config, now, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Cache::open_at`], telling `watch` how far it is: with a large file it takes long.
    ///
    /// # Errors
    /// As [`Cache::open`]; or `watch` stopped it.
    pub fn open_watched(
        config: &CacheConfig,
        now: Now,
        watch: Watch<'_>,
    ) -> Result<(Self, OpenReport), CacheError> {
        check(config)?;
        let slabs = config.memory_bytes.div_ceil(SLAB_BYTES as u64).max(1);
        let table = match config.index_entries {
            Some(entries) => TableGeometry::with_entries(entries)?,
            None => TableGeometry::for_content(slabs.saturating_mul(SLAB_BYTES as u64))?,
        };
        let layout = Layout::new(table, slabs)?;
        let mut opened =
            arena::open(layout, config.backing, config.file.as_deref().map(Path::new))?;
        let arena = Arc::clone(&opened.arena);
        let mut state = state(config, &arena);
        let mut restored = Restored::default();
        opened.begin();
        if !opened.previous.is_empty() {
            restored = restore::restore(&mut state, &opened.previous, now, watch)?;
        }
        opened.settle();
        let report = OpenReport {
            backing: opened.backing,
            fallbacks: std::mem::take(&mut opened.fallbacks),
            memory_bytes: state.capacity(),
            index_entries: table.entries(),
            boot_id: arena.boot_id(),
            restored: restored.whole,
            expired: restored.expired,
            damaged: restored.damaged,
        };
        let cache = Self {
            holds: Arc::clone(&state.holds),
            is_draining: AtomicBool::new(false),
            state: Mutex::new(state),
            _populating: config.populate.then(|| Populating::start(&arena)),
            arena,
            report: report.clone(),
            max_item_bytes: config.max_item_bytes,
            max_reserved: match config.max_reserved_permille {
                // What there is, is limit enough.
                1000.. => u64::MAX,
                permille => report.memory_bytes * u64::from(permille) / 1000,
            },
        };
        Ok((cache, report))
    }
}

fn check(config: &CacheConfig) -> Result<(), CacheError> {
    if !(1..=MAX_ITEM_BYTES).contains(&config.max_item_bytes) {
        return Err(CacheError::ItemSize(config.max_item_bytes));
    }
    let shares = [
        ("max_leased", config.max_leased_permille),
        ("max_pinned", config.max_pinned_permille),
        ("max_reserved", config.max_reserved_permille),
    ];
    match shares.into_iter().find(|(_, permille)| *permille > 1000) {
        Some((setting, permille)) => Err(CacheError::Permille { setting, permille }),
        None => Ok(()),
    }
}

fn state(config: &CacheConfig, arena: &Arc<Arena>) -> State {
    let layout = arena.layout();
    let table = Table::new(layout.table);
    let capacity = u64::from(layout.slabs) * SLAB_BYTES as u64;
    let share = |permille: u16| capacity * u64::from(permille) / 1000;
    let limits = Limits {
        leases: config.max_leases,
        leased: share(config.max_leased_permille),
        pins: config.max_pins,
        pinned: share(config.max_pinned_permille),
        items: table.entries().saturating_mul(HELD_ITEMS.1).max(HELD_ITEMS.0),
    };
    State {
        arena: Arc::clone(arena),
        returns: Arc::new(Returns::default()),
        table,
        slabs: Slabs::new(layout.slabs),
        queues: Default::default(),
        slab_cursors: Default::default(),
        class_counts: Default::default(),
        counts: Counts::default(),
        items_by_kind: PerKind::default(),
        content_bytes: PerKind::default(),
        names: BTreeSet::new(),
        holds: Arc::new(Holds::new(limits)),
        generation: 0,
        epoch: 0,
        flush_at: None,
        flushing: false,
        cursor: 0,
        quarantine: Quarantine::new(config.effective_quarantine()),
        scratch: Vec::new(),
    }
}
