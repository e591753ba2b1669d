//! Tests of the store as a whole.

mod concurrency;
mod crash;
mod damage;
mod garbage;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::SystemTime;

use super::*;
use crate::client::{LoadError, LoadOptions, Verification, Verify};
use crate::image::import::{ImportOptions, ImportedKernel, KernelSegment};
use crate::testing::{KERNEL_ADDRESS, files, image, load, name, noise, push};

const CHUNK: u32 = 64 << 10;
const MIB: usize = 1 << 20;

/// A new store in a folder of its own.
fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&folder.path().join("images")).unwrap();
    (folder, store)
}

fn packs(store: &Store) -> Vec<PathBuf> {
    let mut packs: Vec<PathBuf> = files(&store.layout.packs())
        .into_keys()
        .filter(|path| path.extension().is_none())
        .collect();
    packs.sort();
    packs
}

/// Loads `of_name` and compares it with what was pushed.
fn assert_loads(store: &Store, of_name: &str, kernel: &[u8], initrd: &[u8]) {
    let (segments, _) = load(store, of_name, &LoadOptions::default()).unwrap();
    assert!(segments == [kernel, initrd], "{of_name} is not what was pushed");
}

#[test]
fn what_was_pushed_is_loaded() {
    let (_folder, store) = store();
    let kernel = noise(1, 300_001);
    let mut initrd = noise(2, 5 * MIB + 17);
    initrd[MIB..2 * MIB].fill(0);
    let report = push(&store, "debian:12", image(&kernel, &initrd, CHUNK)).unwrap();
    assert_eq!(report.bytes_total, 300_001 + 5 * (1 << 20) + 17);
    assert_eq!(report.bytes_zero, 1 << 20);
    assert_eq!((report.bytes_shared, report.chunks_zero, report.chunks_total), (0, 16, 86));
    assert_eq!(report.bytes_new, report.bytes_total - report.bytes_zero);

    let told = std::sync::atomic::AtomicU64::new(0);
    let progress = |bytes| {
        told.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let options = LoadOptions { progress: Some(&progress), ..LoadOptions::default() };
    let (segments, loaded) = load(&store, "debian:12", &options).unwrap();
    assert!(segments == [&kernel[..], &initrd[..]]);
    assert_eq!(loaded.verify, Verification::Checksum);
    assert_eq!((loaded.bytes_fetched, loaded.bytes_zero), (report.bytes_new, report.bytes_zero));
    assert_eq!((loaded.chunks, loaded.transport), (70, "embedded"));
    assert_eq!(told.into_inner(), report.bytes_new);

    let full = LoadOptions { verify: Verify::Full, progress: None };
    let (segments, loaded) = load(&store, "debian:12", &full).unwrap();
    assert!(segments == [&kernel[..], &initrd[..]]);
    assert_eq!(loaded.verify, Verification::Full);
}

#[test]
fn equal_chunks_are_stored_once() {
    let (_folder, store) = store();
    let (kernel, mut initrd) = (noise(1, MIB), noise(2, 4 * MIB));
    let first = push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    let again = push(&store, "b", image(&kernel, &initrd, CHUNK)).unwrap();
    assert_eq!((again.id, again.bytes_new), (first.id, 0));
    assert_eq!(packs(&store).len(), 1);

    initrd[3 * MIB] ^= 1;
    let changed = push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    assert_eq!((changed.chunks_new, changed.bytes_new), (1, u64::from(CHUNK)));
    assert_loads(&store, "a", &kernel, &initrd);
    let shown = store.inspect(&name("a")).unwrap();
    assert_eq!(shown.bytes_stored - shown.bytes_shared, u64::from(CHUNK));
    assert_eq!(shown.packs.iter().map(|pack| pack.bytes).sum::<u64>(), shown.bytes_stored);
    initrd[3 * MIB] ^= 1;
    assert_loads(&store, "b", &kernel, &initrd);

    let twice = [&initrd[..MIB], &initrd[..MIB]].concat();
    let doubled = push(&store, "c", image(&noise(9, MIB), &twice, CHUNK)).unwrap();
    assert_eq!((doubled.bytes_new, doubled.bytes_shared), (1 << 20, 2 << 20));
    assert_loads(&store, "c", &noise(9, MIB), &twice);
}

#[test]
fn every_chunk_size_loads() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 70_001), noise(2, 3 * MIB + 4095));
    for shift in 12..=20 {
        push(&store, "x", image(&kernel, &initrd, 1 << shift)).unwrap();
        assert_loads(&store, "x", &kernel, &initrd);
    }
    for size in [0, 1, 2048, 4097, 2 << 20] {
        let error = push(&store, "x", image(&kernel, &initrd, size)).unwrap_err();
        assert!(matches!(error, StoreError::InvalidImage { .. }), "{error}");
    }
    assert_loads(&store, "x", &kernel, &initrd);
}

