//! Ranges of identifiers: announced, listened to, withdrawn, split, merged, mirrored, frozen; and single flows.

use control_abi::event::endpoint as value;
use endpoint::directory::Change;
use endpoint::keeper::Gate;
use endpoint::range::Range;
use endpoint::record::{Home, Phase, Record};
use endpoint::rights::{Deed, Forbidden};
use endpoint::vid::Vid;
use vswitch::Port;

use super::error::EndpointError;
use super::guests::Passage;
use super::{Endpoints, Selection, switches};
use crate::api::endpoint::{FlowChange, MoveInfo};

/// The most identifiers of one VM: each is an entry of a switch's table.
const MOST_IDENTIFIERS: u64 = 4096;

/// What is done with ranges that a VM has, or that any of this node's has if the operator asks.
type Asker = Option<u64>;

impl Endpoints {
    /// The records that `selection` is about: a VM's own, or those of this node.
    pub(super) fn select(
        &self,
        asker: Asker,
        selection: &Selection,
    ) -> Result<Vec<Record>, EndpointError> {
        let own = asker.and_then(|vm| self.home_of_vm(vm));
        let all = self.services(&(&selection.service).into());
        if all.is_empty() {
            return Err(EndpointError::NoService(selection.service.to_string()));
        }
        let is_own = |record: &Record| match &own {
            Some(home) => record.home == *home,
            None => asker.is_none() && record.home.host() == self.0.host,
        };
        let mut found = Vec::new();
        let mut elsewhere = None;
        for record in all.into_iter().filter(|record| selection.is(record)) {
            if is_own(&record) {
                found.push(record);
            } else {
                elsewhere = Some(record);
            }
        }
        match (found.is_empty(), elsewhere, asker) {
            (false, ..) => Ok(found),
            (true, Some(record), None) => {
                Err(EndpointError::Elsewhere(record.service.to_string(), record.home.to_string()))
            }
            (true, Some(record), Some(_)) => Err(Forbidden::NotOwn(record.range).into()),
            (true, None, _) => Err(EndpointError::NoService(selection.service.to_string())),
        }
    }

    /// The one record that it is about.
    pub(super) fn select_one(
        &self,
        asker: Asker,
        selection: &Selection,
    ) -> Result<Record, EndpointError> {
        let mut records = self.select(asker, selection)?;
        match (records.pop(), records.len()) {
            (Some(record), 0) => Ok(record),
            (_, more) => Err(EndpointError::Several(selection.service.to_string(), more + 1)),
        }
    }

    /// Whether a guest has a right; the operator has all.
    pub(super) fn permit(
        &self,
        asker: Asker,
        deed: Deed,
        record: &Record,
        parts: usize,
    ) -> Result<(), EndpointError> {
        let Some(vm) = asker else { return Ok(()) };
        let own: Vec<Range> = match self.home_of_vm(vm) {
            Some(home) => self.records_at(&home).iter().map(|record| record.range).collect(),
            None => Vec::new(),
        };
        let guests = self.guests().lock();
        let guest = guests.get(vm).ok_or(EndpointError::Guest("the VM is gone"))?;
        let rights = guest.spec.rights();
        let (service, range) = (&record.service, record.range);
        Ok(match deed {
            Deed::Announce => rights.announce(service, own.len(), parts),
            Deed::Move => rights.transfer(service, &own, range),
            Deed::Split => rights.split(service, &own, range, parts),
        }?)
    }

    /// Makes identifiers known as a VM's.
    pub(super) fn announce_at(
        &self,
        vm: u64,
        selection: &Selection,
    ) -> Result<Record, EndpointError> {
        let range = selection.range()?;
        let home = self.home_of_vm(vm).ok_or(EndpointError::Guest("the VM is gone"))?;
        let own = self.records_at(&home);
        let new = Record::new(range, selection.service.clone(), home, self.0.owner.clone());
        // Said again it changes nothing.
        if let Some(record) = own.iter().find(|record| record.range == range) {
            return Ok(record.clone());
        }
        self.permit(Some(vm), Deed::Announce, &new, 1)?;
        let had: u64 = own.iter().map(|record| record.range.count()).sum();
        let wanted = had.saturating_add(range.count());
        if wanted > MOST_IDENTIFIERS {
            return Err(EndpointError::Identifiers(wanted, MOST_IDENTIFIERS));
        }
        self.one(&Change::announce(vec![new]))
    }

