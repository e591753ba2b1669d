//! Clocks, and memcached's expiry times.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The longest relative expiry time in seconds; larger numbers are unix times (memcached
/// `doc/protocol.txt`, "Expiration times").
const RELATIVE_MAX: i64 = 60 * 60 * 24 * 30;

/// The time of an operation. Handed in by the caller, so that one look at the clocks can serve many
/// operations, and tests need not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970; what items expire by.
    pub unix: u32,
    /// Time since some moment, never set back; what leases and quarantines end by.
    pub monotonic: Duration,
}

impl Now {
    /// The time by the system's clocks.
    pub fn system() -> Self {
        let real = clock_gettime(ClockId::Realtime);
        let monotonic = clock_gettime(ClockId::Monotonic);
        Self {
            unix: u32::try_from(real.tv_sec.max(0)).unwrap_or(u32::MAX),
            monotonic: Duration::new(
                u64::try_from(monotonic.tv_sec).unwrap_or(0),
                u32::try_from(monotonic.tv_nsec).unwrap_or(0),
            ),
        }
    }
}

/// A monotonic clock to look at where a time that was looked at before will not do.
#[derive(Debug, Clone, Default)]
pub(super) enum Clock {
    /// The system's.
    #[default]
    System,
    /// Stands where it is put, in nanoseconds.
    #[cfg(test)]
    Set(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// Time since the moment since which [`Now::monotonic`] is.
    pub fn now(&self) -> Duration {
        match self {
            Self::System => Now::system().monotonic,
            #[cfg(test)]
            Self::Set(time) => {
                Duration::from_nanos(time.load(std::sync::atomic::Ordering::Relaxed))
            }
        }
    }
}

/// When an item expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expires(u32);

impl Expires {
    /// Not by itself.
    pub const NEVER: Self = Self(0);

    /// At this unix second; 0 for never.
    pub fn at(unix: u32) -> Self {
        Self(unix)
    }

    /// What memcached's `exptime` means at `now`: 0 for never, a negative one for at once, up to 30
    /// days from now on, more as unix time.
    pub fn from_exptime(exptime: i64, now: Now) -> Self {
        let at = match exptime {
            0 => return Self::NEVER,
            ..0 => 1,
            1..=RELATIVE_MAX => exptime.saturating_add(i64::from(now.unix)),
            _ => exptime,
        };
        Self(u32::try_from(at).unwrap_or(u32::MAX).max(1))
    }

    /// The unix second, 0 for never; as the index has it.
    pub fn unix(self) -> u32 {
        self.0
    }

    /// Whether it has expired.
    pub fn is_past(self, now: Now) -> bool {
        self.0 != 0 && self.0 <= now.unix
    }

    /// Seconds until it expires; none for never.
    pub fn remaining(self, now: Now) -> Option<u32> {
        (self.0 != 0).then(|| self.0.saturating_sub(now.unix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exptimes_are_memcacheds() {
        let now = Now { unix: 1_000_000_000, monotonic: Duration::ZERO };
        let expires = |exptime| Expires::from_exptime(exptime, now);
        assert_eq!((expires(0), expires(0).is_past(now)), (Expires::NEVER, false));
        assert!(expires(-1).is_past(now) && expires(i64::MIN).is_past(now));
        assert_eq!(expires(1).remaining(now), Some(1));
        assert_eq!(expires(RELATIVE_MAX).unix(), 1_000_000_000 + 2_592_000);
        assert!(expires(RELATIVE_MAX + 1).is_past(now));
        assert_eq!(expires(1_000_000_010).remaining(now), Some(10));
        assert_eq!(expires(i64::MAX).unix(), u32::MAX);
        assert!(expires(1_000_000_000).is_past(now), "expired in its second");
    }

    #[test]
    fn the_system_has_a_time() {
        let now = Now::system();
        assert!(now.unix > 1_600_000_000 && now.monotonic > Duration::ZERO);
    }
}
