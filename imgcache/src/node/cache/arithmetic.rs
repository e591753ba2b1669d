//! Adding to and subtracting from decimal numbers.

use super::Cache;
use super::error::StoreError;
use super::key::{Key, Kind};
use super::request::{Arithmetic, ArithmeticOutcome, Attributes, Direction};
use super::state::State;
use super::time::{Expires, Now};
use super::write::Filled;
use crate::node::slab::Class;

/// Digits of 2^64 - 1.
const MAX_DIGITS: usize = 20;

/// The number that `content` is in decimal digits, after which there may be spaces.
fn parse(content: &[u8]) -> Option<u64> {
    let digits = content.trim_ascii_end();
    let plain = (1..=MAX_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

impl State {
    /// Stores `value`, in place of an item that was to expire at `previous` if there is one; short
    /// enough to be done under the lock.
    fn store_number(
        &mut self,
        key: &Key,
        value: u64,
        attributes: &Attributes,
        previous: Option<Expires>,
        now: Now,
    ) -> Result<ArithmeticOutcome, StoreError> {
        let digits = value.to_string();
        let Some(class) = Class::for_length(digits.len()) else {
            return Ok(ArithmeticOutcome::NonNumeric);
        };
        let mut reservation = self.reserve(class, digits.len(), now)?;
        reservation.copy_from_slice(digits.as_bytes());
        let filled = Filled::new(reservation);
        // An item that expires at once could not be looked at; its answer needs it.
        let expired = attributes.expires.is_past(now);
        let kept = if expired { Expires::NEVER } else { attributes.expires };
        self.commit(key, filled, &Attributes { expires: kept, ..*attributes }, 0, now)?;
        let item = self.table.find(key.index()).and_then(|id| {
            let item = self.item(id);
            if expired {
                self.remove(id);
            }
            item
        });
        Ok(item.map_or(ArithmeticOutcome::NotFound, |mut item| {
            item.expires = attributes.expires;
            item.previous_expires = previous.unwrap_or(Expires::NEVER);
            ArithmeticOutcome::Value { value, item, created: previous.is_none() }
        }))
    }

    fn arithmetic(
        &mut self,
        key: &Key,
        request: &Arithmetic,
        now: Now,
    ) -> Result<ArithmeticOutcome, StoreError> {
        let found = self.find(key.index(), now).ok();
        let counts = &mut self.counts;
        let counter = match (request.direction, found) {
            (Direction::Increment, Some(_)) => &mut counts.increment_hits,
            (Direction::Increment, None) => &mut counts.increment_misses,
            (Direction::Decrement, Some(_)) => &mut counts.decrement_hits,
            (Direction::Decrement, None) => &mut counts.decrement_misses,
        };
        *counter += 1;
        let cas = request.cas;
        let Some(old) = found.and_then(|id| self.item(id)) else {
            let Some((value, expires)) = request.initial else {
                return Ok(ArithmeticOutcome::NotFound);
            };
            let attributes = Attributes { expires, cas, ..Attributes::default() };
            return self.store_number(key, value, &attributes, None, now);
        };
        if request.compare.is_some_and(|compare| compare != old.cas) {
            self.counts.cas_mismatches += 1;
            return Ok(ArithmeticOutcome::Exists);
        }
        if key.chunk().is_some() && old.flags == Kind::Chunk.flags() {
            // Another number would not be what its key says.
            return Ok(ArithmeticOutcome::NonNumeric);
        }
        let Some(value) = parse(old.bytes()) else { return Ok(ArithmeticOutcome::NonNumeric) };
        let value = match request.direction {
            Direction::Increment => value.wrapping_add(request.delta),
            Direction::Decrement => value.saturating_sub(request.delta),
        };
        let expires = request.touch.unwrap_or(old.expires);
        let attributes = Attributes { flags: old.flags, expires, cas, ..Attributes::default() };
        self.store_number(key, value, &attributes, Some(old.expires), now)
    }
}

impl Cache {
    /// Adds to or subtracts from the number that the item of `key` is. Flags stay, and the expiry
    /// if it is not to be set. The result has no more digits than it needs.
    ///
    /// # Errors
    /// There is no room for the result; then what there was stays.
    pub fn arithmetic(
        &self,
        key: &Key,
        request: &Arithmetic,
        now: Now,
    ) -> Result<ArithmeticOutcome, StoreError> {
        self.lock().arithmetic(key, request, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_and_fit_in_64_bits() {
        for (content, number) in [
            ("0", Some(0)),
            ("007  ", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("000000000000000000001", None),
            ("", None),
            ("  ", None),
            (" 1", None),
            ("+1", None),
            ("-1", None),
            ("1x", None),
        ] {
            assert_eq!(parse(content.as_bytes()), number, "{content:?}");
        }
    }
}
