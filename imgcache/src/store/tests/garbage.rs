//! Garbage collection.

use super::super::index::Index;
use super::*;
use crate::client::{ImageClient, Target};
use crate::transport::ChunkRead;

fn blocks(store: &Store) -> u64 {
    packs(store).iter().map(|pack| pack.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn what_no_name_leads_to_goes() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, MIB), noise(2, 6 * MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    push(&store, "b", image(&noise(5, 100), &noise(6, MIB), CHUNK)).unwrap();
    assert_eq!(store.gc().unwrap(), GcReport::default());
    store.remove(&name("a")).unwrap();
    let before = blocks(&store);
    let report = store.gc().unwrap();
    assert_eq!((report.manifests_removed, report.packs_removed, report.packs_trimmed), (1, 1, 0));
    assert!(report.bytes_freed >= before - blocks(&store) && report.bytes_freed > 7 << 20);
    assert_loads(&store, "b", &noise(5, 100), &noise(6, MIB));
    assert_eq!(store.gc().unwrap(), GcReport::default());
}

/// A store with a pack of which only the last 2 MiB of the ramdisk, and the kernel, are in use.
fn half_used() -> (tempfile::TempDir, Store, Vec<u8>, Vec<u8>) {
    let (folder, store) = store();
    let (kernel, initrd) = (noise(1, 10_000), noise(2, 6 * MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    let kept = initrd[4 * MIB..].to_vec();
    let report = push(&store, "b", image(&kernel, &kept, CHUNK)).unwrap();
    assert_eq!(report.bytes_new, 0);
    (folder, store, kernel, kept)
}

#[test]
fn unused_chunks_are_cut_out_of_packs() {
    let (_folder, store, kernel, kept) = half_used();
    store.remove(&name("a")).unwrap();
    let before = blocks(&store);
    let report = store.gc().unwrap();
    assert_eq!((report.packs_removed, report.packs_trimmed), (0, 1));
    assert_eq!(before - blocks(&store), 4 << 20);
    assert!((4 << 20..5 << 20).contains(&report.bytes_freed), "{report:?}");
    // Still sealed, still whole, and the index no longer offers what is gone.
    assert!(store.inspect(&name("b")).unwrap().sealed);
    assert_loads(&store, "b", &kernel, &kept);
    assert_eq!(store.verify().unwrap().damage, []);
    assert_eq!(store.gc().unwrap(), GcReport::default());
    let again = push(&store, "a", image(&kernel, &noise(2, 6 * MIB), CHUNK)).unwrap();
    assert_eq!(again.bytes_new, 4 << 20);
    assert_loads(&store, "a", &kernel, &noise(2, 6 * MIB));
}

#[test]
fn a_cut_that_was_interrupted_is_made_up_for() {
    let (_folder, store, kernel, kept) = half_used();
    store.remove(&name("a")).unwrap();
    // As if gc had written the index and then been killed.
    let id = packs(&store)[0].file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut index = Index::read(&store.layout, id).unwrap().unwrap();
    index.chunks.retain(|chunk| chunk.offset < 4096 || chunk.offset >= 6 << 20);
    index.seal = None;
    index.write(&store.layout, id).unwrap();
    let before = blocks(&store);
    assert_eq!(store.gc().unwrap().packs_trimmed, 1);
    assert_eq!(before - blocks(&store), 4 << 20);
    // Nobody knows any more that it was as it should be, until it is verified.
    assert!(!store.inspect(&name("b")).unwrap().sealed);
    assert_eq!(store.verify().unwrap().packs_sealed, 1);
    assert!(store.inspect(&name("b")).unwrap().sealed);
    assert_loads(&store, "b", &kernel, &kept);
}

#[test]
fn an_open_image_keeps_its_chunks() {
    let (_folder, store, kernel, kept) = half_used();
    let client = ImageClient::new(Box::new(store.clone()));
    let opened = client.open(&name("a")).unwrap();
    let mapping = opened.mappable().remove(0);
    store.remove(&name("a")).unwrap();
    let report = store.gc().unwrap();
    assert_eq!((report.packs_trimmed, &report.packs_busy), (0, &packs(&store)));
    let mut memory = vec![0; 6 * MIB];
    let targets = opened
        .manifest()
        .chunks_of(1)
        .zip(memory.chunks_mut(64 << 10))
        .map(|(chunk, buffer)| {
            Target::Fetch(ChunkRead { index: chunk.index, key: chunk.entry.key, buffer })
        })
        .collect();
    opened.load(targets, &LoadOptions::default()).unwrap();
    assert!(memory == noise(2, 6 * MIB));
    // A mapping alone keeps them too.
    drop(opened);
    assert_eq!(store.gc().unwrap().packs_busy.len(), 1);
    drop(mapping);
    let report = store.gc().unwrap();
    assert_eq!((report.packs_trimmed, report.packs_busy.len()), (1, 0));
    assert_loads(&store, "b", &kernel, &kept);
}

#[test]
fn an_image_that_is_open_survives_the_removal_of_its_packs() {
    let (_folder, store) = store();
    let initrd = noise(2, 3 * MIB);
    push(&store, "a", image(&noise(1, 10), &initrd, CHUNK)).unwrap();
    let opened = ImageClient::new(Box::new(store.clone())).open(&name("a")).unwrap();
    store.remove(&name("a")).unwrap();
    assert_eq!(store.gc().unwrap().packs_removed, 1);
    let mut memory = vec![0; 64 << 10];
    let chunk = opened.manifest().chunks_of(1).next().unwrap();
    let read = ChunkRead { index: chunk.index, key: chunk.entry.key, buffer: &mut memory };
    opened.load(vec![Target::Fetch(read)], &LoadOptions::default()).unwrap();
    assert!(memory[..] == initrd[..64 << 10]);
}

#[test]
fn nothing_is_removed_when_it_is_not_known_what_is_needed() {
    let (_folder, store) = store();
    let report = push(&store, "a", image(&noise(1, 10), &noise(2, MIB), CHUNK)).unwrap();
    push(&store, "b", image(&noise(3, 10), &noise(4, MIB), CHUNK)).unwrap();
    store.remove(&name("b")).unwrap();
    let path = store.layout.locations(&report.id);
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let before = files(store.path());
    let error = store.gc().unwrap_err();
    assert!(error.is_damage(), "{error}");
    let message = error.to_string();
    assert!(message.starts_with("image 'a' is damaged: ") && message.contains(".at"), "{message}");
    let error = store.inspect(&name("a")).unwrap_err();
    assert!(error.is_damage() && error.to_string() == message, "{error}");
    assert!(files(store.path()) == before);
    fs::write(&path, &good).unwrap();
    assert_eq!(store.gc().unwrap().packs_removed, 1);
}
