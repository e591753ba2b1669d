//! TLS: with the right authority and certificate it works, with anything else it is refused.

use std::path::PathBuf;

use imgcache::transport::cluster::{Cluster, ClusterOptions, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::servers::{Memcached, write};
use crate::support::{Fixture, options};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// PEM of a certificate for `name`, and of its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A memcached that is spoken to by TLS and wants to see a client's certificate.
fn server(authority: &Authority, folder: &std::path::Path) -> Memcached {
    let (certificate, key) = authority.issue("localhost");
    let path = |name, pem: &str| write(folder, name, pem.as_bytes()).display().to_string();
    let chain = format!("ssl_chain_cert={}", path("server.pem", &certificate));
    let key = format!("ssl_key={}", path("server.key", &key));
    let ca = format!("ssl_ca_cert={}", path("ca.pem", &authority.pem()));
    let arguments = ["-Z", "-o", &chain, "-o", &key, "-o", &ca, "-o", "ssl_verify_mode=2"];
    Memcached::with(&arguments)
}

#[test]
fn images_are_published_and_loaded_by_tls_and_strangers_are_refused() {
    let fixture = Fixture::new(3 << 20, 128 << 10);
    let folder = fixture.folder.path();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = server(&authority, folder);
    let port = server.address.rsplit_once(':').unwrap().1;
    let file = |name: &str, pem: &str| -> PathBuf { write(folder, name, pem.as_bytes()) };
    let ca = file("ca.pem", &authority.pem());
    let (certificate, key) = authority.issue("client");
    let good = TlsFiles {
        authorities: Some(ca),
        certificate: Some(file("client.pem", &certificate)),
        key: Some(file("client.key", &key)),
        server_name: None,
    };
    let open = |host: &str, tls: &TlsFiles| {
        let url = format!("memcacheds://{host}:{port}").parse().unwrap();
        Cluster::open(&url, ClusterOptions { tls: tls.clone(), ..options() }, None)
    };
    let cluster = open("localhost", &good).unwrap();
    fixture.publish(&cluster).unwrap();
    fixture.check(cluster);
    let named = TlsFiles { server_name: Some("localhost".into()), ..good.clone() };
    fixture.check(open("127.0.0.1", &named).unwrap());

    let refused = |host: &str, tls: &TlsFiles| {
        let error = fixture.check_with(open(host, tls).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains(host), "{error}");
        error
    };
    assert!(refused("127.0.0.1", &good).contains("not valid for"));
    let other = Some(file("other.pem", &stranger.pem()));
    assert!(
        refused("localhost", &TlsFiles { authorities: other, ..good.clone() })
            .contains("invalid peer certificate")
    );
    refused("localhost", &TlsFiles { certificate: None, key: None, ..good.clone() });

    let wrong = |tls: TlsFiles| open("localhost", &tls).unwrap_err().to_string();
    assert!(wrong(TlsFiles::default()).contains("trusted authorities"));
    assert!(wrong(TlsFiles { key: None, ..good.clone() }).contains("go together"));
    let empty = Some(file("empty.pem", "nothing"));
    assert!(wrong(TlsFiles { authorities: empty, ..good }).contains("empty.pem"));
}
