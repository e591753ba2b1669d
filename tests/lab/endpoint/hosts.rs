//! Between hosts: machines of the lab on one Ethernet (`scripts/lab run --nodes 2`), with an agent each, one etcd,
//! and VXLAN between their bridges. The agents speak TLS.
//!
//! Both machines run this at the same time. What one is to know of the other is in the folder that they share.

use std::fs;
use std::path::{Path, PathBuf};

use super::{
    Etcd, assert_served, boot_behind_tunnel, client, host_options, ip, is_there, may_serve, moves,
    patiently, server,
};
use crate::common::Bench;
use crate::common::agent::{Agent, HANG};
use crate::common::certificates::Authority;
use crate::common::ramdisk::{example, push_script};

/// Moves from each of the two, so that there are 20.
const MOVES: u32 = 10;
/// Seconds of the client's: as many as these moves take, with the pauses between them.
const SECONDS: u32 = 100;

/// A folder that both machines see, for one test.
struct Shared(PathBuf);

impl Shared {
    fn new() -> Self {
        let results = std::env::var_os("LAB_RESULTS").expect("scripts/test runs it in the lab");
        Self(PathBuf::from(results).join("endpoint-hosts"))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves word for the other.
    fn say(&self, what: &str, text: &str) {
        let new = self.0.join(format!(".{what}"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.0.join(what)).unwrap();
    }

    /// Waits for word from the other.
    fn hear(&self, what: &str) -> String {
        let begun = std::time::Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(self.0.join(what)) {
                return text;
            }
            assert!(begun.elapsed() < 6 * HANG, "the other host never said '{what}'");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

fn lab(name: &str) -> u8 {
    let value = std::env::var(name).expect("scripts/test runs it, on two machines of the lab");
    value.parse().unwrap()
}

/// The agent of host `number`, which knows the other.
fn agent_of(number: usize, bench: Bench, shared: &Path) -> Agent {
    let peer = format!("https://10.99.0.{}:8443", 3 - number);
    let file = |name: &str| shared.join(name).display().to_string();
    let (ca, certificate, key) =
        (file("ca.pem"), file(&format!("h{number}.pem")), file(&format!("h{number}.key")));
    let mut options = host_options(number, ETCD, &peer, "10.99.0");
    options.extend([
        format!("--listen=10.99.0.{number}:8443"),
        format!("--tls-cert={certificate}"),
        format!("--tls-key={key}"),
        format!("--tls-client-ca={ca}"),
        format!("--peer-tls-ca={ca}"),
        format!("--peer-tls-cert={certificate}"),
        format!("--peer-tls-key={key}"),
    ]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Agent::with(bench, &options)
}

const ETCD: &str = "10.99.0.1:2379";

#[test]
#[ignore = "needs two hosts with a KVM that runs stock kernels: scripts/test runs it in the lab"]
fn a_service_moves_twenty_times_between_hosts_and_its_client_sees_each_byte_once() {
    assert_eq!(lab("LAB_NODES"), 2);
    let (shared, bench) = (Shared::new(), Bench::new());
    ip("link add br77 type bridge");
    ip("link set br77 up");
    let server_of = |standby, to: &str| server(standby, &moves(to, MOVES, 3, 0));
    let programs = [example("stream-server")];
    if lab("LAB_NODE") == 2 {
        push_script(&bench, "b", &server_of(true, "h1/a"), &programs);
        shared.hear("ready");
        is_there(ETCD);
        let agent = agent_of(2, bench, shared.path());
        boot_behind_tunnel(&agent, "b", 3, &may_serve());
        shared.hear("ended");
        shared.say("second", &format!("{}\n---\n{}", agent.console("b"), agent.log()));
        // The other reads it before this machine ends.
        shared.hear("read");
        return;
    }
    push_script(&bench, "a", &server_of(false, "h2/b"), &programs);
    let script = format!("netup\n{}echo client: $?\n", client(SECONDS));
    push_script(&bench, "c", &script, &[example("stream-client")]);
    fs::create_dir_all(shared.path()).unwrap();
    let authority = Authority::new("hosts");
    fs::write(shared.path().join("ca.pem"), authority.pem()).unwrap();
    for host in 1..=2 {
        authority.issue(shared.path(), &format!("h{host}"), &format!("10.99.0.{host}"));
    }
    let _etcd = Etcd::start(bench.path().join("etcd"), ETCD);
    shared.say("ready", "");
    let agent = agent_of(1, bench, shared.path());
    boot_behind_tunnel(&agent, "a", 2, &may_serve());
    boot_behind_tunnel(&agent, "c", 4, "");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        patiently(&agent, "the client has ended", |agent| agent.console("c").contains("client: "));
    }));
    shared.say("ended", "");
    let here = [agent.console("a"), agent.console("c"), agent.log()].join("\n---\n");
    let said = format!("{here}\n--- second host\n{}", shared.hear("second"));
    shared.say("read", "");
    assert!(ended.is_ok(), "the client has not ended: {said}");
    assert_served(&agent.console("c"), &said);
    let moved = said.matches(": moved").count();
    println!("{moved} moves");
    assert!(moved >= 2 * MOVES as usize, "{moved} moves: {said}");
    fs::remove_dir_all(shared.path()).unwrap();
}