    /// Lets frames in to identifiers that were announced.
    pub(super) fn listen(
        &self,
        asker: Asker,
        selection: &Selection,
    ) -> Result<Vec<Record>, EndpointError> {
        let records = self.select(asker, selection)?;
        for record in &records {
            let vm = match asker {
                Some(vm) => vm,
                None => self.number_of(record.home.port())?,
            };
            if let Phase::Moving { .. } = record.phase {
                return Err(EndpointError::Guest("a range that moves is opened by its move"));
            }
            self.serve_at(vm, record)?;
        }
        Ok(records)
    }

    /// Lets frames in to one identifier; to the whole range that it is of.
    pub(super) fn bind(&self, vm: u64, vid: Vid) -> Result<Record, EndpointError> {
        let found = self.0.cache.find(vid).map(|entry| entry.record);
        let record = found.ok_or_else(|| EndpointError::NoService(vid.to_string()))?;
        if self.home_of_vm(vm).as_ref() != Some(&record.home) {
            return Err(Forbidden::NotOwn(record.range).into());
        }
        self.serve_at(vm, &record)?;
        Ok(record)
    }

    /// Gives identifiers up.
    pub(super) fn withdraw(
        &self,
        asker: Asker,
        selection: &Selection,
    ) -> Result<(), EndpointError> {
        for record in self.select(asker, selection)? {
            if record.phase.heir().is_some() {
                return Err(EndpointError::NoMove(endpoint::moving::NoMove::Busy(
                    record.phase.name(),
                )));
            }
            // Nobody is led to a VM that does not answer any more.
            self.close(&record);
            self.change(&Change::withdraw(vec![record]))?;
        }
        Ok(())
    }

    /// Lets nothing of a range through at its home, as far as that is here.
    pub(super) fn close(&self, record: &Record) {
        let vm = {
            let guests = self.guests().lock();
            let found = guests.named(record.home.port());
            found.map(|(number, guest)| (number, guest.port.clone()))
        };
        let Some((vm, port)) = vm else { return };
        if let Some((bridge, _)) = port
            && let Ok(switch) = self.0.switches.open(&bridge)
            && let Err(error) = switches::point(&switch, record.range, None)
        {
            log::warn!("{}: {error}", record.range);
        }
        if let Err(error) = self.guests().pass(vm, (&record.service, record.range), None) {
            log::debug!("{}: {error}", record.range);
        }
    }

    /// The ranges that `records` were become those that they are now: what passed, passes.
    fn reshape(&self, before: &[Record], now: &[Record]) -> Result<(), EndpointError> {
        let Some(first) = before.first() else { return Ok(()) };
        let vm = self.number_of(first.home.port())?;
        let passage = {
            let guests = self.guests().lock();
            guests.get(vm).and_then(|guest| guest.passage(first.range))
        };
        // The new ones first: of two that have an identifier in common either lets it through.
        for record in now {
            self.guests().pass(vm, (&record.service, record.range), passage)?;
        }
        let gone = |record: &&Record| !now.iter().any(|new| new.range == record.range);
        for record in before.iter().filter(gone) {
            self.guests().pass(vm, (&record.service, record.range), None)?;
        }
        Ok(())
    }

    /// Splits a range in two; the second part may move.
    pub(super) fn split(
        &self,
        asker: Asker,
        selection: &Selection,
        pivot: u32,
        to: Option<&str>,
    ) -> Result<(Vec<Record>, Option<MoveInfo>), EndpointError> {
        let record = self.select_one(asker, selection)?;
        self.permit(asker, Deed::Split, &record, 2)?;
        if record.phase != Phase::Home {
            return Err(EndpointError::NoMove(endpoint::moving::NoMove::Busy(record.phase.name())));
        }
        let (first, second) = record.range.split(pivot)?;
        let parts = vec![record.with_range(first), record.with_range(second)];
        let change = Change { from: vec![record.clone()], to: parts };
        let mut records = self.change(&change)?;
        self.reshape(&[record], &records)?;
        let Some(to) = to else { return Ok((records, None)) };
        let part = records.iter().find(|record| record.range == second).cloned();
        let part = part.ok_or(EndpointError::Guest("the directory answers with other ranges"))?;
        let moved = self.move_record(&part, to, false)?;
        let service = selection.service.clone();
        records = self.services(&(&service).into());
        records.retain(|record| first.covers(record.range) || second.covers(record.range));
        Ok((records, Some(moved)))
    }

