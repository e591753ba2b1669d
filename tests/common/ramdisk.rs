//! Ramdisks for tests: that of the test guest, a script that it runs in place of its self-test, and
//! programs for the script.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Bench, guest_file};

/// The guest agent, and the programs that try the control device, which scripts/guest-agent made;
/// scripts/test says where.
pub fn agent() -> PathBuf {
    let path = std::env::var_os("VMM_TEST_AGENT")
        .expect("VMM_TEST_AGENT is not set: run the tests with scripts/test");
    PathBuf::from(path)
}

/// A program that tries the control device.
pub fn example(name: &str) -> PathBuf {
    let path = agent().with_file_name("examples").join(name);
    assert!(path.exists(), "{} is missing: scripts/guest-agent --examples", path.display());
    path
}

/// Pushes the test guest with the agent and with `script`, which finds `programs` in its PATH.
pub fn push_script(bench: &Bench, name: &str, script: &str, programs: &[PathBuf]) {
    push_options(bench, name, script, programs, &[]);
}

/// As [`push_script`], with further options of `vmm image push`.
pub fn push_options(
    bench: &Bench,
    name: &str,
    script: &str,
    programs: &[PathBuf],
    options: &[&str],
) {
    let initrd = ramdisk(bench, name, script, programs, "initrd-small.cpio.gz");
    let (kernel, agent) = (guest_file("vmlinuz"), format!("--with-agent={}", agent().display()));
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    let mut arguments = vec!["image", "push", name, "--kernel", kernel, "--initrd", initrd, &agent];
    arguments.extend(options);
    bench.expect(0, &arguments);
}

/// Pushes a kernel of the test guests', with a ramdisk of `script` that has no modules for it.
pub fn push_kernel(bench: &Bench, name: &str, kernel: &str, script: &str) {
    let initrd = ramdisk(bench, name, script, &[], "initrd-small.cpio.gz");
    let kernel = guest_file(kernel);
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    bench.expect(0, &["image", "push", name, "--kernel", kernel, "--initrd", initrd]);
}

/// Pushes the test guest with the modules for disks, with `script` and with `disk`, but without the agent.
pub fn push_disk(bench: &Bench, name: &str, script: &str, disk: &Path) {
    let initrd = ramdisk(bench, name, script, &[], "initrd-disk.cpio.gz");
    let kernel = guest_file("vmlinuz");
    let files = [&kernel, &initrd, &disk.to_owned()].map(|path| path.to_str().unwrap().to_owned());
    let [kernel, initrd, disk] = &files;
    let arguments = ["image", "push", name, "--kernel", kernel, "--initrd", initrd, "--disk", disk];
    bench.expect(0, &arguments);
}

fn ramdisk(bench: &Bench, name: &str, script: &str, programs: &[PathBuf], base: &str) -> PathBuf {
    let tree = bench.path().join(format!("{name}.tree"));
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    let path = "export PATH=/sbin:/usr/bin:/bin\n";
    fs::write(tree.join("test"), format!("{path}{script}")).unwrap();
    for program in programs {
        let copy = tree.join("usr/bin").join(program.file_name().unwrap());
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
        for library in libraries(program) {
            let copy = tree.join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(library, copy).unwrap();
        }
    }
    let initrd = bench.path().join(format!("{name}.initrd"));
    let mut file = File::create(&initrd).unwrap();
    file.write_all(&fs::read(guest_file(base)).unwrap()).unwrap();
    file.write_all(&archive(&tree)).unwrap();
    initrd
}

/// The libraries that a program needs, with their loader; none if it is linked statically.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(word).collect()
}

/// A cpio archive of a folder's content.
fn archive(tree: &Path) -> Vec<u8> {
    let mut names = String::new();
    list(tree, tree, &mut names);
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cpio.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    let output = cpio.wait_with_output().unwrap();
    assert!(output.status.success());
    // Compressed, it may begin at any byte.
    let mut gzip = Command::new("gzip")
        .args(["-c", "-1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = gzip.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || input.write_all(&output.stdout).unwrap());
    let packed = gzip.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(packed.status.success());
    packed.stdout
}

/// All paths below `folder`, folders before what is in them.
fn list(root: &Path, folder: &Path, names: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        names.push_str(path.strip_prefix(root).unwrap().to_str().unwrap());
        names.push('\n');
        if path.is_dir() {
            list(root, &path, names);
        }
    }
}
