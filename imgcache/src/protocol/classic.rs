//! Command lines of the classic protocol.

use super::command::{
    Arithmetic, Command, Delete, Direction, Expiry, Get, Mode, Refused, StatsTopic, Store, Touch,
};
use super::{MAX_DATA, Refusal, extension, meta, token};

/// The command of `line`.
pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, Refused> {
    let start = line.iter().position(|&byte| byte != b' ').unwrap_or(line.len());
    let line = &line[start..];
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    match name {
        b"mg" => meta::get(rest),
        b"ms" => meta::set(rest),
        b"md" => meta::delete(rest),
        b"ma" => meta::arithmetic(rest),
        b"me" => meta::debug(rest),
        b"mn" => Ok(Command::MetaNoop),
        b"get" | b"bget" => get(rest, false),
        b"gets" => get(rest, true),
        b"gat" => get_and_touch(rest, false),
        b"gats" => get_and_touch(rest, true),
        b"set" => store(rest, Mode::Set),
        b"add" => store(rest, Mode::Add),
        b"replace" => store(rest, Mode::Replace),
        b"append" => store(rest, Mode::Append),
        b"prepend" => store(rest, Mode::Prepend),
        b"cas" => store(rest, Mode::Cas),
        b"delete" => delete(rest),
        b"incr" => arithmetic(rest, Direction::Increment),
        b"decr" => arithmetic(rest, Direction::Decrement),
        b"touch" => touch(rest),
        b"flush_all" => flush_all(rest),
        b"stats" => stats(rest),
        b"verbosity" => verbosity(rest),
        b"version" => Ok(Command::Version),
        b"quit" => Ok(Command::Quit),
        b"lease" => extension::lease(rest),
        b"release" => extension::release(rest),
        b"pin" => extension::pin(rest),
        b"unpin" => extension::unpin(rest),
        b"rdma" => extension::rdma(rest),
        b"push" => extension::push(rest),
        b"pushed" => extension::pushed(rest),
        b"share" if rest.is_empty() => Ok(Command::Share),
        _ => Err(switched_off(name, rest)),
    }
}

/// The first words of a line, and how many there are in all.
fn first_words<const N: usize>(rest: &[u8]) -> ([&[u8]; N], usize) {
    let mut words = token::words(rest);
    let first = std::array::from_fn(|_| words.next().unwrap_or_default());
    let count = first.iter().filter(|word| !word.is_empty()).count();
    (first, count + words.count())
}

fn is_noreply(word: &[u8]) -> bool {
    word == b"noreply"
}

/// Whether the last word asks for no reply, even where it stands in the place of another one.
fn is_quiet(rest: &[u8]) -> bool {
    token::words(rest).last().is_some_and(is_noreply)
}

fn get(rest: &[u8], cas: bool) -> Result<Command<'_>, Refused> {
    let mut words = token::words(rest).peekable();
    if words.peek().is_none() {
        return Err(Refusal::Unknown.into());
    }
    for word in words {
        token::key(word)?;
    }
    Ok(Command::Get(Get { keys: rest, cas, touch: None }))
}

fn get_and_touch(rest: &[u8], cas: bool) -> Result<Command<'_>, Refused> {
    let Some(first) = token::words(rest).next() else {
        return Err(Refusal::Unknown.into());
    };
    let expiry = token::signed(first).ok_or(Refusal::BadExpiry)?;
    // Behind the spaces in front of it.
    let start = rest.iter().position(|&byte| byte != b' ').unwrap_or(0);
    let keys = &rest[start + first.len()..];
    for word in token::words(keys) {
        token::key(word)?;
    }
    Ok(Command::Get(Get { keys, cas, touch: Some(Expiry::from_number(expiry)) }))
}

/// The length of a data block.
pub(super) fn data_length(word: &[u8]) -> Option<u32> {
    token::unsigned32(word).filter(|&length| length <= MAX_DATA)
}

fn store(rest: &[u8], mode: Mode) -> Result<Command<'_>, Refused> {
    let has_cas = mode == Mode::Cas;
    let ([key, flags, expiry, data, cas], count) = first_words(rest);
    let needed = if has_cas { 5 } else { 4 };
    if count != needed && count != needed + 1 {
        return Err(Refusal::Unknown.into());
    }
    let quiet = is_quiet(rest);
    let data = data_length(data);
    let refuse = |refusal| Refused { refusal, quiet, data };
    let key = token::key(key).map_err(refuse)?;
    let bad = || refuse(Refusal::BadFormat);
    let flags = token::unsigned32(flags).ok_or_else(bad)?;
    let expiry = Expiry::from_number(token::signed(expiry).ok_or_else(bad)?);
    let data = data.ok_or_else(bad)?;
    let cas = if has_cas { token::unsigned(cas).ok_or_else(bad)? } else { 0 };
    Ok(Command::Store(Store { key, mode, flags, expiry, data, cas, quiet }))
}

