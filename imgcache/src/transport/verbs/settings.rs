//! How a connection behaves when the peer is slow, or gone.

use std::time::Duration;

use super::device::{Device, Driver};
use super::error::VerbsError;

/// READs at once that are offered and asked for: what common hardware does, and more than one needs to
/// fill a link with chunks.
pub(super) const READS: u8 = 16;
/// Requests that a queue holds, unless told otherwise.
pub const DEPTH: u32 = 128;

/// How a connection behaves. All numbers as in the InfiniBand specification (volume 1, 9.7.6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long to wait for an answer: 4.096 microseconds times 2 to the power of this, 1 to 31.
    pub timeout: u8,
    /// How often to ask again, 0 to 7.
    pub retry: u8,
    /// READs outstanding at once, from 1; no more than the peer answers and the device has.
    pub reads: u8,
}

impl Settings {
    /// What fits the device. Over hardware a dead peer is found in a quarter of a second. An emulation
    /// answers when its host's CPU gets to it, so that takes four times as long.
    pub fn for_device(device: &Device) -> Self {
        let timeout = if matches!(device.driver, Driver::Hardware(_)) { 14 } else { 16 };
        Self { timeout, retry: 3, reads: READS }
    }

    /// After what time without an answer a request fails. By the specification hardware may take up to
    /// four times as long.
    pub fn patience(self) -> Duration {
        let once =
            4096_u64.saturating_mul(1_u64.checked_shl(self.timeout.into()).unwrap_or(u64::MAX));
        Duration::from_nanos(once.saturating_mul(u64::from(self.retry) + 1))
    }

    pub(super) fn check(self) -> Result<(), VerbsError> {
        for (name, value, least, most) in [
            ("timeout", self.timeout, 1, 31),
            ("retry", self.retry, 0, 7),
            ("reads", self.reads, 1, u8::MAX),
        ] {
            if !(least..=most).contains(&value) {
                let (value, least, most) = (value.into(), least.into(), most.into());
                return Err(VerbsError::Setting { name, value, least, most });
            }
        }
        Ok(())
    }
}

/// Whether a queue can hold `depth` requests.
pub(super) fn check_depth(device: &Device, depth: u32) -> Result<(), VerbsError> {
    let most = device.limits.queue_depth.min(device.limits.completions).max(1);
    if (1..=most).contains(&depth) {
        return Ok(());
    }
    Err(VerbsError::Setting { name: "depth", value: depth, least: 1, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_by_the_specification() {
        let settings = |timeout, retry| Settings { timeout, retry, reads: 1 };
        assert_eq!(settings(14, 3).patience(), Duration::from_nanos(268_435_456));
        assert_eq!(settings(16, 6).patience(), Duration::from_nanos(1_879_048_192));
        assert!(settings(31, 7).patience() > Duration::from_secs(70_000));
    }

    #[test]
    fn settings_outside_their_range_are_refused() {
        for (timeout, retry, reads, good) in [
            (14, 3, 16, true),
            (1, 0, 1, true),
            (31, 7, 255, true),
            (0, 3, 16, false),
            (32, 3, 16, false),
            (14, 8, 16, false),
            (14, 3, 0, false),
        ] {
            let settings = Settings { timeout, retry, reads };
            assert_eq!(settings.check().is_ok(), good, "{settings:?}");
        }
    }
}
