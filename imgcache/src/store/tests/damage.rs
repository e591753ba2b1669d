//! Files of the store that were changed, cut short or removed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use super::super::index::{Index, PackedChunk};
use super::super::locations::{Collector, Locations};
use super::super::pack::{PackId, Seal};
use super::*;
use crate::key::{ChunkKey, ManifestId};
use crate::testing::manifest;
use crate::transport::TransportError;

/// Flips a bit of the file and puts its mtime back.
fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, offset).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_damaged_chunk_is_found_and_named_and_mended_by_a_push() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 10_000), noise(2, 3 * MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    push(&store, "b", image(&kernel, &initrd[..2 * MIB], CHUNK)).unwrap();
    let pack = packs(&store).remove(0);
    // Chunk 1 + 5 of the ramdisk, which begins at 2 MiB of the pack.
    let offset = (2 << 20) + 5 * (64 << 10);
    flip(&pack, offset + 77);

    for verify in [Verify::Auto, Verify::Full] {
        let options = LoadOptions { verify, progress: None };
        let error = load(&store, "a", &options).unwrap_err();
        let LoadError::Damaged { image, source } = &error else { panic!("{error}") };
        assert_eq!(*image, name("a"));
        let TransportError::DamagedChunk { segment: 1, chunk: 6, key, .. } = **source else {
            panic!("{error}")
        };
        let place = format!("'{}' at byte {offset}", pack.display());
        assert!(error.to_string().contains(&place), "{error}");
        assert_eq!(key, ChunkKey::of(&initrd[5 * (64 << 10)..6 * (64 << 10)]));
    }
    // The change shows in the ctime: the store no longer vouches for the pack.
    assert!(!store.inspect(&name("a")).unwrap().sealed);

    let report = store.verify().unwrap();
    let [Damage::Chunk { offset: found, images, .. }] = &report.damage[..] else {
        panic!("{report:?}")
    };
    assert_eq!((*found, &images[..]), (offset, &[name("a"), name("b")][..]));
    assert!(report.damage[0].to_string().contains("needed by 'a', 'b'"), "{report:?}");

    let mended = push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    assert_eq!(mended.chunks_new, 1);
    assert_loads(&store, "a", &kernel, &initrd);
    load(&store, "b", &LoadOptions::default()).unwrap_err();
    let mended = push(&store, "b", image(&kernel, &initrd[..2 * MIB], CHUNK)).unwrap();
    assert_eq!(mended.chunks_new, 0);
    assert_loads(&store, "b", &kernel, &initrd[..2 * MIB]);
    assert_eq!(store.gc().unwrap().packs_trimmed, 1);
    assert_eq!(store.verify().unwrap().damage, []);
    assert!(store.inspect(&name("a")).unwrap().sealed);
}

#[test]
fn damage_below_a_seal_is_caught_by_the_checksum() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 10_000), noise(2, MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    let pack = packs(&store).remove(0);
    flip(&pack, 99);
    // As if the disk had changed the byte: the seal fits.
    let id: PackId = pack.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut index = Index::read(&store.layout, id).unwrap().unwrap();
    index.seal = Some(Seal::of(&File::open(&pack).unwrap()).unwrap());
    index.write(&store.layout, id).unwrap();
    assert!(store.inspect(&name("a")).unwrap().sealed);
    let error = load(&store, "a", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
    // Verification takes the seal away, so that the next push does not trust the pack.
    assert_eq!(store.verify().unwrap().damage.len(), 1);
    assert!(!store.inspect(&name("a")).unwrap().sealed);
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    assert_loads(&store, "a", &kernel, &initrd);
}

#[test]
fn an_unsealed_pack_is_hashed_in_full_until_it_is_verified() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 10_000), noise(2, MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    let pack = packs(&store).remove(0);
    flip(&pack, 5);
    flip(&pack, 5);
    let verification = || load(&store, "a", &LoadOptions::default()).unwrap().1.verify;
    assert_eq!(verification(), Verification::Full);
    let report = store.verify().unwrap();
    assert_eq!((report.packs_sealed, report.damage.len(), report.chunks), (1, 0, 17));
    assert_eq!(verification(), Verification::Checksum);
    assert_eq!(store.verify().unwrap().packs_sealed, 0);
}

