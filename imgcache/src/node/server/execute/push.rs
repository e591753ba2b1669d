//! Pushes by RDMA: their beginning, and what becomes of what was written.

use super::super::Shared;
use super::super::Stage;
use super::super::output::Output;
use super::super::slow::Slow;
use super::super::transfer::{List, Then, Transfer};
use super::afar::Afar;
use super::{Next, answer};
use crate::node::cache::{Attributes, Key, Kind, Now, StoreError, StoreMode};
use crate::node::push::count;
use crate::node::push::table::{Begun, Place, PushError, Wanted, Written};
use crate::protocol::push_records;
use crate::record::ItemKey;
use crate::transport::verbs::Endpoint;

/// `push`, up to the list.
pub(super) fn begin(shared: &Shared, endpoint: &str, data: u32, out: &mut Output) -> Next {
    let peer = match endpoint.parse::<Endpoint>() {
        Ok(peer) => Box::new(peer),
        Err(error) => {
            shared.counters.client_errors.add_one();
            answer(out, false, format_args!("CLIENT_ERROR {error}"));
            return Next::Skip(data);
        }
    };
    let refusal = match &shared.push {
        Err(off) => format!("no pushes by RDMA: {off}"),
        Ok(_) if shared.stage() == Stage::Draining => "draining".into(),
        Ok(_) => {
            let length = usize::try_from(data).unwrap_or(usize::MAX);
            match shared.input_budget.take(length) {
                Some(permit) => {
                    let then = Then::Push { peer };
                    return Next::Receive(Box::new(Transfer::list(length, permit, then)));
                }
                None => "out of memory for lists of chunks".into(),
            }
        }
    };
    refuse(shared, refusal, out);
    Next::Skip(data)
}

/// The list of `push`.
pub(super) fn chunks(peer: Box<Endpoint>, list: &List) -> Next {
    let wanted = push_records(&list.bytes).map(|(key, length)| Wanted { key, length }).collect();
    Next::Afar(Afar::Push(peer, wanted))
}

/// The answer to `push`.
pub(super) fn begun(shared: &Shared, begun: Result<Begun, PushError>, out: &mut Output) {
    let Begun { id, time, endpoint, places } = match begun {
        Ok(begun) => begun,
        Err(error) => return refuse(shared, error, out),
    };
    let endpoint = endpoint.map_or("-".to_owned(), |endpoint| endpoint.to_string());
    let (count, time) = (places.len(), time.as_millis());
    answer(out, false, format_args!("PUSH {id:016x} {count} {time} {endpoint}"));
    for place in places {
        match place {
            Place::Have => answer(out, false, "HAVE"),
            Place::Slot(remote) => {
                answer(out, false, format_args!("SLOT {} {}", remote.address, remote.key));
            }
            Place::Full(why) => answer(out, false, format_args!("FULL {why}")),
        }
    }
}

/// `pushed`.
pub(super) fn end(shared: &Shared, id: u64, written: u32, out: &mut Output) -> Next {
    if let Err(off) = &shared.push {
        refuse(shared, format_args!("no pushes by RDMA: {off}"), out);
        return Next::Done;
    }
    Next::Afar(Afar::Pushed(id, usize::try_from(written).unwrap_or(usize::MAX)))
}

/// The answer to `pushed`: publishes what was written and is what its key says.
pub(super) fn publish(ended: Result<Vec<Written>, PushError>) -> Slow {
    Slow::new(move |shared, out| match ended {
        Err(PushError::Unknown) => answer(out, false, "NOT_FOUND"),
        Err(error) => refuse(shared, error, out),
        Ok(written) => {
            answer(out, false, format_args!("PUSHED {}", written.len()));
            for one in written {
                match store(shared, one) {
                    Ok(()) => answer(out, false, "STORED"),
                    Err(error) => answer(out, false, format_args!("SERVER_ERROR {error}")),
                }
            }
        }
    })
}

/// Publishes one chunk, if it is what its key says.
fn store(shared: &Shared, Written { key, content }: Written) -> Result<(), StoreError> {
    let item = Key::new(ItemKey::chunk(&key).as_bytes());
    let attributes = Attributes { flags: Kind::Chunk.flags(), ..Attributes::default() };
    let bytes = content.len() as u64;
    // Of the same content there may be one by now, which then stays.
    let stored = shared.cache.store(&item, StoreMode::Set, content, &attributes, Now::system());
    if let Ok(pushes) = &shared.push {
        let counters = pushes.counters();
        match &stored {
            Ok(_) => {
                count(&counters.stored, 1);
                count(&counters.stored_bytes, bytes);
            }
            Err(StoreError::HashMismatch { .. }) => count(&counters.damaged, 1),
            Err(_) => count(&counters.failed, 1),
        }
    }
    if let Err(error) = &stored {
        shared.counters.server_errors.add_one();
        if matches!(error, StoreError::HashMismatch { .. }) {
            shared.counters.hash_mismatches.add_one();
        }
        shared.log.warn(|| format!("a pushed chunk is not stored: {error}"));
    }
    stored.map(drop)
}

fn refuse(shared: &Shared, why: impl std::fmt::Display, out: &mut Output) {
    shared.counters.server_errors.add_one();
    answer(out, false, format_args!("SERVER_ERROR {why}"));
}
