//! Services that move between guests, with their connections, when a guest asks.

use std::process::Command;

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
         (while true; do sleep 5; cat /proc/net/tcp; grep -i tcpext /proc/net/netstat; cat /proc/net/snmp | grep Tcp; done) &\n\
         {also}\n\
         wait $server\n"
    )
}

/// Moves the service from here to `to`, `times`, whenever it is here.
fn moves(to: &str, times: u32) -> String {
    format!(
        "i=0\n\
         while [ $i -lt {times} ]; do\n\
         \x20   if guest-agent endpoint move web --to {to} --json 2>/tmp/error; then i=$((i + 1)); else usleep 300000; fi\n\
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
    lines.filter(|line| line["end"] == true).last()
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_service_moves_twenty_times_and_its_client_sees_each_byte_once() {
    isolated(|| {
        let bench = Bench::new();
        let programs = [example("stream-server")];
        push_script(&bench, "a", &server(false, &moves("b", 10)), &programs);
        push_script(&bench, "b", &server(true, &moves("a", 10)), &programs);
        let client = format!(
            "netup\n(while true; do sleep 5; cat /proc/net/tcp; grep -i ext /proc/net/netstat; cat /proc/net/snmp | grep Tcp; done) &\n stream-client {SERVICE}:7000 --mode paced --seconds 90 --wait 120\necho client: $?\n"
        );
        push_script(&bench, "c", &client, &[example("stream-client")]);
        let agent = Agent::with(bench, &["--damping", "off"]);
        let may = format!("services=web,addresses={SERVICE},move");
        boot(&agent, "a", 2, &may);
        boot(&agent, "b", 3, &may);
        boot(&agent, "c", 4, "");
        agent.wait_until("the client has ended", |agent| agent.console("c").contains("client: "));
        let consoles: Vec<String> = ["a", "b", "c"].map(|name| agent.console(name)).into();
        let said = consoles.join("\n---\n") + &agent.log();
        let end = end_of(&consoles[2]).unwrap_or_else(|| panic!("{said}"));
        assert!(consoles[2].contains("client: 0"), "{said}");
        assert_eq!(
            (&end["wrong"], &end["lost"], &end["resets"]),
            (&0.into(), &0.into(), &0.into())
        );
        for console in &consoles[..2] {
            assert!(console.contains("moves: done"), "{said}");
        }
        println!("{said}\n{end}");
    });
}
