//! The state of what moves: pieces come from the guest that stands still, or from its host, and go to the guest that
//! takes it up.

use std::collections::HashMap;

use super::super::Endpoints;
use super::super::error::EndpointError;
use super::super::guests::Deed;
use super::lock;

/// Bytes of state that one move may take.
const MOST_STATE: usize = 64 << 20;
/// Bytes of all states that are on their way.
const MOST_STATES: usize = 256 << 20;

/// A state: what a source has sent, for whom it is.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) source: Option<u64>,
    pub(super) destination: Option<u64>,
    pub(super) bytes: Vec<u8>,
}

impl Endpoints {
    /// A piece of a state from the guest that is to send it.
    pub(in super::super) fn state_sent(
        &self,
        vm: u64,
        number: u64,
        at: u64,
        data: &[u8],
    ) -> Result<(), EndpointError> {
        let is_at = self.guests().lock().get(vm).is_some_and(|g| g.is_at(number, Deed::Stop));
        let mut states = lock(&self.0.moves.states);
        let state = states.get_mut(&number).filter(|state| state.source == Some(vm) && is_at);
        let state = state.ok_or(EndpointError::Guest("the guest sends a state that none wants"))?;
        put(&mut state.bytes, at, data)?;
        within(&states)?;
        drop(states);
        if at == 0 {
            // It stands still, all of it was read. What a timer of its kernel sends from now on would have a later
            // clock than what the destination sends first, which the peer would then drop (RFC 7323, section 5).
            let range = lock(&self.0.moves.active).get(&number).map(|active| active.range);
            if let Some(range) = range {
                self.guests().silence(vm, range);
            }
        }
        Ok(())
    }

    /// A piece of a state that another host sends for a guest of this node.
    ///
    /// # Errors
    /// Nobody waits for it here, or it is too long.
    pub fn state_came(&self, number: u64, at: u64, data: &[u8]) -> Result<(), EndpointError> {
        let mut states = lock(&self.0.moves.states);
        let state = states.get_mut(&number).filter(|state| state.source.is_none());
        let state =
            state.ok_or(EndpointError::Guest("a state that none of this node waits for"))?;
        put(&mut state.bytes, at, data)?;
        within(&states)
    }

    /// A piece of the state for the guest that takes it up.
    pub(in super::super) fn state_taken(
        &self,
        vm: u64,
        number: u64,
        at: u64,
        room: u32,
    ) -> Result<Vec<u8>, EndpointError> {
        let is_at = self.guests().lock().get(vm).is_some_and(|g| g.is_at(number, Deed::Resume));
        let states = lock(&self.0.moves.states);
        let state = states.get(&number).filter(|state| state.destination == Some(vm) && is_at);
        let state = state.ok_or(EndpointError::Guest("no state waits for the guest"))?;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = state.bytes.get(at..).unwrap_or_default();
        let most = usize::try_from(room).unwrap_or(usize::MAX);
        Ok(rest[..rest.len().min(most)].to_vec())
    }
}

/// Whether states do not take too much in all.
fn within(states: &HashMap<u64, State>) -> Result<(), EndpointError> {
    let all: usize = states.values().map(|state| state.bytes.len()).sum();
    if all <= MOST_STATES { Ok(()) } else { Err(EndpointError::Busy(states.len())) }
}

/// A piece of a state, behind what is there; or the same again.
fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) -> Result<(), EndpointError> {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if at > bytes.len() {
        return Err(EndpointError::Guest("a piece of a state that does not follow the last"));
    }
    if at.saturating_add(data.len()) > MOST_STATE {
        return Err(EndpointError::Guest("a state of more than 64 MiB"));
    }
    bytes.truncate(at);
    bytes.extend_from_slice(data);
    Ok(())
}