fn delete(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let ([key, second, third], count) = first_words(rest);
    let quiet = match count {
        1 => false,
        // "0" is what is left of a time that could once be given.
        2 if second == b"0" => false,
        2 if is_noreply(second) => true,
        3 if second == b"0" && is_noreply(third) => true,
        2 => return Err(Refusal::DeleteUsage.into()),
        3 => {
            let quiet = is_noreply(third);
            return Err(Refused { refusal: Refusal::DeleteUsage, quiet, data: None });
        }
        _ => return Err(Refusal::Unknown.into()),
    };
    match token::key(key) {
        Ok(key) => Ok(Command::Delete(Delete { key, quiet })),
        Err(refusal) => Err(Refused { refusal, quiet, data: None }),
    }
}

fn arithmetic(rest: &[u8], direction: Direction) -> Result<Command<'_>, Refused> {
    let ([key, delta], count) = first_words(rest);
    if count != 2 && count != 3 {
        return Err(Refusal::Unknown.into());
    }
    let quiet = is_quiet(rest);
    let refuse = |refusal| Refused { refusal, quiet, data: None };
    let key = token::key(key).map_err(refuse)?;
    let delta = token::unsigned(delta).ok_or(refuse(Refusal::BadDelta))?;
    Ok(Command::Arithmetic(Arithmetic { key, direction, delta, quiet }))
}

fn touch(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let ([key, expiry], count) = first_words(rest);
    if count != 2 && count != 3 {
        return Err(Refusal::Unknown.into());
    }
    let quiet = is_quiet(rest);
    let refuse = |refusal| Refused { refusal, quiet, data: None };
    let key = token::key(key).map_err(refuse)?;
    let expiry = token::signed(expiry).ok_or(refuse(Refusal::BadExpiry))?;
    Ok(Command::Touch(Touch { key, expiry: Expiry::from_number(expiry), quiet }))
}

fn flush_all(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let ([first, second], count) = first_words(rest);
    if count > 2 {
        return Err(Refusal::Unknown.into());
    }
    let quiet = is_noreply(if count == 2 { second } else { first });
    let delay = if count == usize::from(quiet) {
        0
    } else {
        token::signed(first).ok_or(Refused { refusal: Refusal::BadExpiry, quiet, data: None })?
    };
    Ok(Command::FlushAll { delay: Expiry::from_number(delay.max(0)), quiet })
}

fn verbosity(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let ([level], count) = first_words(rest);
    if count != 1 && count != 2 {
        return Err(Refusal::Unknown.into());
    }
    let quiet = is_quiet(rest);
    let refused = Refused { refusal: Refusal::BadFormat, quiet, data: None };
    Ok(Command::Verbosity { level: token::unsigned32(level).ok_or(refused)?, quiet })
}

fn stats(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let topic = token::words(rest).next().unwrap_or_default();
    if topic == b"cachedump" {
        return Err(Refusal::CacheDump.into());
    }
    let known = StatsTopic::ALL.iter().find(|(_, word)| word.as_bytes() == topic);
    known.map(|&(topic, _)| Command::Stats(topic)).ok_or(Refusal::Unknown.into())
}

/// What memcached has and can switch off is refused as if it were.
fn switched_off(name: &[u8], rest: &[u8]) -> Refused {
    let ([first, second], count) = first_words(rest);
    let refusal = match name {
        b"watch" => Refusal::Watch,
        b"shutdown" => Refusal::Shutdown,
        b"slabs" if first == b"reassign" && count == 3 => Refusal::SlabReassign,
        b"lru_crawler" if count == 2 && matches!(first, b"crawl" | b"metadump") => Refusal::Crawler,
        b"cache_memlimit" if matches!(count, 1 | 2) && token::unsigned32(first).is_some() => {
            let quiet = is_noreply(second);
            return Refused { refusal: Refusal::MemoryLimit, quiet, data: None };
        }
        _ => Refusal::Unknown,
    };
    refusal.into()
}
