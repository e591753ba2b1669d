//! Guests with disks: read lazily, written to overlays, from a cache whose nodes die.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vmm::jail::seccomp::{Features, ThreadKind};

use crate::common::Bench;
use crate::common::agent::{Agent, processes};
use crate::common::guest::{Boot, boot};
use crate::common::node::Node;
use crate::common::ramdisk::push_disk;
use crate::common::trace::{self, Trace};

/// What every script begins with.
const BEGIN: &str = "modprobe -a virtio_mmio virtio_blk ext4 || echo 'disk: modules=missing'
say() { echo \"disk: $1=$2\"; }
hash() { h=$(sha256sum <\"$1\"); say \"$2\" \"${h%% *}\"; }
";

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn hash(path: &Path) -> String {
    run("sha256sum", &[path.to_str().unwrap()]).split_whitespace().next().unwrap().to_owned()
}

/// A file of random bytes.
fn random(path: PathBuf, mib: usize) -> PathBuf {
    let mut bytes = Vec::new();
    let source = std::fs::File::open("/dev/urandom").unwrap();
    source.take(u64::try_from(mib << 20).unwrap()).read_to_end(&mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A disk with a file system, in which there is a file of random bytes, and that file.
fn file_system(bench: &Bench) -> (PathBuf, PathBuf) {
    let folder = bench.path().join("files");
    std::fs::create_dir(&folder).unwrap();
    let file = random(folder.join("random"), 3);
    let disk = bench.path().join("disk.ext4");
    std::fs::File::create(&disk).unwrap().set_len(24 << 20).unwrap();
    let [folder, path] = [&folder, &disk].map(|path| path.to_str().unwrap());
    run("mkfs.ext4", &["-q", "-F", "-d", folder, path]);
    (disk, file)
}

/// What a script said.
fn said(boot: &Boot) -> HashMap<String, String> {
    assert_eq!(boot.code, Some(0), "{boot:#?}");
    let said = |line: &str| {
        let (key, value) = line.trim().strip_prefix("disk: ")?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    boot.console.lines().filter_map(said).collect()
}

fn counted(boot: &Boot, counter: &str) -> u64 {
    boot.report["guest"]["disk"][counter].as_u64().unwrap_or_else(|| panic!("{boot:#?}"))
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_disk_is_read_and_written_to_an_overlay_that_is_kept_and_stays_as_it_is() {
    let bench = Bench::new();
    let (disk, file) = file_system(&bench);
    let script = format!(
        "{BEGIN}say ro \"$(cat /sys/block/vda/ro)\"
say size \"$(cat /sys/block/vda/size)\"
say id \"$(cat /sys/block/vda/serial)\"
mkdir /mnt
if [ \"$(cat /sys/block/vda/ro)\" = 1 ]; then
    hash /dev/vda disk
    dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null && say written yes
    mount -t ext4 -o ro,noload /dev/vda /mnt && hash /mnt/random file
else
    mount -t ext4 /dev/vda /mnt && hash /mnt/random file
    if [ -e /mnt/new ]; then
        hash /mnt/new new
    else
        dd if=/mnt/random of=/mnt/new bs=64k skip=3 count=20 2>/dev/null
        rm /mnt/random
        sync
        fstrim /mnt && say trimmed yes
        echo 3 >/proc/sys/vm/drop_caches
        hash /mnt/new new
    fi
    umount /mnt
fi
say end yes
"
    );
    push_disk(&bench, "guest", &script, &disk);
    let (whole, content) = (hash(&disk), hash(&file));

    let first = boot(&bench, "guest", &[]);
    let found = said(&first);
    assert_eq!((&*found["ro"], &*found["size"]), ("1", "49152"), "{first:#?}");
    assert_eq!((&found["disk"], &found["file"]), (&whole, &content), "{first:#?}");
    assert_eq!(found["id"].len(), 20);
    assert!(!found.contains_key("written") && found.contains_key("end"), "{first:#?}");
    assert!(counted(&first, "bytes_read") >= 24 << 20);
    assert_eq!(counted(&first, "bytes_written"), 0);

    let kept = format!("overlay,file={}", bench.path().join("overlay").display());
    let writing = boot(&bench, "guest", &["--disk", &kept]);
    let found = said(&writing);
    assert_eq!((&*found["ro"], &found["file"]), ("0", &content), "{writing:#?}");
    assert_eq!(found["trimmed"], "yes", "{writing:#?}");
    assert!(counted(&writing, "bytes_written") >= 20 << 16);
    assert!(counted(&writing, "flushes") > 0);
    let new = &found["new"];

    // What was written is there for the next one with this overlay, and for nobody else.
    let again = boot(&bench, "guest", &["--disk", &kept]);
    assert_eq!(&said(&again)["new"], new, "{again:#?}");
    let other = boot(&bench, "guest", &["--disk", "ro"]);
    assert_eq!(said(&other)["disk"], whole, "{other:#?}");
    let scratch = boot(&bench, "guest", &["--disk", "overlay,size=16M"]);
    assert_eq!(said(&scratch)["file"], content, "{scratch:#?}");
    assert_eq!(&said(&scratch)["new"], new);
    let without = boot(&bench, "guest", &["--disk", "none"]);
    assert_eq!(without.code, Some(0), "{without:#?}");
    assert!(without.report["guest"]["disk"].is_null());
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn only_chunks_that_are_touched_come_from_the_cache_and_a_node_that_dies_costs_none() {
    let bench = Bench::new();
    let mut nodes: Vec<Node> =
        (0..2).map(|_| Node::start(bench.path(), &["--memory", "192M"])).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let cache = format!("memcached://{}", addresses.join(","));
    let disk = random(bench.path().join("disk"), 24);
    let few = format!(
        "{BEGIN}for n in 0 1000 5000; do
    dd if=/dev/vda bs=4k skip=$n count=1 2>/dev/null >>/found
done
hash /found found
"
    );
    let all = format!(
        "{BEGIN}dd if=/dev/vda bs=1M count=8 of=/dev/null 2>/dev/null
say part read
sleep 3
hash /dev/vda disk
"
    );
    push_disk(&bench, "few", &few, &disk);
    push_disk(&bench, "all", &all, &disk);
    for image in ["few", "all"] {
        bench.expect(0, &["image", "publish", image, "--cache", &cache]);
    }
    std::fs::remove_dir_all(bench.store()).unwrap();

    let touched = boot(&bench, "few", &["--cache", &cache]);
    let bytes = std::fs::read(&disk).unwrap();
    let expected = bench.path().join("expected");
    let parts = [0, 1000, 5000].map(|n| &bytes[n * 4096..][..4096]);
    std::fs::write(&expected, parts.concat()).unwrap();
    assert_eq!(said(&touched)["found"], hash(&expected), "{touched:#?}");
    // Three, and what the kernel looks at for partitions, at both ends.
    let fetched = counted(&touched, "chunks_fetched");
    assert!((3..=8).contains(&fetched), "{fetched} of 96 chunks: {touched:#?}");

    let report = bench.path().join("report.json");
    let mut vmm = bench
        .vmm(&["boot", "--image", "all", "--cache", &cache, "--report", report.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut console = String::new();
    for line in BufReader::new(vmm.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("disk: part=read") {
            nodes[0].signal(Signal::KILL);
            nodes[0].wait();
        }
        console.push_str(&line);
        console.push('\n');
    }
    let output = vmm.wait_with_output().unwrap();
    assert!(output.status.success(), "{console}\n{output:?}");
    let found = format!("disk: disk={}", hash(&disk));
    assert!(console.contains(&found), "{console}\n{output:?}");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_host_whose_disk_is_full_gives_the_guest_errors_and_says_so_once() {
    let bench = Bench::new();
    let disk = random(bench.path().join("disk"), 16);
    let script = format!(
        "{BEGIN}dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null && say small good
for n in 1 2 3; do
    dd if=/dev/zero of=/dev/vda bs=64k seek=16 count=200 conv=fsync 2>/dev/null || say large failed
done
dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null && say again good
"
    );
    push_disk(&bench, "guest", &script, &disk);
    let small = bench.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let path = small.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs", path]);
    let kept = format!("overlay,file={path}/overlay");
    let full = boot(&bench, "guest", &["--disk", &kept]);
    run("umount", &["-l", path]);
    let found = said(&full);
    assert_eq!(found["small"], "good", "{full:#?}");
    assert_eq!(found["large"], "failed", "{full:#?}");
    assert_eq!(found["again"], "good", "{full:#?}");
    assert!(counted(&full, "errors") > 0);
    // Once for each time that it came to be full: writes that succeed in between begin anew.
    let told = full.stderr.matches("the guest gets I/O errors from its disk").count();
    assert!((1..=8).contains(&told), "{full:#?}");
    assert!(full.stderr.contains("No space left"), "{full:#?}");
}

/// What a guest does to a disk: all there is.
const EVERYTHING: &str = "mkdir /mnt
mount -t ext4 /dev/vda /mnt && hash /mnt/random file
dd if=/mnt/random of=/mnt/new bs=64k count=20 2>/dev/null
rm /mnt/random
sync
fstrim /mnt && say trimmed yes
echo 3 >/proc/sys/vm/drop_caches
hash /mnt/new new
umount /mnt
say end yes
";

/// A disk of a VM in a jail, out of a store that it reads itself and from an agent that serves it; seen from
/// outside, with the filters in force.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_disk_works_in_a_jail_and_its_threads_may_do_what_they_do_and_no_more() {
    let bench = Bench::new();
    let (disk, file) = file_system(&bench);
    push_disk(&bench, "guest", &format!("{BEGIN}{EVERYTHING}"), &disk);
    let content = hash(&file);
    let console = bench.path().join("console");
    let mut command = bench.vmm(&["boot", "--jail", "--image", "guest", "--disk", "overlay"]);
    command.arg("--console").arg(&console).stdout(Stdio::null());
    let features = Features { disk: true, ..Features::default() };
    let alone = trace::run(command, features, |_| {});
    let printed = std::fs::read_to_string(console).unwrap();
    assert!(printed.contains(&format!("disk: file={content}")), "{printed} {alone:#?}");
    assert!(printed.contains("disk: end=yes"), "{printed} {alone:#?}");

    let (served, printed) = served_by_an_agent(bench);
    assert!(printed.contains(&format!("disk: file={content}")), "{printed} {served:#?}");
    assert!(printed.contains("disk: end=yes"), "{printed} {served:#?}");

    let mut used = alone.used;
    used.extend(served.used);
    let mut refused = alone.refused;
    refused.extend(served.refused);
    assert!(refused.is_empty(), "{refused:#?}");
    let kinds = [ThreadKind::Disk, ThreadKind::Fetch].into();
    let wanted = trace::to_be_used(&kinds, features);
    let unused: Vec<_> = wanted.difference(&used).collect();
    assert!(unused.is_empty(), "{unused:#?}");
}

/// Boots the image `guest` by an agent; what its processes did, and what the guest printed.
fn served_by_an_agent(bench: Bench) -> (Trace, String) {
    let features = Features { disk: true, attach: true, images: true, ..Features::default() };
    let (agent, command) = Agent::to_be_started(bench);
    let mut printed = String::new();
    let trace = std::thread::scope(|scope| {
        let (agent, printed) = (&agent, &mut printed);
        scope.spawn(move || {
            agent.answers();
            agent.boot("web", "guest", &["--disk", "overlay"]);
            let vm = agent.ended("web");
            *printed = format!("{vm} {}", agent.console("web"));
            agent.expect(0, &["rm", "web"]);
            let run = agent.run();
            let is_it = |pid: &u32| {
                let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                words.is_ok_and(|words| words.contains(&*run.to_string_lossy()))
            };
            for pid in processes().filter(is_it) {
                let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                kill_process(pid, Signal::TERM).unwrap();
            }
        });
        trace::run(command, features, |_| {})
    });
    (trace, printed)
}
