//! I/O APIC for a split irqchip: pins in, message signalled interrupts out.
//!
//! Registers follow the Intel 82093AA datasheet (order number 290566, section 3) with the EOI
//! register of version 0x20; messages follow the Intel SDM, volume 3, chapter 11, "Message
//! Signalled Interrupts". With a split irqchip the local APICs are the hypervisor's, and the
//! I/O APIC is this register machine.
//!
//! An edge-triggered pin needs no I/O APIC once it is programmed: [`MsiRouter::route`] hands its
//! message to the hypervisor, which sends it whenever the pin's event descriptor is written. An
//! edge on a masked pin is lost, as on the chip. A level-triggered pin that is driven by
//! [`Ioapic::set_pin`] goes through the registers instead: its message is sent by
//! [`MsiRouter::send`], and again after [`Ioapic::end_of_interrupt`] if the pin is still high.

mod entry;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::bus::BusDevice;
use entry::Entry;

/// Address of the first (and only) I/O APIC.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Length of its window in bytes.
pub const IOAPIC_LENGTH: u64 = 0x1000;
/// The most pins, and so redirection entries, that one has.
pub const IOAPIC_PINS: u8 = 24;

const SELECT_OFFSET: u64 = 0x00; // IOREGSEL: index of the register behind the window
const WINDOW_OFFSET: u64 = 0x10; // IOWIN
const EOI_OFFSET: u64 = 0x40; // Write-only: vector whose handling has ended

const ID_INDEX: u8 = 0x00; // Bits 24 to 27: the APIC's ID
const VERSION_INDEX: u8 = 0x01;
const ARBITRATION_INDEX: u8 = 0x02; // Bits 24 to 27: arbitration ID, loaded from the ID
const REDIRECTION_INDEX: u8 = 0x10; // Two 32-bit registers an entry, the lower half first

const ID_MASK: u32 = 0x0f00_0000;
const VERSION: u32 = 0x20; // Bits 0 to 7: a version that has the EOI register
const LAST_ENTRY_SHIFT: u32 = 16; // Bits 16 to 23: index of the last redirection entry

/// What a device writes where to interrupt a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Address: destination and how it is meant.
    pub address: u64,
    /// Data: vector, delivery mode and trigger mode.
    pub data: u32,
}

/// The hypervisor's side of the I/O APIC.
///
/// Called on the thread of the vCPU that programs the I/O APIC, with its lock held: it must not
/// touch a device.
pub trait MsiRouter: Send {
    /// From now on, an edge on `pin` sends `message`; `None`: it sends nothing. Called only when
    /// that changes; no pin has a message at the start.
    fn route(&mut self, pin: u8, message: Option<MsiMessage>);

    /// Sends `message` now. Only [`Ioapic::set_pin`] leads here: a machine whose devices all are
    /// edge-triggered through their own event descriptors has no use for it.
    fn send(&mut self, message: MsiMessage) {
        let _ = message;
    }
}

/// The I/O APIC. Its registers take aligned 32-bit accesses; others read as all ones and write
/// nothing.
pub struct Ioapic<R: MsiRouter> {
    router: R,
    select: u8,
    id: u32,
    /// One a pin.
    entries: Vec<Entry>,
    /// Levels of the pins driven by `set_pin`.
    high: Vec<bool>,
    ever_unmasked: bool,
}

impl<R: MsiRouter> Ioapic<R> {
    /// Makes an I/O APIC of `pins` pins, 1 to [`IOAPIC_PINS`], in its reset state: every pin
    /// masked. A guest's start reads and writes each pin several times, each time by an exit, so
    /// a machine has no more than it uses.
    pub fn new(router: R, pins: u8) -> Self {
        let pins = usize::from(pins.clamp(1, IOAPIC_PINS));
        Self {
            router,
            select: 0,
            id: 0,
            entries: vec![Entry::default(); pins],
            high: vec![false; pins],
            ever_unmasked: false,
        }
    }

    /// The router, to inspect or adjust what it holds.
    pub fn router(&self) -> &R {
        &self.router
    }

