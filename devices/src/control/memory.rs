//! Guest memory, as far as the device uses it.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// An access left RAM, or crossed from one piece of it into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryError;

/// Guest memory. Any address and length may come; what is not all RAM is refused, with nothing read or
/// written.
pub trait CommandMemory: Send {
    /// Whether all of `address..address + length` is RAM, in one piece.
    fn has(&self, address: u64, length: u64) -> bool;
    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    fn read_bytes(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError>;
    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`MemoryError`].
    fn write_bytes(&self, address: u64, data: &[u8]) -> Result<(), MemoryError>;
    /// Stores a word in one piece, which another processor sees after all that was written before.
    /// `address` is a multiple of four.
    ///
    /// # Errors
    /// [`MemoryError`].
    fn store_word(&self, address: u64, value: u32) -> Result<(), MemoryError>;
}

impl CommandMemory for GuestMemoryMmap<()> {
    fn has(&self, address: u64, length: u64) -> bool {
        usize::try_from(length).is_ok_and(|length| {
            self.check_range(GuestAddress(address), length, Permissions::ReadWrite)
        })
    }

    fn read_bytes(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.read_slice(data, GuestAddress(address)).map_err(|_| MemoryError)
    }

    fn write_bytes(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        if !has(self, address, data.len()) {
            return Err(MemoryError);
        }
        self.write_slice(data, GuestAddress(address)).map_err(|_| MemoryError)
    }

    fn store_word(&self, address: u64, value: u32) -> Result<(), MemoryError> {
        let address = GuestAddress(address);
        Bytes::store(self, value.to_le(), address, Ordering::Release).map_err(|_| MemoryError)
    }
}

fn has(memory: &impl CommandMemory, address: u64, length: usize) -> bool {
    u64::try_from(length).is_ok_and(|length| memory.has(address, length))
}

/// An address whose halves are in two registers.
pub fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Whether `length` bytes at `address` lie within one page.
pub fn within_page(address: u64, length: u64) -> bool {
    let page = control_abi::command::PAGE_BYTES;
    address % page + length.min(page + 1) <= page
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 0x4000;
    const HIGH: u64 = 0x1_0000;

    /// Two pieces with a hole between, as a machine has.
    fn memory() -> GuestMemoryMmap<()> {
        let piece = |at| (GuestAddress(at), 0x4000);
        GuestMemoryMmap::from_ranges(&[piece(0), piece(HIGH)]).unwrap()
    }

    #[test]
    fn of_all_ranges_those_in_one_piece_are_ram() {
        let memory = memory();
        let edges = |at: u64| (0..5).map(move |by| at.saturating_sub(2).saturating_add(by));
        let addresses: Vec<u64> = [0, PIECE, HIGH, HIGH + PIECE, 1 << 32, u64::MAX - 2]
            .into_iter()
            .flat_map(edges)
            .collect();
        let lengths = addresses.iter().copied().chain([1, 64, PIECE, u64::MAX]).filter(|l| *l > 0);
        for length in lengths {
            for address in &addresses {
                let end = u128::from(*address) + u128::from(length);
                let inside = |from: u64| *address >= from && end <= u128::from(from + PIECE);
                assert_eq!(
                    memory.has(*address, length),
                    inside(0) || inside(HIGH),
                    "{address:#x} {length:#x}"
                );
            }
        }
    }

    #[test]
    fn a_write_that_leaves_ram_writes_nothing() {
        let memory = memory();
        assert_eq!(memory.write_bytes(PIECE - 4, &[1; 8]), Err(MemoryError));
        let mut end = [0xff; 4];
        memory.read_bytes(PIECE - 4, &mut end).unwrap();
        assert_eq!(end, [0; 4]);
        assert_eq!(memory.store_word(PIECE, 1), Err(MemoryError));
    }

    #[test]
    fn pages_hold_what_does_not_cross_their_end() {
        for (address, length, holds) in [
            (0, 4096, true),
            (0, 4097, false),
            (64, 4032, true),
            (64, 4033, false),
            (4095, 1, true),
            (4095, 2, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(within_page(address, length), holds, "{address:#x} {length:#x}");
        }
    }
}
