//! What a client is told of RDMA: a node's announcement, its answer to `rdma`, the endpoint in it, and its
//! `stats rdma`. What is understood is sound, whatever it is told.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use imgcache::cluster::address::NodeAddress;
use imgcache::index::announce::Announcement;
use imgcache::index::table::BUCKET_BYTES;
use imgcache::transport::cluster::{Connection, Dialer, RdmaAnswer};
use imgcache::transport::verbs::Endpoint;

fn check_announcement(announcement: &Announcement) {
    let Announcement { exported, index, .. } = announcement;
    let last = index + (exported.table.buckets() - 1) * BUCKET_BYTES as u64;
    assert!(last + BUCKET_BYTES as u64 <= exported.content && exported.content <= exported.bytes);
    assert_eq!(announcement.to_string().parse(), Ok(*announcement));
}

fn check_endpoint(endpoint: &Endpoint) {
    assert_eq!(endpoint.check(), Ok(()));
    assert_eq!(endpoint.to_string().parse(), Ok(*endpoint));
}

fn check_text(text: &str) {
    if let Ok(announcement) = text.parse::<Announcement>() {
        check_announcement(&announcement);
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string(), text, "an endpoint has one form");
        check_endpoint(&endpoint);
    }
    for text in [text.to_owned(), format!("{}{text}", RdmaAnswer::WORD)] {
        let Ok(RdmaAnswer { announcement, base, endpoint }) = text.parse() else { continue };
        check_announcement(&announcement);
        check_endpoint(&endpoint);
        assert!(base.address.checked_add(announcement.exported.bytes).is_some());
    }
}

/// A socket of a node that answers what it is made to.
struct Socket {
    listener: UnixListener,
    address: NodeAddress,
}

thread_local! {
    static SOCKET: Socket = {
        let path = std::env::temp_dir().join(format!("fuzz-rdma-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket in the temporary folder");
        Socket { listener, address: NodeAddress::Unix(path) }
    };
}

/// A connection to somebody who answers `answer` and no more; and their end, which takes what is sent.
fn connection(answer: &[u8]) -> (Connection, UnixStream) {
    let dialer =
        Dialer { tls: None, connect: Duration::from_secs(5), progress: Duration::from_secs(5) };
    SOCKET.with(|socket| {
        let connection = Connection::open(&socket.address, &dialer).expect("it listens");
        let (mut far, _) = socket.listener.accept().expect("somebody has connected");
        far.write_all(answer).expect("so much fits into a socket");
        far.shutdown(Shutdown::Write).expect("it is open");
        (connection, far)
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        check_text(text);
    }
    let data = &data[..data.len().min(32 << 10)];
    let (mut node, _far) = connection(data);
    if let Ok(stats) = node.stats("rdma") {
        for (name, value) in stats {
            assert!(!name.contains([' ', '\n']) && !value.contains('\n'));
            check_text(&value);
        }
    }
    let (mut node, _far) = connection(data);
    if let Ok(line) = node.command(&[b"rdma 0000000000000001 x\r\n"]) {
        check_text(&line);
    }
});
