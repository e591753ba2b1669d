//! A redirection entry: where and how the interrupt of a pin goes.
//!
//! Bits follow the 82093AA datasheet, section 3.2.4, and the composition of the message the
//! Intel SDM, volume 3, chapter 11, "Message Address Register Format" and "Message Data Register
//! Format".

use std::fmt;

use super::{Half, MsiMessage};

const DELIVERY_MODE_SHIFT: u32 = 8; // Bits 8 to 10
const DESTINATION_LOGICAL: u32 = 1 << 11;
const DELIVERY_STATUS: u32 = 1 << 12; // Read-only; a message is never pending here
const REMOTE_IRR: u32 = 1 << 14; // Read-only; a level-triggered message waits for its EOI
const LEVEL_TRIGGERED: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const DESTINATION_SHIFT: u32 = 24; // In the upper half

const READ_ONLY: u32 = DELIVERY_STATUS | REMOTE_IRR;
/// All that software sets; bit 13 is the polarity, which only the wire would see. The other bits
/// are reserved and read as 0.
const LOW_WRITABLE: u32 = 0x0001_ffff & !READ_ONLY;
const HIGH_WRITABLE: u32 = 0xff << DESTINATION_SHIFT;

const FIXED: u32 = 0b000;
const LOWEST_PRIORITY: u32 = 0b001;
const SMI: u32 = 0b010;
const NMI: u32 = 0b100;
const INIT: u32 = 0b101;
const EXT_INT: u32 = 0b111;
/// The local APIC takes no vector below this one.
const FIRST_VECTOR: u8 = 16;

const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_REDIRECTION_HINT: u64 = 1 << 3; // Lowest priority among the destinations
const MSI_DESTINATION_LOGICAL: u64 = 1 << 2;
const MSI_DELIVERY_MODE_SHIFT: u32 = 8;
const MSI_ASSERT: u32 = 1 << 14; // Only looked at if level-triggered
const MSI_LEVEL_TRIGGERED: u32 = 1 << 15;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    low: u32,
    high: u32,
}

impl Default for Entry {
    fn default() -> Self {
        Self { low: MASKED, high: 0 }
    }
}

impl Entry {
    pub(super) fn read(self, half: Half) -> u32 {
        match half {
            Half::Low => self.low,
            Half::High => self.high,
        }
    }

    /// Writes one half. An entry that becomes edge-triggered waits for no EOI any more: kernels
    /// end a level-triggered interrupt that way where they lack the EOI register.
    pub(super) fn write(&mut self, half: Half, value: u32) {
        match half {
            Half::Low => self.low = (self.low & READ_ONLY) | (value & LOW_WRITABLE),
            Half::High => self.high = value & HIGH_WRITABLE,
        }
        if !self.is_level_triggered() {
            self.set_remote_irr(false);
        }
    }

    pub(super) fn vector(self) -> u8 {
        self.low.to_le_bytes()[0]
    }

    pub(super) fn is_masked(self) -> bool {
        self.low & MASKED != 0
    }

    pub(super) fn is_level_triggered(self) -> bool {
        self.low & LEVEL_TRIGGERED != 0
    }

    pub(super) fn remote_irr(self) -> bool {
        self.low & REMOTE_IRR != 0
    }

    pub(super) fn set_remote_irr(&mut self, waits: bool) {
        self.low = if waits { self.low | REMOTE_IRR } else { self.low & !REMOTE_IRR };
    }

    /// The message the pin sends; `None` if it is masked, or if its delivery mode is reserved or
    /// its vector illegal, with which no local APIC would take the message.
    pub(super) fn message(self) -> Option<MsiMessage> {
        let vector = self.vector();
        let mode = (self.low >> DELIVERY_MODE_SHIFT) & 0b111;
        let deliverable = match mode {
            FIXED | LOWEST_PRIORITY => vector >= FIRST_VECTOR,
            SMI | NMI | INIT | EXT_INT => true,
            _ => false,
        };
        if self.is_masked() || !deliverable {
            return None;
        }

        let destination = u64::from(self.high >> DESTINATION_SHIFT);
        let mut address = MSI_ADDRESS | destination << MSI_DESTINATION_SHIFT;
        if self.low & DESTINATION_LOGICAL != 0 {
            address |= MSI_DESTINATION_LOGICAL;
        }
        if mode == LOWEST_PRIORITY {
            address |= MSI_REDIRECTION_HINT;
        }
        let mut data = u32::from(vector) | mode << MSI_DELIVERY_MODE_SHIFT;
        if self.is_level_triggered() {
            data |= MSI_LEVEL_TRIGGERED | MSI_ASSERT;
        }
        Some(MsiMessage { address, data })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}:{:08x}", self.high, self.low)
    }
}
