//! What is to be watched: metrics, the log, traces, and `vmm top` in a terminal.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{Agent, HANG};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn metrics_logs_and_traces_tell_of_each_vm_and_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let agent = Agent::start(&["--log-format", "json", "--trace", trace.to_str().unwrap()]);
    agent.hold("web");
    agent.hold("db");
    // It is noted as it is told, which may be later than it is so.
    let begun = Instant::now();
    while agent.logged().matches("VM is ready").count() < 2 {
        assert!(begun.elapsed() < HANG, "{}", agent.logged());
        sleep(Duration::from_millis(10));
    }
    let metrics = agent.get("/metrics");
    assert!(metrics.head.contains("openmetrics"), "{metrics:?}");
    for line in [
        "vmm_node_vms{state=\"ready\"} 2",
        "vmm_node_vms_created_total 2",
        "vmm_node_boot_ready_seconds_count 2",
        "vmm_node_boot_phase_seconds_count{phase=\"load\"} 2",
        "vmm_node_pool_hits_total 1",
        "vmm_node_pool_misses_total 1",
        "vmm_node_pool_images 1",
        "vmm_node_requests_total{method=\"POST\",route=\"/v1/vms\",status=\"201\"} 2",
        "vmm_node_vm_resident_bytes{vm=\"web\",kind=\"private\"} ",
        "vmm_node_vms_resident_bytes{kind=\"shared\"} ",
        "# EOF",
    ] {
        assert!(metrics.body.contains(line), "no {line:?} in {}", metrics.body);
    }
    let log = lines(&agent.logged());
    for (vm, message) in [("web", "VM is starting"), ("web", "VM is ready"), ("db", "VM is ready")]
    {
        let found = log
            .iter()
            .any(|line| line["vm"] == vm && line["image"] == "small" && line["message"] == message);
        assert!(found, "no {message} of {vm} in {log:?}");
    }
    let spans = lines(&fs::read_to_string(&trace).unwrap());
    let boots: Vec<_> = spans.iter().filter(|span| span["name"] == "vm.boot").collect();
    assert_eq!(boots.len(), 2);
    for boot in boots {
        let children: Vec<_> =
            spans.iter().filter(|span| span["parent_span_id"] == boot["span_id"]).collect();
        assert!(children.iter().any(|span| span["name"] == "load"), "{children:?}");
        assert!(children.iter().all(|span| span["trace_id"] == boot["trace_id"]));
        assert!(children.iter().all(|span| span["attributes"]["image.name"] == "small"));
    }
}

#[test]
fn one_frame_of_top_has_vms_memory_and_hits() {
    let agent = Agent::start(&[]);
    agent.hold("web");
    agent.hold("db");
    let frame = agent.text(&["top", "--once", "--sort", "name"]);
    assert!(frame.contains("2 ready") && frame.contains("hits 1 of 2 (50 %)"), "{frame}");
    let rows: Vec<&str> = frame.lines().skip_while(|line| !line.starts_with("NAME")).collect();
    assert!(rows[1].starts_with("db ") && rows[2].starts_with("web "), "{frame}");
    assert!(rows[1].contains("MiB"), "{frame}");
}

/// A terminal of its own, by tmux.
struct Terminal {
    name: String,
}

impl Terminal {
    fn tmux(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("tmux").args(["-L", &self.name]).args(arguments).output().unwrap();
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it shows, once that is so.
    fn shows(&self, condition: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let seen = self.tmux(&["capture-pane", "-p"]);
            if condition(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < HANG, "{seen}");
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.name, "kill-server"]).output();
    }
}

#[test]
fn top_is_watched_sorted_and_left_in_a_terminal() {
    if Command::new("tmux").arg("-V").output().is_err() {
        eprintln!("there is no tmux here (scripts/setup test): vmm top is not seen in a terminal");
        return;
    }
    let agent = Agent::start(&[]);
    agent.hold("web");
    let terminal = Terminal { name: format!("vmm-top-{}", std::process::id()) };
    terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "30", "sh"]);
    let program = agent.vmm(&["top"]);
    let program = program.get_args().nth(1).unwrap().to_str().unwrap().to_owned();
    let command = format!("{program} top --node unix:{}; echo left", agent.socket().display());
    terminal.tmux(&["send-keys", "-l", &command]);
    terminal.tmux(&["send-keys", "Enter"]);
    let seen = terminal.shows(|seen| seen.contains("q quit") && seen.contains("web"));
    assert!(seen.contains("1 ready") && seen.contains("sorted by private"), "{seen}");
    // What comes to be is shown; keys change the order.
    agent.hold("db");
    terminal.shows(|seen| seen.contains("2 ready") && seen.contains("db"));
    terminal.tmux(&["send-keys", "n"]);
    let row = |seen: &str, name: &str| seen.lines().position(|line| line.starts_with(name));
    terminal.shows(|seen| seen.contains("sorted by name") && row(seen, "db ") < row(seen, "web "));
    terminal.tmux(&["send-keys", "n"]);
    terminal.shows(|seen| seen.contains("other way") && row(seen, "web ") < row(seen, "db "));
    terminal.tmux(&["send-keys", "q"]);
    // The terminal is as it was.
    terminal.shows(|seen| seen.lines().any(|line| line == "left") && !seen.contains("q quit"));
}
