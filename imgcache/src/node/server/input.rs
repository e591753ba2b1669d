//! What came and was not looked at yet.

use super::budget::{Budget, Permit};
use crate::protocol::MAX_KEYS_LINE;

/// Bytes of a buffer that lines of usual length fit in.
const BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Input {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were consumed.
    start: usize,
    /// For what it takes beyond [`BYTES`].
    permit: Option<Permit>,
}

impl Input {
    /// What came.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Takes note that the first `length` bytes are done with.
    pub fn consume(&mut self, length: usize) {
        self.start = (self.start + length).min(self.buffer.len());
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            if self.permit.is_some() {
                *self = Self::default();
            }
        }
    }

    /// The buffer, with room behind what came, into which more is read. `None` if the memory for
    /// long lines is used up by others.
    pub fn room(&mut self, budget: &Budget) -> Option<&mut Vec<u8>> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BYTES);
        } else if self.buffer.len() == self.buffer.capacity() {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            } else {
                self.grow(budget)?;
            }
        }
        Some(&mut self.buffer)
    }

    fn grow(&mut self, budget: &Budget) -> Option<()> {
        // The longest line, its end, and one byte to see that it is longer.
        let capacity = (self.buffer.capacity() * 4).min(MAX_KEYS_LINE + 3);
        let additional = capacity.saturating_sub(self.buffer.len()).max(1);
        let permit = budget.take(capacity)?;
        self.buffer.reserve_exact(additional);
        self.permit = Some(permit);
        Some(())
    }

    /// Gives all memory back; only if there is nothing left in it.
    pub fn release(&mut self) {
        if self.bytes().is_empty() {
            *self = Self::default();
        }
    }
}
