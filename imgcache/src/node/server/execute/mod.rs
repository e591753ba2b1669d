//! Carries out commands on the cache and puts the replies into the output.

pub(super) mod afar;
mod hold;
mod meta;
mod push;

use self::afar::Afar;
use super::Shared;
use super::connections::Address;
use super::output::Output;
use super::slow::Slow;
use super::stats;
use super::transfer::{Sink, Then, Transfer};
use crate::node::cache::{
    Arithmetic, ArithmeticOutcome, Attributes, DeleteOutcome, DeleteRequest, Direction, Expires,
    Item, Key, Now, Reservation, ReserveError, StoreError, StoreMode, StoreOutcome,
};
use crate::protocol::command::{self, Command, Mode, Refused};
use crate::protocol::{Expiry, reply};

/// What memcached answers where a number was expected in an item.
const NON_NUMERIC: &str = "CLIENT_ERROR cannot increment or decrement non-numeric value";
/// What memcached answers to a data block that does not end where it should.
const BAD_DATA: &str = "CLIENT_ERROR bad data chunk";

/// How it goes on after a command.
#[derive(Debug)]
pub(super) enum Next {
    /// With the next command.
    Done,
    /// With a data block.
    Receive(Box<Transfer>),
    /// With a data block that is thrown away, of so many bytes.
    Skip(u32),
    /// With the keys of a get, one after the other.
    Get(Keys),
    /// With what the device's thread answers.
    Afar(Afar),
    /// With handing over the memory.
    Share,
    /// With what this gives.
    Slow(Slow),
    /// Not at all.
    Close,
}

/// The keys of a get that are still to be answered; they stay in the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    /// Bytes of the line that hold them, without its end.
    pub bytes: usize,
    cas: bool,
    touch: Option<Expires>,
}

/// When the cache is to let something expire.
fn expires(expiry: Expiry, now: Now) -> Expires {
    Expires::from_exptime(expiry.number(), now)
}

/// Carries out `command`.
pub(super) fn execute(shared: &Shared, command: &Command<'_>, out: &mut Output, now: Now) -> Next {
    let counters = &shared.counters;
    match command {
        Command::Get(get) => {
            let counter = if get.touch.is_some() { &counters.gat } else { &counters.get };
            counter.add_one();
            let touch = get.touch.map(|expiry| expires(expiry, now));
            return Next::Get(Keys { bytes: get.keys_length(), cas: get.cas, touch });
        }
        Command::Store(store) => return begin_store(shared, store, out, now),
        Command::Delete(delete) => {
            counters.delete.add_one();
            self::delete(shared, delete, out, now);
        }
        Command::Arithmetic(request) => {
            counters.arithmetic.add_one();
            arithmetic(shared, request, out, now);
        }
        Command::Touch(touch) => {
            counters.touch.add_one();
            let expires = expires(touch.expiry, now);
            let found = shared.cache.touch(&Key::new(touch.key), expires, now);
            answer(out, touch.quiet, if found { "TOUCHED" } else { "NOT_FOUND" });
        }
        Command::MetaGet(meta) => {
            counters.meta_get.add_one();
            meta::get(shared, meta, out, now);
        }
        Command::MetaSet(meta, _, data) => {
            return meta::begin_set(shared, command, meta, *data, out, now);
        }
        Command::MetaDelete(meta) => {
            counters.meta_delete.add_one();
            meta::delete(shared, meta, out, now);
        }
        Command::MetaArithmetic(meta, direction) => {
            counters.meta_arithmetic.add_one();
            meta::arithmetic(shared, meta, *direction, out, now);
        }
        Command::MetaDebug(key) => {
            counters.meta_debug.add_one();
            meta::debug(shared, key, out, now);
        }
        Command::MetaNoop => {
            counters.meta_noop.add_one();
            answer(out, false, "MN");
        }
        Command::FlushAll { delay, quiet } => {
            counters.flush.add_one();
            let (delay, quiet) = (expires(*delay, now).remaining(now).unwrap_or(0), *quiet);
            // It goes through the whole table.
            return Next::Slow(Slow::new(move |shared, out| {
                shared.cache.flush_all(delay, now);
                answer(out, quiet, "OK");
            }));
        }
        Command::Stats(topic) => {
            counters.stats.add_one();
            return stats::execute(shared, *topic, out, now);
        }
        Command::Version => {
            counters.other.add_one();
            answer(out, false, format_args!("VERSION {}", stats::VERSION));
        }
        Command::Verbosity { quiet, .. } => {
            counters.other.add_one();
            answer(out, *quiet, "OK");
        }
        Command::Quit => return Next::Close,
        Command::Lease { id, ttl, data } => {
            counters.lease.add_one();
            return hold::begin(shared, Then::Lease { id: *id, ttl: *ttl }, *data, out);
        }
        Command::Release { id, bytes_read } => {
            counters.release.add_one();
            return hold::release(shared, *id, *bytes_read, out);
        }
        Command::Pin { image, data } => {
            counters.pin.add_one();
            return hold::begin(shared, Then::Pin { image: *image }, *data, out);
        }
        Command::Unpin { image } => {
            counters.pin.add_one();
            return hold::unpin(shared, *image, out);
        }
        Command::Rdma { lease, endpoint } => {
            counters.rdma.add_one();
            return afar::connect(shared, *lease, endpoint, out);
        }
        Command::Push { data, endpoint } => {
            counters.push.add_one();
            return push::begin(shared, endpoint, *data, out);
        }
        Command::Pushed { id, written } => {
            return push::end(shared, *id, *written, out);
        }
        Command::Share => {
            counters.share.add_one();
            return Next::Share;
        }
    }
    Next::Done
}

