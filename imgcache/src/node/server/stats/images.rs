//! `stats image`: the images whose names this node holds, and how much of each.

use super::super::Shared;
use crate::image::manifest::Manifest;
use crate::index::IndexKey;
use crate::key::ManifestId;
use crate::node::cache::{GetRequest, Held, Item, Key, Now};
use crate::protocol::reply::stat;
use crate::record::{ItemKey, NameRecord, PIECE_BYTES};

/// Pieces of the largest manifest that is looked at: 128 MiB, 3 million chunks.
const MAX_PIECES: u32 = 256;

/// Writes some lines for each image.
pub(super) fn write(shared: &Shared, out: &mut Vec<u8>, now: Now) {
    for item in shared.cache.images(now) {
        // What only has the flags of a name is none.
        if let Ok(record) = NameRecord::decode(item.bytes()) {
            write_image(shared, out, &record, now);
        }
    }
}

fn write_image(shared: &Shared, out: &mut Vec<u8>, record: &NameRecord, now: Now) {
    let name = &record.name;
    stat(out, format_args!("{name}:manifest"), record.manifest);
    stat(out, format_args!("{name}:revision"), record.revision);
    let held =
        manifest(shared, &record.manifest, now).map(|manifest| chunks(shared, &manifest, now));
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