    /// Makes one range of all that a VM has of a service.
    pub(super) fn merge(
        &self,
        asker: Asker,
        selection: &Selection,
    ) -> Result<Record, EndpointError> {
        // Bounds are those of the whole that is to be.
        let (lo, hi) = (selection.lo.unwrap_or(0), selection.hi.unwrap_or(u32::MAX));
        let any = Selection { lo: None, hi: None, ..selection.clone() };
        let mut records = self.select(asker, &any)?;
        records.retain(|record| record.range.lo() >= lo && record.range.hi() <= hi);
        records.sort_by_key(|record| record.range);
        let apart = || EndpointError::Apart(selection.service.to_string());
        let first = records.first().cloned().ok_or_else(apart)?;
        self.permit(asker, Deed::Split, &first, 1)?;
        let mut whole = first.range;
        for record in &records[1..] {
            if record.home != first.home || record.phase != Phase::Home {
                return Err(apart());
            }
            whole = whole.merge(record.range).ok_or_else(apart)?;
        }
        if records.len() == 1 || first.phase != Phase::Home {
            return Err(apart());
        }
        let to = vec![first.with_range(whole)];
        let merged = self.one(&Change { from: records.clone(), to })?;
        self.reshape(&records, std::slice::from_ref(&merged))?;
        Ok(merged)
    }

    /// Notes that a VM has a copy of the state of ranges, or has none any more.
    pub(super) fn mirror(
        &self,
        asker: Asker,
        selection: &Selection,
        to: &str,
        remove: bool,
    ) -> Result<Vec<Record>, EndpointError> {
        let mirror: Home = if to.contains('/') { to.parse()? } else { self.home(to)? };
        if !remove && mirror.host() == self.0.host {
            self.may_serve(mirror.port(), &selection.service)?;
        }
        let mut records = Vec::new();
        for record in self.select(asker, selection)? {
            self.permit(asker, Deed::Split, &record, 1)?;
            let mut new = record.clone();
            new.mirrors.retain(|other| *other != mirror);
            if !remove {
                new.mirrors.push(mirror.clone());
            }
            records.push(self.one(&Change::update(record, new))?);
        }
        Ok(records)
    }

    /// Whether a VM of this node may serve `service`; its number.
    pub(super) fn may_serve(
        &self,
        vm: &str,
        service: &endpoint::name::Name,
    ) -> Result<u64, EndpointError> {
        let guests = self.guests().lock();
        let found = guests.named(vm).ok_or_else(|| EndpointError::NoVm(vm.to_owned()))?;
        found.1.spec.rights().announce(service, 0, 1)?;
        Ok(found.0)
    }

    /// Has ranges stay where they are, or move again.
    pub(super) fn freeze(
        &self,
        selection: &Selection,
        on: bool,
    ) -> Result<Vec<Record>, EndpointError> {
        let mut records = Vec::new();
        for record in self.select(None, selection)? {
            records.push(match (&record.phase, on) {
                (Phase::Home, true) => self.freeze_record(&record)?,
                (Phase::Frozen, false) => {
                    let thawed = record.with_phase(Phase::Home);
                    let thawed = self.one(&Change::update(record, thawed))?;
                    self.thaw_damping(thawed.range);
                    self.raise(&thawed.home, value::THAWED);
                    thawed
                }
                (Phase::Frozen, true) | (Phase::Home, false) => {
                    self.thaw_damping(record.range);
                    record
                }
                (phase, _) => {
                    return Err(EndpointError::NoMove(endpoint::moving::NoMove::Busy(
                        phase.name(),
                    )));
                }
            });
        }
        Ok(records)
    }

    fn thaw_damping(&self, range: Range) {
        let mut all = self.0.damping.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(damping) = all.get_mut(&range) {
            damping.thaw();
        }
    }

