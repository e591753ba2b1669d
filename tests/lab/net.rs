//! Guests on a network: they reach each other, the host and what is on it, and nobody under another's
//! name.
//!
//! Each test has a network namespace of its own, so that none finds what another left, and the
//! lab's stays as it is.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::Bench;
use crate::common::node::Node;
use crate::common::ramdisk::push_script;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

/// Runs `test` in a network namespace of its own.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        let flags = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: of all that threads share, descriptors are not among what becomes this one's own.
        unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    ran.join().unwrap();
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn iperf() -> PathBuf {
    let path = PathBuf::from("/usr/bin/iperf3");
    assert!(path.exists(), "iperf3 is missing: scripts/setup test");
    path
}

/// A guest that runs.
struct Vm {
    child: Child,
    lines: BufReader<ChildStdout>,
    console: String,
    report: PathBuf,
}

impl Vm {
    fn start(bench: &Bench, image: &str, name: &str, network: &str) -> Self {
        let report = bench.path().join(format!("{name}.json"));
        let mut child = bench
            .vmm(&["boot", "--image", image, "--name", name, "--net", network])
            .args(["--memory", "256M", "--report", report.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, console: String::new(), report }
    }

    /// Waits for a line that has `mark` in it; the rest of that line.
    fn wait_for(&mut self, mark: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.lines.read_line(&mut line).unwrap();
            assert!(length > 0, "no {mark:?} in\n{}", self.console);
            self.console.push_str(&line);
            if let Some((_, rest)) = line.split_once(mark) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Waits for its end; what it reported.
    fn end(mut self) -> Value {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            self.console.push_str(&std::mem::take(&mut line));
        }
        let status = self.child.wait().unwrap();
        assert!(status.success() && self.console.contains("script: done"), "{}", self.console);
        serde_json::from_slice(&std::fs::read(&self.report).unwrap()).unwrap()
    }
}

fn push(bench: &Bench, name: &str, script: &str, programs: &[PathBuf]) {
    push_script(bench, name, &format!("set -e\nnetup\n{script}\necho script: done\n"), programs);
}

/// The bits a second that `iperf3 -J` says its receiver got, and those that it was sent.
fn received(report: &str) -> f64 {
    let report: Value = serde_json::from_str(report).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{report}"))
}

fn count(report: &Value, what: &str) -> u64 {
    report["guest"]["network"][what].as_u64().unwrap_or_else(|| panic!("{report:#}"))
}

/// A server of iperf3 on this host, for one client.
fn host_server() -> Child {
    let mut child = Command::new(iperf())
        .args(["-s", "-1", "--forceflush", "-B", &GATEWAY.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("listening")));
    // Kept open: it goes on writing.
    std::mem::forget(lines);
    child
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn guests_talk_to_each_other_and_to_the_host_and_reach_the_cache() {
    isolated(|| {
        let bench = Bench::new();
        let programs = [iperf()];
        push(&bench, "server", "iperf3 -s -1 --forceflush\niperf3 -s -1 --forceflush", &programs);
        let mut server = Vm::start(&bench, "server", "server", "nat");
        let address = server.wait_for("net: ");
        let address = address.split('/').next().unwrap().to_owned();
        server.wait_for("listening");
        // The host to the guest.
        run("iperf3", &["-c", &address, "-n", "8M", "-J"]);
        server.wait_for("listening");

        let node = Node::start(bench.path(), &["--memory", "64M", "--listen", "10.213.0.1:0"]);
        let port = node.address().port();
        let mut host = host_server();
        let client = format!(
            "iperf3 -c {address} -n 8M >/tmp/a && grep -c receiver /tmp/a\n\
             iperf3 -c {GATEWAY} -n 8M >/tmp/b && grep -c receiver /tmp/b\n\
             (printf 'version\\r\\n'; sleep 1) | nc {GATEWAY} {port}"
        );
        push(&bench, "client", &client, &programs);
        let mut vm = Vm::start(&bench, "client", "client", "nat");
        vm.wait_for("VERSION");
        let report = vm.end();
        assert!(host.wait().unwrap().success());
        // What is larger than a packet was not cut: several megabytes in fewer than a packet each.
        assert!(count(&report, "sent_large") > 0, "{report:#}");
        let (bytes, frames) = (count(&report, "sent_bytes"), count(&report, "sent_frames"));
        assert!(bytes > 8 << 20 && frames < bytes / 1448, "{report:#}");
        assert_eq!(count(&report, "sent_spoofed"), 0, "{report:#}");
        let report = server.end();
        assert!(count(&report, "received_large") > 0, "{report:#}");
        assert_eq!(report["network"]["locked"], true);
        drop(node);
        // Nothing is left but the bridge, and that can be removed.
        assert!(!run("ip", &["-br", "link"]).contains("vmtap"));
        bench.expect(0, &["net", "rm"]);
        assert!(!run("ip", &["-br", "link"]).contains("vmmnat0"));
    });
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_that_asks_is_told_its_address_its_gateway_and_its_mtu() {
    isolated(|| {
        run("ip", &["link", "add", "br0", "mtu", "1400", "type", "bridge"]);
        run("ip", &["link", "set", "br0", "up"]);
        run("ip", &["addr", "add", "10.5.0.1/24", "dev", "br0"]);
        let bench = Bench::new();
        push(&bench, "guest", "ping -c 1 -W 5 10.5.0.1 && cat /etc/resolv.conf", &[]);
        let network = "bridge=br0,ip=10.5.0.7/24,gateway=10.5.0.1,dns=10.5.0.9,address=dhcp";
        let mut vm = Vm::start(&bench, "guest", "asks", network);
        assert_eq!(vm.wait_for("net: "), "10.5.0.7/24 via 10.5.0.1 mtu 1400");
        vm.wait_for("nameserver 10.5.0.9");
        let report = vm.end();
        assert_eq!(count(&report, "dhcp_answers"), 2, "an offer, and that it has it");
        assert_eq!(report["network"]["ip"], "10.5.0.7/24");
    });
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_that_says_it_is_another_is_not_heard() {
    isolated(|| {
        run("ip", &["link", "add", "br0", "type", "bridge"]);
        run("ip", &["link", "set", "br0", "up"]);
        run("ip", &["addr", "add", "10.5.0.1/24", "dev", "br0"]);
        let bench = Bench::new();
        // A question about a name is a datagram with the name in it; nobody answers.
        let say =
            |word: &str| format!("timeout 3 nslookup {word} 10.5.0.1 >/dev/null 2>&1 || true");
        let script = [
            &say("honest"),
            // Where the host is known already: nothing but the question itself is tried under another's
            // address, and then from another's interface.
            "gateway=$(ip neigh show 10.5.0.1 | awk '{print $5}')",
            "ip addr flush dev eth0; ip addr add 10.5.0.8/24 dev eth0; arp -s 10.5.0.1 $gateway",
            &say("forged-address"),
            "ping -c 1 -W 1 10.5.0.1 || true",
            "ip addr flush dev eth0; ip addr add 10.5.0.7/24 dev eth0",
            "mac=$(cat /sys/class/net/eth0/address)",
            "ip link set eth0 address 02:00:00:00:00:99; arp -s 10.5.0.1 $gateway",
            &say("forged-interface"),
            "ip link set eth0 address $mac",
            &say("end"),
        ];
        push(&bench, "guest", &script.join("\n"), &[]);
        let socket = UdpSocket::bind(SocketAddr::from(([10, 5, 0, 1], 53))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(200))).unwrap();
        let vm = Vm::start(&bench, "guest", "liar", "bridge=br0,ip=10.5.0.7/24");
        let words = ["honest", "forged", "end"];
        let mut heard = Vec::new();
        while heard.last() != Some(&"end") {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip(), Ipv4Addr::new(10, 5, 0, 7));
            let has =
                |word: &&str| buffer[..length].windows(word.len()).any(|w| w == word.as_bytes());
            heard.extend(words.iter().find(|word| has(word)));
        }
        assert!(heard.contains(&"honest") && !heard.contains(&"forged"), "{heard:?}");
        let report = vm.end();
        assert!(count(&report, "sent_spoofed") >= 2, "{report:#}");
        assert!(!run("ip", &["neigh"]).contains("10.5.0.8"), "nobody has heard of it");
    });
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn limits_and_port_filters_have_an_effect() {
    isolated(|| {
        let bench = Bench::new();
        push(&bench, "guest", "iperf3 -s -1 --forceflush\niperf3 -s -1 --forceflush", &[iperf()]);
        let rate_of = |name: &str, options: &str| {
            let mut vm =
                Vm::start(&bench, "guest", name, &format!("nat,allow-in=tcp:5201{options}"));
            let address = vm.wait_for("net: ").split('/').next().unwrap().to_owned();
            vm.wait_for("listening");
            let inward = received(&run("iperf3", &["-c", &address, "-n", "2M", "-J"]));
            // A port that is not to be reached does not answer, not even with a refusal. What comes
            // after it comes after it at the device, too.
            let socket = SocketAddr::from((address.parse::<Ipv4Addr>().unwrap(), 80));
            let closed = std::net::TcpStream::connect_timeout(&socket, Duration::from_millis(300));
            assert!(closed.is_err());
            vm.wait_for("listening");
            let outward = received(&run("iperf3", &["-c", &address, "-n", "2M", "-R", "-J"]));
            let report = vm.end();
            assert!(count(&report, "received_filtered") > 0, "{report:#}");
            (inward, outward, report)
        };
        let (free_in, free_out, report) = rate_of("free", "");
        assert_eq!(count(&report, "sent_throttled") + count(&report, "received_throttled"), 0);
        let (slow_in, slow_out, report) = rate_of("slow", ",rate=512K,burst=64K");
        assert!(count(&report, "sent_throttled") > 0 && count(&report, "received_throttled") > 0);
        // 2 MiB at half a MiB a second, with no more than the burst on top.
        let most = f64::from(512 << 10) * 8.0 * 1.2;
        assert!(slow_in < most && slow_out < most, "{slow_in} {slow_out}");
        assert!(free_in > slow_in && free_out > slow_out, "{free_in} {free_out}");
    });
}

#[test]
#[ignore = "boots guests: scripts/test runs it in the lab"]
fn a_guest_reaches_elsewhere_under_the_hosts_address() {
    isolated(|| {
        // Elsewhere is a namespace at the other end of a cable.
        let bench = Bench::new();
        let outside = outside(bench.path());
        push(&bench, "guest", "nc -w 20 198.51.100.2 777 </dev/null", &[]);
        let mut vm = Vm::start(&bench, "guest", "traveller", "nat");
        vm.wait_for("you are 198.51.100.1");
        vm.end();
        outside.join().unwrap();
    });
}

/// A server in a namespace of its own at 198.51.100.2, which tells one client who it is; this
/// namespace is 198.51.100.1 to it.
fn outside(_: &Path) -> std::thread::JoinHandle<()> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        // SAFETY: as above.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        ready.send(rustix::thread::gettid()).unwrap();
        while !Path::new("/proc/thread-self/net/dev_snmp6/out1").exists() {
            std::thread::yield_now();
        }
        run("ip", &["addr", "add", "198.51.100.2/24", "dev", "out1"]);
        run("ip", &["link", "set", "out1", "up"]);
        let listener = std::net::TcpListener::bind(("198.51.100.2", 777)).unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        writeln!(stream, "you are {}", from.ip()).unwrap();
    });
    let tid = is_ready.recv().unwrap().as_raw_nonzero().get().to_string();
    run("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", &tid]);
    run("ip", &["addr", "add", "198.51.100.1/24", "dev", "out0"]);
    run("ip", &["link", "set", "out0", "up"]);
    server
}
