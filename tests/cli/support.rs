//! What the tests here share: boots that stop short of the guest, runs that may not hang, ramdisks
//! made for a test, and a look into the store's folders.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Bench, guest_file, stderr};

/// What takes longer hangs, however slow the host.
const HANG: Duration = Duration::from_secs(120);

/// Waits until `condition` holds, or for the end of `child`, whose status is then returned.
pub fn wait_until(child: &mut Child, mut condition: impl FnMut() -> bool) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if condition() {
            return None;
        }
        if begun.elapsed() > HANG {
            child.kill().unwrap();
            panic!("{child:?} hangs");
        }
        sleep(Duration::from_micros(200));
    }
}

/// Runs it to its end, which must come.
pub fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What it prints fits into the pipes.
    wait_until(&mut child, || false);
    child.wait_with_output().unwrap()
}

/// Whether machines can be made here at all.
fn has_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Does everything up to the guest's first instruction, and expects that to end with `code`.
///
/// `None` where the host has no KVM: that this is said instead has then been checked.
pub fn ready_ends(bench: &Bench, code: i32, image: &str, arguments: &[&str]) -> Option<Output> {
    let all = [&["boot", "--ready-only", "--image", image], arguments].concat();
    if has_kvm() {
        return Some(bench.expect(code, &all));
    }
    let output = bench.expect(5, &all);
    assert!(stderr(&output).contains("/dev/kvm"), "{output:?}");
    eprintln!("this host has no KVM, which is all that vmm {all:?} could be seen to say");
    None
}

/// The same with success, and the report of it.
pub fn ready(bench: &Bench, image: &str, arguments: &[&str]) -> Option<Value> {
    let output = ready_ends(bench, 0, image, &[&["--json"], arguments].concat())?;
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The arguments that push `kernel` and `initrd` as `name`.
pub fn push_arguments<'a>(name: &'a str, kernel: &'a Path, initrd: &'a Path) -> Vec<&'a str> {
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    vec!["image", "push", name, "--kernel", kernel, "--initrd", initrd, "--json"]
}

/// Pushes the test guest's kernel with `initrd` as `name`; the report of it.
pub fn push(bench: &Bench, name: &str, initrd: &Path) -> Value {
    bench.json(&push_arguments(name, &guest_file("vmlinuz"), initrd))
}

/// The id of the manifest that `name` stands for.
pub fn manifest_id(bench: &Bench, name: &str) -> String {
    bench.json(&["image", "inspect", name, "--json"])["id"].as_str().unwrap().to_owned()
}

/// A number of a report.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// How many images, chunks, packs and so on there are.
pub fn length(value: &Value) -> usize {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list")).len()
}

/// The files in a folder of the store.
pub fn files(bench: &Bench, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.store().join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Writes a ramdisk of one file with `content`, and returns its path.
pub fn ramdisk(bench: &Bench, name: &str, content: &[u8]) -> PathBuf {
    let mut archive = cpio_entry("content", 0o100_644, content);
    archive.extend_from_slice(&cpio_entry("TRAILER!!!", 0, b""));
    let path = bench.path().join(name);
    fs::write(&path, archive).unwrap();
    path
}

/// An entry of a newc archive.
fn cpio_entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let (size, name_size) = (content.len(), name.len() + 1);
    let mut entry = format!(
        "070701{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}{:08X}{:08X}{:08X}{:08X}\
         {name_size:08X}{:08X}{name}\0",
        1, 0, 0, 1, 0, 0, 0, 0, 0, 0
    )
    .into_bytes();
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// `length` bytes of real content, no two parts of which are alike.
pub fn content(length: usize) -> Vec<u8> {
    let mut bytes = fs::read(guest_file("vmlinuz")).unwrap();
    bytes.drain(..1 << 20);
    bytes.truncate(length);
    assert_eq!(bytes.len(), length, "the kernel is too small for that");
    bytes
}
