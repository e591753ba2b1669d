//! Rate limits: token buckets that may go into debt, so that a frame larger than the burst is not
//! held for ever.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much may go one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bytes a second; 0 is no limit.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes at once beyond that.
    #[serde(default)]
    pub burst: u64,
    /// Packets a second; 0 is no limit. A frame that is to be cut into segments counts as these.
    #[serde(default)]
    pub packets: u64,
}

/// How long the packets of a burst may be in coming: those of a tenth of a second come at once.
const PACKET_BURST: u64 = 10;

/// Both buckets of one way.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    pub(super) fn new(limit: Limit, now: Instant) -> Self {
        let bucket = |rate, burst: u64| (rate > 0).then(|| Bucket::new(rate, burst.max(1), now));
        Self {
            bytes: bucket(limit.bytes, limit.burst),
            packets: bucket(limit.packets, limit.packets / PACKET_BURST),
        }
    }

    /// How long nothing may go, if that is so.
    pub(super) fn wait(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.bytes.is_none() && self.packets.is_none() {
            return None;
        }
        let now = now();
        let wait = |bucket: &mut Option<Bucket>| bucket.as_mut().and_then(|b| b.wait(now));
        wait(&mut self.bytes).max(wait(&mut self.packets))
    }

    /// Pays for a frame that goes.
    pub(super) fn pay(&mut self, bytes: usize, packets: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.pay(bytes as u64);
        }
        if let Some(bucket) = &mut self.packets {
            bucket.pay(packets);
        }
    }
}

const NANOS: i128 = 1_000_000_000;

/// A level in billionths, so that no time is too short to count.
#[derive(Debug)]
struct Bucket {
    rate: i128,
    most: i128,
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let most = i128::from(burst) * NANOS;
        Self { rate: rate.into(), most, level: most, filled: now }
    }

    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        // A year at any rate fits.
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(nanos.saturating_mul(self.rate)).min(self.most);
        if self.level > 0 {
            return None;
        }
        let nanos = (1 - self.level).div_euclid(self.rate) + 1;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn pay(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(i128::from(amount) * NANOS);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_limited_unless_it_is_asked_for() {
        let now = Instant::now();
        let mut limiter = Limiter::new(Limit::default(), now);
        limiter.pay(usize::MAX, u64::MAX);
        assert_eq!(limiter.wait(|| unreachable!()), None);
    }

    #[test]
    fn a_burst_then_the_rate_and_debts_are_paid_back() {
        let now = Instant::now();
        let mut limiter = Limiter::new(Limit { bytes: 1000, burst: 500, packets: 0 }, now);
        limiter.pay(499, 1);
        assert_eq!(limiter.wait(|| now), None);
        limiter.pay(1001, 1);
        let wait = limiter.wait(|| now).unwrap();
        assert!((Duration::from_secs(1)..Duration::from_millis(1001)).contains(&wait), "{wait:?}");
        assert_eq!(limiter.wait(|| now + wait), None);
        let mut packets = Limiter::new(Limit { bytes: 0, burst: 0, packets: 100 }, now);
        packets.pay(1, 9);
        assert_eq!(packets.wait(|| now), None);
        packets.pay(1, 1);
        assert!(packets.wait(|| now).is_some());
    }

    proptest! {
        #[test]
        fn no_more_goes_than_rate_and_burst_and_one_frame(
            rate in 1_u64..1_000_000, burst in 0_u64..100_000,
            frames in proptest::collection::vec((1_usize..70_000, 0_u64..100_000_000), 1..200),
        ) {
            let begun = Instant::now();
            let mut limiter = Limiter::new(Limit { bytes: rate, burst, packets: 0 }, begun);
            let (mut now, mut sent, mut largest) = (begun, 0_u128, 0);
            for (bytes, pause) in frames {
                now += Duration::from_nanos(pause);
                match limiter.wait(|| now) {
                    None => {
                        limiter.pay(bytes, 1);
                        sent += bytes as u128;
                        largest = largest.max(bytes);
                    }
                    Some(wait) => prop_assert!(wait > Duration::ZERO),
                }
                let elapsed = (now - begun).as_nanos() * u128::from(rate) / 1_000_000_000;
                prop_assert!(sent <= elapsed + u128::from(burst.max(1)) + largest as u128 + 1);
            }
        }
    }
}
