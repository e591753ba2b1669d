//! A manager whose VMs are processes that do as little as they can.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// A manager, and what it is told of ends.
struct Bench {
    manager: Manager,
    ended: Receiver<Job>,
    folder: TempDir,
}

impl Bench {
    /// VMs are this script, which has the options of `vmm boot` as its arguments.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("vmm");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (endings, ended) = sync_channel(64);
        let manager = Self::manager(folder.path(), "boss").with_endings(endings);
        Self { manager, ended, folder }
    }

    fn manager(folder: &Path, name: &str) -> Manager {
        let quota = "count=3,memory=1G,images=debian:*".parse().unwrap();
        let vms = Vms::create(folder.join("run/vms")).unwrap();
        let launcher = Launcher {
            program: folder.join("vmm"),
            global: vec!["--store".into(), "images".into()],
            load: vec!["--cache=memcached://host".into(), "--transport=tcp".into()],
        };
        Manager::new(name.into(), quota, vms, launcher)
    }

    fn call(
        &mut self,
        operation: Operation,
        fill: impl Fn(&mut Encoder<'_>),
    ) -> Result<Vec<u8>, Error> {
        self.call_with_room(operation, 4000, fill)
    }

    fn call_with_room(
        &mut self,
        operation: Operation,
        room: u32,
        fill: impl Fn(&mut Encoder<'_>),
    ) -> Result<Vec<u8>, Error> {
        let mut input = vec![0; 4000];
        let mut fields = Encoder::new(&mut input);
        fill(&mut fields);
        let length = fields.length();
        self.manager.call(operation, &Arguments::of_result(&input[..length]), room)
    }

    fn boot(&mut self, count: u32) -> Result<Vec<u64>, Error> {
        let output = self.call(Operation::VmBoot, |fields| {
            fields.text(Tag::Image, "debian:12").unwrap().u32(Tag::Count, count).unwrap();
            fields.u64(Tag::Memory, 256 << 20).unwrap().text(Tag::VmName, "web").unwrap();
            fields.text(Tag::CommandLine, "a --b 'c d'").unwrap();
        })?;
        Ok(numbers(&output))
    }

    fn status(&mut self, vm: u64) -> Vec<u8> {
        self.call(Operation::VmStatus, |fields| _ = fields.u64(Tag::Vm, vm).unwrap()).unwrap()
    }

    /// Waits for the end of a VM.
    fn end(&self) -> u64 {
        match self.ended.recv_timeout(Duration::from_secs(60)).unwrap() {
            Job::VmEnded(number) => number,
            other => panic!("{other:?}"),
        }
    }
}

fn numbers(output: &[u8]) -> Vec<u64> {
    let words = Arguments::of_result(output).all(Tag::Vm);
    words.map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn vms_are_started_as_the_manager_wants_them() {
    let mut bench = Bench::new(r#"printf '%s\n' "$@" >"$(dirname "$0")/words"; exit 7"#);
    assert_eq!(bench.boot(1), Ok(vec![1]));
    assert_eq!(bench.end(), 1);
    let words = fs::read_to_string(bench.folder.path().join("words")).unwrap();
    let words: Vec<_> = words.lines().collect();
    assert_eq!(words[..5], ["--store", "images", "boot", "--image", "debian:12"]);
    for word in ["web", "262144K", "--transport=tcp", "--cmdline-append=a --b 'c d'"] {
        assert!(words.contains(&word), "{word} is not in {words:?}");
    }
    let status = bench.status(1);
    let status = Arguments::of_result(&status);
    assert_eq!(status.u32(Tag::State), Some(3));
    assert_eq!(status.u32(Tag::ExitCode), Some(7));
    assert_eq!(status.text(Tag::Outcome), Some("its process was killed"));
}

#[test]
fn no_more_is_started_than_the_operator_allows() {
    let mut bench = Bench::new("exec sleep 60");
    assert_eq!(bench.boot(4), Err(Error::NoMemory));
    assert_eq!(bench.boot(2), Ok(vec![1, 2]));
    assert_eq!(bench.boot(2), Err(Error::NoMemory));
    let image = |name: &'static str| {
        move |fields: &mut Encoder<'_>| _ = fields.text(Tag::Image, name).unwrap()
    };
    assert_eq!(bench.call(Operation::VmBoot, image("other")), Err(Error::NotPermitted));
    assert_eq!(bench.call(Operation::VmBoot, image("../x")), Err(Error::NoImage));
    // One more by number, but not with so much memory.
    let large = |fields: &mut Encoder<'_>| {
        fields.text(Tag::Image, "debian:12").unwrap().u64(Tag::Memory, 1 << 30).unwrap();
    };
    assert_eq!(bench.call(Operation::VmBoot, large), Err(Error::NoMemory));
    let begun = Instant::now();
    for vm in [1, 2] {
        let stop = |fields: &mut Encoder<'_>| _ = fields.u64(Tag::Vm, vm).unwrap();
        assert_eq!(bench.call(Operation::VmStop, stop), Ok(Vec::new()));
        bench.end();
        assert_eq!(bench.call(Operation::VmStop, stop), Err(Error::BadState));
    }
    assert!(begun.elapsed() < Duration::from_secs(50), "they were not stopped");
    assert_eq!(bench.boot(3), Ok(vec![3, 4, 5]));
    let output = bench.call(Operation::VmList, |_| ()).unwrap();
    assert_eq!(numbers(&output), [1, 2, 3, 4, 5]);
    for vm in 3..=5 {
        bench.call(Operation::VmStop, |fields| _ = fields.u64(Tag::Vm, vm).unwrap()).unwrap();
    }
}

#[test]
fn words_that_are_not_a_vm_are_refused() {
    let mut bench = Bench::new("exit 0");
    let cases: [(Tag, u64); 4] =
        [(Tag::Memory, 1 << 20), (Tag::Memory, (256 << 20) + 1), (Tag::Cpus, 0), (Tag::Cpus, 99)];
    for (tag, value) in cases {
        let refused = bench.call(Operation::VmBoot, |fields| {
            fields.text(Tag::Image, "debian:12").unwrap();
            match tag {
                Tag::Cpus => fields.u32(tag, u32::try_from(value).unwrap()).unwrap(),
                _ => fields.u64(tag, value).unwrap(),
            };
        });
        assert_eq!(refused, Err(Error::BadField), "{tag:?} {value}");
    }
    for name in ["-rf", "a/b", "", "a b", &"x".repeat(49)] {
        let refused = bench.call(Operation::VmBoot, |fields| {
            fields.text(Tag::Image, "debian:12").unwrap().text(Tag::VmName, name).unwrap();
        });
        assert_eq!(refused, Err(Error::BadField), "{name}");
    }
    assert!(bench.manager.vms.all().unwrap().is_empty());
}

#[test]
fn a_manager_sees_its_own_vms_and_nobody_elses() {
    let mut bench = Bench::new("exit 0");
    bench.boot(1).unwrap();
    bench.end();
    let mut other = Bench::manager(bench.folder.path(), "other");
    std::mem::swap(&mut bench.manager, &mut other);
    assert_eq!(bench.call(Operation::VmList, |_| ()), Ok(Vec::new()));
    for operation in [Operation::VmStatus, Operation::VmStop] {
        let one = |fields: &mut Encoder<'_>| _ = fields.u64(Tag::Vm, 1).unwrap();
        assert_eq!(bench.call(operation, one), Err(Error::NoSuchVm));
    }
    bench.manager = Bench::manager(bench.folder.path(), "boss");
    assert_eq!(numbers(&bench.status(1)), [1]);
}

#[test]
fn lists_come_in_parts_that_fit() {
    let mut bench = Bench::new("exit 0");
    for number in 1..=5 {
        assert_eq!(bench.boot(1), Ok(vec![number]));
        bench.end();
    }
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let part = bench
            .call_with_room(Operation::VmList, 120, |fields| {
                fields.u64(Tag::After, after).unwrap();
            })
            .unwrap();
        let part = numbers(&part);
        let Some(last) = part.last() else { break };
        after = *last;
        all.extend(part);
    }
    assert_eq!(all, [1, 2, 3, 4, 5]);
    let tiny = bench.call_with_room(Operation::VmList, 8, |_| ());
    assert_eq!(tiny, Err(Error::BadLength));
    for operation in [Operation::VmBoot, Operation::VmPrepare] {
        let tiny = bench.call_with_room(operation, 8, |fields| {
            fields.text(Tag::Image, "debian:12").unwrap();
        });
        assert_eq!(tiny, Err(Error::BadLength));
    }
    assert_eq!(bench.manager.vms.all().unwrap().len(), 5);
}

