//! What is answered. Data blocks are not written here: they go out from where they are.

use std::fmt::Display;
use std::io::Write;

use super::command::{Meta, MetaKey};

/// The end of each line and data block.
pub const END_OF_LINE: &[u8] = b"\r\n";

/// A line, with its end. Writing to memory cannot fail.
pub fn line(out: &mut Vec<u8>, text: impl Display) {
    let _ = write!(out, "{text}\r\n");
}

/// A line of `stats`.
pub fn stat(out: &mut Vec<u8>, name: impl Display, value: impl Display) {
    let _ = write!(out, "STAT {name} {value}\r\n");
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    // As many digits as u64::MAX has.
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
        start -= 1;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// The line in front of a value of `get`; with `cas` of `gets`.
pub fn value(out: &mut Vec<u8>, key: &[u8], flags: u32, length: usize, cas: Option<u64>) {
    out.extend_from_slice(b"VALUE ");
    out.extend_from_slice(key);
    for field in [Some(u64::from(flags)), Some(length as u64), cas].into_iter().flatten() {
        out.push(b' ');
        number(out, field);
    }
    out.extend_from_slice(END_OF_LINE);
}

/// What a meta command tells about an item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of its value.
    pub size: usize,
    /// CAS value.
    pub cas: u64,
    /// The client's own.
    pub client_flags: u32,
    /// Seconds until it expires, before the command changed that; `None` for never.
    pub old_ttl: Option<u32>,
    /// The same after the command.
    pub ttl: Option<u32>,
    /// Seconds since it was last used.
    pub idle: u32,
    /// It was fetched before.
    pub was_hit: bool,
    /// This client is to fetch it anew: `W`.
    pub is_won: bool,
    /// It is stale: `X`.
    pub is_stale: bool,
    /// Another client was already told to fetch it anew: `Z`.
    pub is_taken: bool,
}

/// The first two letters of the reply to a meta command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done, without a value.
    Done,
    /// Done; a value of so many bytes follows.
    Value(usize),
    /// A miss of `mg`.
    Miss,
    /// A miss of any other.
    NotFound,
    /// The CAS value is another.
    Exists,
    /// Not stored, and not for an error.
    NotStored,
}

fn code(out: &mut Vec<u8>, code: Code) {
    out.extend_from_slice(match code {
        Code::Done => b"HD",
        Code::Value(length) => {
            out.extend_from_slice(b"VA ");
            return number(out, length as u64);
        }
        Code::Miss => b"EN",
        Code::NotFound => b"NF",
        Code::Exists => b"EX",
        Code::NotStored => b"NS",
    });
}

fn key(out: &mut Vec<u8>, key: &MetaKey<'_>) {
    out.extend_from_slice(b" k");
    out.extend_from_slice(key.word);
    if key.is_binary {
        out.extend_from_slice(b" b");
    }
}

fn opaque(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(b" O");
    out.extend_from_slice(value);
}

fn flag(out: &mut Vec<u8>, flag: u8, value: u64) {
    out.extend_from_slice(&[b' ', flag]);
    number(out, value);
}

/// The line that answers a meta command without anything to tell about an item.
pub fn meta_bare(out: &mut Vec<u8>, first: Code, meta: &Meta<'_>) {
    code(out, first);
    for (name, value) in meta.flags() {
        match name {
            b'O' => opaque(out, value),
            b'k' => key(out, &meta.key),
            _ => {}
        }
    }
    out.extend_from_slice(END_OF_LINE);
}

/// The line that answers `ms`.
pub fn meta_set(out: &mut Vec<u8>, first: Code, meta: &Meta<'_>, cas: u64) {
    code(out, first);
    for (name, value) in meta.flags() {
        match name {
            b'O' => opaque(out, value),
            b'k' => key(out, &meta.key),
            b'c' => flag(out, b'c', cas),
            _ => {}
        }
    }
    out.extend_from_slice(END_OF_LINE);
}

fn ttl(out: &mut Vec<u8>, seconds: Option<u32>) {
    match seconds {
        Some(seconds) => flag(out, b't', u64::from(seconds)),
        None => out.extend_from_slice(b" t-1"),
    }
}

/// The line that answers `mg`, with everything that it can ask for.
pub fn meta_get(out: &mut Vec<u8>, first: Code, meta: &Meta<'_>, facts: &Facts) {
    code(out, first);
    let mut seconds = facts.old_ttl;
    for (name, value) in meta.flags() {
        match name {
            // Flags work in their order: what comes behind them sees the new time.
            b'T' | b'N' => seconds = facts.ttl,
            b's' => flag(out, b's', facts.size as u64),
            b't' => ttl(out, seconds),
            b'c' => flag(out, b'c', facts.cas),
            b'f' => flag(out, b'f', u64::from(facts.client_flags)),
            b'l' => flag(out, b'l', u64::from(facts.idle)),
            b'h' => flag(out, b'h', u64::from(facts.was_hit)),
            b'O' => opaque(out, value),
            b'k' => key(out, &meta.key),
            _ => {}
        }
    }
    for (is_set, name) in [(facts.is_taken, b'Z'), (facts.is_stale, b'X'), (facts.is_won, b'W')] {
        if is_set {
            out.extend_from_slice(&[b' ', name]);
        }
    }
    out.extend_from_slice(END_OF_LINE);
}

/// The line that answers `ma`.
pub fn meta_arithmetic(out: &mut Vec<u8>, first: Code, meta: &Meta<'_>, facts: &Facts) {
    code(out, first);
    let mut seconds = facts.old_ttl;
    for (name, value) in meta.flags() {
        match name {
            b'T' | b'N' => seconds = facts.ttl,
            b't' => ttl(out, seconds),
            b'c' => flag(out, b'c', facts.cas),
            b'O' => opaque(out, value),
            b'k' => key(out, &meta.key),
            _ => {}
        }
    }
    out.extend_from_slice(END_OF_LINE);
}

/// The line that answers `me`; `class` and `size` are those of its memory.
pub fn meta_debug(out: &mut Vec<u8>, key: &MetaKey<'_>, facts: &Facts, class: usize, size: usize) {
    out.extend_from_slice(b"ME ");
    out.extend_from_slice(key.word);
    // As memcached prints it: -1 for never, else the time that it has been expired for.
    let expiry = facts.ttl.map_or(-1, |seconds| -i64::from(seconds));
    let fetched = if facts.was_hit { "yes" } else { "no" };
    let _ = write!(
        out,
        " exp={expiry} la={} cas={} fetch={fetched} cls={class} size={size}\r\n",
        facts.idle, facts.cas
    );
}
