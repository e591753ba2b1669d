//! The commands that ask the agent.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::Value;

use crate::agent::Agent;
use crate::common::{Bench, stderr, stdout};

#[test]
fn a_bridge_that_the_operator_has_not_allowed_is_refused() {
    let agent = Agent::start(&["--allow-bridge", "inner0", "--allow-bridge", "inner1"]);
    let boot = |bridge: &str, code: i32| {
        let net = format!("bridge={bridge}");
        let words = ["boot", "--node", "-d", "--hold", "--image", "small", "--name", "a"];
        stderr(&agent.run(code, &[&words[..], &["--net", &net]].concat()))
    };
    let said = boot("uplink0", 2);
    assert!(said.contains("uplink0") && said.contains("inner1"), "{said}");
    assert_eq!(agent.text(&["ps", "--all"]).lines().count(), 1, "nothing was begun");
    // It may be there; that it is not is another matter.
    let said = boot("inner1", 1);
    assert!(said.contains("no bridge 'inner1'"), "{said}");
}

#[test]
fn a_vm_is_booted_seen_stopped_and_deleted() {
    let agent = Agent::start(&[]);
    agent.hold("web");
    let table = agent.text(&["ps"]);
    assert!(table.contains("web") && table.contains("ready") && table.contains("small"), "{table}");
    let json = |arguments: &[&str]| serde_json::from_str::<Value>(&agent.text(arguments)).unwrap();
    let row = &json(&["ps", "--json"])[0];
    assert_eq!((&row["name"], &row["spec"]["cpus"]), (&"web".into(), &1.into()), "{row}");
    let info = json(&["inspect", "web", "--json"]);
    assert!(info["pid"].as_u64().unwrap() > 1 && info["manifest"].is_string(), "{info}");
    let timings = json(&["timings", "web", "--json"]);
    assert_eq!(timings["report"]["image"], "small");
    let table = agent.text(&["timings", "web"]);
    for phase in ["spawn", "exec", "memory", "load", "ready"] {
        assert!(table.contains(phase), "no {phase} in {table}");
    }
    assert!(agent.text(&["node", "images"]).contains("small"));
    assert_eq!(agent.text(&["logs", "web"]), "");
    assert_eq!(agent.text(&["events", "web"]), "");

    // A second one of its name, and one that lives, are refused.
    let again = ["boot", "--node", "-d", "--hold", "--image", "small", "--name", "web"];
    assert!(stderr(&agent.run(1, &again)).contains("already"));
    assert!(stderr(&agent.run(1, &["rm", "web"])).contains("--force"));
    assert!(stderr(&agent.run(1, &["node", "drop", "small"])).contains("used by 1"));
    // What is typed is taken, though nobody reads it yet.
    let header = "content-type: application/octet-stream\r\n";
    assert_eq!(agent.ask("POST", "/v1/vms/web/console", header, b"ls\n").status, 204);
    let much = vec![b'x'; 5000];
    assert_eq!(agent.ask("POST", "/v1/vms/web/console", header, &much).status, 413);

    assert_eq!(agent.text(&["stop", "web"]), "web\n");
    assert_eq!(agent.text(&["ps"]).lines().count(), 1);
    assert!(agent.text(&["ps", "--all"]).contains("ended"));
    assert!(stderr(&agent.run(1, &["console", "web"])).contains("vmm logs web"));
    assert_eq!(agent.ask("POST", "/v1/vms/web/console", header, b"x").status, 409);
    assert_eq!(agent.text(&["rm", "web"]), "web\n");
    assert_eq!(agent.text(&["ps", "--all"]).lines().count(), 1);
    assert_eq!(agent.text(&["node", "drop", "small"]), "small\n");

    let events = agent.text(&["events"]);
    for words in ["vm web (small) starting", "is in the pool", "ready", "ended", "vm web deleted"] {
        assert!(events.contains(words), "no {words:?} in {events}");
    }
    // One that fails keeps nobody from the others.
    agent.hold("a");
    let output = agent.run(1, &["stop", "--kill", "none", "a"]);
    assert_eq!(stdout(&output), "a\n");
    assert!(stderr(&output).contains("'none'") && stderr(&output).contains("1 of 2"));
}

#[test]
fn all_are_stopped_and_deleted_in_one_command() {
    let agent = Agent::start(&[]);
    for name in ["a", "b", "c"] {
        agent.hold(name);
    }
    agent.run(2, &["rm", "--all", "a"]);
    agent.run(2, &["stop"]);
    agent.text(&["stop", "--kill", "a"]);
    // Those that live are left alone.
    assert_eq!(agent.text(&["rm", "--all"]), "a\n");
    assert_eq!(agent.text(&["stop", "--all", "--kill"]).lines().count(), 2);
    agent.hold("d");
    assert_eq!(agent.text(&["rm", "--all", "--force"]).lines().count(), 3);
    assert_eq!(agent.text(&["ps", "--all"]).lines().count(), 1);
    assert_eq!(agent.text(&["rm", "--all"]), "");
}