/// Answers one key of a get.
pub(super) fn get(shared: &Shared, keys: &Keys, key: &[u8], out: &mut Output, now: Now) {
    let name = Key::new(key);
    let item = match keys.touch {
        Some(expires) => shared.cache.get_and_touch(&name, expires, now),
        None => shared.cache.get(&name, now),
    };
    if let Some(item) = item {
        let cas = keys.cas.then(|| item.cas());
        reply::value(out.text(), key, item.flags(), item.bytes().len(), cas);
        put_content(out, &item);
    }
}

/// Ends the reply to a get.
pub(super) fn end_get(out: &mut Output) {
    reply::line(out.text(), "END");
}

fn put_content(out: &mut Output, item: &Item) {
    out.content(item);
    out.text().extend_from_slice(reply::END_OF_LINE);
}

/// Answers with a line, if an answer is wanted.
fn answer(out: &mut Output, quiet: bool, line: impl std::fmt::Display) {
    if !quiet {
        reply::line(out.text(), line);
    }
}

/// Answers a command that is not carried out.
pub(super) fn refuse(shared: &Shared, refused: Refused, out: &mut Output) {
    let is_clients = refused.refusal.to_string().starts_with("CLIENT_ERROR");
    let counters = &shared.counters;
    if is_clients { &counters.client_errors } else { &counters.errors }.add_one();
    answer(out, refused.quiet, refused.refusal);
}

/// Answers an error of the cache in memcached's words; where it has none, in the cache's.
fn fail(shared: &Shared, error: &StoreError, quiet: bool, out: &mut Output) {
    let counters = &shared.counters;
    counters.server_errors.add_one();
    match error {
        StoreError::Reserve(ReserveError::TooLarge { .. }) => {
            counters.too_large.add_one();
            answer(out, quiet, "SERVER_ERROR object too large for cache");
        }
        StoreError::Reserve(ReserveError::NoMemory { .. }) | StoreError::TableFull { .. } => {
            counters.no_memory.add_one();
            shared.log.warn(|| format!("not stored: {error}"));
            answer(out, quiet, "SERVER_ERROR out of memory storing object");
        }
        StoreError::Reserve(
            ReserveError::Waiting { retry_after, .. } | ReserveError::Reserved { retry_after, .. },
        ) => {
            let milliseconds = retry_after.as_millis();
            answer(out, quiet, format_args!("SERVER_ERROR busy: retry after {milliseconds} ms"));
        }
        StoreError::HashMismatch { .. } => {
            counters.hash_mismatches.add_one();
            shared.log.warn(|| format!("not stored: {error}"));
            answer(out, quiet, format_args!("SERVER_ERROR {error}"));
        }
        StoreError::Contended { .. } => answer(out, quiet, format_args!("SERVER_ERROR {error}")),
    }
}

fn mode(mode: Mode, cas: u64) -> StoreMode {
    match mode {
        Mode::Set => StoreMode::Set,
        Mode::Add => StoreMode::Add,
        Mode::Replace => StoreMode::Replace,
        Mode::Append => StoreMode::Append,
        Mode::Prepend => StoreMode::Prepend,
        Mode::Cas => StoreMode::Cas(cas),
    }
}

