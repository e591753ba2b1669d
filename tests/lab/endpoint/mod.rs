//! Services that move between guests, with their connections, when a guest asks.

mod hosts;
mod kills;
mod one;

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Bench;
use crate::common::agent::Agent;
use crate::common::ramdisk::{example, push_script};

/// The address of the service, which all clients have.
const SERVICE: &str = "10.77.0.80";

/// Where a server of it runs, and what is done there besides.
fn server(standby: bool, also: &str) -> String {
    let standby = if standby { "--standby" } else { "" };
    let announce =
        if standby.is_empty() { "guest-agent endpoint announce web || exit 1" } else { "" };
    format!(
        "netup\n\
         {announce}\n\
         until guest-agent endpoint up web --address {SERVICE}/24; do sleep 1; done\n\
         stream-server --listen {SERVICE}:7000 --service web {standby} &\n\
         server=$!\n\
         {also}\n\
         wait $server\n"
    )
}

/// Moves the service from here to `to`, `times`, whenever it has been here for `rest` seconds or a moment, with a pause
/// of some seconds after each.
fn moves(to: &str, times: u32, pause: u32, rest: u32) -> String {
    let rest = match rest {
        0 => String::new(),
        rest => format!("guest-agent endpoint ls 2>/dev/null | grep -q ' yes$' && sleep {rest}"),
    };
    format!(
        "i=0\n\
         while [ $i -lt {times} ]; do\n\
         \x20   {rest}\n\
         \x20   if guest-agent endpoint move web --to {to} --json 2>/tmp/error; then i=$((i + 1)); sleep {pause}; else usleep 300000; fi\n\
         done\n\
         echo moves: done\n"
    )
}

/// An agent in a network of its own, with a bridge.
pub fn isolated(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        unshare_network();
        test();
    });
    ran.join().unwrap();
}

/// Gives this thread a network of its own, with a bridge.
fn unshare_network() {
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
    unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
    ip("link set lo up");
    ip("link add br77 type bridge");
    ip("link set br77 up");
}

pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Boots a guest of `image` with address `number` that may serve, if `may` says so.
fn boot(agent: &Agent, name: &str, number: u8, may: &str) {
    boot_with(agent, name, &format!("bridge=br77,ip=10.77.0.{number}/24"), may);
}

/// The same, behind a tunnel.
fn boot_behind_tunnel(agent: &Agent, name: &str, number: u8, may: &str) {
    boot_with(agent, name, &format!("bridge=br77,ip=10.77.0.{number}/24,mtu=1400"), may);
}

fn boot_with(agent: &Agent, name: &str, net: &str, may: &str) {
    let mut words = vec!["--net", net, "--memory", "256M"];
    if !may.is_empty() {
        words.extend(["--endpoint", may]);
    }
    agent.boot(name, name, &words);
}

/// What guests may do that serve.
fn may_serve() -> String {
    format!("services=web,addresses={SERVICE},move")
}

/// A client of the service, for so many seconds.
fn client(seconds: u32) -> String {
    format!(
        "stream-client {SERVICE}:7000 --mode paced --seconds {seconds} --wait 300 --patience 120\n"
    )
}

/// The last line of the client.
fn end_of(console: &str) -> Option<Value> {
    let lines = console.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rev().find(|line| line["end"] == true)
}

/// Guests a, which has the service, b, which may get it, and c, its client for so many seconds.
fn scene(bench: Bench, options: &[&str], times: u32, rest: u32, seconds: u32) -> Agent {
    let programs = [example("stream-server")];
    push_script(&bench, "a", &server(false, &moves("b", times, 1, rest)), &programs);
    push_script(&bench, "b", &server(true, &moves("a", times, 1, rest)), &programs);
    let client = format!("netup\n{}echo client: $?\n", client(seconds));
    push_script(&bench, "c", &client, &[example("stream-client")]);
    let agent = Agent::with(bench, options);
    let may = may_serve();
    boot(&agent, "a", 2, &may);
    boot(&agent, "b", 3, &may);
    boot(&agent, "c", 4, "");
    agent
}

/// Waits until `condition`: emulated guests beside other tests take their time.
fn patiently(agent: &Agent, what: &str, mut condition: impl FnMut(&Agent) -> bool) {
    let begun = Instant::now();
    while !condition(agent) {
        assert!(begun.elapsed() < Duration::from_secs(400), "never {what}: {}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for the client's end: it saw each byte once, and no reset.
fn is_served(agent: &Agent) -> String {
    patiently(agent, "the client has ended", |agent| agent.console("c").contains("client: "));
    let consoles: Vec<String> = ["a", "b", "c"].map(|name| agent.console(name)).into();
    let said = consoles.join("\n---\n") + &agent.log();
    assert_served(&consoles[2], &said);
    said
}

/// The client has seen each byte once, and no reset; `said` is what is known, if it has not.
fn assert_served(console: &str, said: &str) {
    let end = end_of(console).unwrap_or_else(|| panic!("{said}"));
    assert!(console.contains("client: 0"), "{said}");
    let none = (&0.into(), &0.into(), &0.into());
    assert_eq!((&end["wrong"], &end["lost"], &end["resets"]), none, "{said}");
    println!("{end}");
}

/// Waits until the client is served.
fn is_begun(agent: &Agent) {
    let words = |line: &str| {
        serde_json::from_str::<Value>(line).is_ok_and(|l| l["words"].as_u64() > Some(0))
    };
    patiently(agent, "the client is served", |agent| agent.console("c").lines().any(words));
}

/// The options of the agent of host `number`, whose tunnel ends at `network`'s address of that number, with the other
/// host's agent at `peer`.
fn host_options(number: usize, etcd: &str, peer: &str, network: &str) -> Vec<String> {
    let other = 3 - number;
    vec![
        format!("--host-name=h{number}"),
        format!("--directory=etcd=http://{etcd}"),
        format!("--peer=h{other}={peer},tunnel={network}.{other}"),
        format!("--tunnel=bridge=br77,local={network}.{number}"),
        "--damping=off".to_owned(),
    ]
}

/// An etcd of one member, which keeps what it knows in its folder.
struct Etcd {
    folder: PathBuf,
    address: String,
    child: Child,
}

impl Etcd {
    fn start(folder: PathBuf, address: &str) -> Self {
        let child = Self::spawn(&folder, address);
        Self { folder, address: address.to_owned(), child }
    }

    fn spawn(folder: &Path, address: &str) -> Child {
        let url = format!("http://{address}");
        let log = File::options().create(true).append(true).open(folder.with_extension("log"));
        // Emulated disks and processors are not what its times are made for.
        let child = Command::new("etcd")
            .args(["--data-dir", folder.to_str().unwrap(), "--log-level", "error"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--heartbeat-interval", "500", "--election-timeout", "5000"])
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .expect("etcd is missing: scripts/setup etcd");
        is_there(address);
        child
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(&self.folder, &self.address);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until somebody takes connections at `address`.
fn is_there(address: &str) {
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(120), "nobody at {address}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
