//! Flow control (virtio 1.2, section 5.10.6.3): each side tells how much room it has in all and how many
//! bytes it has passed on, and the other never has more than that room on its way. Counts are modulo
//! 2^32.

use std::num::Wrapping;

/// What may be sent to a peer, by what it has told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    sent: Wrapping<u32>,
    room: u32,
    forwarded: Wrapping<u32>,
}

impl Sending {
    /// Takes what the peer tells. Any numbers: those that make no sense allow nothing.
    pub fn told(&mut self, room: u32, forwarded: u32) {
        self.room = room;
        self.forwarded = Wrapping(forwarded);
    }

    /// Bytes that may be sent now.
    pub fn allowed(&self) -> u32 {
        self.room.saturating_sub((self.sent - self.forwarded).0)
    }

    /// Counts `bytes` that were sent: no more than were allowed.
    pub fn sent(&mut self, bytes: u32) {
        self.sent += bytes;
    }
}

/// What a peer may send.
#[derive(Clone, Copy, Debug)]
pub struct Receiving {
    room: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
}

impl Receiving {
    /// Of a side that has `room` bytes of room.
    pub fn new(room: u32) -> Self {
        let none = Wrapping(0);
        Self { room, received: none, forwarded: none, told: none }
    }

    /// Counts `bytes` that came, if the peer was allowed to send them.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        // By what is here, not by what the peer knows: it cannot know of more room than there is.
        let waiting = (self.received - self.forwarded).0;
        let allowed = bytes <= self.room.saturating_sub(waiting);
        if allowed {
            self.received += bytes;
        }
        allowed
    }

    /// Counts `bytes` that were passed on, of those that came.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded += bytes;
    }

    /// All that came is passed on, or dropped: nothing waits.
    pub fn forward_all(&mut self) {
        self.forwarded = self.received;
    }

    /// The room in all, and what was passed on: the peer is about to be told.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.room, self.forwarded.0)
    }

    /// Whether the peer takes at least half of the room for full that is not.
    pub fn is_news(&self) -> bool {
        (self.forwarded - self.told).0 >= self.room.div_ceil(2)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A step of a sender and a receiver with a wire between them.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Send(u32),
        Arrive,
        PassOn(u32),
        Tell,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1_u32..200).prop_map(Step::Send),
            Just(Step::Arrive),
            (1_u32..200).prop_map(Step::PassOn),
            Just(Step::Tell),
        ]
    }

    proptest! {
        /// Also when the counts wrap: they begin anywhere.
        #[test]
        fn an_honest_sender_is_never_refused_and_never_starves(
            room in 1_u32..300,
            start in prop_oneof![Just(0_u32), Just(u32::MAX - 100), any::<u32>()],
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let mut sending = Sending { sent: Wrapping(start), ..Sending::default() };
            let mut receiving = Receiving { received: Wrapping(start), forwarded: Wrapping(start),
                told: Wrapping(start), ..Receiving::new(room) };
            let tell = |receiving: &mut Receiving, sending: &mut Sending| {
                let (room, forwarded) = receiving.tell();
                sending.told(room, forwarded);
            };
            tell(&mut receiving, &mut sending);
            let (mut wire, mut waiting) = (VecDeque::new(), 0);
            for step in steps {
                match step {
                    Step::Send(bytes) => {
                        let bytes = bytes.min(sending.allowed());
                        sending.sent(bytes);
                        wire.push_back(bytes);
                    }
                    Step::Arrive => {
                        if let Some(bytes) = wire.pop_front() {
                            prop_assert!(receiving.receive(bytes));
                            waiting += bytes;
                        }
                    }
                    Step::PassOn(bytes) => {
                        let bytes = bytes.min(waiting);
                        waiting -= bytes;
                        receiving.forward(bytes);
                        if receiving.is_news() {
                            tell(&mut receiving, &mut sending);
                        }
                    }
                    Step::Tell => tell(&mut receiving, &mut sending),
                }
                prop_assert!(waiting <= room);
                // When all has been passed on, what was not told leaves room to send.
                if wire.is_empty() && waiting == 0 {
                    prop_assert!(sending.allowed() > 0);
                }
            }
        }

        #[test]
        fn a_receiver_never_holds_more_than_its_room(
            room in 0_u32..1000,
            acts in prop::collection::vec((any::<bool>(), prop_oneof![0_u32..1000, any::<u32>()]), 0..100),
        ) {
            let (mut receiving, mut waiting) = (Receiving::new(room), 0_u32);
            for (comes, bytes) in acts {
                if !comes {
                    let bytes = bytes.min(waiting);
                    receiving.forward(bytes);
                    waiting -= bytes;
                } else if receiving.receive(bytes) {
                    waiting += bytes;
                }
                prop_assert!(waiting <= room);
            }
        }

        #[test]
        fn what_a_peer_tells_never_allows_more_than_its_room(
            told in prop::collection::vec((any::<u32>(), any::<u32>()), 1..20),
            share in 0_u32..=100,
        ) {
            let mut sending = Sending::default();
            for (room, forwarded) in told {
                sending.told(room, forwarded);
                prop_assert!(sending.allowed() <= room);
                sending.sent(sending.allowed() / 100 * share);
            }
        }
    }
}