#[test]
fn every_file_cut_short_or_gone_is_an_error() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 10_000), noise(2, MIB / 2));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    for (path, content) in files(store.path()) {
        let is_index = path.extension().is_some_and(|extension| extension == "idx");
        if content.is_empty() {
            continue;
        }
        let lengths = [0, 1, 7, 8, 20, 60, 100, content.len() / 2, content.len() - 1];
        for length in lengths.into_iter().filter(|length| *length < content.len()) {
            let is_pack = path.parent() == Some(&store.layout.packs()) && !is_index;
            fs::write(&path, &content[..length]).unwrap();
            let result =
                Store::open(store.path()).map_err(|error| error.to_string()).and_then(|store| {
                    load(&store, "a", &LoadOptions::default()).map_err(|error| error.to_string())
                });
            // A load does without the index, and without the zeros at the end of the pack.
            let whole = is_pack && length >= 3 * 4096 + initrd.len();
            let needed = !is_index && !whole;
            match result {
                Err(error) => assert!(needed && !error.is_empty(), "{}: {error}", path.display()),
                Ok((segments, _)) => {
                    assert!(!needed, "{} cut to {length}", path.display());
                    assert!(segments == [&kernel[..], &initrd[..]]);
                }
            }
            if let Ok(store) = Store::open(store.path()) {
                let _ = store.list().unwrap();
                let damage = store.verify().unwrap().damage;
                assert_eq!(damage.is_empty(), is_pack && !needed, "{}: {damage:?}", path.display());
            }
        }
        fs::remove_file(&path).unwrap();
        if let Ok(store) = Store::open(store.path()) {
            assert_eq!(load(&store, "a", &LoadOptions::default()).is_ok(), is_index);
        }
        fs::write(&path, &content).unwrap();
        assert_loads(&store, "a", &kernel, &initrd);
    }
}

#[test]
fn another_manifest_under_an_id_is_refused() {
    let (_folder, store) = store();
    let a = push(&store, "a", image(&noise(1, 10), &noise(2, MIB), CHUNK)).unwrap();
    let b = push(&store, "b", image(&noise(3, 10), &noise(4, MIB), CHUNK)).unwrap();
    fs::copy(store.layout.manifest(&b.id), store.layout.manifest(&a.id)).unwrap();
    let error = load(&store, "a", &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&format!("hashes to {}", b.id)), "{error}");
    assert!(matches!(error, LoadError::Damaged { .. }));
    fs::write(store.layout.name(&name("a")), "nonsense").unwrap();
    let error = load(&store, "a", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
    fs::write(store.layout.name(&name("a")), format!("{}\n", ManifestId::of(b"?"))).unwrap();
    let error = load(&store, "a", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }), "{error}");
    let damage = store.verify().unwrap().damage;
    assert!(damage[0].to_string().contains("there is no manifest"), "{damage:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn tables_survive_and_hostile_ones_never_panic(
        count in 0usize..40,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (_folder, store) = store();
        let id = PackId::random().unwrap();
        let chunks: Vec<PackedChunk> = (0..u64::try_from(count).unwrap())
            .map(|n| PackedChunk { key: ChunkKey::of(&[1]), checksum: n, offset: n << 12, length: 7 })
            .collect();
        let index = Index { seal: None, chunks };
        index.write(&store.layout, id).unwrap();
        prop_assert_eq!(Index::read(&store.layout, id).unwrap(), Some(index));

        let made = manifest(&noise(1, 40 * 4096), &noise(2, 4096 * 3), 4096);
        let mut collector = Collector::default();
        for n in 0..43 {
            collector.push(Some((if n % 2 == 0 { id } else { PackId([7; 16]) }, n)));
        }
        let locations = collector.finish();
        let manifest_id = ManifestId::of(b"some");
        let at = store.layout.locations(&manifest_id);
        fs::write(&at, locations.encode(&manifest_id)).unwrap();
        let read = Locations::read(&store.layout, &manifest_id, &made).unwrap();
        prop_assert_eq!(read, locations);

        for path in [store.layout.index(id), at] {
            let mut bytes = fs::read(&path).unwrap();
            let mut changed = false;
            for (position, value) in &changes {
                let position = position.index(bytes.len());
                changed |= bytes[position] != *value;
                bytes[position] = *value;
            }
            fs::write(&path, &bytes).unwrap();
            let refused = if path == store.layout.index(id) {
                Index::read(&store.layout, id).is_err()
            } else {
                Locations::read(&store.layout, &manifest_id, &made).is_err()
            };
            prop_assert_eq!(refused, changed);
        }
    }
}
