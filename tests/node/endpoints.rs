//! Virtual endpoints of an agent's VMs, by its API and the commands. VMs are held, so that none of them answers an
//! errand; each test has a network namespace of its own, in a process of its own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::agent::{Agent, Answer};
use crate::common::ovs::{Daemons, Datapath};
use crate::common::{stderr, stdout};

/// Set in the process that a test runs in.
const INSIDE: &str = "VMM_TEST_NAMESPACE";
/// The bridge of the VMs.
const BRIDGE: &str = "br0";

/// Runs `test`, which is the one called `name`, in a namespace of its own.
fn isolated(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        return test();
    }
    enter(name, &[]);
}

/// The same with a bridge of an Open vSwitch of its own.
fn on_open_vswitch(name: &str, test: impl FnOnce(&mut Daemons)) {
    const FOLDER: &str = "OVS_RUNDIR";
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        let folder = std::env::var_os(FOLDER).unwrap();
        let settings = "fail_mode=standalone";
        return test(&mut Daemons::start_in(folder.as_ref(), Datapath::User, BRIDGE, settings));
    }
    let folder = tempfile::tempdir().unwrap();
    enter(name, &[(FOLDER, folder.path().to_str().unwrap())]);
}

/// Runs the test called `name` in a process with a network namespace of its own.
fn enter(name: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--net").arg(std::env::current_exe().unwrap());
    let name = format!("endpoints::{name}");
    command.args(["--exact", &name, "--nocapture"]).env(INSIDE, "1");
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// An agent of the host `here`, with VMs that may serve web and kv.
fn start(vms: &[&str]) -> Agent {
    let agent = Agent::start(&["--host-name", "here"]);
    for name in vms {
        let net = format!("bridge={BRIDGE}");
        let may = "services=web+kv.*,addresses=10.77.0.80+10.77.0.81,move,split";
        let boot = ["boot", "--node", "--detach", "--hold", "--image", "small", "--name", name];
        agent.text(&[&boot[..], &["--net", &net, "--endpoint", may]].concat());
        let ready = agent.get(&format!("/v1/vms/{name}/wait?state=ready&timeout_ms=120000")).json();
        assert_eq!(ready["state"], "ready", "{ready}");
    }
    agent
}

fn post(agent: &Agent, path: &str, body: &Value) -> Answer {
    let text = body.to_string();
    agent.ask("POST", path, "content-type: application/json\r\n", text.as_bytes())
}

fn parsed(agent: &Agent, arguments: &[&str]) -> Value {
    serde_json::from_str(&agent.text(&[arguments, &["--json"]].concat())).unwrap()
}

/// Waits until something is so.
fn until(agent: &Agent, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("never: {what}: {}", agent.logged());
}

/// Announces, as soon as the agent has heard of the VM.
fn announce(agent: &Agent, service: &str, vm: &str, more: &[&str]) -> Value {
    let command = ["endpoint", "announce", service, "--vm", vm, "--json"];
    let made = std::cell::RefCell::new(Value::Null);
    until(agent, "the agent has heard of the VM", || {
        let output = agent.vmm(&[&command[..], more].concat()).output().unwrap();
        if output.status.success() {
            *made.borrow_mut() = serde_json::from_str(&stdout(&output)).unwrap();
            return true;
        }
        assert!(stderr(&output).contains("is no running VM"), "{output:?} {}", agent.logged());
        false
    });
    made.into_inner()
}

#[test]
fn an_endpoint_is_announced_seen_split_frozen_and_given_up() {
    isolated("an_endpoint_is_announced_seen_split_frozen_and_given_up", || {
        let agent = start(&["a", "b"]);
        assert_eq!(parsed(&agent, &["endpoint", "ls"]), json!([]));
        let made = announce(&agent, "web", "a", &["--range", "0-9"]);
        assert_eq!((&made["home"], &made["listening"]), (&"here/a".into(), &false.into()));
        assert_eq!((&made["lo"], &made["hi"]), (&0.into(), &9.into()));
        assert_eq!(parsed(&agent, &["flow", "ls"]), json!([]));
        // Again, it changes nothing; to somebody else it is refused.
        assert_eq!(announce(&agent, "web", "a", &["--range", "0-9"]), made);
        let wish = json!({"service": "web", "vm": "b", "range": {"lo": 5, "hi": 6}});
        assert_eq!(post(&agent, "/v1/endpoints", &wish).status, 409);

        let done = parsed(&agent, &["endpoint", "listen", "web"]);
        assert_eq!(done["endpoints"][0]["listening"], true, "{done}");
        let flows = parsed(&agent, &["flow", "ls"]);
        assert_eq!(flows.as_array().unwrap().len(), 10, "{flows}");
        assert!(flows.as_array().unwrap().iter().all(|flow| flow["home"] == "a"), "{flows}");
        assert_eq!(flows[0]["bridge"], BRIDGE);

        let parts = parsed(&agent, &["endpoint", "split", "web", "--at", "4"]);
        let bounds = |all: &Value| -> Vec<(u64, u64)> {
            let all = all.as_array().unwrap().iter();
            let mut bounds: Vec<_> =
                all.map(|one| (one["lo"].as_u64().unwrap(), one["hi"].as_u64().unwrap())).collect();
            bounds.sort_unstable();
            bounds
        };
        assert_eq!(bounds(&parts["endpoints"]), [(0, 3), (4, 9)]);
        assert_eq!(bounds(&agent.get("/v1/endpoints/web").json()), [(0, 3), (4, 9)]);
        // One that is not said which of the two it is.
        let which = agent.run(1, &["endpoint", "move", "web", "--to", "b"]);
        assert!(stderr(&which).contains("2 ranges"), "{which:?}");
        let whole = parsed(&agent, &["endpoint", "merge", "web"]);
        assert_eq!(bounds(&whole["endpoints"]), [(0, 9)]);
        assert_eq!(parsed(&agent, &["flow", "ls"]), flows);

        let mirrored = parsed(&agent, &["endpoint", "mirror", "web", "--to", "b"]);
        assert_eq!(mirrored["endpoints"][0]["mirrors"], json!(["here/b"]));
        assert!(agent.text(&["endpoint", "ls"]).contains("here/b"));
        let single = parsed(&agent, &["endpoint", "mirror", "web", "--to", "b", "--remove"]);
        assert_eq!(single["endpoints"][0]["mirrors"], json!([]));

        let frozen = parsed(&agent, &["endpoint", "freeze", "web"]);
        assert_eq!(frozen["endpoints"][0]["phase"], "frozen");
        assert!(agent.text(&["endpoint", "show", "web"]).contains("phase:      frozen"));
        agent.run(1, &["endpoint", "move", "web", "--to", "b"]);
        let thawed = parsed(&agent, &["endpoint", "thaw", "web"]);
        assert_eq!(thawed["endpoints"][0]["phase"], "home");

        assert_eq!(agent.text(&["endpoint", "withdraw", "web"]), "web\n");
        assert_eq!(agent.get("/v1/endpoints").json(), json!([]));
        assert_eq!(agent.get("/v1/flows").json(), json!([]));
        let gone = agent.run(1, &["endpoint", "show", "web"]);
        assert!(stderr(&gone).contains("nobody has announced 'web'"), "{gone:?}");
        let metrics = agent.get("/metrics").body;
        assert!(metrics.contains("\nvmm_endpoint_moves_total 0\n"), "{metrics}");
        assert!(metrics.trim_end().ends_with("# EOF") && metrics.matches("# EOF").count() == 1);
    });
}

#[test]
fn flows_are_changed_all_or_none() {
    isolated("flows_are_changed_all_or_none", || {
        let agent = start(&["a", "b"]);
        announce(&agent, "kv.a", "a", &["--range", "0-2", "--listen"]);
        announce(&agent, "web", "b", &["--listen"]);
        let vids = |agent: &Agent, home: &str| -> Vec<String> {
            let flows = parsed(agent, &["flow", "ls"]);
            let all = flows.as_array().unwrap().iter().filter(|flow| flow["home"] == home);
            all.map(|flow| flow["vid"].as_str().unwrap().to_owned()).collect()
        };
        let (own, other) = (vids(&agent, "a"), vids(&agent, "b"));
        assert_eq!((own.len(), other.len()), (3, 1));
        let listed = parsed(&agent, &["endpoint", "ls", "kv.*"]);
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");

        // The last of these cannot be: none is made.
        let file = agent.bench.path().join("changes");
        let text = format!("update {} b\ndel {}\nadd {} b # it is there\n", own[0], own[1], own[2]);
        fs::write(&file, text).unwrap();
        let before = agent.get("/v1/flows").json();
        let refused = agent.run(1, &["flow", "sync", file.to_str().unwrap()]);
        assert!(!stderr(&refused).is_empty());
        assert_eq!(agent.get("/v1/flows").json(), before);

        fs::write(&file, format!("update {} b\ndel {}\n", own[0], own[1])).unwrap();
        agent.text(&["flow", "sync", file.to_str().unwrap()]);
        assert_eq!((vids(&agent, "a").len(), vids(&agent, "b").len()), (1, 2));
        agent.text(&["flow", "del", &own[0]]);
        agent.text(&["flow", "add", &own[0], "a"]);
        let list = json!([{"change": "add", "vid": own[1], "vm": "a"}]);
        assert_eq!(post(&agent, "/v1/flows", &list).status, 200);
        assert_eq!(agent.get("/v1/flows").json(), before);

        fs::write(&file, "up\n").unwrap();
        let wrong = agent.run(2, &["flow", "sync", file.to_str().unwrap()]);
        assert!(stderr(&wrong).contains("line 1"), "{wrong:?}");
        agent.run(1, &["flow", "sync", "/nowhere"]);
        agent.run(2, &["flow", "del", "01:00:00:00:00:00"]);
    });
}

#[test]
fn a_move_that_no_guest_answers_goes_back() {
    isolated("a_move_that_no_guest_answers_goes_back", || {
        let agent = start(&["a", "b"]);
        announce(&agent, "web", "a", &["--listen"]);
        let (endpoints, flows) = (agent.get("/v1/endpoints").json(), agent.get("/v1/flows").json());
        let output = agent.run(14, &["endpoint", "move", "web", "--to", "b"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("aborted") && said.contains("a guest does not answer"), "{output:?}");
        assert_eq!(agent.get("/v1/flows").json(), flows);
        let now = agent.get("/v1/endpoints").json();
        for field in ["home", "phase", "to", "vid", "listening", "lo", "hi", "owner"] {
            assert_eq!(now[0][field], endpoints[0][field], "{field}: {now} {}", agent.logged());
        }
        assert!(agent.get("/metrics").body.contains("\nvmm_endpoint_moves_aborted_total 1\n"));
        agent.run(1, &["endpoint", "move", "kv.a", "--to", "b"]);
        // A VM that ends leaves nothing behind, as soon as the agent has heard of it.
        agent.text(&["rm", "--force", "a"]);
        until(&agent, "no flow is left", || agent.get("/v1/flows").body == "[]");
        agent.run(1, &["endpoint", "show", "web"]);
        announce(&agent, "web", "b", &["--listen"]);
        assert_eq!(agent.get("/v1/flows").json()[0]["home"], "b");
    });
}

#[test]
fn endpoints_are_on_a_bridge_of_open_vswitch_too() {
    on_open_vswitch("endpoints_are_on_a_bridge_of_open_vswitch_too", |daemons| {
        let agent = start(&["a", "b"]);
        // One that has nothing to do with it, at an address that another cannot have, too.
        let plain = |name: &str| {
            let net = format!("bridge={BRIDGE},mac=02:00:00:00:00:77,isolated");
            let boot = ["boot", "--node", "--detach", "--hold", "--image", "small", "--name", name];
            agent.vmm(&[&boot[..], &["--net", &net]].concat()).output().unwrap()
        };
        assert!(plain("c").status.success());
        let refused = stderr(&plain("d"));
        assert!(refused.contains("02:00:00:00:00:77 is on br0 already"), "{refused}");
        let listed = parsed(&agent, &["net", "ls", "--bridge", BRIDGE]);
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["a", "b", "c"], "{listed}");

        let made = announce(&agent, "web", "a", &["--listen"]);
        let vid = made["vid"].as_str().unwrap().to_owned();
        let leads = |daemons: &Daemons| daemons.flows(BRIDGE, "dump-flows", &[]).contains(&vid);
        assert!(leads(daemons), "{}", daemons.flows(BRIDGE, "dump-flows", &[]));
        assert_eq!(agent.get("/v1/flows").json()[0]["home"], "a");
        // Its daemon is killed: the agent tells the next one where all is.
        daemons.kill_switch();
        daemons.start_switch();
        until(&agent, "all is told again", || daemons.has(BRIDGE) && leads(daemons));
        // What VMs leave behind: no flow, no port.
        let ports =
            |daemons: &Daemons| daemons.flows(BRIDGE, "show", &[]).matches("(vmovs").count();
        assert_eq!(ports(daemons), 3);
        agent.text(&["rm", "--force", "a"]);
        until(&agent, "nothing is left of it", || !leads(daemons) && ports(daemons) == 2);
        agent.text(&["rm", "--force", "c"]);
        until(&agent, "nothing is left of it", || ports(daemons) == 1);
        announce(&agent, "web", "b", &["--listen"]);
        assert!(leads(daemons));
    });
}

#[test]
fn bad_requests_of_endpoints_are_refused_with_what_is_wrong() {
    isolated("bad_requests_of_endpoints_are_refused_with_what_is_wrong", || {
        let agent = start(&["a"]);
        announce(&agent, "web", "a", &[]);
        let act = "/v1/endpoints/web/actions";
        let cases = [
            ("/v1/endpoints", json!({}), 400, "missing field `service`"),
            ("/v1/endpoints", json!({"service": "web", "vm": "a", "x": 1}), 400, "`x`"),
            ("/v1/endpoints", json!({"service": "Web", "vm": "a"}), 422, "'Web'"),
            ("/v1/endpoints", json!({"service": "web", "vm": "none"}), 404, "'none'"),
            ("/v1/endpoints", json!({"service": "dhcp", "vm": "a"}), 422, "dhcp"),
            (
                "/v1/endpoints",
                json!({"service": "kv.a", "vm": "a", "range": {"lo": 2, "hi": 1}}),
                422,
                "2",
            ),
            (
                "/v1/endpoints",
                json!({"service": "kv.a", "vm": "a", "range": {"form": "middle"}}),
                422,
                "'middle'",
            ),
            (act, json!({"do": "fly"}), 400, "`fly`"),
            (act, json!({"do": "move"}), 400, "`to`"),
            (act, json!({"do": "freeze", "x": 1}), 400, "`x`"),
            (act, json!({"do": "move", "to": "none"}), 404, "'none'"),
            (act, json!({"do": "split", "at": 7}), 422, "7"),
            ("/v1/endpoints/none/actions", json!({"do": "freeze"}), 404, "'none'"),
            ("/v1/endpoints/No/actions", json!({"do": "freeze"}), 400, "'No'"),
            ("/v1/flows", json!({}), 400, "expected a sequence"),
            ("/v1/flows", json!([{"change": "add", "vid": "x", "vm": "a"}]), 422, "'x'"),
            (
                "/v1/flows",
                json!([{"change": "delete", "vid": "02:00:00:00:00:01"}]),
                404,
                "02:00:00:00:00:01",
            ),
        ];
        for (path, body, status, words) in cases {
            let seen = post(&agent, path, &body);
            assert_eq!(seen.status, status, "{path} {body}: {seen:?}");
            let message = seen.json()["message"].as_str().unwrap().to_owned();
            assert!(message.contains(words), "{path} {body}: {message}");
        }
        assert_eq!(agent.get("/v1/endpoints?service=*").status, 422);
        assert_eq!(agent.get("/v1/endpoints?x=1").status, 400);
        assert_eq!(agent.get("/v1/endpoints/none").status, 404);
        agent.run(2, &["endpoint", "ls", "*"]);
        agent.run(2, &["endpoint", "announce", "web", "--vm", "a", "--range", "9-1"]);
        // Nothing came of any of them.
        assert_eq!(agent.get("/v1/endpoints").json().as_array().unwrap().len(), 1);
        assert_eq!(agent.get("/v1/flows").json(), json!([]));
    });
}
