//! The event ring: where the device tells of what happened, in guest memory.
//!
//! ```text
//!   0  u32 head      events put in so far; written after the event that it counts
//!   4  u32 lost      events that found the ring full
//!   8  reserved, zero
//!  64  64 events of 32 bytes, event n at 64 + 32 * (n mod 64):
//!        0  u32 kind    number of the kind
//!        4  u32 status  of a command: its status word
//!        8  u64 sequence  of a command: the number that the guest gave it
//!       16  u64 ticket  of a command: as in its header
//!       24  u64 value   of the kind
//! ```
//!
//! The device never reads the ring: what a guest does to it confuses that guest alone.

/// Bytes of the ring; it is aligned to 64 and within one page of 4 KiB.
pub const RING_BYTES: u16 = RING_EVENTS_OFFSET + RING_EVENTS * EVENT_BYTES;
/// Where the ring's address must be a multiple of this.
pub const RING_ALIGNMENT: u64 = 64;
/// Offset of the count of events.
pub const RING_HEAD_OFFSET: u16 = 0;
/// Offset of the count of lost events.
pub const RING_LOST_OFFSET: u16 = 4;
/// Offset of the first event.
pub const RING_EVENTS_OFFSET: u16 = 64;
/// How many events the ring has room for.
pub const RING_EVENTS: u16 = 64;
/// Bytes of an event.
pub const EVENT_BYTES: u16 = 32;
/// What is written to `RING_LO` to take the ring down.
pub const RING_DOWN: u32 = u32::MAX;

/// The byte that is received on the event line when there are events; one stands for all that came
/// since the last.
pub const LINE_BYTE: u8 = b'\n';

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Kind {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        /// All kinds, by number.
        pub const KINDS: &[Kind] = &[$(Kind::$name),+];

        impl Kind {
            /// The kind with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its number.
            pub const fn number(self) -> u32 {
                match self { $(Self::$name => $number,)+ }
            }

            /// Its bit in `EVENT_ENABLE` and `EVENT_STATUS`.
            pub const fn bit(self) -> u32 {
                1 << self.number()
            }

            /// Its name.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, in one line of Markdown.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

kinds! {
    /// A command that was accepted has ended.
    Completion = 0, "completion";
    /// Something happened to an endpoint; `value` is what: 1 there is an errand, to be taken by NEXT; 2 one of this VM's was frozen; 3 thawed; 4 nothing of them passes, for the host may have lost them; 5 it passes again.
    Endpoint = 1, "endpoint";
    /// The VM is to be moved soon.
    Prepare = 2, "prepare";
    /// The generation has changed; `value` is the new one.
    Generation = 3, "generation";
    /// A VM that this manager booted has ended; `value` is its number.
    VmEnded = 4, "vm-ended";
}

/// What the value of an event of [`Kind::Endpoint`] means.
pub mod endpoint {
    /// There is an errand: take it by NEXT.
    pub const ERRAND: u64 = 1;
    /// An endpoint of this VM was moved too often, or the operator wants it to stay: it is frozen.
    pub const FROZEN: u64 = 2;
    /// An endpoint of this VM may be moved again.
    pub const THAWED: u64 = 3;
    /// The host may have lost this VM's endpoints: nothing of them passes.
    pub const MUTED: u64 = 4;
    /// What of them is still this VM's passes again.
    pub const UNMUTED: u64 = 5;
}

/// The bits that [`EVENT_ENABLE`](crate::register::Register::EventEnable) has.
pub const ALL_KINDS: u32 = {
    let (mut bits, mut at) = (0, 0);
    while at < KINDS.len() {
        bits |= KINDS[at].bit();
        at += 1;
    }
    bits
};

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// Of a command: its status word.
    pub status: u32,
    /// Of a command: the number that the guest gave it.
    pub sequence: u64,
    /// Of a command: its ticket.
    pub ticket: u64,
    /// Of the kind.
    pub value: u64,
}

impl Event {
    /// An event of this kind, of no command.
    pub const fn new(kind: Kind, value: u64) -> Self {
        Self { kind, status: 0, sequence: 0, ticket: 0, value }
    }

    /// As it stands in the ring.
    pub fn encode(&self) -> [u8; EVENT_BYTES as usize] {
        let mut bytes = [0; EVENT_BYTES as usize];
        bytes[0..4].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.status.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.ticket.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// The event that these bytes are; none of a kind that is not known.
    pub fn decode(bytes: &[u8; EVENT_BYTES as usize]) -> Option<Self> {
        let kind = Kind::from_number(crate::command::u32_at(bytes, 0))?;
        let word = |at| crate::command::u64_at(bytes, at);
        let status = crate::command::u32_at(bytes, 4);
        Some(Self { kind, status, sequence: word(8), ticket: word(16), value: word(24) })
    }
}

/// Where event `number` begins in the ring.
pub fn event_offset(number: u32) -> u16 {
    const { assert!(256 % RING_EVENTS == 0, "the lowest byte decides") };
    RING_EVENTS_OFFSET + u16::from(number.to_le_bytes()[0]) % RING_EVENTS * EVENT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_ring() {
        for kind in KINDS {
            let event = Event { kind: *kind, status: 1, sequence: 2, ticket: u64::MAX, value: 4 };
            assert_eq!(Event::decode(&event.encode()), Some(event));
        }
        assert_eq!(Event::decode(&[0xff; 32]), None);
        assert_eq!(ALL_KINDS, 0b11111);
    }

    #[test]
    fn events_fill_the_ring_and_begin_again() {
        assert_eq!(event_offset(0), 64);
        assert_eq!(event_offset(63) + EVENT_BYTES, RING_BYTES);
        assert_eq!(event_offset(64), 64);
        assert_eq!(event_offset(u32::MAX), event_offset(63));
    }
}
