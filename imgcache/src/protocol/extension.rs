//! Command lines that memcached does not have. It answers them with `ERROR`, and so does this
//! protocol where they are not well formed in their number of words.

use super::command::{Command, Refused};
use super::{INDEX_KEY, MAX_KEY_LIST, Refusal, classic, token};

/// Exactly `N` words.
fn exactly<const N: usize>(rest: &[u8]) -> Result<[&[u8]; N], Refusal> {
    let mut words = token::words(rest);
    let first = std::array::from_fn(|_| words.next().unwrap_or_default());
    let is_exact = first.last().is_none_or(|word| !word.is_empty()) && words.next().is_none();
    if is_exact { Ok(first) } else { Err(Refusal::Unknown) }
}

fn lease_id(word: &[u8]) -> Option<u64> {
    token::hex::<8>(word).map(u64::from_be_bytes)
}

/// The length of a list of index keys, as what is to be skipped and as what is accepted.
fn key_list(word: &[u8]) -> (Option<u32>, Result<u32, Refusal>) {
    let data = classic::data_length(word);
    let fits = |&length: &u32| {
        length <= MAX_KEY_LIST && usize::try_from(length).is_ok_and(|n| n % INDEX_KEY == 0)
    };
    let accepted = match data {
        None => Err(Refusal::BadFormat),
        Some(length) => Some(length).filter(fits).ok_or(Refusal::KeyList),
    };
    (data, accepted)
}

/// `lease <id> <ttl-ms> <bytes>`.
pub(super) fn lease(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let [id, ttl, list] = exactly(rest)?;
    let (data, list) = key_list(list);
    let refuse = |refusal| Refused { refusal, quiet: false, data };
    let id = lease_id(id).ok_or(refuse(Refusal::BadFormat))?;
    let ttl = token::unsigned(ttl).ok_or(refuse(Refusal::BadFormat))?;
    Ok(Command::Lease { id, ttl, data: list.map_err(refuse)? })
}

/// `release <id> <bytes-read>`.
pub(super) fn release(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let [id, bytes_read] = exactly(rest)?;
    let id = lease_id(id).ok_or(Refusal::BadFormat)?;
    let bytes_read = token::unsigned(bytes_read).ok_or(Refusal::BadFormat)?;
    Ok(Command::Release { id, bytes_read })
}

/// `rdma <lease-id> <endpoint>`.
pub(super) fn rdma(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let rest = rest.trim_ascii();
    let space = rest.iter().position(|byte| *byte == b' ').ok_or(Refusal::Unknown)?;
    let (id, endpoint) = rest.split_at(space);
    let lease = lease_id(id).ok_or(Refusal::BadFormat)?;
    let endpoint = std::str::from_utf8(endpoint.trim_ascii()).map_err(|_| Refusal::BadFormat)?;
    Ok(Command::Rdma { lease, endpoint })
}

/// `pin <image-id> <bytes>`.
pub(super) fn pin(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let [image, list] = exactly(rest)?;
    let (data, list) = key_list(list);
    let refuse = |refusal| Refused { refusal, quiet: false, data };
    let image = token::hex(image).ok_or(refuse(Refusal::BadFormat))?;
    Ok(Command::Pin { image, data: list.map_err(refuse)? })
}

/// `unpin <image-id>`.
pub(super) fn unpin(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let [image] = exactly(rest)?;
    Ok(Command::Unpin { image: token::hex(image).ok_or(Refusal::BadFormat)? })
}
