//! Other ways to connect: several addresses, unix sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::client::Client;
use super::node::{Node, run, text};

#[test]
fn a_unix_socket_has_the_permissions_and_the_life_that_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // One that a process left behind.
    drop(UnixListener::bind(&path).unwrap());
    let arguments = ["--no-tcp", "--unix", text(&path), "--unix-mode", "660"];
    let node = Node::start_with(&arguments);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut client = Client::connect_unix(&path);
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    assert!(client.ask("stats conns\r\n").contains(&format!(":listen_addr unix:{}", text(&path))));
    // Somebody listens there.
    let (code, said) = run(&["--memory", "8M", "--no-tcp", "--unix", text(&path)]);
    assert_eq!(code, Some(3), "{said}");
    client.expect("mn\r\n", "MN\r\n");
    drop(client);
    node.stop();
    assert!(!path.exists(), "it was left behind");
    // No socket is never removed.
    fs::write(&path, "precious").unwrap();
    let (code, _) = run(&["--memory", "8M", "--no-tcp", "--unix", text(&path)]);
    assert_eq!((code, fs::read_to_string(&path).unwrap().as_str()), (Some(3), "precious"));
}

#[test]
fn several_addresses_lead_to_one_cache() {
    let node = Node::start_with(&["--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0"]);
    let mut client = node.connect();
    client.expect("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    let second = node.all("listen")[1].parse().unwrap();
    Client::connect(second).expect("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn an_address_in_use_has_an_exit_code() {
    let node = Node::start();
    let address = node.address().to_string();
    let (code, said) = run(&["--memory", "8M", "--listen", &address]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&address), "{said}");
}