#[test]
fn names_come_and_go() {
    let (_folder, store) = store();
    push(&store, "team/app@v1", image(&[1], &[2], CHUNK)).unwrap();
    push(&store, "b", image(&[1], &[3], CHUNK)).unwrap();
    assert_eq!(store.names().unwrap(), [name("b"), name("team/app@v1")]);
    let listed = store.list().unwrap();
    let summary = listed[1].1.as_ref().unwrap();
    assert_eq!((summary.bytes, summary.initrd_bytes), (2, Some(1)));
    assert!(summary.pushed <= SystemTime::now());
    store.remove(&name("team/app@v1")).unwrap();
    assert!(matches!(store.remove(&name("team/app@v1")), Err(StoreError::UnknownImage(_))));
    assert!(matches!(store.resolve(&name("team/app@v1")), Err(StoreError::UnknownImage(_))));
    let error = load(&store, "team/app@v1", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::NotFound(_)));
}

#[test]
fn a_folder_is_a_store_only_if_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = Store::open(&missing).unwrap_err();
    assert!(matches!(&error, StoreError::NoFolder(path) if *path == missing), "{error}");
    assert!(!missing.exists());
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    assert!(error.to_string().contains("no file FORMAT"), "{error}");
    Store::create(folder.path()).unwrap();
    Store::create(folder.path()).unwrap();
    fs::write(folder.path().join("FORMAT"), "vmm image store 9\n").unwrap();
    let error = Store::create(folder.path()).unwrap_err();
    assert!(error.to_string().contains("vmm image store 9"), "{error}");
}

#[test]
fn content_that_fails_or_lies_is_refused() {
    let (_folder, store) = store();
    let failing = |length, content: Content<'static>| {
        let mut image = image(&[1], &[2], CHUNK);
        image.segments[1].data_length = length;
        image.segments[1].content = content;
        push(&store, "a", image).unwrap_err()
    };
    let short = failing(Some(10), Box::new(|sink| Ok(sink.write_all(&[1; 9]).map(|()| vec![])?)));
    assert!(short.to_string().contains("segment 1, after 9 bytes: 10 bytes were"), "{short}");
    let broken = failing(
        None,
        Box::new(|sink| {
            sink.write_all(&vec![7; MIB])?;
            Err("the archive ends here".into())
        }),
    );
    assert!(broken.to_string().contains("after 1048576 bytes: the archive ends here"), "{broken}");
    assert!(packs(&store).is_empty() && files(&store.layout.tmp()).is_empty());
    assert_eq!(store.names().unwrap(), []);
}

#[test]
fn extents_are_what_can_be_mapped() {
    use std::os::unix::fs::FileExt;

    let (_folder, store) = store();
    let mut initrd = noise(2, 9 * MIB + 5);
    initrd[5 * MIB..5 * MIB + 100_000].fill(0);
    push(&store, "a", image(&noise(1, MIB), &initrd, CHUNK)).unwrap();
    let check = |of_name: &str, initrd: &[u8], expected: &[(u64, u64)]| {
        let image = store.open_image(&store.resolve(&name(of_name)).unwrap()).unwrap();
        let extents = crate::transport::Session::mappable(&image);
        let found: Vec<_> = extents.iter().map(|e| (e.offset >> 20, e.length >> 20)).collect();
        assert_eq!(found, expected);
        for extent in extents {
            assert_eq!(extent.segment, 1);
            assert_eq!((extent.offset | extent.length | extent.file_offset) % (2 << 20), 0);
            let mut mapped = vec![0; usize::try_from(extent.length).unwrap()];
            extent.file.read_exact_at(&mut mapped, extent.file_offset).unwrap();
            let start = usize::try_from(extent.offset).unwrap();
            let end = initrd.len().min(start + mapped.len());
            assert!(mapped[..end - start] == initrd[start..end]);
            assert!(mapped[end - start..].iter().all(|byte| *byte == 0));
        }
    };
    // A zero chunk breaks the huge page at 4 MiB; the last one is but partly filled.
    check("a", &initrd, &[(0, 4), (6, 4)]);

    // A changed chunk is in another pack, so its huge page is in two.
    initrd[7 * MIB] ^= 1;
    push(&store, "b", image(&noise(1, MIB), &initrd, CHUNK)).unwrap();
    check("b", &initrd, &[(0, 4), (8, 2)]);

    // Something behind the end of the ramdisk would be seen by a guest.
    let pack = &packs(&store)[0];
    let tainted = packs(&store).into_iter().max_by_key(|p| p.metadata().unwrap().blocks());
    let tainted = tainted.unwrap_or_else(|| pack.clone());
    let file = fs::File::options().write(true).open(&tainted).unwrap();
    let end = file.metadata().unwrap().len();
    file.write_all_at(&[1], end - 1).unwrap();
    check("b", &initrd, &[(0, 4)]);
}

