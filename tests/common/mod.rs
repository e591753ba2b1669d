//! What tests of the whole program share: the program, the guest images, a folder to work in.
#![allow(dead_code, reason = "each test program uses its part of it")]

pub mod agent;
pub mod certificates;
pub mod dhcp;
pub mod guest;
pub mod hang;
pub mod node;
pub mod ovs;
pub mod ramdisk;
pub mod trace;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The guest images that scripts/guest-image made; scripts/test says where.
pub fn guest_file(name: &str) -> PathBuf {
    let folder = std::env::var_os("VMM_TEST_IMAGES")
        .expect("VMM_TEST_IMAGES is not set: run the tests with scripts/test");
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is missing: run the tests with scripts/test", path.display());
    path
}

/// Whether tests that repeat something shall do so as often as it takes to trust it, and not only as often as
/// there is time for each time (`scripts/test --long`).
pub fn is_long() -> bool {
    std::env::var_os("VMM_TEST_LONG").is_some()
}

/// The program: the one that scripts/test names (the release build, for what is measured), else
/// the one built with the tests.
pub fn program() -> OsString {
    std::env::var_os("VMM_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_vmm").into())
}

/// A store of its own, and the program to use it with.
#[derive(Debug)]
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// The folder of this test; removed at its end.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// The program, with this test's store and nothing on standard input.
    pub fn vmm(&self, arguments: &[&str]) -> Command {
        // A test that was started in the background of a shell ignores SIGINT, and what it starts
        // would too.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,HUP,TERM").arg(program());
        command.env("VMM_STORE", self.store()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it; panics, with what it said, if it does not end with `code`.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.vmm(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "vmm {arguments:?}\n--- stdout\n{}\n--- stderr\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Runs it and reads the JSON that it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.expect(0, arguments);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pushes the test guest as `name`.
    pub fn push(&self, name: &str, kernel: &str, initrd: &str) {
        let (kernel, initrd) = (guest_file(kernel), guest_file(initrd));
        self.expect(
            0,
            &[
                "image",
                "push",
                name,
                "--kernel",
                kernel.to_str().unwrap(),
                "--initrd",
                initrd.to_str().unwrap(),
            ],
        );
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Flips a bit in the middle of the largest pack of the store.
pub fn damage_a_pack(bench: &Bench) {
    use std::os::unix::fs::FileExt;

    let packs = std::fs::read_dir(bench.store().join("packs")).unwrap();
    let pack = packs
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    // Stored read-only; the damage is not done by its owner.
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&pack, writable).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&pack).unwrap();
    let at = first_data_near(&file, file.metadata().unwrap().len() / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A place at or behind `offset` that is not a hole.
fn first_data_near(file: &std::fs::File, offset: u64) -> u64 {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)).unwrap_or(offset)
}
