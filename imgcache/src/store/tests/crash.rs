//! Interrupted pushes: by a crash, which leaves everything as it is, and by errors.

use super::super::push::Step;
use super::*;
use crate::testing::copy;

const STEPS: [Step; 7] = [
    Step::ChunksWritten,
    Step::FilesWritten,
    Step::PackPlaced,
    Step::IndexPlaced,
    Step::ManifestPlaced,
    Step::LocationsPlaced,
    Step::NamePlaced,
];

#[test]
fn a_crash_leaves_the_old_image_or_the_new() {
    let (folder, store) = store();
    let old = (noise(1, 100_000), noise(2, 3 * MIB));
    // Shares chunks with the old one.
    let new = (noise(3, 100_000), [&old.1[..MIB], &noise(4, 3 * MIB)].concat());
    push(&store, "a", image(&old.0, &old.1, CHUNK)).unwrap();

    let mut crashed = Vec::new();
    store
        .push_observed(
            &name("a"),
            image(&new.0, &new.1, CHUNK),
            PushOptions::default(),
            &mut |step| {
                let left = folder.path().join(format!("{step:?}"));
                copy(store.path(), &left);
                crashed.push((step, left));
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(crashed.iter().map(|(step, _)| *step).collect::<Vec<_>>(), STEPS);

    for (step, left) in crashed {
        let store = Store::open(&left).unwrap();
        let (kernel, initrd) = if step == Step::NamePlaced { &new } else { &old };
        assert_loads(&store, "a", kernel, initrd);
        assert_eq!(store.verify().unwrap().damage, []);
        let report = store.gc().unwrap();
        assert!(files(&store.layout.tmp()).is_empty());
        assert_eq!(packs(&store).len(), if step == Step::NamePlaced { 2 } else { 1 });
        assert_eq!(files(&store.layout.manifests()).len(), 2);
        assert_loads(&store, "a", kernel, initrd);
        if step == Step::FilesWritten {
            assert_eq!((report.leftovers_removed, report.packs_removed), (4, 0));
            assert!(report.bytes_freed > 3 << 20, "{report:?}");
        }
        // And it can be pushed again.
        push(&store, "a", image(&new.0, &new.1, CHUNK)).unwrap();
        assert_loads(&store, "a", &new.0, &new.1);
        assert_eq!(store.verify().unwrap().damage, []);
    }
}

#[test]
fn a_crash_of_the_first_push_leaves_nothing_or_all() {
    let (folder, store) = store();
    let mut crashed = Vec::new();
    store
        .push_observed(
            &name("a"),
            image(&noise(1, 1000), &noise(2, MIB), CHUNK),
            PushOptions::default(),
            &mut |step| {
                let left = folder.path().join(format!("{step:?}"));
                copy(store.path(), &left);
                crashed.push((step, left));
                Ok(())
            },
        )
        .unwrap();
    for (step, left) in crashed {
        let store = Store::open(&left).unwrap();
        assert_eq!(store.names().unwrap().is_empty(), step != Step::NamePlaced);
        store.gc().unwrap();
        let kept = files(&store.layout.packs()).len();
        assert_eq!(kept, if step == Step::NamePlaced { 2 } else { 0 });
    }
}

#[test]
fn an_error_leaves_nothing_to_see() {
    for failing in STEPS.into_iter().take(6) {
        let (_folder, store) = store();
        let old = (noise(1, 1000), noise(2, MIB));
        push(&store, "a", image(&old.0, &old.1, CHUNK)).unwrap();
        let before = files(store.path());
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = store
            .push_observed(
                &name("a"),
                image(&noise(3, 1000), &noise(4, MIB), CHUNK),
                PushOptions::default(),
                &mut |step| {
                    if step == failing {
                        Err(StoreError::io("write", store.path())(full()))
                    } else {
                        Ok(())
                    }
                },
            )
            .unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        assert!(files(&store.layout.tmp()).is_empty(), "after {failing:?}");
        assert_loads(&store, "a", &old.0, &old.1);
        if matches!(failing, Step::ChunksWritten | Step::FilesWritten | Step::PackPlaced) {
            assert!(files(store.path()) == before, "after {failing:?}");
        } else {
            // What others may have come to share is left to gc.
            store.gc().unwrap();
            assert!(files(store.path()) == before, "after {failing:?}");
        }
    }
}
