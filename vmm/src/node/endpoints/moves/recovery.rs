//! Moves that an agent before this one has begun, or a host that is gone.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use endpoint::moving::Move;
use endpoint::range::Range;
use endpoint::record::Record;

use super::super::Endpoints;
use super::super::guests::{Deed, Errand, Outcome, Passage};
use super::super::store::Begun;
use super::{Active, ERRAND_PATIENCE, lock};

/// How long it may take until a move that was decided goes on.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);

impl Endpoints {
    /// Ends what an agent before this one has begun, or another host that is gone.
    pub(in super::super) fn recover(
        &self,
        record: Record,
        begun: Option<Begun>,
        is_source_lost: bool,
    ) {
        let Some((to, _)) = record.phase.heir().map(|(to, heir)| (to.clone(), heir.clone())) else {
            return;
        };
        let number = begun.as_ref().map_or_else(|| self.0.moves.number(), |begun| begun.number);
        let source = if record.home.host() == self.host() {
            self.number_of(record.home.port()).ok()
        } else {
            None
        };
        let is_source_lost = is_source_lost || source.is_none();
        let active = Arc::new(Active {
            number,
            service: record.service.clone(),
            range: record.range,
            from: record.home.clone(),
            to,
            source,
            stateless: begun.is_some_and(|begun| begun.stateless),
            is_lost: [AtomicBool::new(is_source_lost), AtomicBool::new(false)],
            reason: Mutex::new(None),
        });
        let Some((state, actions)) = Move::recover(record, is_source_lost, false) else { return };
        match self.carry_through(&active, state, actions) {
            Ok(info) => log::info!("move {} was found begun: {}", info.number, info.outcome),
            Err(error) => log::error!("move {number} was found begun, and is not ended: {error}"),
        }
    }

    /// Tells guests of this node of a move that was decided what has been decided, once more; nothing as
    /// long as the directory, which knows what that is, does not answer.
    fn settle(&self, begun: &Begun) {
        let record = match self.0.directory.find(begun.range.first()) {
            Ok(entry) => entry.map(|entry| entry.record),
            Err(error) => {
                log::debug!("move {}: {error}", begun.number);
                return;
            }
        };
        if record.as_ref().is_some_and(|record| record.phase.heir().is_some()) {
            return;
        }
        // Split or merged since, which only a range that is at home can be: its guests have heard.
        if record.as_ref().is_some_and(|record| record.range != begun.range) {
            return self.forget(begun);
        }
        let home = record.as_ref().map(|record| &record.home);
        for (place, gone, stays) in
            [(&begun.from, Deed::Free, Deed::Continue), (&begun.to, Deed::Discard, Deed::Open)]
        {
            if place.host() != self.host() {
                continue;
            }
            let Ok(vm) = self.number_of(place.port()) else { continue };
            let is_home = home == Some(place);
            let passage = is_home.then_some(Passage::OPEN);
            let told = |deed| {
                let (service, range) = (begun.service.clone(), begun.range);
                let errand = Errand { deed, number: begun.number, service, range, bytes: 0 };
                self.guests().run(vm, &errand, ERRAND_PATIENCE, || false)
            };
            let passed = self.guests().pass(vm, (&begun.service, begun.range), passage);
            let outcome = if begun.stateless {
                Outcome::Done
            } else {
                told(if is_home { stays } else { gone })
            };
            log::info!("move {} at {place}: {outcome:?}, {passed:?}", begun.number);
        }
        self.forget(begun);
        if let Some(record) = record {
            self.lead(&[record]);
        }
    }

    fn forget(&self, begun: &Begun) {
        lock(&self.0.moves.states).remove(&begun.number);
        lock(&self.0.moves.coming).remove(&begun.range);
        self.0.store.end(begun.number);
    }

    /// Ends moves that were decided, but that nobody carries on: an agent that is killed between its commit and its
    /// next order leaves it to that of the other host to open what is there now.
    pub(in super::super) fn end_what_is_left(&self) {
        // One at a time: guests may take long to answer.
        let Ok(mut decided) = self.0.moves.decided.try_lock() else { return };
        let begun = self.0.store.begun();
        decided.retain(|number, _| begun.iter().any(|begun| begun.number == *number));
        for begun in begun {
            let is_active = lock(&self.0.moves.active).contains_key(&begun.number)
                || lock(&self.0.moves.obeying).contains(&begun.number);
            let entry = self.0.cache.find(begun.range.first());
            let is_moving = entry.is_some_and(|entry| {
                entry.record.range == begun.range && entry.record.phase.heir().is_some()
            });
            if is_active || is_moving {
                decided.remove(&begun.number);
                continue;
            }
            let since = decided.entry(begun.number).or_insert_with(Instant::now);
            if since.elapsed() > ORDER_PATIENCE {
                log::warn!("move {} was decided, and nobody ends it", begun.number);
                self.settle(&begun);
            }
        }
    }

    /// Whether there may be any.
    pub(in super::super) fn has_some_left(&self) -> bool {
        let active = lock(&self.0.moves.active);
        self.0.store.begun().iter().any(|begun| !active.contains_key(&begun.number))
    }

    /// What to do about moves that nobody carries on: those of this node's records, and those to it from
    /// hosts that are gone.
    pub(in super::super) fn look_after(&self, is_first: bool) {
        let begun = self.0.store.begun();
        let records: Vec<_> = self.0.cache.list();
        let going: Vec<Range> =
            lock(&self.0.moves.active).values().map(|active| active.range).collect();
        for entry in records {
            let record = entry.record;
            let Some((_, heir)) = record.phase.heir() else { continue };
            let is_ours = record.owner == self.0.owner && is_first;
            let is_heirs = *heir == self.0.owner && record.owner != self.0.owner && entry.is_orphan;
            if (is_ours || is_heirs) && !going.contains(&record.range) {
                let known = begun.iter().find(|begun| begun.range == record.range).cloned();
                self.recover(record, known, is_heirs);
            }
        }
        if is_first {
            // What is left was decided; its guests may not have heard.
            for begun in self.0.store.begun() {
                self.settle(&begun);
            }
        }
    }
}
