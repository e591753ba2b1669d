//! Services that move between guests, with their connections, when a guest asks.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
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

/// Moves the service from here to `to`, `times`, whenever it is here, with a pause of some seconds after each.
fn moves(to: &str, times: u32, pause: u32) -> String {
    format!(
        "i=0\n\
         while [ $i -lt {times} ]; do\n\
         \x20   if guest-agent endpoint move web --to {to} --json 2>/tmp/error; then i=$((i + 1)); sleep {pause}; else usleep 300000; fi\n\
         done\n\
         echo moves: done\n"
    )
}

/// An agent in a network of its own, with a bridge.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        let flags = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
        unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
        ip("link set lo up");
        ip("link add br77 type bridge");
        ip("link set br77 up");
        test();
    });
    ran.join().unwrap();
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Boots a guest of `image` with address `number` that may serve, if `may` says so.
fn boot(agent: &Agent, name: &str, number: u8, may: &str) {
    let net = format!("bridge=br77,ip=10.77.0.{number}/24");
    let mut words = vec!["--net", &net, "--memory", "256M"];
    if !may.is_empty() {
        words.extend(["--endpoint", may]);
    }
    agent.boot(name, name, &words);
}

/// The last line of the client.
fn end_of(console: &str) -> Option<Value> {
    let lines = console.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rev().find(|line| line["end"] == true)
}

/// Guests a, which has the service, b, which may get it, and c, its client for so many seconds.
fn scene(bench: Bench, options: &[&str], times: u32, seconds: u32) -> Agent {
    let programs = [example("stream-server")];
    push_script(&bench, "a", &server(false, &moves("b", times, 1)), &programs);
    push_script(&bench, "b", &server(true, &moves("a", times, 1)), &programs);
    let client = format!(
        "netup\n\
         stream-client {SERVICE}:7000 --mode paced --seconds {seconds} --wait 300 --patience 120\n\
         echo client: $?\n"
    );
    push_script(&bench, "c", &client, &[example("stream-client")]);
    let agent = Agent::with(bench, options);
    let may = format!("services=web,addresses={SERVICE},move");
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
    let end = end_of(&consoles[2]).unwrap_or_else(|| panic!("{said}"));
    assert!(consoles[2].contains("client: 0"), "{said}");
    let none = (&0.into(), &0.into(), &0.into());
    assert_eq!((&end["wrong"], &end["lost"], &end["resets"]), none, "{said}");
    println!("{end}");
    said
}

