//! What is killed at a step of a move: the agent of the source's host, that of the destination's, the switch, the
//! directory. There is one home afterwards, nothing is held, and the client is served.
//!
//! The moments are those of a debug build of the program (`vmm::node::moment`).

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{
    Etcd, boot_behind_tunnel, client, host_options, ip, is_there, may_serve, patiently, server,
    unshare_network,
};
use crate::common::agent::Agent;
use crate::common::ovs::{Daemons, Datapath};
use crate::common::ramdisk::{example, push_script};
use crate::common::{Bench, is_long};

/// The steps, in their order.
const STEPS: [&str; 13] = [
    "claim", "prepare", "redirect", "hold", "drain", "stop", "send", "resume", "commit", "open",
    "release", "announce", "free",
];
/// Before each of these whatever can be killed is killed, before others one of it, in turn. All before each, if
/// it may take long.
const DECISIVE: [&str; 3] = ["stop", "commit", "open"];
/// How long a bridge is down, and a directory gone: clients send again meanwhile.
const OUTAGE: Duration = Duration::from_secs(1);
/// How long a move waits before its step: what is killed then is killed there.
const WAITS: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    Switch,
    Directory,
}

/// What the bridges are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// The kernel: one cannot be killed, but it can be down.
    Linux,
    /// Open vSwitch, whose daemon can.
    Ovs,
}

const VICTIMS: [Victim; 4] =
    [Victim::Source, Victim::Destination, Victim::Switch, Victim::Directory];

const ETCD: &str = "10.88.0.1:2379";

/// A host: a network, and an agent.
struct Host {
    network: File,
    agent: Agent,
    /// What its bridge is of, if not of the kernel.
    ovs: Option<Daemons>,
}

impl Host {
    /// Its switch is gone for a while.
    fn break_switch(&mut self) {
        let network = &self.network;
        if let Some(ovs) = &mut self.ovs {
            ovs.kill_switch();
            std::thread::sleep(OUTAGE);
            return inside(network, || ovs.start_switch());
        }
        self.inside(|_| {
            ip("link set br77 down");
            std::thread::sleep(OUTAGE);
            ip("link set br77 up");
        });
    }

    /// Does something in its network.
    fn inside<T: Send>(&mut self, deed: impl FnOnce(&mut Agent) -> T + Send) -> T {
        let (network, agent) = (&self.network, &mut self.agent);
        inside(network, || deed(agent))
    }

    fn start_again(&mut self, at: Option<&str>) {
        self.agent.environment = environment(self.ovs.as_ref());
        self.agent.environment.push(("RUST_LOG".to_owned(), "vmm=debug".to_owned()));
        if let Some(step) = at {
            let what = format!("move-{step}=1*sleep({})", WAITS.as_millis());
            self.agent.environment.push(("FAILPOINTS".to_owned(), what));
        }
        self.inside(Agent::start_again);
    }
}

fn inside<T: Send>(network: &File, deed: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(network),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            deed()
        });
        thread.join().unwrap()
    })
}

/// A network with a bridge.
fn network(carrier: Carrier) -> (File, Option<Daemons>) {
    let thread = std::thread::spawn(move || {
        unshare_network();
        let ovs = (carrier == Carrier::Ovs).then(|| {
            ip("link del br77");
            Daemons::start(Datapath::Kernel, "br77", "fail_mode=standalone")
        });
        (File::open("/proc/thread-self/ns/net").unwrap(), ovs)
    });
    thread.join().unwrap()
}

/// By which an agent finds Open vSwitch.
fn environment(ovs: Option<&Daemons>) -> Vec<(String, String)> {
    let folder = |ovs: &Daemons| ("OVS_RUNDIR".to_owned(), ovs.folder().display().to_string());
    ovs.map(folder).into_iter().collect()
}

/// The agent of host `number`, which knows the other.
fn agent_of(number: usize, bench: Bench, peer: &str, ovs: Option<&Daemons>) -> Agent {
    let options = host_options(number, ETCD, &format!("unix:{peer}"), "10.88.0");
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Agent::with_environment(bench, &options, environment(ovs))
}

