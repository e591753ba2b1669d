//! The source's side of a move, and this node's switch on its behalf.

use std::sync::atomic::Ordering;

use endpoint::moving::{Answer, Side, Ticket};
use endpoint::record::Home;

use super::super::error::EndpointError;
use super::super::guests::{Deed, Errand, Outcome, Passage};
use super::super::{Endpoints, switches};
use super::destination::What;
use super::{Active, ERRAND_PATIENCE, HOLD_PATIENCE, lock};

impl Endpoints {
    fn errand(active: &Active, deed: Deed, bytes: u64) -> Errand {
        let (service, range) = (active.service.clone(), active.range);
        Errand { deed, number: active.number, service, range, bytes }
    }

    /// This node's switch leads to the destination and holds there.
    pub(super) fn hold_at(&self, active: &Active) -> Result<(), EndpointError> {
        let source = active.source.ok_or(EndpointError::Guest("the source is gone"))?;
        let (bridge, _) = self.port_of(source)?;
        let switch = self.0.switches.open(&bridge)?;
        let to = self.port_at(&active.to)?;
        switches::hold(&switch, active.range, to, active.number, HOLD_PATIENCE)
    }

    pub(super) fn drain_source(&self, active: &Active) -> Result<(), EndpointError> {
        let source = active.source.ok_or(EndpointError::Guest("the source is gone"))?;
        let (bridge, port) = self.port_of(source)?;
        let switch = self.0.switches.open(&bridge)?;
        if switches::drain(&switch, port)? {
            Ok(())
        } else {
            Err(EndpointError::Guest("what was sent to the source before does not arrive there"))
        }
    }

    pub(super) fn stop(&self, active: &Active) -> Answer {
        let Some(source) = active.source else { return Answer::Refused };
        if !active.stateless {
            if let Some(state) = lock(&self.0.moves.states).get_mut(&active.number) {
                state.bytes.clear();
            }
            let errand = Self::errand(active, Deed::Stop, 0);
            let is_over = || active.is_lost(Side::Source).load(Ordering::Acquire);
            let outcome = self.guests().run(source, &errand, ERRAND_PATIENCE, is_over);
            if outcome != Outcome::Done {
                return Self::answer(active, outcome);
            }
        }
        // Its last frames have left: it stands still. From here on it has no voice.
        let mute = Passage { may_send: false, ..Passage::OPEN };
        Self::done(active, self.guests().pass(source, (&active.service, active.range), Some(mute)))
    }

    pub(super) fn send_state(&self, active: &Active) -> Answer {
        if active.to.host() == self.host() {
            return Answer::Done;
        }
        let bytes = lock(&self.0.moves.states)
            .get(&active.number)
            .map(|state| state.bytes.clone())
            .unwrap_or_default();
        let sent = self.peer(active.to.host()).map(|peer| peer.send(active.number, &bytes));
        Self::answer(active, sent.unwrap_or_else(|error| Outcome::Refused(error.to_string())))
    }

    pub(super) fn release_here(&self, active: &Active, is_moved: bool) -> Answer {
        let Some((bridge, home)) = self.home_port(active, is_moved) else { return Answer::Done };
        // Before new frames come, those that wait are let in.
        if is_moved && active.to.host() == self.host() {
            let order = self.order(active, Ticket::default(), What::Release);
            if let Outcome::Refused(why) = self.let_in(&order) {
                active.note(why);
                return Answer::Refused;
            }
        }
        let released = self
            .0
            .switches
            .open(&bridge)
            .map_err(EndpointError::from)
            .and_then(|switch| switches::release(&switch, active.range, home, active.number));
        Self::done(active, released)
    }

    /// The bridge that the source is on, and where identifiers are now.
    fn home_port(
        &self,
        active: &Active,
        is_moved: bool,
    ) -> Option<(String, Option<vswitch::Port>)> {
        let here = |home: &Home| self.number_of(home.port()).and_then(|vm| self.port_of(vm)).ok();
        let own = if active.from.host() == self.host() { &active.from } else { &active.to };
        let other = if active.to.host() == self.host() { &active.to } else { &active.from };
        let (bridge, _) = here(own).or_else(|| here(other))?;
        let now = if is_moved { &active.to } else { &active.from };
        Some((bridge, self.port_at(now).ok()))
    }

    /// The port of this node's switch that leads to a place.
    fn port_at(&self, home: &Home) -> Result<vswitch::Port, EndpointError> {
        if home.host() == self.host() {
            Ok(self.port_of(self.number_of(home.port())?)?.1)
        } else {
            self.peer(home.host()).map(|peer| vswitch::Port::Remote(peer.tunnel()))
        }
    }

    pub(super) fn at_source(
        &self,
        active: &Active,
        deed: Deed,
        passage: Option<Passage>,
    ) -> Answer {
        let Some(source) = active.source else { return Answer::Done };
        let is_over = || active.is_lost(Side::Source).load(Ordering::Acquire);
        // It has its voice before it goes on, and none before it is told to forget.
        if let Err(error) = self.guests().pass(source, (&active.service, active.range), passage) {
            active.note(error.to_string());
            return if is_over() { Answer::Done } else { Answer::Unanswered };
        }
        if active.stateless {
            return Answer::Done;
        }
        let errand = Self::errand(active, deed, 0);
        match self.guests().run(source, &errand, ERRAND_PATIENCE, is_over) {
            Outcome::Silent if !is_over() => Answer::Unanswered,
            // It knows nothing of it, so there is nothing to go on or to be forgotten.
            _ => Answer::Done,
        }
    }
}
