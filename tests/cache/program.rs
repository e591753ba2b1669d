//! The command line, the log, and the service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::Value;

use super::node::{Node, run, text};

#[test]
fn help_teaches_and_lists_the_exit_codes() {
    let (code, help) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for word in ["--memory", "--listen", "--unix", "--tls-client-ca", "Exit codes", "get greeting"]
    {
        assert!(help.contains(word), "{word} is not in the help");
    }
    assert_eq!(run(&["--memory", "lots"]).0, Some(2));
    assert_eq!(run(&["--max-item-size", "2M"]).0, Some(2));
    assert_eq!(run(&["--no-tcp"]).0, Some(2));
    assert_eq!(run(&["--rdma", "off", "--rdma-push", "on"]).0, Some(2));
    assert_eq!(run(&["--max-leased-permille", "1001"]).0, Some(2));
}

/// It is loaded only when RDMA devices are asked for, and need not be there.
#[test]
fn the_program_starts_without_libibverbs() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_imgcached"))
        .arg("--version")
        .env("LD_DEBUG", "files")
        .output()
        .unwrap();
    let loaded = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && loaded.contains("libc.so"), "{loaded}");
    assert!(!loaded.contains("ibverbs"), "{loaded}");
}

#[test]
fn memory_that_is_not_there_has_an_exit_code() {
    let mut arguments = vec!["--memory", "60T", "--backing", "hugetlb"];
    arguments.extend(["--index-entries", "1024", "--listen", "127.0.0.1:0"]);
    let (code, said) = run(&arguments);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("vm.nr_hugepages"), "{said}");
}

#[test]
fn the_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let node = Node::spawn(Node::command(&[]).env("NOTIFY_SOCKET", text(&path)));
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1");
    node.stop();
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"STOPPING=1");
}

#[test]
fn log_lines_can_be_json() {
    let node = Node::start_with(&["--log-format", "json"]);
    let log = node.stop();
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn clients_cannot_flood_the_log() {
    let node = Node::start();
    for _ in 0..300 {
        let mut client = node.connect();
        client.send([0x80]);
        client.rest();
    }
    let log = node.stop();
    let lines = log.lines().filter(|line| line.contains("binary")).count();
    assert!((1..100).contains(&lines), "{lines} lines");
}