    /// Whether some pin is unmasked now. An operating system that shuts down in order masks all.
    pub fn any_unmasked(&self) -> bool {
        self.entries.iter().any(|entry| !entry.is_masked())
    }

    /// Whether some pin has been unmasked since the start: an operating system has used the
    /// I/O APIC.
    pub fn ever_unmasked(&self) -> bool {
        self.ever_unmasked
    }

    /// Drives `pin` high or low, for a pin that no event descriptor drives. An edge-triggered
    /// pin sends its message when it rises, a level-triggered one while it is high, each time
    /// the last message has been answered. Pins beyond the last are ignored.
    pub fn set_pin(&mut self, pin: u8, high: bool) {
        let Some(level) = self.high.get_mut(usize::from(pin)) else { return };
        let rises = high && !*level;
        *level = high;
        let entry = &self.entries[usize::from(pin)];
        if entry.is_level_triggered() {
            self.send_level(usize::from(pin));
        } else if rises && let Some(message) = entry.message() {
            self.router.send(message);
        }
    }

    /// Ends the handling of `vector`: what a processor's EOI of a level-triggered interrupt
    /// tells all I/O APICs. A pin of that vector that is still high interrupts again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..self.entries.len() {
            let entry = &mut self.entries[pin];
            if entry.vector() == vector && entry.remote_irr() {
                entry.set_remote_irr(false);
                self.send_level(pin);
            }
        }
    }

    /// Sends the message of a level-triggered pin if it is high and none is unanswered.
    fn send_level(&mut self, pin: usize) {
        let entry = &mut self.entries[pin];
        if self.high[pin]
            && entry.is_level_triggered()
            && !entry.remote_irr()
            && let Some(message) = entry.message()
        {
            entry.set_remote_irr(true);
            self.router.send(message);
        }
    }

    fn last_entry(&self) -> u32 {
        u32::try_from(self.entries.len() - 1).unwrap_or(0)
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            ID_INDEX | ARBITRATION_INDEX => self.id,
            VERSION_INDEX => VERSION | self.last_entry() << LAST_ENTRY_SHIFT,
            index @ REDIRECTION_INDEX.. => {
                let (pin, half) = redirection(index);
                self.entries.get(usize::from(pin)).map_or(0, |entry| entry.read(half))
            }
            _ => 0,
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == ID_INDEX {
            self.id = value & ID_MASK;
        } else if self.select >= REDIRECTION_INDEX {
            let (pin, half) = redirection(self.select);
            self.write_redirection(pin, half, value);
        }
    }

    fn write_redirection(&mut self, pin: u8, half: Half, value: u32) {
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return };
        let before = entry.message();
        entry.write(half, value);
        let after = entry.message();
        self.ever_unmasked |= !entry.is_masked();
        if after != before {
            self.router.route(pin, after);
        }
        self.send_level(usize::from(pin));
    }
}

/// The halves of a redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// The pin and the half of its redirection entry that register `index`, from
/// [`REDIRECTION_INDEX`] on, is. There may be no such pin.
fn redirection(index: u8) -> (u8, Half) {
    let offset = index.saturating_sub(REDIRECTION_INDEX);
    let half = if offset.is_multiple_of(2) { Half::Low } else { Half::High };
    (offset / 2, half)
}

impl<R: MsiRouter> BusDevice for Ioapic<R> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT_OFFSET => u32::from(self.select),
            WINDOW_OFFSET => self.read_selected(),
            _ => u32::MAX,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        match offset {
            SELECT_OFFSET => self.select = bytes[0],
            WINDOW_OFFSET => self.write_selected(u32::from_le_bytes(bytes)),
            EOI_OFFSET => self.end_of_interrupt(bytes[0]),
            _ => {}
        }
    }
}

impl<R: MsiRouter> fmt::Debug for Ioapic<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioapic")
            .field("select", &self.select)
            .field("id", &self.id)
            .field("entries", &self.entries)
            .field("high", &self.high)
            .field("ever_unmasked", &self.ever_unmasked)
            .finish_non_exhaustive()
    }
}