fn begin_store(shared: &Shared, store: &command::Store<'_>, out: &mut Output, now: Now) -> Next {
    let key = Key::new(store.key);
    match reserve(shared, store.data, now) {
        Ok(slot) => {
            let attributes = Attributes {
                flags: store.flags,
                expires: expires(store.expiry, now),
                ..Attributes::default()
            };
            let (mode, quiet) = (mode(store.mode, store.cas), store.quiet);
            let then = Then::Store { key, mode, attributes, quiet };
            Next::Receive(Box::new(Transfer::value(slot, then)))
        }
        Err(error) => {
            fail(shared, &error, store.quiet, out);
            // What was to be replaced is not to stay.
            if store.mode == Mode::Set {
                shared.cache.forget(&key, now);
            }
            Next::Skip(store.data)
        }
    }
}

/// Memory for a value.
fn reserve(shared: &Shared, length: u32, now: Now) -> Result<Reservation, StoreError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(shared.cache.reserve(length, now)?)
}

/// Goes on with a data block that is complete; `is_sound` if its end was where it should be.
pub(super) fn finish(
    shared: &Shared,
    transfer: Transfer,
    is_sound: bool,
    peer: &Address,
    out: &mut Output,
    now: Now,
) -> Next {
    if !is_sound {
        shared.counters.bad_data.add_one();
        shared.counters.client_errors.add_one();
        let quiet = matches!(transfer.then, Then::Store { quiet: true, .. });
        answer(out, quiet, BAD_DATA);
        return Next::Done;
    }
    match (transfer.then, transfer.sink) {
        (Then::Store { key, mode, attributes, quiet }, Sink::Slot(slot)) => {
            shared.counters.set.add_one();
            match shared.cache.store(&key, mode, slot, &attributes, now) {
                Ok(outcome) => answer(out, quiet, store_reply(outcome)),
                Err(error) => fail(shared, &error, quiet, out),
            }
        }
        (Then::MetaSet { line }, Sink::Slot(slot)) => {
            shared.counters.set.add_one();
            shared.counters.meta_set.add_one();
            meta::finish_set(shared, &line, slot, out, now);
        }
        (Then::Lease { id, ttl }, Sink::List(keys)) => {
            return hold::lease(shared, id, ttl, keys, peer, out, now);
        }
        (Then::Pin { image }, Sink::List(keys)) => {
            return hold::pin(shared, image, keys, out, now);
        }
        (Then::Push { peer }, Sink::List(list)) => return push::chunks(peer, &list),
        // Values go into slots and lists into lists.
        (_, Sink::Slot(_) | Sink::List(_)) => {
            answer(out, false, "SERVER_ERROR a data block went to the wrong place");
        }
    }
    Next::Done
}

fn store_reply(outcome: StoreOutcome) -> &'static str {
    match outcome {
        StoreOutcome::Stored { .. } => "STORED",
        StoreOutcome::NotStored => "NOT_STORED",
        StoreOutcome::Exists => "EXISTS",
        StoreOutcome::NotFound => "NOT_FOUND",
    }
}

fn delete(shared: &Shared, delete: &command::Delete<'_>, out: &mut Output, now: Now) {
    match shared.cache.delete(&Key::new(delete.key), &DeleteRequest::default(), now) {
        Ok(DeleteOutcome::Deleted) => answer(out, delete.quiet, "DELETED"),
        Ok(_) => answer(out, delete.quiet, "NOT_FOUND"),
        Err(error) => fail(shared, &error, delete.quiet, out),
    }
}

fn direction(direction: command::Direction) -> Direction {
    match direction {
        command::Direction::Increment => Direction::Increment,
        command::Direction::Decrement => Direction::Decrement,
    }
}

fn arithmetic(shared: &Shared, request: &command::Arithmetic<'_>, out: &mut Output, now: Now) {
    let arithmetic = Arithmetic {
        direction: direction(request.direction),
        delta: request.delta,
        initial: None,
        touch: None,
        compare: None,
        cas: None,
    };
    match shared.cache.arithmetic(&Key::new(request.key), &arithmetic, now) {
        Ok(ArithmeticOutcome::Value { value, .. }) => answer(out, request.quiet, value),
        Ok(ArithmeticOutcome::NotFound | ArithmeticOutcome::Exists) => {
            answer(out, request.quiet, "NOT_FOUND");
        }
        Ok(ArithmeticOutcome::NonNumeric) => {
            shared.counters.client_errors.add_one();
            answer(out, request.quiet, NON_NUMERIC);
        }
        Err(error) => fail(shared, &error, request.quiet, out),
    }
}
