//! An address space of devices: I/O ports or MMIO.
//!
//! Locks: an access takes the lock of the one device it addresses and holds it for this access
//! only. A device never reaches for another device or for the bus, so no thread ever holds two
//! device locks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers in a window of an address space.
///
/// Offsets are relative to the window and come from the guest, as do width and order of the
/// accesses: an implementation takes any of them without a panic.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes at `offset`. What the device does not know reads as all ones, so
    /// an implementation writes the whole of `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset`. What the device does not know is dropped.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on a [`Bus`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The window has no byte.
    #[error("Device {name} at {base:#x} has an empty window")]
    Empty {
        /// The device.
        name: &'static str,
        /// Its first address.
        base: u64,
    },
    /// The window leaves the address space.
    #[error("Window of device {name} at {base:#x}, {length:#x} bytes, leaves the address space")]
    Wrap {
        /// The device.
        name: &'static str,
        /// Its first address.
        base: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The window shares an address with one that is there already.
    #[error(
        "Device {name} at {base:#x}..={last:#x} overlaps device {other} at \
         {other_base:#x}..={other_last:#x}"
    )]
    Overlap {
        /// The new device.
        name: &'static str,
        /// Its first address.
        base: u64,
        /// Its last address.
        last: u64,
        /// The device that is there.
        other: &'static str,
        /// Its first address.
        other_base: u64,
        /// Its last address.
        other_last: u64,
    },
}

struct Window {
    name: &'static str,
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// An address space of devices. It is built first and then only read, by all vCPUs at once.
#[derive(Default)]
pub struct Bus {
    /// Windows by their first address; no two share an address.
    windows: BTreeMap<u64, Window>,
}

impl Bus {
    /// Puts `device` at `base..base + length`.
    ///
    /// # Errors
    /// The window is empty, leaves the address space or overlaps another; the bus is unchanged.
    pub fn insert(
        &mut self,
        name: &'static str,
        base: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let to_last = length.checked_sub(1).ok_or(BusError::Empty { name, base })?;
        let last = base.checked_add(to_last).ok_or(BusError::Wrap { name, base, length })?;
        if let Some((&other_base, other)) = self.windows.range(..=last).next_back()
            && other.last >= base
        {
            return Err(BusError::Overlap {
                name,
                base,
                last,
                other: other.name,
                other_base,
                other_last: other.last,
            });
        }
        self.windows.insert(base, Window { name, last, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `addr`; true if a device took the access. An access outside
    /// every window, or over the end of one, is nobody's: it reads as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some((offset, window)) = self.find(addr, data.len()) else {
            data.fill(0xff);
            return false;
        };
        window.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Writes `data` at `addr`; true if a device took the access. An access outside every
    /// window, or over the end of one, is nobody's: it is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((offset, window)) = self.find(addr, data.len()) else {
            return false;
        };
        window.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    /// The window that holds all of `addr..addr + length`, and the offset of `addr` in it.
    fn find(&self, addr: u64, length: usize) -> Option<(u64, &Window)> {
        let last = addr.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let (&base, window) = self.windows.range(..=addr).next_back()?;
        (last <= window.last).then_some((addr - base, window))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.windows.iter().map(|(base, window)| {
                (format_args!("{base:#x}..={:#x}", window.last).to_string(), window.name)
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder {
        writes: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            assert!(data != [0xee], "poisoning write");
            self.writes.push((offset, data.to_vec()));
        }
    }

    fn device() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn an_access_reaches_the_device_that_holds_all_of_it() {
        let (low, high) = (device(), device());
        let mut bus = Bus::default();
        bus.insert("low", 0x10, 8, low.clone()).unwrap();
        bus.insert("high", 0x18, 8, high.clone()).unwrap();

        let mut data = [0; 2];
        assert!(bus.read(0x16, &mut data));
        assert_eq!(data, [6, 6]);
        assert!(bus.write(0x18, &[1, 2]));
        assert!(low.lock().unwrap().writes.is_empty());
        assert_eq!(high.lock().unwrap().writes, [(0, vec![1, 2])]);
    }

    #[test]
    fn unclaimed_and_straddling_accesses_read_ones_and_drop_writes() {
        let device = device();
        let mut bus = Bus::default();
        bus.insert("one", 0x10, 8, device.clone()).unwrap();
        bus.insert("next", 0x18, 8, device.clone()).unwrap();

        for addr in [0, 0x0f, 0x17, 0x1f, 0x20, u64::MAX] {
            let mut data = [0; 2];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 2]);
            assert!(!bus.write(addr, &[1, 2]), "{addr:#x}");
        }
        assert!(!bus.read(0x10, &mut []));
        assert!(device.lock().unwrap().writes.is_empty());
    }

    #[test]
    fn bad_windows_are_refused_with_their_names() {
        let mut bus = Bus::default();
        bus.insert("there", 0x10, 8, device()).unwrap();
        for base in [0x09, 0x10, 0x13, 0x17] {
            let error = bus.insert("new", base, 8, device()).unwrap_err().to_string();
            assert!(error.contains("new") && error.contains("there"), "{error}");
        }
        let around = bus.insert("around", 0, 0x100, device()).unwrap_err();
        assert_eq!(
            around.to_string(),
            "Device around at 0x0..=0xff overlaps device there at 0x10..=0x17"
        );
        let empty = bus.insert("empty", 5, 0, device()).unwrap_err();
        assert_eq!(empty, BusError::Empty { name: "empty", base: 5 });
        let wrap = bus.insert("wrap", u64::MAX, 2, device()).unwrap_err();
        assert_eq!(wrap, BusError::Wrap { name: "wrap", base: u64::MAX, length: 2 });
        bus.insert("top", u64::MAX, 1, device()).unwrap();
        assert!(bus.read(u64::MAX, &mut [0]));
    }

    #[test]
    fn a_device_whose_access_panicked_still_answers() {
        let mut bus = Bus::default();
        bus.insert("fragile", 0, 8, device()).unwrap();
        let bus = Arc::new(bus);
        let other = Arc::clone(&bus);
        assert!(std::thread::spawn(move || other.write(0, &[0xee])).join().is_err());
        let mut data = [0xff];
        assert!(bus.read(3, &mut data));
        assert_eq!(data, [3]);
        assert!(bus.write(3, &[1]));
    }

    #[test]
    fn debug_names_the_windows() {
        let mut bus = Bus::default();
        bus.insert("serial", 0x3f8, 8, device()).unwrap();
        assert_eq!(format!("{bus:?}"), r#"{"0x3f8..=0x3ff": "serial"}"#);
    }
}
