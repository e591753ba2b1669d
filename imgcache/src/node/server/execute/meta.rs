//! The meta commands.

use super::super::Shared;
use super::super::output::Output;
use super::super::transfer::{Then, Transfer};
use super::{NON_NUMERIC, Next, answer, expires, fail, mode, put_content, reserve};
use crate::node::cache::{
    Arithmetic, ArithmeticOutcome, Attributes, DeleteOutcome, DeleteRequest, Expires, GetRequest,
    Item, Key, Now, Reservation, StoreMode, StoreOutcome, Win,
};
use crate::protocol::Expiry;
use crate::protocol::command::{Command, Direction, Meta, MetaKey, Mode};
use crate::protocol::reply::{self, Code, Facts};

fn facts(item: &Item, now: Now) -> Facts {
    Facts {
        size: item.bytes().len(),
        cas: item.cas(),
        client_flags: item.flags(),
        old_ttl: item.previous_expires().remaining(now),
        ttl: item.expires().remaining(now),
        idle: item.idle(now),
        was_hit: item.fetched(),
        is_won: item.win() == Win::Won,
        is_stale: item.stale(),
        is_taken: item.win() == Win::Taken,
    }
}

/// Fewer seconds left than this, and the item is to be fetched anew.
fn recache(expiry: Expiry, now: Now) -> Option<u32> {
    match expiry {
        Expiry::Never | Expiry::Past => None,
        Expiry::In(seconds) => Some(seconds),
        Expiry::At(time) => Some(time.saturating_sub(now.unix)),
    }
}

/// When an item expires that has to be made: flags work in their order, so the last one counts.
fn made_expires(meta: &Meta<'_>, now: Now) -> Option<Expires> {
    let vivify = meta.vivify?;
    let times = meta.flags().filter(|(flag, _)| matches!(flag, b'N' | b'T'));
    let is_touched = times.last().is_some_and(|(flag, _)| flag == b'T');
    let last = if is_touched { meta.touch.unwrap_or(vivify) } else { vivify };
    Some(expires(last, now))
}

/// `mg`.
pub(super) fn get(shared: &Shared, meta: &Meta<'_>, out: &mut Output, now: Now) {
    let request = GetRequest {
        touch: meta.touch.map(|expiry| expires(expiry, now)),
        vivify: made_expires(meta, now),
        recache: meta.recache.and_then(|expiry| recache(expiry, now)),
        cas: meta.new_cas,
        quiet: meta.no_bump,
        no_win: false,
    };
    match shared.cache.get_with(&Key::new(&meta.key.bytes()), &request, now) {
        Ok(Some(item)) => {
            let code = if meta.value { Code::Value(item.bytes().len()) } else { Code::Done };
            reply::meta_get(out.text(), code, meta, &facts(&item, now));
            if meta.value {
                put_content(out, &item);
            }
        }
        Ok(None) if meta.quiet => {}
        Ok(None) => reply::meta_bare(out.text(), Code::Miss, meta),
        Err(error) => fail(shared, &error, false, out),
    }
}

/// `ms`, up to its data block.
pub(super) fn begin_set(
    shared: &Shared,
    command: &Command<'_>,
    meta: &Meta<'_>,
    data: u32,
    out: &mut Output,
    now: Now,
) -> Next {
    match reserve(shared, data, now) {
        Ok(slot) => {
            let mut line = Vec::new();
            command.encode(&mut line);
            line.truncate(line.len().saturating_sub(reply::END_OF_LINE.len()));
            let then = Then::MetaSet { line: line.into_boxed_slice() };
            Next::Receive(Box::new(Transfer::value(slot, then)))
        }
        Err(error) => {
            fail(shared, &error, false, out);
            shared.cache.forget(&Key::new(&meta.key.bytes()), now);
            Next::Skip(data)
        }
    }
}

