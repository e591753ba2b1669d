//! Pushes, loads, removals and garbage collections at the same time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::push::Step;
use super::*;

#[test]
fn pushes_loads_and_gc_do_not_disturb_each_other() {
    let (_folder, store) = store();
    let shared = noise(0, 2 * MIB);
    let content = |number: u64| {
        let own = noise(number, MIB / 2);
        (noise(100 + number, 5000), [&shared[..], &own[..]].concat())
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pushers: Vec<_> = (0..4u64)
            .map(|number| {
                let (store, content) = (&store, &content);
                scope.spawn(move || {
                    for round in 0..6 {
                        // All push under one name the same content, and under one of their own.
                        let (kernel, initrd) = content(50);
                        push(store, "same", image(&kernel, &initrd, CHUNK)).unwrap();
                        assert_loads(store, "same", &kernel, &initrd);
                        let (kernel, initrd) = content(number * 10 + round);
                        let own = format!("own-{number}");
                        push(store, &own, image(&kernel, &initrd, CHUNK)).unwrap();
                        assert_loads(store, &own, &kernel, &initrd);
                        if round % 2 == 1 {
                            store.remove(&name(&own)).unwrap();
                        }
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            let mut runs = 0;
            while !done.load(Ordering::Relaxed) {
                match store.clone().with_patience(Duration::from_millis(20)).gc() {
                    Ok(_) => runs += 1,
                    Err(error) => assert!(matches!(error, StoreError::Locked { .. }), "{error}"),
                }
            }
            runs
        });
        let results: Vec<_> = pushers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        for result in results {
            result.unwrap();
        }
    });
    let report = store.gc().unwrap();
    assert!(report.packs_busy.is_empty());
    assert_eq!(store.names().unwrap(), [name("same")]);
    let (kernel, initrd) = content(50);
    assert_loads(&store, "same", &kernel, &initrd);
    assert_eq!(store.verify().unwrap().damage, []);
}

#[test]
fn gc_waits_for_a_push_and_says_so() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 1000), noise(2, MIB));
    let impatient = store.clone().with_patience(Duration::from_millis(30));
    let mut attempts = 0;
    store
        .push_observed(
            &name("a"),
            image(&kernel, &initrd, CHUNK),
            PushOptions::default(),
            &mut |_| {
                let begin = Instant::now();
                let error = impatient.gc().unwrap_err();
                assert!(begin.elapsed() >= Duration::from_millis(30));
                assert!(
                    error.to_string().contains("lock' is locked by a push or a boot"),
                    "{error}"
                );
                attempts += 1;
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(attempts, 7);
    impatient.gc().unwrap();
    assert_loads(&store, "a", &kernel, &initrd);
}

#[test]
fn what_another_push_has_written_can_be_shared_though_that_push_fails() {
    let (_folder, store) = store();
    let (kernel, initrd) = (noise(1, 1000), noise(2, MIB));
    let failed = store.push_observed(
        &name("a"),
        image(&kernel, &initrd, CHUNK),
        PushOptions::default(),
        &mut |step| {
            if step != Step::IndexPlaced {
                return Ok(());
            }
            let report = push(&store, "b", image(&kernel, &initrd, CHUNK)).unwrap();
            assert_eq!(report.bytes_new, 0);
            Err(StoreError::UnknownImage(name("a")))
        },
    );
    failed.unwrap_err();
    store.gc().unwrap();
    assert_loads(&store, "b", &kernel, &initrd);
}
