//! Pushes, boots, checks and collections of the same name at the same time.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::{Bench, guest_file};
use crate::support::{content, files, length, manifest_id, push, ramdisk, ready};

const PUSHES: usize = 4;

#[test]
fn boots_get_one_image_or_the_other_whole_while_both_are_pushed_and_collected() {
    let bench = Bench::new();
    let bytes = content(6 << 20);
    let initrds = [
        guest_file("initrd-small.cpio.gz"),
        ramdisk(&bench, "first", &bytes[..4 << 20]),
        ramdisk(&bench, "second", &bytes[1 << 20..]),
    ];
    push(&bench, "guest", &initrds[0]);
    let pushed = Mutex::new(BTreeSet::from([manifest_id(&bench, "guest")]));
    let booted = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pushers: Vec<_> = initrds[1..]
            .iter()
            .map(|initrd| {
                let (bench, pushed, old) = (&bench, &pushed, &initrds[0]);
                scope.spawn(move || {
                    for round in 0..PUSHES {
                        // Alternately a new image and the one that was there.
                        let initrd = if round % 2 == 0 { initrd } else { old };
                        let report = push(bench, "guest", initrd);
                        let id = report["id"].as_str().unwrap().to_owned();
                        pushed.lock().unwrap().insert(id);
                    }
                })
            })
            .collect();
        for way in [&[][..], &["--verify-full", "--ramdisk", "copy"]] {
            let (bench, booted, done) = (&bench, &booted, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let Some(report) = ready(bench, "guest", way) else { return };
                    let id = report["manifest"].as_str().unwrap().to_owned();
                    booted.lock().unwrap().push(id);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bench.expect(0, &["image", "gc"]);
                bench.expect(0, &["image", "verify"]);
                bench.expect(0, &["image", "ls"]);
            }
        });
        let results: Vec<_> = pushers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok), "a push failed");
    });

    let (pushed, booted) = (pushed.into_inner().unwrap(), booted.into_inner().unwrap());
    assert_eq!(pushed.len(), 3);
    assert!(booted.iter().all(|id| pushed.contains(id)), "{booted:?} of {pushed:?}");
    assert!(pushed.contains(&manifest_id(&bench, "guest")));
    bench.expect(0, &["image", "gc"]);
    let verified = bench.json(&["image", "verify", "--json"]);
    assert_eq!(length(&verified["damage"]), 0);
    assert!(files(&bench, "tmp").is_empty());
    assert_eq!(files(&bench, "manifests").len(), 2, "a manifest and its locations");
    ready(&bench, "guest", &["--verify-full"]);
}

#[test]
fn pushes_of_different_names_at_once_all_arrive() {
    let bench = Bench::new();
    let initrds: Vec<_> = (0..4_u8)
        .map(|seed| ramdisk(&bench, &format!("initrd-{seed}"), &vec![seed + 1; 1 << 20]))
        .collect();
    thread::scope(|scope| {
        for (number, initrd) in initrds.iter().enumerate() {
            let bench = &bench;
            // All of them make the store.
            scope.spawn(move || push(bench, &format!("guest-{number}"), initrd));
        }
    });
    let listed = bench.json(&["image", "ls", "--json"]);
    assert_eq!(length(&listed["images"]), initrds.len());
    bench.expect(0, &["image", "verify"]);
    for number in 0..initrds.len() {
        ready(&bench, &format!("guest-{number}"), &["--verify-full"]);
    }
}