/// Two hosts with an etcd at the first: guest a, which has the service, and c, its client, at the first; guest b
/// at the second.
struct Scene {
    hosts: [Host; 2],
    etcd: Etcd,
}

impl Scene {
    fn new(carrier: Carrier) -> Self {
        let (first, second) = (Bench::new(), Bench::new());
        let programs = [example("stream-server")];
        push_script(&first, "a", &server(false, ""), &programs);
        push_script(&second, "b", &server(true, ""), &programs);
        let script = format!("netup\nwhile :; do\n{}echo client: $?\ndone\n", client(30));
        push_script(&first, "c", &script, &[example("stream-client")]);
        let ((one, one_ovs), (two, two_ovs)) = (network(carrier), network(carrier));
        let networks = [one, two];
        let other = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&networks[1]));
        inside(&networks[0], || {
            ip("link add h1 type veth peer name h2");
            // By a name of this process: `ip` is another.
            let other = other.replace("self", &std::process::id().to_string());
            ip(&format!("link set h2 netns {other}"));
            ip("addr add 10.88.0.1/24 dev h1");
            ip("link set h1 up");
        });
        inside(&networks[1], || {
            ip("addr add 10.88.0.2/24 dev h2");
            ip("link set h2 up");
        });
        let etcd = inside(&networks[0], || Etcd::start(first.path().join("etcd"), ETCD));
        let socket = |bench: &Bench| bench.path().join("run/node.sock").display().to_string();
        let sockets = [socket(&first), socket(&second)];
        let [one, two] = networks;
        let agent = inside(&one, || agent_of(1, first, &sockets[1], one_ovs.as_ref()));
        let first = Host { network: one, agent, ovs: one_ovs };
        let agent = inside(&two, || {
            is_there(ETCD);
            agent_of(2, second, &sockets[0], two_ovs.as_ref())
        });
        let second = Host { network: two, agent, ovs: two_ovs };
        boot_behind_tunnel(&first.agent, "a", 2, &may_serve());
        boot_behind_tunnel(&second.agent, "b", 3, &may_serve());
        boot_behind_tunnel(&first.agent, "c", 4, "");
        Self { hosts: [first, second], etcd }
    }

    /// Waits until the service is at one place, which takes frames, and none are held; at which host.
    fn home(&self) -> usize {
        let begun = Instant::now();
        loop {
            let all = [0, 1].map(|host| self.endpoints(host));
            let home = all[0]["home"].as_str().unwrap_or_default();
            let host = usize::from(home.starts_with("h2/"));
            let is_one = all[0]["home"] == all[1]["home"] && !home.is_empty();
            let is_home = all.iter().all(|one| one["phase"] == "home");
            let is_held = [0, 1].map(|host| self.is_held(host)).contains(&true);
            if is_one && is_home && all[host]["listening"] == true && !is_held {
                return host;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{all:?}: {}", self.said());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What an agent knows of the service, if that is one thing.
    fn endpoints(&self, host: usize) -> Value {
        let all = self.ask(host, &["endpoint", "ls", "--json"]);
        let one = all.as_array().filter(|all| all.len() == 1).map(|all| all[0].clone());
        one.unwrap_or_default()
    }

    fn is_held(&self, host: usize) -> bool {
        let flows = self.ask(host, &["flow", "ls", "--json"]);
        flows.as_array().is_none_or(|flows| flows.iter().any(|flow| !flow["moving"].is_null()))
    }

    /// What an agent answers; nothing, while its directory does not.
    fn ask(&self, host: usize, words: &[&str]) -> Value {
        let output = self.hosts[host].agent.vmm(words).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn said(&self) -> String {
        let [one, two] = &self.hosts;
        let all = [one.agent.console("a"), two.agent.console("b"), one.agent.console("c")];
        let asked = |line: &&str| !line.contains("DEBUG request method=GET");
        let log = |agent: &Agent| agent.log().lines().filter(asked).collect::<Vec<_>>().join("\n");
        let (one, two) = (log(&one.agent), log(&two.agent));
        format!("{}\n--- h1\n{one}\n--- h2\n{two}", all.join("\n---\n"))
    }

    /// Words that the client had back, in all.
    fn words(&self) -> u64 {
        let (mut before, mut now) = (0, 0);
        for line in self.client() {
            now = line["words"].as_u64().unwrap_or_default();
            if line["end"] == true {
                before += now;
                now = 0;
            }
        }
        before + now
    }

    /// How the client's connections ended.
    fn ends(&self) -> Vec<Value> {
        self.client().into_iter().filter(|line| line["end"] == true).collect()
    }

    /// Waits until the client is served for the first time.
    fn is_begun(&self) {
        patiently(&self.hosts[0].agent, "the client is served", |_| self.words() > 0);
    }

    /// Waits for the end of one more connection: all were whole.
    fn ends_whole(&self) {
        let before = self.ends().len();
        patiently(&self.hosts[0].agent, "the client has ended", |_| self.ends().len() > before);
        self.is_whole();
        self.ends().iter().for_each(|end| println!("{end}"));
    }

    /// None of them had a wrong byte; one that is not whole was reset.
    fn is_whole(&self) {
        for end in self.ends() {
            assert_eq!(end["wrong"], 0, "{end}: {}", self.said());
            assert!(end["resets"] != 0 || end["lost"] == 0, "{end}: {}", self.said());
        }
    }

    fn client(&self) -> Vec<Value> {
        let console = self.hosts[0].agent.console("c");
        console.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until the client is served, by what it has not had yet.
    fn is_served(&self) {
        let (before, begun) = (self.words(), Instant::now());
        while self.words() <= before {
            assert!(begun.elapsed() < Duration::from_secs(120), "not served: {}", self.said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills `victim` just before `step` of a move. What is killed is started again.
    fn kill(&mut self, step: &str, victim: Victim) {
        let source = self.home();
        let to = ["h2/b", "h1/a"][source];
        self.hosts[source].agent.end(Signal::TERM);
        self.hosts[source].start_again(Some(step));
        // Its guests have found it again.
        assert_eq!(self.home(), source);
        let agent = &self.hosts[source].agent;
        let words = ["endpoint", "move", "web", "--to", to, "--json"];
        let ask = || {
            let mut asker = agent.vmm(&words);
            asker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut asker = ask();
        let now = format!("move: now {step}");
        patiently(agent, &now, |agent| {
            let is_there = agent.log().contains(&now);
            // It is refused while a client comes or goes just then.
            if !is_there && asker.try_wait().unwrap().is_some() {
                asker = ask();
            }
            is_there
        });
        let begun = Instant::now();
        match victim {
            Victim::Source | Victim::Destination => {
                let host = if victim == Victim::Source { source } else { 1 - source };
                self.hosts[host].agent.end(Signal::KILL);
                self.hosts[host].start_again(None);
            }
            Victim::Switch => self.hosts[source].break_switch(),
            Victim::Directory => {
                self.etcd.kill();
                std::thread::sleep(OUTAGE);
                let etcd = &mut self.etcd;
                inside(&self.hosts[0].network, || etcd.start_again());
            }
        }
        let code = asker.wait().unwrap().code();
        let host = self.home();
        let took = begun.elapsed();
        self.is_served();
        self.is_whole();
        let went = if host == source { "stayed" } else { "moved" };
        println!("{step}, {victim:?} killed: {went} (told: {code:?}), one home after {took:.1?}");
    }
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn whatever_is_killed_at_whichever_step_leaves_one_home_and_no_wrong_byte() {
    let mut scene = Scene::new(Carrier::Linux);
    scene.is_begun();
    for (number, step) in STEPS.into_iter().enumerate() {
        for (turn, victim) in VICTIMS.into_iter().enumerate() {
            if is_long() || DECISIVE.contains(&step) || turn == number % VICTIMS.len() {
                scene.kill(step, victim);
            }
        }
    }
    scene.ends_whole();
}

#[test]
#[ignore = "needs a KVM that runs stock kernels"]
fn an_open_vswitch_that_is_killed_leaves_one_home_and_no_wrong_byte() {
    let mut scene = Scene::new(Carrier::Ovs);
    scene.is_begun();
    for step in STEPS {
        if is_long() || DECISIVE.contains(&step) || step == "hold" {
            scene.kill(step, Victim::Switch);
        }
    }
    scene.ends_whole();
}
