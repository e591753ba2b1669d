//! The event ring, as its reader sees it ([`control_abi::event`]).

use control_abi::event::{
    ALL_KINDS, EVENT_BYTES, Event, Kind, RING_BYTES, RING_DOWN, RING_EVENTS, RING_HEAD_OFFSET,
    RING_LOST_OFFSET, event_offset,
};
use control_abi::register::Register;

use crate::memory::Memory;
use crate::registers::Registers;

/// Kinds of events that come unasked; ends of commands are asked for while one is waited for.
pub const UNASKED_KINDS: u32 = ALL_KINDS & !Kind::Completion.bit();

/// The ring that the device writes to, in a page of its own.
#[derive(Debug)]
pub struct Ring {
    /// Where it begins in the memory.
    offset: usize,
    /// Events taken out so far, as the device counts them.
    tail: u32,
}

impl Ring {
    /// Sets a ring up at `offset` of `memory`; none if it is not in one piece there, or the device does
    /// not take it.
    pub fn set_up(registers: &dyn Registers, memory: &Memory, offset: usize) -> Option<Self> {
        let address = memory.address(offset, usize::from(RING_BYTES))?;
        memory.write(offset, &[0; RING_BYTES as usize]);
        let [high, low] = halves(address);
        registers.write(Register::EventEnable, UNASKED_KINDS);
        registers.write(Register::RingHigh, high);
        registers.write(Register::RingLow, low);
        if registers.read(Register::RingLow) != low {
            return None;
        }
        Some(Self { offset, tail: 0 })
    }

    /// Takes the ring down: the device does not write to it any more.
    pub fn take_down(self, registers: &dyn Registers) {
        registers.write(Register::RingLow, RING_DOWN);
    }

    /// Takes all events out, the oldest first. Of a kind that is not known, none is told.
    pub fn take(&mut self, registers: &dyn Registers, memory: &Memory) -> Vec<Event> {
        let head = memory.load(self.offset + usize::from(RING_HEAD_OFFSET));
        let count = head.wrapping_sub(self.tail);
        if count == 0 {
            return Vec::new();
        }
        // More than there is room for is a ring that somebody else has written to: what is there is
        // the last ones, if anything.
        if count > u32::from(RING_EVENTS) {
            self.tail = head.wrapping_sub(u32::from(RING_EVENTS));
        }
        let mut events = Vec::new();
        while self.tail != head {
            let mut bytes = [0; EVENT_BYTES as usize];
            memory.read(self.offset + usize::from(event_offset(self.tail)), &mut bytes);
            events.extend(Event::decode(&bytes));
            self.tail = self.tail.wrapping_add(1);
        }
        registers.write(Register::RingTail, self.tail);
        events
    }

    /// Events that found the ring full.
    pub fn lost(&self, memory: &Memory) -> u32 {
        memory.load(self.offset + usize::from(RING_LOST_OFFSET))
    }
}

/// The halves of an address: the upper one, which is written first, and the lower.
pub(crate) fn halves(address: u64) -> [u32; 2] {
    let bytes = address.to_le_bytes();
    let words = bytes.as_chunks().0;
    [u32::from_le_bytes(words[1]), u32::from_le_bytes(words[0])]
}

#[cfg(test)]
mod tests {
    use control_abi::event::Kind;

    use super::*;
    use crate::fake::{FakeDevice, RING_PAGE};

    #[test]
    fn events_come_out_in_their_order_and_once() {
        let (device, memory) = FakeDevice::new(|_, _| (1, Vec::new()));
        let mut ring = Ring::set_up(&device, &memory, RING_PAGE).unwrap();
        assert!(ring.take(&device, &memory).is_empty());
        for value in 0..200 {
            device.announce(Event::new(Kind::VmEnded, value));
            if value % 50 == 49 {
                let events = ring.take(&device, &memory);
                assert_eq!(events.len(), 50);
                assert_eq!(events[49].value, value);
            }
        }
        assert!(ring.take(&device, &memory).is_empty());
        assert_eq!(ring.lost(&memory), 0);
        ring.take_down(&device);
        device.announce(Event::new(Kind::VmEnded, 1));
        assert_eq!(memory.load(RING_PAGE), 200);
    }

    #[test]
    fn a_ring_that_somebody_writes_to_ends() {
        let (device, memory) = FakeDevice::new(|_, _| (1, Vec::new()));
        let mut ring = Ring::set_up(&device, &memory, RING_PAGE).unwrap();
        memory.store(RING_PAGE, u32::MAX);
        assert!(ring.take(&device, &memory).len() <= usize::from(RING_EVENTS));
        memory.store(RING_PAGE, 0);
        memory.write(RING_PAGE + 64, &[0xff; 2048]);
        assert!(ring.take(&device, &memory).len() <= usize::from(RING_EVENTS));
    }

    #[test]
    fn the_upper_half_is_first() {
        assert_eq!(halves(0x0123_4567_89ab_cdef), [0x0123_4567, 0x89ab_cdef]);
    }
}