#[test]
fn a_node_is_filled_and_drained_and_keeps_what_is_pinned() {
    let agent = Agent::start(&["--max-vms", "1"]);
    let seen = agent.text(&["node", "pull", "small", "--pin"]);
    assert!(seen.contains("yes"), "{seen}");
    agent.hold("one");
    let boot = ["boot", "--node", "-d", "--hold", "--image", "small"];
    assert!(stderr(&agent.run(5, &boot)).contains("--max-vms"));
    agent.text(&["rm", "-f", "one"]);
    assert!(agent.text(&["node", "drain"]).contains("no new VMs"));
    assert!(stderr(&agent.run(5, &boot)).contains("undrain"));
    assert_eq!(agent.get("/v1/health").json()["status"], "draining");
    agent.text(&["node", "undrain"]);
    assert!(agent.text(&["node", "info"]).contains("1 hits"));
    assert!(agent.text(&["node", "unpin", "small"]).contains("no"));
    assert!(stderr(&agent.run(3, &["node", "pull", "other"])).contains("other"));
}

#[test]
fn an_agent_that_is_not_there_is_named_with_how_to_start_one() {
    let bench = Bench::new();
    let socket = format!("unix:{}", bench.path().join("nothing").display());
    for command in [&["ps"][..], &["node", "info"], &["stop", "a"], &["events"], &["top", "--once"]]
    {
        let output = bench.expect(9, &[command, &["--node", &socket]].concat());
        let said = stderr(&output);
        assert!(said.contains(&socket) && said.contains("vmm node"), "{said}");
    }
    let boot = ["boot", "--image", "a", "--node", &socket];
    bench.expect(9, &boot);
    bench.expect(2, &["ps", "--node", "http://host:1"]);
    let two = format!("{socket},{socket}");
    assert!(stderr(&bench.expect(2, &["stop", "a", "--node", &two])).contains("several"));
}

#[test]
fn several_agents_are_asked_at_once() {
    let (one, two) = (Agent::start(&[]), Agent::start(&[]));
    one.hold("a");
    two.hold("b");
    let node = |agent: &Agent| format!("unix:{}", agent.socket().display());
    let both = format!("{},{}", node(&one), node(&two));
    let table = one.text(&["ps", "--node", &both]);
    assert!(table.contains('a') && table.contains('b') && table.contains(&node(&two)), "{table}");
    let infos: Value =
        serde_json::from_str(&one.text(&["node", "info", "--json", "--node", &both])).unwrap();
    assert_eq!(infos.as_array().unwrap().len(), 2);
}

#[test]
fn events_come_as_they_happen_and_a_console_ends_with_its_vm() {
    let agent = Agent::start(&[]);
    agent.hold("first");
    let mut events = agent.vmm(&["events", "--follow", "--json"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let console = agent.vmm(&["logs", "--follow", "first"]).stdout(Stdio::piped()).spawn().unwrap();
    // Whether it listens already is seen by what it hears.
    let mut number = 0;
    let heard = loop {
        number += 1;
        agent.run(0, &["node", if number % 2 == 1 { "drain" } else { "undrain" }]);
        let metrics = agent.get("/metrics").body;
        if metrics.contains("route=\"/v1/events\"") {
            agent.run(0, &["node", "drain"]);
            agent.run(0, &["node", "undrain"]);
            break lines.next().unwrap().unwrap();
        }
    };
    assert!(heard.contains("rain"), "{heard}");
    agent.run(0, &["stop", "first"]);
    let ended = lines.map(Result::unwrap).find(|line| line.contains("\"ended\"")).unwrap();
    assert!(ended.contains("\"first\"") && ended.contains("\"reason\""), "{ended}");
    assert!(console.wait_with_output().unwrap().status.success());
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn the_console_is_left_by_its_escape_and_the_vm_lives_on() {
    let agent = Agent::start(&[]);
    agent.hold("web");
    let mut command = agent.vmm(&["console", "web"]);
    let mut console = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    console.stdin.take().unwrap().write_all(b"hello\n\x01x").unwrap();
    let output = console.wait_with_output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("lives on"), "{output:?}");
    assert!(agent.text(&["ps"]).contains("ready"));
}

/// Who asks by the group may; the file says so.
#[test]
fn the_socket_is_its_owners_alone_unless_a_group_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |agent: &Agent| fs::metadata(agent.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&Agent::start(&[])), 0o600);
    let group = rustix::process::getgid().as_raw().to_string();
    assert_eq!(mode(&Agent::start(&["--socket-group", &group])), 0o660);
}
