//! Leases and pins: lists of items that are to stay.

use std::time::Duration;

use super::super::Shared;
use super::super::output::Output;
use super::super::transfer::{Then, Transfer};
use super::{Next, answer};
use crate::index::IndexKey;
use crate::node::cache::{HoldError, Now};
use crate::protocol::INDEX_KEY;

/// `lease` or `pin`, up to the list.
pub(super) fn begin(shared: &Shared, then: Then, data: u32, out: &mut Output) -> Next {
    let length = usize::try_from(data).unwrap_or(usize::MAX);
    let Some(permit) = shared.input_budget.take(length) else {
        shared.counters.server_errors.add_one();
        answer(out, false, "SERVER_ERROR out of memory for lists of keys");
        return Next::Skip(data);
    };
    Next::Receive(Box::new(Transfer::list(length, permit, then)))
}

/// The keys of a list; the protocol has seen to it that they are whole.
fn keys(list: &[u8]) -> Vec<IndexKey> {
    let (keys, _) = list.as_chunks::<INDEX_KEY>();
    keys.iter().map(|key| IndexKey(*key)).collect()
}

fn refuse(shared: &Shared, error: &HoldError, out: &mut Output) {
    match error {
        HoldError::Busy { retry_after } => {
            answer(out, false, format_args!("BUSY {}", retry_after.as_millis()));
        }
        HoldError::Draining => answer(out, false, "DRAINING"),
        HoldError::TooMuch { .. } => {
            shared.counters.server_errors.add_one();
            answer(out, false, format_args!("SERVER_ERROR {error}"));
        }
    }
}

/// `lease`.
pub(super) fn lease(shared: &Shared, id: u64, ttl: u64, list: &[u8], out: &mut Output, now: Now) {
    match shared.cache.lease(id, Duration::from_millis(ttl), &keys(list), now) {
        Ok(granted) => answer(
            out,
            false,
            format_args!(
                "LEASE {id:016x} {} {} {} {}",
                granted.ttl.as_millis(),
                granted.held,
                granted.missing,
                granted.busy_permille
            ),
        ),
        Err(error) => refuse(shared, &error, out),
    }
}

/// `release`.
pub(super) fn release(shared: &Shared, id: u64, bytes_read: u64, out: &mut Output) {
    let found = shared.cache.release(id, bytes_read);
    answer(out, false, if found { "RELEASED" } else { "NOT_FOUND" });
}

/// `pin`.
pub(super) fn pin(shared: &Shared, image: [u8; 32], list: &[u8], out: &mut Output, now: Now) {
    match shared.cache.pin(image, &keys(list), now) {
        Ok(held) => answer(out, false, format_args!("PINNED {} {}", held.items, held.missing)),
        Err(error) => refuse(shared, &error, out),
    }
}

/// `unpin`.
pub(super) fn unpin(shared: &Shared, image: [u8; 32], out: &mut Output) {
    let found = shared.cache.unpin(image);
    answer(out, false, if found { "UNPINNED" } else { "NOT_FOUND" });
}
