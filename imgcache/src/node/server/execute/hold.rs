//! Leases and pins: lists of items that are to stay.

use std::time::Duration;

use super::super::Shared;
use super::super::connections::Address;
use super::super::output::Output;
use super::super::slow::Slow;
use super::super::transfer::{List, Then, Transfer};
use super::{Next, answer};
use crate::index::IndexKey;
use crate::node::cache::{HoldError, Now};
use crate::node::lease::Asked;
use crate::protocol::INDEX_KEY;

/// Items from which on others would wait too long for one event loop to go through them.
const MANY: usize = 1024;

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
pub(super) fn lease(
    shared: &Shared,
    id: u64,
    ttl: u64,
    list: List,
    peer: &Address,
    out: &mut Output,
    now: Now,
) -> Next {
    let (items, owner) = (list.bytes.len() / INDEX_KEY, peer.to_string());
    here_or_elsewhere(items, shared, out, move |shared, out| {
        let asked = Asked { id, ttl: Duration::from_millis(ttl), owner: &owner };
        match shared.cache.lease(&asked, &keys(&list.bytes), now) {
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
    })
}

/// `release`.
pub(super) fn release(shared: &Shared, id: u64, bytes_read: u64, out: &mut Output) -> Next {
    let items = shared.cache.items_of_lease(id);
    here_or_elsewhere(items, shared, out, move |shared, out| {
        let found = shared.cache.release(id, bytes_read);
        answer(out, false, if found { "RELEASED" } else { "NOT_FOUND" });
    })
}

/// `pin`.
pub(super) fn pin(
    shared: &Shared,
    image: [u8; 32],
    list: List,
    out: &mut Output,
    now: Now,
) -> Next {
    let items = list.bytes.len() / INDEX_KEY;
    here_or_elsewhere(items, shared, out, move |shared, out| {
        match shared.cache.pin(image, &keys(&list.bytes), now) {
            Ok(held) => answer(out, false, format_args!("PINNED {} {}", held.items, held.missing)),
            Err(error) => refuse(shared, &error, out),
        }
    })
}

/// `unpin`.
pub(super) fn unpin(shared: &Shared, image: [u8; 32], out: &mut Output) -> Next {
    let items = shared.cache.items_of_pin(&image);
    here_or_elsewhere(items, shared, out, move |shared, out| {
        let found = shared.cache.unpin(image);
        answer(out, false, if found { "UNPINNED" } else { "NOT_FOUND" });
    })
}

/// Does `work` on so many items, beside the event loop if they are many.
fn here_or_elsewhere(
    items: usize,
    shared: &Shared,
    out: &mut Output,
    work: impl FnOnce(&Shared, &mut Output) + Send + 'static,
) -> Next {
    if items > MANY {
        return Next::Slow(Slow::new(work));
    }
    work(shared, out);
    Next::Done
}