#[test]
fn what_a_vm_said_last_tells_why_it_ended() {
    let mut bench = Bench::new("echo 'vmm: there is no image: \u{1b}[2J' >&2; exit 3");
    bench.boot(1).unwrap();
    bench.end();
    let status = bench.status(1);
    let status = Arguments::of_result(&status);
    assert_eq!(status.text(Tag::Outcome), Some("there is no image: [2J"));
    assert_eq!(status.u32(Tag::ExitCode), Some(3));
}

#[test]
fn old_vms_are_forgotten_and_new_ones_known() {
    let mut bench = Bench::new("exit 0");
    for _ in 0..70 {
        bench.boot(1).unwrap();
        bench.end();
    }
    let known = bench.manager.vms.all().unwrap();
    assert_eq!((known.len(), known.last()), (MAX_ENDED + 1, Some(&70)));
}

#[test]
fn a_cache_is_nodes_and_nothing_of_this_host() {
    let mut bench = Bench::new(r#"printf '%s\n' "$@" >"$(dirname "$0")/words""#);
    let servers = |text: &'static str| {
        move |fields: &mut Encoder<'_>| _ = fields.text(Tag::Servers, text).unwrap()
    };
    for bad in ["unix:/run/x", "members:/etc/x", "a:b:c", "a,,b", "10.0.0.1:99999"] {
        assert_eq!(bench.call(Operation::CacheConfig, servers(bad)), Err(Error::BadField), "{bad}");
    }
    bench.call(Operation::CacheConfig, servers("10.0.0.1,10.0.0.2:1234")).unwrap();
    bench.boot(1).unwrap();
    bench.end();
    let words = fs::read_to_string(bench.folder.path().join("words")).unwrap();
    assert!(words.contains("\n--cache=memcached://10.0.0.1,10.0.0.2:1234\n"), "{words}");
    assert!(!words.contains("//host"), "{words}");
}

#[test]
fn chunks_are_handed_to_who_waits_for_them_and_to_nobody_else() {
    let mut bench = Bench::new("exit 1");
    let prepare = |fields: &mut Encoder<'_>| _ = fields.text(Tag::Image, "debian:12").unwrap();
    // A VM that ends before it takes chunks holds nobody up.
    assert_eq!(bench.call(Operation::VmPrepare, prepare), Err(Error::Timeout));
    assert_eq!(bench.manager.load(1, 0, b"chunk"), Err(Error::NoSuchVm));
    assert!(
        !fs::read_dir(bench.manager.vms.path()).unwrap().any(|entry| entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("load-"))
    );
}
