//! Pushes that are killed: the image is the old one or the new one, gc clears what is left, and no
//! lock stays.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Bench, guest_file};
use crate::support::{
    files, length, manifest_id, number, push, push_arguments, ready, ready_ends, wait_until,
};

/// When a push is interrupted.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// As soon as it has begun to work.
    Begun,
    /// When so many bytes are in files under way.
    Written(u64),
    /// When its new chunks are in their place, and nothing refers to them yet, or just does.
    Placed,
}

impl Moment {
    /// Whether a quick push may be done before the signal comes.
    fn is_late(self) -> bool {
        matches!(self, Self::Placed) || matches!(self, Self::Written(bytes) if bytes >= 300 << 20)
    }

    fn has_come(self, bench: &Bench, packs: usize) -> bool {
        let in_work = || files(bench, "tmp");
        // A file may have been renamed since it was listed.
        let bytes = |path: std::path::PathBuf| path.metadata().map_or(0, |data| data.len());
        match self {
            Self::Begun => !in_work().is_empty(),
            Self::Written(least) => in_work().into_iter().map(bytes).sum::<u64>() >= least,
            Self::Placed => files(bench, "packs").len() > packs,
        }
    }
}

/// Pushes `initrd` and sends `signal` at `moment`; how the push ended.
fn interrupt(bench: &Bench, initrd: &str, moment: Moment, signal: Signal) -> ExitStatus {
    let packs = files(bench, "packs").len();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file(initrd));
    let arguments = push_arguments("guest", &kernel, &initrd);
    let mut child = bench.vmm(&arguments).stdout(Stdio::null()).spawn().unwrap();
    if let Some(status) = wait_until(&mut child, || moment.has_come(bench, packs)) {
        return status;
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    wait_until(&mut child, || false).unwrap()
}

#[test]
fn an_interrupted_push_leaves_the_old_image_and_nothing_that_gc_does_not_clear() {
    let bench = Bench::new();
    let small = guest_file("initrd-small.cpio.gz");
    push(&bench, "guest", &small);
    let old = manifest_id(&bench, "guest");
    let (mut interrupted, mut leftovers) = (0, 0);
    for (moment, signal) in [
        (Moment::Begun, Signal::KILL),
        (Moment::Written(1 << 20), Signal::INT),
        (Moment::Written(100 << 20), Signal::KILL),
        (Moment::Written(200 << 20), Signal::TERM),
        (Moment::Written(300 << 20), Signal::KILL),
        (Moment::Placed, Signal::KILL),
    ] {
        let status = interrupt(&bench, "initrd-300.cpio", moment, signal);
        // Too late to stop it?
        let ended_well = status.success();
        if !ended_well {
            assert_eq!(status.signal(), Some(signal.as_raw()), "{moment:?}: {status:?}");
            interrupted += 1;
        }
        let now = manifest_id(&bench, "guest");
        assert!(!ended_well || now != old, "{moment:?}: the push ended without an image");
        // Killed behind its last step, it has named the new image all the same.
        assert!(now == old || ended_well || moment.is_late(), "{moment:?}");
        bench.expect(0, &["image", "verify"]);
        if let Some(report) = ready(&bench, "guest", &["--memory", "1G"]) {
            assert_eq!(report["manifest"], now.as_str(), "{moment:?}");
        }
        if now != old {
            push(&bench, "guest", &small);
        }
        let collected = bench.json(&["image", "gc", "--json"]);
        leftovers += number(&collected["leftovers_removed"]);
        assert!(files(&bench, "tmp").is_empty(), "{moment:?}: {collected}");
        assert_eq!(files(&bench, "packs").len(), 2, "{moment:?}: a pack and its index");
        assert_eq!(manifest_id(&bench, "guest"), old, "{moment:?}");
        ready(&bench, "guest", &["--verify-full"]);
    }
    assert!(interrupted >= 3, "only {interrupted} pushes were interrupted");
    assert!(leftovers > 0, "nothing was ever left behind");

    push(&bench, "guest", &guest_file("initrd-300.cpio"));
    assert_ne!(manifest_id(&bench, "guest"), old);
    ready(&bench, "guest", &["--memory", "1G", "--verify-full"]);
    let verified = bench.json(&["image", "verify", "--json"]);
    assert_eq!((number(&verified["images"]), length(&verified["damage"])), (1, 0));
}

#[test]
fn an_interrupted_first_push_leaves_no_image_and_a_store_that_works() {
    let bench = Bench::new();
    let (kernel, initrd) = (guest_file("vmlinuz"), guest_file("initrd-100.cpio"));
    let arguments = push_arguments("guest", &kernel, &initrd);
    let tmp = bench.store().join("tmp");
    for signal in [Signal::INT, Signal::KILL] {
        let mut child = bench.vmm(&arguments).stdout(Stdio::null()).spawn().unwrap();
        let begun = || tmp.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        let ended = wait_until(&mut child, begun);
        assert!(ended.is_none(), "{ended:?}");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = wait_until(&mut child, || false).unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()));
    }
    if bench.store().join("FORMAT").exists() {
        bench.expect(3, &["image", "inspect", "guest"]);
        ready_ends(&bench, 3, "guest", &[]);
    }
    push(&bench, "guest", &initrd);
    ready(&bench, "guest", &["--verify-full"]);
    bench.expect(0, &["image", "gc"]);
    bench.expect(0, &["image", "verify"]);
    assert!(files(&bench, "tmp").is_empty());
}
