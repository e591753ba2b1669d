//! Command lines that memcached does not have. It answers them with `ERROR`, and so does this
//! protocol where they are not well formed in their number of words.

use super::command::{Command, Refused};
use super::{INDEX_KEY, MAX_KEY_LIST, MAX_PUSH_RECORDS, PUSH_RECORD, Refusal, classic, token};
use crate::key::ChunkKey;

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

/// `push <bytes> <endpoint>`.
pub(super) fn push(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let rest = rest.trim_ascii();
    let space = rest.iter().position(|byte| *byte == b' ').ok_or(Refusal::Unknown)?;
    let (length, endpoint) = rest.split_at(space);
    let data = classic::data_length(length).ok_or(Refusal::BadFormat)?;
    let refuse = |refusal| Refused { refusal, quiet: false, data: Some(data) };
    let records = usize::try_from(data).ok().filter(|bytes| bytes.is_multiple_of(PUSH_RECORD));
    if !records.is_some_and(|bytes| (1..=MAX_PUSH_RECORDS).contains(&(bytes / PUSH_RECORD))) {
        return Err(refuse(Refusal::PushList));
    }
    let endpoint = std::str::from_utf8(endpoint.trim_ascii());
    let endpoint = endpoint.map_err(|_| refuse(Refusal::BadFormat))?;
    Ok(Command::Push { data, endpoint })
}

/// A chunk in the list of `push`.
pub fn push_record(key: &ChunkKey, length: u32) -> [u8; PUSH_RECORD] {
    let mut record = [0; PUSH_RECORD];
    let (first, last) = record.split_at_mut(key.0.len());
    first.copy_from_slice(&key.0);
    last.copy_from_slice(&length.to_be_bytes());
    record
}

/// The chunks in the list of `push`, each with its length in bytes; whatever is behind the last whole one is
/// left out.
pub fn push_records(list: &[u8]) -> impl Iterator<Item = (ChunkKey, u32)> + '_ {
    let (records, _) = list.as_chunks::<PUSH_RECORD>();
    records.iter().filter_map(|record| {
        let (key, length) = record.split_first_chunk::<32>()?;
        Some((ChunkKey(*key), u32::from_be_bytes(length.try_into().ok()?)))
    })
}

/// `pushed <id> <written>`.
pub(super) fn pushed(rest: &[u8]) -> Result<Command<'_>, Refused> {
    let [id, written] = exactly(rest)?;
    let id = lease_id(id).ok_or(Refusal::BadFormat)?;
    let written = token::unsigned32(written).ok_or(Refusal::BadFormat)?;
    Ok(Command::Pushed { id, written })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_push_has_whole_records_and_not_too_many() {
        let most = MAX_PUSH_RECORDS * PUSH_RECORD;
        for (bytes, good) in [(0, false), (35, false), (36, true), (most, true), (most + 36, false)]
        {
            let line = format!("push {bytes} gid=0 lid=0");
            match Command::parse(line.as_bytes()) {
                Ok(Command::Push { data, endpoint }) => {
                    assert!(good && usize::try_from(data) == Ok(bytes), "{line}");
                    assert_eq!(endpoint, "gid=0 lid=0");
                }
                Err(refused) => {
                    assert!(!good, "{line}");
                    assert_eq!(refused.refusal, Refusal::PushList);
                    // The list comes all the same.
                    assert_eq!(refused.data.map(usize::try_from), Some(Ok(bytes)));
                }
                other => panic!("{other:?}"),
            }
        }
        for (line, refusal) in [
            ("push", Refusal::Unknown),
            ("push 36", Refusal::Unknown),
            ("push x gid=0", Refusal::BadFormat),
            ("push -36 gid=0", Refusal::BadFormat),
            ("pushed 0000000000000001", Refusal::Unknown),
            ("pushed 1 2", Refusal::BadFormat),
            ("pushed 0000000000000001 x", Refusal::BadFormat),
            ("pushed 0000000000000001 4294967296", Refusal::BadFormat),
        ] {
            assert_eq!(
                Command::parse(line.as_bytes()).map_err(|r| r.refusal),
                Err(refusal),
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_read_as_it_was_written(
            chunks in prop::collection::vec((any::<[u8; 32]>(), any::<u32>()), 0..20), cut in 0..36_usize,
        ) {
            let mut list: Vec<u8> = chunks
                .iter()
                .flat_map(|(key, length)| push_record(&ChunkKey(*key), *length))
                .collect();
            list.extend(std::iter::repeat_n(0xff, cut));
            let read: Vec<_> = push_records(&list).map(|(key, length)| (key.0, length)).collect();
            prop_assert_eq!(read, chunks);
        }

        #[test]
        fn commands_come_back(id: u64, written: u32, records in 1..=MAX_PUSH_RECORDS) {
            let data = u32::try_from(records * PUSH_RECORD).unwrap();
            for command in [Command::Pushed { id, written }, Command::Push { data, endpoint: "a b c" }] {
                let mut line = Vec::new();
                command.encode(&mut line);
                let line = line.strip_suffix(b"\r\n").unwrap();
                prop_assert_eq!(Command::parse(line), Ok(command));
            }
        }
    }
}
