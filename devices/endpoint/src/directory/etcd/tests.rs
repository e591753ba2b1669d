//! With servers of etcd that the tests start, on loopback.
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use crate::directory::cache::Cache;
use crate::directory::conformance::{self, announce, home, open, record};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// Members of one cluster, which end with it.
struct Cluster {
    members: Vec<Option<Child>>,
    addresses: Vec<String>,
    _folder: TempDir,
}

/// Ports that nobody has.
fn ports(count: usize) -> Vec<u16> {
    let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
}

impl Cluster {
    /// One of `count` members that answers. Another may take its ports before it does: then it is tried again.
    fn start(count: usize) -> Self {
        for _ in 0..5 {
            let cluster = Self::spawn(count);
            if cluster.is_ready() {
                return cluster;
            }
        }
        panic!("no cluster of etcd: is etcd-server installed (scripts/setup etcd)?");
    }

    fn spawn(count: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let ports = ports(2 * count);
        let (clients, peers) = ports.split_at(count);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let names: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(number, port)| format!("m{number}={}", url(port)))
            .collect();
        let members = clients.iter().zip(peers).enumerate().map(|(number, (client, peer))| {
            let mut command = Command::new("etcd");
            command.args([
                "--name",
                &format!("m{number}"),
                "--logger",
                "zap",
                "--log-level",
                "error",
            ]);
            command.arg("--data-dir").arg(folder.path().join(number.to_string()));
            command.args([
                "--listen-client-urls",
                &url(client),
                "--advertise-client-urls",
                &url(client),
            ]);
            command.args([
                "--listen-peer-urls",
                &url(peer),
                "--initial-advertise-peer-urls",
                &url(peer),
            ]);
            command.args(["--initial-cluster", &names.join(","), "--unsafe-no-fsync"]);
            command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Some(command.spawn().expect("etcd is not installed: scripts/setup etcd"))
        });
        let members = members.collect();
        Self { members, addresses: clients.iter().map(url).collect(), _folder: folder }
    }

    fn is_ready(&self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let is_ready = self
                .addresses
                .iter()
                .all(|address| leader(address).is_some_and(|(_, leader)| leader != 0));
            if is_ready {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn directory(&self) -> EtcdDirectory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("/test-{}/", NEXT.fetch_add(1, Ordering::Relaxed));
        self.directory_at(&prefix)
    }

    fn directory_at(&self, prefix: &str) -> EtcdDirectory {
        self.patient(prefix, Duration::from_secs(15))
    }

    fn patient(&self, prefix: &str, patience: Duration) -> EtcdDirectory {
        EtcdDirectory::new(EtcdOptions {
            members: self.addresses.clone(),
            prefix: prefix.into(),
            patience,
            reserved: vec![conformance::reserved()],
            user: None,
        })
        .unwrap()
    }

    fn kill(&mut self, number: usize) {
        let mut member = self.members[number].take().unwrap();
        member.kill().unwrap();
        member.wait().unwrap();
    }

    fn leader(&self) -> usize {
        let leads =
            |address: &String| leader(address).is_some_and(|(member, leader)| member == leader);
        self.addresses.iter().position(leads).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// The member at `address`, and the leader that it knows.
fn leader(address: &str) -> Option<(u64, u64)> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ConnectOptions::new().with_timeout(ATTEMPT).with_connect_timeout(ATTEMPT);
        let mut client = Client::connect([address], Some(options)).await.ok()?;
        let status = client.status().await.ok()?;
        Some((status.header()?.member_id(), status.leader()))
    })
}

#[test]
fn one_member_is_a_directory() {
    let cluster = Cluster::start(1);
    conformance::all(&|| Arc::new(cluster.directory()));
}

#[test]
fn three_members_are_a_directory_when_their_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    conformance::all(&|| Arc::new(cluster.directory()));

    let directory = cluster.directory_at("/leader/");
    let lease = open(&directory, "a");
    let mut kv = announce(&directory, &lease, record("kv", "h1/p", &lease));
    let other = cluster.directory_at("/leader/");
    let cache = Cache::new(&other).unwrap();
    let leader = cluster.leader();
    cluster.kill(leader);
    let begun = Instant::now();
    for number in 0..20 {
        let to = kv.at(home(&format!("h{number}/p")), lease.owner.clone());
        let was = kv.clone();
        kv = directory.change(&lease, &Change::update(kv, to)).unwrap().remove(0);
        assert!(kv.epoch >= was.epoch && kv.revision > was.revision);
        if number == 0 {
            println!("the next change after the leader was killed took {:?}", begun.elapsed());
        }
    }
    directory.renew(&lease).unwrap();
    assert_eq!(directory.home_of(kv.range.first()).unwrap(), Some(home("h19/p")));
    assert!(cache.wait(PATIENCE, |cache| cache.home_of(kv.range.first()) == Some(home("h19/p"))));
    assert_eq!(directory.list().unwrap().len(), 1);

    // A minority refuses changes and keeps what it knows.
    let hasty = cluster.patient("/leader/", Duration::from_secs(1));
    let next = cluster.members.iter().position(Option::is_some).unwrap();
    cluster.kill(next);
    let frozen = kv.with_phase(crate::record::Phase::Frozen);
    let result = hasty.change(&lease, &Change::update(kv.clone(), frozen));
    assert!(matches!(result, Err(DirectoryError::Unreachable(_))), "{result:?}");
    assert_eq!(cache.home_of(kv.range.first()), Some(home("h19/p")));
}

#[test]
fn nobody_waits_for_ever_for_an_etcd_that_is_not_there() {
    let port = ports(1)[0];
    let result = EtcdDirectory::new(EtcdOptions {
        members: vec![format!("http://127.0.0.1:{port}")],
        patience: Duration::from_millis(300),
        ..EtcdOptions::default()
    })
    .and_then(|directory| directory.list());
    assert!(matches!(result, Err(DirectoryError::Unreachable(_))), "{result:?}");
}