    /// Changes where frames to single identifiers go: to another VM of this node, or to nobody.
    pub(super) fn sync_for(
        &self,
        asker: Asker,
        changes: &[FlowChange],
    ) -> Result<(), EndpointError> {
        let mut batch: Option<(String, Vec<vswitch::Change>)> = None;
        let (mut passages, mut led) = (Vec::new(), Vec::new());
        for change in changes {
            let (vid, vm) = match change {
                FlowChange::Add { vid, vm } | FlowChange::Update { vid, vm } => (vid, Some(vm)),
                FlowChange::Delete { vid } => (vid, None),
            };
            let vid: Vid = vid.parse()?;
            let record = self.0.cache.find(vid).map(|entry| entry.record);
            let record = record.ok_or_else(|| EndpointError::NoService(vid.to_string()))?;
            if let Some(asker) = asker
                && self.home_of_vm(asker).as_ref() != Some(&record.home)
            {
                return Err(Forbidden::NotOwn(record.range).into());
            }
            let at = vm.map_or(record.home.port(), String::as_str);
            let number = self.may_serve(at, &record.service)?;
            let (bridge, port) = self.port_of(number)?;
            let one = Range::new(
                record.range.form(),
                record.range.service(),
                record.range.form().parts(vid).map_or(0, |(_, request)| request),
                record.range.form().parts(vid).map_or(0, |(_, request)| request),
            )?;
            let step = match change {
                FlowChange::Add { .. } => vswitch::Change::Add { vid, port },
                FlowChange::Update { .. } => vswitch::Change::Update { vid, port },
                FlowChange::Delete { .. } => vswitch::Change::Delete { vid },
            };
            if vm.is_some() && self.home(at)? != record.home {
                passages.push((number, record.service.clone(), one));
            }
            led.push((record.service.clone(), one, vm.map(|_| number)));
            match &mut batch {
                Some((name, _)) if *name != bridge => {
                    return Err(EndpointError::OtherBridge(at.to_owned(), bridge, "others".into()));
                }
                Some((_, steps)) => steps.push(step),
                None => batch = Some((bridge, vec![step])),
            }
        }
        let Some((bridge, steps)) = batch else { return Ok(()) };
        let switch = self.0.switches.open(&bridge)?;
        // A VM lets in what it is about to get.
        for (number, service, one) in &passages {
            self.guests().pass(*number, (service, *one), Some(Passage::OPEN))?;
        }
        let done = self.0.keeper.with_gate(|_: &mut dyn Gate| switch.sync(&steps));
        match done {
            Some(Ok(())) => {
                for (service, one, to) in &led {
                    self.close_others(service, *one, *to);
                }
                Ok(())
            }
            failed => {
                for (number, service, one) in passages {
                    let _ = self.guests().pass(number, (&service, one), None);
                }
                Err(failed.map_or(EndpointError::Muted, |done| match done {
                    Err(error) => error.into(),
                    Ok(()) => EndpointError::Muted,
                }))
            }
        }
    }

    /// An identifier that single flows led to another VM leads to `to` now: no other has a voice as it by a flow.
    fn close_others(&self, service: &endpoint::name::Name, one: Range, to: Option<u64>) {
        let home = self.0.cache.find(one.first()).map(|entry| entry.record);
        let is_home = |name: &str| {
            home.as_ref().is_some_and(|record| record.range == one && record.home.port() == name)
        };
        let others: Vec<u64> = {
            let guests = self.guests().lock();
            let has = guests.iter().filter(|(number, guest)| {
                Some(*number) != to && guest.passage(one).is_some() && !is_home(&guest.name)
            });
            has.map(|(number, _)| number).collect()
        };
        for number in others {
            if let Err(error) = self.guests().pass(number, (service, one), None) {
                log::warn!("{one} at VM {number}: {error}");
            }
        }
    }

    /// The bridge and the port of a VM.
    pub(super) fn port_of(&self, vm: u64) -> Result<(String, Port), EndpointError> {
        let guests = self.guests().lock();
        let guest = guests.get(vm).ok_or(EndpointError::Guest("the VM is gone"))?;
        guest.port.clone().ok_or_else(|| EndpointError::NoBridge(guest.name.clone()))
    }
}
