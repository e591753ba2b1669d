//! TLS: certificates of the node and of clients, and their replacement.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::client::Client;
use super::node::{Node, run, text};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for 127.0.0.1 and its key; returns their files.
fn issue(folder: &Path, name: &str, authority: &Authority) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    fs::write(&files.0, certificate.pem()).unwrap();
    fs::write(&files.1, key.serialize_pem()).unwrap();
    files
}

struct Setup {
    folder: TempDir,
    authority: Authority,
    files: (PathBuf, PathBuf),
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority();
        let files = issue(folder.path(), "node", &authority);
        fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Self { folder, authority, files }
    }

    fn start(&self, more: &[&str]) -> Node {
        let mut arguments =
            vec!["--tls-cert", text(&self.files.0), "--tls-key", text(&self.files.1)];
        arguments.extend_from_slice(more);
        Node::start_with(&arguments)
    }

    fn authority_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn connection(
    node: &Node,
    authority: &Authority,
    own: Option<&(PathBuf, PathBuf)>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
            let key = PrivateKeyDer::from_pem_file(key).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(super::node::PATIENCE)).unwrap();
    StreamOwned::new(tls, stream)
}

/// Whether a request is answered.
fn is_served(mut stream: impl Read + Write) -> bool {
    let mut answer = [0; 4];
    let answered = stream.write_all(b"mn\r\n").and_then(|()| stream.read_exact(&mut answer));
    answered.is_ok() && &answer == b"MN\r\n"
}

#[test]
fn large_values_go_both_ways_encrypted() {
    let setup = Setup::new();
    let node = setup.start(&[]);
    let mut client = Client::new(connection(&node, &setup.authority, None));
    let value: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).take(1_000_000).collect();
    for number in 0..8 {
        let mut request = format!("set k{number} 0 0 {}\r\n", value.len()).into_bytes();
        request.extend_from_slice(&value);
        request.extend_from_slice(b"\r\n");
        client.expect(request, "STORED\r\n");
    }
    client.send((0..8).map(|number| format!("mg k{number} v\r\n")).collect::<String>());
    for _ in 0..8 {
        assert_eq!(client.line(), format!("VA {}", value.len()));
        assert!(client.bytes(value.len()) == value, "the value is another");
        assert_eq!(client.line(), "");
    }
    // The end is announced: nothing can have been cut off.
    client.send("quit\r\n");
    assert_eq!(client.rest(), b"");
}

#[test]
fn who_does_not_speak_tls_is_not_served() {
    let setup = Setup::new();
    let node = setup.start(&[]);
    assert!(!is_served(TcpStream::connect(node.address()).unwrap()));
    assert!(!is_served(connection(&node, &authority(), None)), "an authority nobody knows");
    assert!(is_served(connection(&node, &setup.authority, None)));
}

#[test]
fn client_certificates_are_required_when_asked_for() {
    let setup = Setup::new();
    let ca = setup.authority_file();
    let node = setup.start(&["--tls-client-ca", text(&ca)]);
    let good = issue(setup.folder.path(), "good", &setup.authority);
    let bad = issue(setup.folder.path(), "bad", &authority());
    assert!(is_served(connection(&node, &setup.authority, Some(&good))));
    assert!(!is_served(connection(&node, &setup.authority, None)));
    assert!(!is_served(connection(&node, &setup.authority, Some(&bad))));
    let log = node.stop();
    assert!(log.contains("TLS handshake"), "{log}");
}

#[test]
fn certificates_are_read_again_on_sighup() {
    let setup = Setup::new();
    let node = setup.start(&[]);
    let mut old = Client::new(connection(&node, &setup.authority, None));
    old.expect("mn\r\n", "MN\r\n");
    // Broken files change nothing.
    fs::write(&setup.files.0, "nonsense").unwrap();
    node.signal(Signal::HUP);
    assert!(is_served(connection(&node, &setup.authority, None)));
    let new = authority();
    issue(setup.folder.path(), "node", &new);
    node.signal(Signal::HUP);
    while !is_served(connection(&node, &new, None)) {}
    assert!(!is_served(connection(&node, &setup.authority, None)));
    old.expect("mn\r\n", "MN\r\n");
}

#[test]
fn files_that_cannot_be_used_have_an_exit_code() {
    let setup = Setup::new();
    let other = issue(setup.folder.path(), "other", &setup.authority);
    let missing = setup.folder.path().join("missing.pem");
    for (certificate, key) in
        [(&missing, &setup.files.1), (&setup.files.0, &missing), (&setup.files.0, &other.1)]
    {
        let (code, said) = run(&[
            "--memory",
            "8M",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            text(certificate),
            "--tls-key",
            text(key),
        ]);
        assert_eq!(code, Some(6), "{said}");
    }
}