/// Waits until the client is served.
fn is_begun(agent: &Agent) {
    let words = |line: &str| {
        serde_json::from_str::<Value>(line).is_ok_and(|l| l["words"].as_u64() > Some(0))
    };
    patiently(agent, "the client is served", |agent| agent.console("c").lines().any(words));
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_service_moves_twenty_times_and_its_client_sees_each_byte_once() {
    isolated(|| {
        let agent = scene(Bench::new(), &["--damping", "off"], 10, 50);
        patiently(&agent, "all moves", |agent| {
            ["a", "b"].iter().all(|name| agent.console(name).contains("moves: done"))
        });
        let said = is_served(&agent);
        assert_eq!(said.matches(": moved").count(), 20, "{said}");
    });
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn an_agent_that_is_killed_in_the_middle_of_moves_leaves_one_home_and_no_wrong_byte() {
    isolated(|| {
        let mut agent = scene(Bench::new(), &["--damping", "off"], 1000, 45);
        is_begun(&agent);
        for pause in [400, 650, 900, 1150, 1400, 1650] {
            std::thread::sleep(Duration::from_millis(pause));
            agent.end(Signal::KILL);
            agent.start_again();
            // Moves go on, so that the next kill meets one again.
            std::thread::sleep(Duration::from_secs(2));
        }
        is_served(&agent);
        patiently(&agent, "one home", |agent| {
            let all = agent.json(&["endpoint", "ls", "--json"]);
            let one = all.as_array().filter(|all| all.len() == 1).map(|all| &all[0]);
            one.is_some_and(|one| one["phase"] == "home" && one["listening"] == true)
        });
    });
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn the_operator_moves_a_service_until_it_has_moved_too_often() {
    isolated(|| {
        let agent = scene(Bench::new(), &[], 0, 30);
        is_begun(&agent);
        for to in ["b", "a", "b", "a", "b"] {
            let done = agent.json(&["endpoint", "move", "web", "--to", to, "--json"]);
            assert_eq!(done["moved"]["outcome"], "moved", "{done}");
            assert!(done["moved"]["held_us"].as_u64().is_some_and(|us| us > 0), "{done}");
            assert!(done["endpoints"][0]["home"].as_str().unwrap().ends_with(to), "{done}");
        }
        let output = agent.vmm(&["endpoint", "move", "web", "--to", "a"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("frozen"), "{error}");
        assert_eq!(agent.json(&["endpoint", "ls", "--json"])[0]["phase"], "frozen");
        agent.expect(0, &["endpoint", "thaw", "web"]);
        agent.expect(0, &["endpoint", "move", "web", "--to", "any"]);
        is_served(&agent);
    });
}

/// Makes this thread's network namespace that of host `number`, whose link to the others is `up`.
fn host(number: u8) {
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
    unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
    ip("link set lo up");
    ip("link add br77 type bridge");
    ip("link set br77 up");
    if number == 1 {
        ip("link add h1 type veth peer name h2");
    }
}

/// An agent of host `number`, which knows the other.
fn agent_of(number: u8, bench: Bench, peer: &Path) -> Agent {
    let other = 3 - number;
    let options = [
        format!("--host-name=h{number}"),
        format!("--directory=etcd=http://{ETCD}"),
        format!("--peer=h{other}=unix:{},tunnel=10.88.0.{other}", peer.display()),
        format!("--tunnel=bridge=br77,local=10.88.0.{number}"),
        "--damping=off".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Agent::with(bench, &options)
}

const ETCD: &str = "10.88.0.1:2379";

fn etcd(folder: &Path) -> Child {
    let child = Command::new("etcd")
        .args(["--data-dir", folder.to_str().unwrap(), "--log-level", "error"])
        .args(["--listen-client-urls", &format!("http://{ETCD}")])
        .args(["--advertise-client-urls", &format!("http://{ETCD}")])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
        .args(["--heartbeat-interval", "500", "--election-timeout", "5000"])
        .stdout(Stdio::null())
        .spawn()
        .expect("etcd is missing: scripts/setup test");
    while std::net::TcpStream::connect(ETCD).is_err() {
        std::thread::sleep(Duration::from_millis(100));
    }
    child
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_service_moves_between_two_hosts_and_its_client_sees_each_byte_once() {
    // Two hosts are two networks with an agent each; what is between them is a wire, VXLAN and etcd.
    let (first, second) = (Bench::new(), Bench::new());
    let socket = |bench: &Bench| bench.path().join("run/node.sock");
    let (first_socket, second_socket) = (socket(&first), socket(&second));
    let programs = [example("stream-server")];
    push_script(&first, "a", &server(false, &moves("h2/b", 10, 3)), &programs);
    push_script(&second, "b", &server(true, &moves("h1/a", 10, 3)), &programs);
    let client = format!(
        "netup\n\
         stream-client {SERVICE}:7000 --mode paced --seconds 60 --wait 300 --patience 120\n\
         echo client: $?\n"
    );
    push_script(&first, "c", &client, &[example("stream-client")]);
    let (told, thread_of_second) = std::sync::mpsc::channel();
    let (connected, is_connected) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        host(2);
        told.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
        is_connected.recv().unwrap();
        ip("addr add 10.88.0.2/24 dev h2");
        ip("link set h2 up");
        while std::net::TcpStream::connect(ETCD).is_err() {
            std::thread::sleep(Duration::from_millis(100));
        }
        agent_of(2, second, &first_socket)
    });
    let ran = std::thread::spawn(move || {
        host(1);
        ip(&format!("link set h2 netns {}", thread_of_second.recv().unwrap()));
        ip("addr add 10.88.0.1/24 dev h1");
        ip("link set h1 up");
        connected.send(()).unwrap();
        let folder = first.path().join("etcd");
        let mut etcd = etcd(&folder);
        let one = agent_of(1, first, &second_socket);
        let two = other.join().unwrap();
        let may = format!("services=web,addresses={SERVICE},move");
        let vm = |agent: &Agent, name: &str, number: u8, may: &str| {
            let net = format!("bridge=br77,ip=10.77.0.{number}/24,mtu=1400");
            let mut words = vec!["--net", &net, "--memory", "256M"];
            if !may.is_empty() {
                words.extend(["--endpoint", may]);
            }
            agent.boot(name, name, &words);
        };
        vm(&one, "a", 2, &may);
        vm(&two, "b", 3, &may);
        vm(&one, "c", 4, "");
        patiently(&one, "the client has ended", |agent| agent.console("c").contains("client: "));
        let said = [one.console("a"), two.console("b"), one.console("c"), one.log(), two.log()];
        let said = said.join("\n---\n");
        let _ = etcd.kill();
        let _ = etcd.wait();
        let end = end_of(&one.console("c")).unwrap_or_else(|| panic!("{said}"));
        assert!(one.console("c").contains("client: 0"), "{said}");
        let none = (&0.into(), &0.into(), &0.into());
        assert_eq!((&end["wrong"], &end["lost"], &end["resets"]), none, "{said}");
        assert!(said.matches(": moved").count() >= 10, "{said}");
        println!("{} moves: {end}", said.matches(": moved").count());
    });
    ran.join().unwrap();
}
