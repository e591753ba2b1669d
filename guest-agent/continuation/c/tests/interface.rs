//! A program in C is compiled, with the header as it is, and its connection moves.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the library is that was built with this test: beside it, under a name of its own.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let here = test.parent().unwrap();
    let mut found: Vec<PathBuf> = [here, here.parent().unwrap()]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libcontinuation_c")
                && path.extension().is_some_and(|extension| extension == "a")
        })
        .collect();
    found.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    found.pop().expect("the library was not built")
}

#[test]
fn a_service_in_c_moves() {
    // So that it is built: nothing else of it is used here.
    let _ = continuation_c::cont_error();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("service");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(here.join("../include"))
        .arg(here.join("tests/service.c"))
        .arg(library())
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program)
        .status()
        .unwrap();
    assert!(built.success());
    // In a network of its own, with a loopback.
    let run = Command::new("unshare")
        .args(["--net", "sh", "-ec", "ip link set lo up; exec \"$0\""])
        .arg(&program)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.stdout, b"moved\n");
}
