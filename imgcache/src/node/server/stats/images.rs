//! `stats image`: the images whose names this node holds, and how much of each.

use std::collections::HashMap;

use super::super::Shared;
use crate::image::manifest::Manifest;
use crate::index::IndexKey;
use crate::key::ManifestId;
use crate::node::cache::{GetRequest, Held, Item, Key, Now};
use crate::protocol::reply::stat;
use crate::record::{ItemKey, NameRecord, PIECE_BYTES};

/// Pieces of the largest manifest that is looked at: 128 MiB, 3 million chunks.
const MAX_PIECES: u32 = 256;

/// Names that are told; there may be any number of items that look like one.
const MAX_NAMES: usize = 4096;

/// Writes some lines for each image.
pub(super) fn write(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    let items = shared.cache.images(now);
    // What only has the flags of a name is none.
    let records = items.iter().filter_map(|item| NameRecord::decode(item.bytes()).ok());
    write_images(records, out, |id| {
        manifest(shared, id, now).map(|manifest| chunks(shared, &manifest, now))
    });
}

/// The same, with what is here of each manifest as `held` tells, which is asked once for each.
fn write_images(
    records: impl Iterator<Item = NameRecord>,
    out: &mut Vec<u8>,
    mut held: impl FnMut(&ManifestId) -> Option<Held>,
) {
    let mut known = HashMap::new();
    let mut records = records.fuse();
    for record in records.by_ref().take(MAX_NAMES) {
        let held = *known.entry(record.manifest).or_insert_with(|| held(&record.manifest));
        write_image(out, &record, held);
    }
    let left_out = records.count();
    if left_out > 0 {
        stat(out, "left_out", left_out);
    }
}

fn write_image(out: &mut Vec<u8>, record: &NameRecord, held: Option<Held>) {
    let name = &record.name;
    stat(out, format_args!("{name}:manifest"), record.manifest);
    stat(out, format_args!("{name}:revision"), record.revision);
    stat(out, format_args!("{name}:manifest_held"), u8::from(held.is_some()));
    let Some(held) = held else { return };
    stat(out, format_args!("{name}:chunks"), held.items + held.missing);
    stat(out, format_args!("{name}:chunks_held"), held.items);
    stat(out, format_args!("{name}:bytes_held"), held.bytes);
}

/// A manifest, if all its pieces are here and are what its id says.
fn manifest(shared: &Shared, id: &ManifestId, now: Now) -> Option<Manifest> {
    let request = GetRequest { quiet: true, no_win: true, ..GetRequest::default() };
    let mut bytes = Vec::new();
    for number in 0..MAX_PIECES {
        let key = Key::new(ItemKey::manifest_piece(id, number).as_bytes());
        let piece: Option<Item> = shared.cache.get_with(&key, &request, now).ok().flatten();
        let Some(piece) = piece else { break };
        bytes.extend_from_slice(piece.bytes());
        if piece.bytes().len() != PIECE_BYTES {
            break;
        }
    }
    Manifest::decode_as(id, &bytes).ok()
}

fn chunks(shared: &Shared, manifest: &Manifest, now: Now) -> Held {
    let mut keys: Vec<IndexKey> = manifest
        .all_chunks()
        .filter(|span| !span.entry.zero)
        .map(|span| IndexKey::of(ItemKey::chunk(&span.entry.key).as_bytes()))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    shared.cache.held(&keys, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manifest_is_looked_at_once_and_names_are_bounded() {
        let records = (0..MAX_NAMES + 2).map(|number| NameRecord {
            name: format!("image-{number}").parse().unwrap(),
            manifest: ManifestId([u8::try_from(number % 3).unwrap(); 32]),
            revision: 1,
        });
        let (mut out, mut looked) = (Vec::new(), Vec::new());
        write_images(records, &mut out, |id| {
            looked.push(id.0[0]);
            (id.0[0] == 1).then_some(Held { items: 5, bytes: 7, missing: 2 })
        });
        assert_eq!(looked, [0, 1, 2]);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("STAT image-0:manifest_held 0\r\nSTAT image-1:manifest "), "{text}");
        for line in ["image-1:chunks 7", "image-4:chunks_held 5", "image-4:bytes_held 7"] {
            assert!(text.contains(&format!("STAT {line}\r\n")), "{line}");
        }
        assert!(text.ends_with("STAT image-4095:manifest_held 0\r\nSTAT left_out 2\r\n"));
    }
}