/// `ms`, with its data block.
pub(super) fn finish_set(
    shared: &Shared,
    line: &[u8],
    value: Reservation,
    out: &mut Output,
    now: Now,
) {
    let Ok(Command::MetaSet(meta, wanted, _)) = Command::parse(line) else {
        return answer(out, false, "SERVER_ERROR a command was not what it had been");
    };
    let mut attributes = Attributes {
        flags: meta.client_flags,
        expires: meta.touch.map(|expiry| expires(expiry, now)).unwrap_or_default(),
        cas: meta.new_cas,
        ..Attributes::default()
    };
    let mode = match (wanted, meta.cas) {
        (Mode::Set | Mode::Replace, Some(cas)) => {
            // As in memcached, 0 is older than nothing.
            attributes.invalidate = meta.invalidate && cas != 0;
            StoreMode::Cas(cas)
        }
        (Mode::Append | Mode::Prepend, Some(cas)) => {
            // As in memcached, 0 compares with nothing here.
            attributes.compare = Some(cas).filter(|&cas| cas != 0);
            mode(wanted, 0)
        }
        _ => mode(wanted, 0),
    };
    let key = Key::new(&meta.key.bytes());
    let (code, cas) = match shared.cache.store(&key, mode, value, &attributes, now) {
        Ok(StoreOutcome::Stored { .. }) if meta.quiet => return,
        Ok(StoreOutcome::Stored { cas }) => (Code::Done, cas),
        Ok(StoreOutcome::NotStored) => (Code::NotStored, 0),
        Ok(StoreOutcome::Exists) => (Code::Exists, 0),
        Ok(StoreOutcome::NotFound) => (Code::NotFound, 0),
        Err(error) => return fail(shared, &error, false, out),
    };
    reply::meta_set(out.text(), code, &meta, cas);
}

/// `md`.
pub(super) fn delete(shared: &Shared, meta: &Meta<'_>, out: &mut Output, now: Now) {
    let request = DeleteRequest {
        compare: meta.cas,
        invalidate: meta.invalidate,
        expires: meta.touch.filter(|_| meta.invalidate).map(|expiry| expires(expiry, now)),
        cas: meta.new_cas.filter(|_| meta.invalidate),
        clear: false,
    };
    let code = match shared.cache.delete(&Key::new(&meta.key.bytes()), &request, now) {
        Ok(DeleteOutcome::Deleted) if meta.quiet => return,
        Ok(DeleteOutcome::Deleted) => Code::Done,
        Ok(DeleteOutcome::NotFound) => Code::NotFound,
        Ok(DeleteOutcome::Exists) => Code::Exists,
        Err(error) => return fail(shared, &error, false, out),
    };
    reply::meta_bare(out.text(), code, meta);
}

/// `ma`.
pub(super) fn arithmetic(
    shared: &Shared,
    meta: &Meta<'_>,
    direction: Direction,
    out: &mut Output,
    now: Now,
) {
    let request = Arithmetic {
        direction: super::direction(direction),
        delta: meta.delta,
        initial: made_expires(meta, now).map(|expires| (meta.initial, expires)),
        touch: meta.touch.map(|expiry| expires(expiry, now)),
        compare: meta.cas.filter(|&cas| cas != 0),
        cas: meta.new_cas,
    };
    let key = Key::new(&meta.key.bytes());
    match shared.cache.arithmetic(&key, &request, now) {
        Ok(ArithmeticOutcome::Value { value, item, created }) => {
            // As in memcached, an item that had to be made is told of in any case.
            if meta.quiet && !created {
                return;
            }
            let value = value.to_string();
            let code = if meta.value { Code::Value(value.len()) } else { Code::Done };
            reply::meta_arithmetic(out.text(), code, meta, &facts(&item, now));
            if meta.value {
                reply::line(out.text(), value);
            }
        }
        Ok(ArithmeticOutcome::NotFound) => reply::meta_bare(out.text(), Code::NotFound, meta),
        Ok(ArithmeticOutcome::Exists) => reply::meta_bare(out.text(), Code::Exists, meta),
        Ok(ArithmeticOutcome::NonNumeric) => {
            shared.counters.client_errors.add_one();
            answer(out, false, NON_NUMERIC);
        }
        Err(error) => fail(shared, &error, false, out),
    }
}

/// `me`.
pub(super) fn debug(shared: &Shared, key: &MetaKey<'_>, out: &mut Output, now: Now) {
    let request = GetRequest { quiet: true, no_win: true, ..GetRequest::default() };
    let Ok(Some(item)) = shared.cache.get_with(&Key::new(&key.bytes()), &request, now) else {
        return answer(out, false, "EN");
    };
    let size = item.capacity();
    let classes = shared.cache.class_stats(now);
    let class = classes.iter().find(|class| usize::try_from(class.slot_bytes) == Ok(size));
    let class = class.map_or(0, |class| usize::from(class.class));
    reply::meta_debug(out.text(), key, &facts(&item, now), class, size);
}
