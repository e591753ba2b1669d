//! On one host.

use std::time::Duration;

use rustix::process::Signal;

use super::{is_begun, is_served, isolated, patiently, scene};
use crate::common::Bench;

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn a_service_moves_twenty_times_and_its_client_sees_each_byte_once() {
    isolated(|| {
        let agent = scene(Bench::new(), &["--damping", "off"], 10, 0, 50);
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
        // What was lost in a kill is sent again after a second, and not at all by a connection that is
        // moved once more before.
        let mut agent = scene(Bench::new(), &["--damping", "off"], 1000, 2, 45);
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
        let agent = scene(Bench::new(), &[], 0, 0, 30);
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