#[test]
fn a_read_only_store_is_booted_from_and_stays_as_it_is() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 1000), noise(2, 3 * MIB));
    push(&store, "a", image(&kernel, &initrd, CHUNK)).unwrap();
    let before = files(store.path());
    let folders =
        ["", "packs", "manifests", "names", "tmp"].map(|folder| store.path().join(folder));
    let set_modes = |folder_mode, file_mode| {
        for path in before.keys() {
            fs::set_permissions(path, fs::Permissions::from_mode(file_mode)).unwrap();
        }
        for folder in &folders {
            fs::set_permissions(folder, fs::Permissions::from_mode(folder_mode)).unwrap();
        }
    };
    let status = |path: &PathBuf| {
        let status = fs::metadata(path).unwrap();
        (status.ino(), status.mtime_nsec(), status.ctime_nsec())
    };
    set_modes(0o555, 0o444);
    let statuses: Vec<_> = before.keys().chain(&folders).map(status).collect();
    let read_only = Store::open(store.path()).unwrap();
    assert_loads(&read_only, "a", &kernel, &initrd);
    assert_eq!(read_only.inspect(&name("a")).unwrap().bytes_stored, 1000 + (3 << 20));
    assert!(read_only.list().unwrap()[0].1.is_ok());
    // Changed modes are changed ctimes, so it hashes in full, and can seal nothing where it may
    // not write.
    assert_eq!(read_only.verify().unwrap().damage, []);
    let after: Vec<_> = before.keys().chain(&folders).map(status).collect();
    set_modes(0o755, 0o644);
    // The superuser may write all the same, which verification alone makes use of.
    if !rustix::process::geteuid().is_root() {
        assert_eq!(statuses, after);
        assert!(files(store.path()) == before);
    }
}

#[test]
fn the_cache_is_dropped_only_if_asked_for() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 1000), noise(2, 3 * MIB));
    let options = PushOptions { drop_cache: true, progress: None };
    store.push(&name("a"), image(&kernel, &initrd, CHUNK), options).unwrap();
    assert_loads(&store, "a", &kernel, &initrd);
    assert!(store.inspect(&name("a")).unwrap().sealed);
}

#[test]
fn progress_reaches_the_total() {
    let (_folder, store) = store();
    let mut last = (0, None);
    let mut progress = |done, total| {
        assert!(done > last.0);
        last = (done, total);
    };
    let options = PushOptions { drop_cache: false, progress: Some(&mut progress) };
    store.push(&name("a"), image(&noise(1, 7), &noise(2, MIB + 3), CHUNK), options).unwrap();
    assert_eq!(last, ((1 << 20) + 10, Some((1 << 20) + 10)));
}

#[test]
fn an_import_becomes_an_image() {
    let (_folder, store) = store();
    let info = crate::testing::kernel_info();
    let data = noise(1, 100_000);
    let kernel = ImportedKernel {
        format: info.format,
        compression: info.compression,
        segments: vec![KernelSegment {
            address: KERNEL_ADDRESS,
            data: data.clone(),
            memory_length: 300_000,
        }],
        entries: info.entries,
        setup_header: info.setup_header.clone(),
        initrd_addr_max: info.initrd_addr_max,
        cmdline_max: info.cmdline_max,
        can_load_initrd_above_4g: info.initrd_above_4g,
        version: info.version.clone(),
        notes: vec!["kernel noted".to_owned()],
    };
    let initrd = noise(2, MIB + 1);
    let as_is = ImportOptions { as_is: true, ..ImportOptions::default() };
    let new = NewImage::from_import(kernel.clone(), Some((&initrd, &as_is)), "quiet".into(), CHUNK);
    let report = push(&store, "a", new).unwrap();
    assert_loads(&store, "a", &data, &initrd);
    let manifest = store.inspect(&name("a")).unwrap().manifest;
    assert_eq!((&manifest.kernel, &manifest.cmdline[..]), (&info, "quiet"));
    assert_eq!(
        (manifest.segments[0].memory_length, manifest.notes[0].as_str()),
        (300_000, "kernel noted")
    );
    assert_eq!(report.notes, manifest.notes);
    assert_eq!(manifest.initrd().map(|(index, _)| index), Some(1));

    // A ramdisk that is none fails the push, and the image stays as it was.
    let unpack = ImportOptions::default();
    let new = NewImage::from_import(kernel, Some((&initrd, &unpack)), String::new(), CHUNK);
    let error = push(&store, "a", new).unwrap_err();
    assert!(matches!(error, StoreError::Source { segment: 1, .. }), "{error}");
    assert_loads(&store, "a", &data, &initrd);
}
