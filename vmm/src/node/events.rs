//! What happens on the node, for whoever listens.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::clock::now_ms;
use crate::api::{Event, NodeEvent};

/// Events that wait for a listener; of more it is told how many were lost.
const QUEUE: usize = 4096;

/// All who listen.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Arc<Mutex<Vec<Listener>>>);

#[derive(Debug)]
struct Listener {
    sender: SyncSender<NodeEvent>,
    lost: u64,
}

/// One who listens; ends when dropped.
#[derive(Debug)]
pub struct Subscription(Receiver<NodeEvent>);

impl Subscription {
    /// The events, as they come.
    pub fn receiver(&self) -> &Receiver<NodeEvent> {
        &self.0
    }
}

impl Listeners {
    /// Listens from now on.
    pub fn subscribe(&self) -> Subscription {
        let (sender, receiver) = sync_channel(QUEUE);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Listener { sender, lost: 0 });
        Subscription(receiver)
    }

    /// Tells all, without waiting for any.
    pub fn tell(&self, event: Event) {
        let event = NodeEvent { at_ms: now_ms(), event };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|listener| listener.tell(&event));
    }
}

impl Listener {
    /// Whether it still listens.
    fn tell(&mut self, event: &NodeEvent) -> bool {
        if self.lost > 0 {
            let lost = NodeEvent { at_ms: event.at_ms, event: Event::Lost { events: self.lost } };
            match self.sender.try_send(lost) {
                Ok(()) => self.lost = 0,
                Err(TrySendError::Full(_)) => {
                    self.lost += 1;
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        match self.sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_listener_is_told_what_it_lost_and_one_that_is_gone_is_forgotten() {
        let listeners = Listeners::default();
        let (slow, gone) = (listeners.subscribe(), listeners.subscribe());
        drop(gone);
        for _ in 0..QUEUE + 5 {
            listeners.tell(Event::Draining);
        }
        assert_eq!(slow.receiver().try_iter().count(), QUEUE);
        listeners.tell(Event::Undrained);
        let seen: Vec<_> = slow.receiver().try_iter().map(|event| event.event).collect();
        assert_eq!(seen, [Event::Lost { events: 5 }, Event::Undrained]);
        assert_eq!(listeners.0.lock().unwrap().len(), 1);
    }
}
