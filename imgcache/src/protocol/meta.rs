//! Command lines of the meta protocol.

use super::command::{Command, Direction, Expiry, Meta, MetaKey, Mode, Refused};
use super::{MAX_META_WORDS, MAX_OPAQUE, Refusal, classic, token};

/// The first word of `rest`, and what is behind it.
fn split_word(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = rest.iter().position(|&byte| byte != b' ')?;
    let rest = &rest[start..];
    let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// Key and flags.
struct Words<'a> {
    key: &'a [u8],
    flags: &'a [u8],
}

/// Takes the key; `used` words of the command are something else than flags.
fn words(rest: &[u8], used: usize, too_many: Refusal) -> Result<Words<'_>, Refusal> {
    let (key, flags) = split_word(rest).ok_or(Refusal::Unknown)?;
    let key = token::key(key)?;
    if token::words(flags).take(MAX_META_WORDS).count() + used > MAX_META_WORDS {
        return Err(too_many);
    }
    Ok(Words { key, flags })
}

/// The flags of any meta command. If several are wrong, the last one is told, unless one cannot be
/// read at all: so does memcached.
fn flags<'a>(words: &Words<'a>) -> Result<(Meta<'a>, Option<u8>), Refusal> {
    let mut meta = Meta {
        key: MetaKey { word: words.key, is_binary: false },
        flags: words.flags,
        no_bump: false,
        quiet: false,
        value: false,
        invalidate: false,
        vivify: None,
        touch: None,
        recache: None,
        client_flags: 0,
        cas: None,
        new_cas: None,
        initial: 0,
        delta: 1,
    };
    let mut mode = None;
    let mut seen = 0_u128;
    let mut wrong = None;
    for word in token::words(words.flags) {
        let Some((&flag, value)) = word.split_first() else { continue };
        let bit = 1_u128.checked_shl(u32::from(flag)).ok_or(Refusal::DuplicateFlag)?;
        if seen & bit != 0 {
            return Err(Refusal::DuplicateFlag);
        }
        seen |= bit;
        let mut number = || {
            let number = token::signed(value);
            wrong = if number.is_none() { Some(Refusal::BadToken) } else { wrong };
            number.map(Expiry::from_number)
        };
        match flag {
            b'b' => match MetaKey::new(words.key, true) {
                Ok(key) => meta.key = key,
                Err(refusal) => wrong = Some(refusal),
            },
            b'N' => meta.vivify = number(),
            b'T' => meta.touch = number(),
            b'R' => meta.recache = number(),
            b'F' => match token::unsigned32(value) {
                Some(flags) => meta.client_flags = flags,
                None => wrong = wrong.or(Some(Refusal::BadFormat)),
            },
            b'C' => match token::unsigned(value) {
                Some(cas) => meta.cas = Some(cas),
                None => wrong = Some(Refusal::BadToken),
            },
            b'E' => match token::unsigned(value) {
                Some(cas) => meta.new_cas = Some(cas),
                None => wrong = Some(Refusal::BadToken),
            },
            b'J' => match token::unsigned(value) {
                Some(initial) => meta.initial = initial,
                None => wrong = Some(Refusal::BadInitial),
            },
            b'D' => match token::unsigned(value) {
                Some(delta) => meta.delta = delta,
                None => wrong = Some(Refusal::BadDeltaFlag),
            },
            b'M' => match value {
                [one] => mode = Some(*one),
                _ => wrong = Some(Refusal::ModeLength),
            },
            b'u' => meta.no_bump = true,
            b'q' => meta.quiet = true,
            b'v' => meta.value = true,
            b'I' => meta.invalidate = true,
            b'O' | b'P' | b'L' | b'k' | b's' | b't' | b'c' | b'f' | b'l' | b'h' => {}
            _ => return Err(Refusal::UnknownFlag),
        }
    }
    wrong.map_or(Ok((meta, mode)), Err)
}

fn check_opaque(meta: &Meta<'_>) -> Result<(), Refusal> {
    let is_long = meta.flags().any(|(flag, value)| flag == b'O' && value.len() > MAX_OPAQUE);
    if is_long { Err(Refusal::OpaqueTooLong) } else { Ok(()) }
}

/// `mg <key> <flags>*`.
pub(super) fn get(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let words = words(rest, 2, Refusal::TooManyGetFlags)?;
    let (meta, _) = flags(&words)?;
    check_opaque(&meta)?;
    Ok(Command::MetaGet(meta))
}

/// `ms <key> <datalen> <flags>*`.
pub(super) fn set(rest: &[u8]) -> Result<Command<'_>, Refused> {
    // The length comes first, so that the data block is skipped whatever else is wrong.
    let (key, behind) = split_word(rest).ok_or(Refusal::Unknown)?;
    let (length, _) = split_word(behind).ok_or(Refusal::BadFormat)?;
    let data = classic::data_length(length);
    let refuse = |refusal| Refused { refusal, quiet: false, data };
    let words = words(rest, 2, Refusal::TooManyFlags).map_err(refuse)?;
    let data = data.ok_or(refuse(Refusal::BadFormat))?;
    let flags_only = split_word(words.flags).map_or(&[][..], |(_, flags)| flags);
    let (meta, mode) = flags(&Words { key, flags: flags_only }).map_err(refuse)?;
    check_opaque(&meta).map_err(refuse)?;
    let mode = match mode {
        None | Some(b'S') => Mode::Set,
        Some(b'E') => Mode::Add,
        Some(b'A') => Mode::Append,
        Some(b'P') => Mode::Prepend,
        Some(b'R') => Mode::Replace,
        Some(_) => return Err(refuse(Refusal::SetMode)),
    };
    Ok(Command::MetaSet(meta, mode, data))
}

/// `md <key> <flags>*`.
pub(super) fn delete(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let words = words(rest, 2, Refusal::TooManyFlags)?;
    let (meta, _) = flags(&words).map_err(|_| Refusal::BadFlags)?;
    check_opaque(&meta)?;
    Ok(Command::MetaDelete(meta))
}

/// `ma <key> <flags>*`.
pub(super) fn arithmetic(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let words = words(rest, 2, Refusal::TooManyFlags)?;
    let (meta, mode) = flags(&words).map_err(|_| Refusal::BadFlags)?;
    let direction = match mode {
        None | Some(b'I' | b'+') => Direction::Increment,
        Some(b'D' | b'-') => Direction::Decrement,
        Some(_) => return Err(Refusal::ArithmeticMode.into()),
    };
    check_opaque(&meta)?;
    Ok(Command::MetaArithmetic(meta, direction))
}

/// `me <key> [b]`.
pub(super) fn debug(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let (key, flags) = split_word(rest).ok_or(Refusal::BadFormat)?;
    let is_binary = token::words(flags).next() == Some(b"b");
    let key = MetaKey::new(key, is_binary).map_err(|_| Refusal::BadFormat)?;
    Ok(Command::MetaDebug(key))
}
