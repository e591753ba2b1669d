//! What every guest has of the device.

use std::process::Command;

use serde_json::Value;

use super::{finished, run, said};
use crate::common::Bench;
use crate::common::guest::boot;
use crate::common::ramdisk::{example, push_script};

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_stock_guest_knows_who_it_is_and_its_words_are_in_the_report() {
    let bench = Bench::new();
    let script = r#"
set -e
guest-agent mark init
echo "status: $(guest-agent status --json)"
guest-agent ping --count 100
guest-agent ping --count 10 --access memory
guest-agent ping --count 10 --no-events
guest-agent log --level warning "$(printf 'a\033[2Jb')"
guest-agent metrics load=3 free=4096
guest-agent heartbeat
guest-agent ready "serving"
guest-agent boot --image guest && exit 1
echo "refused: $?"
guest-agent fetch --all --output /tmp/image
echo "bytes: $(wc -c </tmp/image)"
echo script: done
"#;
    push_script(&bench, "guest", script, &[]);
    let events = bench.path().join("events");
    let arguments = ["--name", "web-1", "--events", events.to_str().unwrap(), "--timings"];
    let booted = finished(boot(&bench, "guest", &arguments));

    let status: Value = serde_json::from_str(said(&booted, "status")).unwrap();
    let text = status.to_string();
    assert!(text.contains("\"web-1\"") && text.contains("\"guest\""), "{text}");
    let inspected = bench.json(&["image", "inspect", "guest", "--json"]);
    let manifest = inspected["manifest"].as_str().or(inspected["id"].as_str());
    assert!(text.contains(manifest.unwrap()), "{text} has not {inspected}");
    assert_eq!(said(&booted, "refused"), "1");
    let bytes: u64 = said(&booted, "bytes").parse().unwrap();
    assert!(bytes > 30_000_000, "{bytes}");

    let guest = &booted.report["guest"];
    let said = &guest["said"];
    assert_eq!(said["marks"][0]["name"], "init");
    assert!(said["ready_ms"].as_f64() > said["marks"][0]["ms"].as_f64(), "{said}");
    assert_eq!(said["metrics"]["free"], 4096);
    assert_eq!((&said["heartbeats"], &said["messages"]), (&1.into(), &1.into()));
    assert!(guest["control"]["commands"].as_u64() > Some(120), "{guest}");
    // What a terminal would act on is told as what it is.
    assert!(booted.stderr.contains("a\\u{1b}[2Jb"), "{}", booted.stderr);
    for row in ["init", "guest ready"] {
        assert!(booted.stderr.contains(row), "{}", booted.stderr);
    }
    let events = std::fs::read_to_string(events).unwrap();
    let kinds: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| line["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["entry", "mark", "log", "metrics", "heartbeat", "ready"]);
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn the_program_in_the_document_works() {
    let document = include_str!("../../../docs/control-device.md");
    let code = document.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    let bench = Bench::new();
    let (source, program) = (bench.path().join("example.c"), bench.path().join("example"));
    std::fs::write(&source, code).unwrap();
    let built = Command::new("gcc")
        .args(["-static", "-O", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let script = "echo 1 >/proc/sys/vm/nr_hugepages && example && echo script: done\n";
    push_script(&bench, "guest", script, &[program]);
    let booted = finished(boot(&bench, "guest", &["--name", "written-in-c"]));
    assert_eq!(said(&booted, "identify"), "00000001");
    assert_eq!(said(&booted, "field 14"), "written-in-c");
    assert_eq!(said(&booted, "field 5"), "guest");
}

/// A command costs one exit where its address is below 4 GiB and its result in memory; two with its
/// upper half. The agent's own start is taken out by counting two numbers of commands.
#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_command_costs_at_most_two_exits() {
    let ports = |count: u32| {
        let script = format!("guest-agent ping --count {count}");
        let booted = run(&script, &["--role", "manager"]);
        let commands = booted.report["guest"]["control"]["commands"].as_u64().unwrap();
        assert!(commands >= count.into());
        (booted.kvm("io_exits"), commands)
    };
    let (few, many) = (ports(1), ports(3001));
    let (exits, commands) = (many.0 - few.0, many.1 - few.1);
    assert!(exits * 10 <= commands * 21, "{exits} exits for {commands} commands");
    assert!(exits * 10 >= commands * 9, "{exits} exits for {commands} commands");
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn no_compaction_of_memory_loses_a_command() {
    let bench = Bench::new();
    let script = "mkdir -p /run && mount -t tmpfs none /run && compact 1000 && echo script: done\n";
    push_script(&bench, "guest", script, &[example("compact")]);
    finished(boot(&bench, "guest", &["--role", "manager"]));
}
