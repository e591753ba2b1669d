//! The event ring: written here, read by the guest alone.

use control_abi::event::{
    Event, RING_ALIGNMENT, RING_BYTES, RING_DOWN, RING_EVENTS, RING_HEAD_OFFSET, RING_LOST_OFFSET,
    event_offset,
};
use control_abi::status::Error;

use super::memory::{CommandMemory, joined, within_page};

/// The ring, and how far both sides are. Counts wrap at 2^32.
#[derive(Debug, Default)]
pub struct Ring {
    /// None while it is down.
    address: Option<u64>,
    head: u32,
    tail: u32,
    /// Events that found it full, since it was set up.
    overflow: u32,
    put: u64,
    lost: u64,
}

impl Ring {
    /// Sets the ring up at its beginning, or takes it down.
    ///
    /// # Errors
    /// [`Error::BadAddress`]; the ring is down then.
    pub fn place(&mut self, memory: &impl CommandMemory, high: u32, low: u32) -> Result<(), Error> {
        (self.address, self.head, self.tail, self.overflow) = (None, 0, 0, 0);
        if low == RING_DOWN {
            return Ok(());
        }
        let address = joined(high, low);
        let fits = address.is_multiple_of(RING_ALIGNMENT)
            && within_page(address, u64::from(RING_BYTES))
            && memory.has(address, u64::from(RING_BYTES));
        if !fits || !self.begin(memory, address) {
            return Err(Error::BadAddress);
        }
        self.address = Some(address);
        Ok(())
    }

    fn begin(&self, memory: &impl CommandMemory, address: u64) -> bool {
        let at = |offset| address + u64::from(offset);
        memory.store_word(at(RING_LOST_OFFSET), self.overflow).is_ok()
            && memory.store_word(at(RING_HEAD_OFFSET), self.head).is_ok()
    }

    /// Puts an event in; says whether it is there.
    pub fn push(&mut self, memory: &impl CommandMemory, event: &Event) -> bool {
        let Some(address) = self.address else { return false };
        let at = |offset: u16| address + u64::from(offset);
        if self.head.wrapping_sub(self.tail) >= u32::from(RING_EVENTS) {
            self.overflow = self.overflow.saturating_add(1);
            self.lost = self.lost.saturating_add(1);
            let _ = memory.store_word(at(RING_LOST_OFFSET), self.overflow);
            return false;
        }
        let head = self.head.wrapping_add(1);
        let put = memory
            .write_bytes(at(event_offset(self.head)), &event.encode())
            .and_then(|()| memory.store_word(at(RING_HEAD_OFFSET), head));
        if put.is_err() {
            self.address = None;
            return false;
        }
        self.head = head;
        self.put = self.put.saturating_add(1);
        true
    }

    /// The guest has taken out what comes before event `tail`. What it cannot have taken is ignored.
    pub fn take_to(&mut self, tail: u32) {
        if tail.wrapping_sub(self.tail) <= self.head.wrapping_sub(self.tail) {
            self.tail = tail;
        }
    }

    /// Lower half of its address.
    pub fn low_half(&self) -> u32 {
        self.address.map_or(RING_DOWN, |address| {
            let [a, b, c, d, ..] = address.to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        })
    }

    /// Events put in since it was set up.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Events taken out since it was set up.
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Events ever put in.
    pub fn put(&self) -> u64 {
        self.put
    }

    /// Events that ever found it full.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_moves_forward_and_never_beyond_the_head() {
        let around = [0, 1, 2, 63, 64, u32::MAX - 1, u32::MAX, 1 << 31];
        for start in around {
            for filled in 0..=64 {
                for to in around.map(|by| start.wrapping_add(by)) {
                    let head = start.wrapping_add(filled);
                    let mut ring = Ring { head, tail: start, ..Ring::default() };
                    ring.take_to(to);
                    let legal = to.wrapping_sub(start) <= filled;
                    assert_eq!(ring.tail, if legal { to } else { start });
                }
            }
        }
    }
}
