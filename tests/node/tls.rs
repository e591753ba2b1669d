//! The API over TCP: by TLS, and only for those who have a certificate.

use std::fs;

use crate::agent::Agent;
use crate::common::certificates::Authority;
use crate::common::stderr;

#[test]
fn only_clients_with_a_certificate_of_the_authority_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let ca = ca.to_str().unwrap();
    let (certificate, key) = authority.issue(folder.path(), "server", "127.0.0.1");
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", ca];
    let agent = Agent::start(&[&["--listen", "127.0.0.1:0"], &tls[..]].concat());
    let address = agent.ready.trim().rsplit_once("listen=").unwrap().1.to_owned();
    let node = format!("https://{address}");
    let ask = |code: i32, certificate: &str, key: &str| {
        let arguments = ["node", "info", "--json", "--node", &node, "--node-tls-ca", ca];
        let identity = ["--node-tls-cert", certificate, "--node-tls-key", key];
        agent.run(code, &[&arguments[..], &identity].concat())
    };
    let (certificate, key) = authority.issue(folder.path(), "client", "client");
    let seen = crate::common::stdout(&ask(0, &certificate, &key));
    assert!(seen.contains(&node) && seen.contains("\"max_vms\":20"), "{seen}");
    let (certificate, key) = stranger.issue(folder.path(), "stranger", "client");
    let seen = stderr(&ask(9, &certificate, &key));
    assert!(seen.contains("certificate") || seen.contains("lost"), "{seen}");
    // Without any, with none of TLS, and where it is not known how.
    let seen = agent.run(2, &["ps", "--node", &node]);
    assert!(stderr(&seen).contains("--node-tls-cert"), "{seen:?}");
    let mut plain = std::net::TcpStream::connect(&address).unwrap();
    std::io::Write::write_all(&mut plain, b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain, &mut seen);
    assert!(!seen.starts_with(b"HTTP"), "{seen:?}");
    assert_eq!(agent.get("/v1/health").status, 200);
}

#[test]
fn there_is_no_tcp_without_tls() {
    let bench = crate::common::Bench::new();
    let seen = bench.expect(2, &["node", "--listen", "127.0.0.1:0"]);
    assert!(stderr(&seen).contains("--tls-client-ca"), "{seen:?}");
}
