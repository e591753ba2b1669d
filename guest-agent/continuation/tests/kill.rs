//! The server at the old home, or that at the new, is killed at every step of a move: the client's connection goes
//! on, or is reset; it never sees a wrong byte.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{Client, Load};
use common::network::{Lab, SERVICE};
use common::switch::TestRoute;
use continuation::mover::Route;
use tempfile::TempDir;

/// A moment in a move: a step of the network's, or a message on its way (by its kind).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Route(&'static str),
    Message(u8),
}

const STEPS: [&str; 6] = ["hold", "drain", "seal", "point", "release", "revert"];

/// The sample server, as processes at two homes.
struct Pair {
    lab: Lab,
    folder: TempDir,
    servers: Arc<[Mutex<Child>; 2]>,
}

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("examples/stream-server");
    assert!(built.exists(), "build it: cargo build --example stream-server");
    built
}

impl Pair {
    fn new(more: &[&str]) -> Self {
        let lab = Lab::new();
        let folder = tempfile::tempdir().unwrap();
        let servers = [0, 1].map(|home: usize| {
            let at = |name: &str| folder.path().join(format!("{name}{home}"));
            let start = || {
                Command::new(program())
                    .args(["--listen", SERVICE, "--patience", "700"])
                    .arg("--control")
                    .arg(at("control"))
                    .arg("--arrive")
                    .arg(at("arrive"))
                    .args(if home == 0 { more } else { &[] })
                    .current_dir(&folder)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            };
            Mutex::new(lab.homes[home].run(start))
        });
        let this = Self { lab, folder, servers: Arc::new(servers) };
        for name in ["control0", "control1"] {
            this.wait_for(name);
        }
        this
    }

    fn wait_for(&self, name: &str) {
        let since = Instant::now();
        while UnixStream::connect(self.path(name)).is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "{name} does not come");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self) -> TcpStream {
        let since = Instant::now();
        loop {
            match self.lab.client.run(|| TcpStream::connect(SERVICE)) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                    return stream;
                }
                Err(error) => assert!(since.elapsed() < Duration::from_secs(10), "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Leads the network as the first server says; it is killed, or the second, at a moment.
    fn lead(&self, kill: Option<(Moment, usize)>) {
        let routes = UnixListener::bind(self.path("route")).unwrap();
        let mut route = TestRoute::new(&self.lab, 0, 1).with_patience(Duration::from_millis(700));
        let killer = Killer { kill, servers: Arc::clone(&self.servers) };
        let same = killer.clone();
        thread::spawn(move || {
            for stream in routes.incoming().flatten() {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                    let step = STEPS.into_iter().find(|step| *step == line.trim_end()).unwrap();
                    killer.at(Moment::Route(step));
                    let done = match step {
                        "hold" => route.hold(),
                        "drain" => route.drain(),
                        "seal" => route.seal(),
                        "point" => route.point(),
                        "release" => route.release(),
                        _ => route.revert(),
                    };
                    let answer = done.map_or_else(|error| error.to_string(), |()| "ok".into());
                    let _ = writeln!(stream.get_mut(), "{answer}");
                    line.clear();
                }
            }
        });
        let (proxy, destination) =
            (UnixListener::bind(self.path("proxy")).unwrap(), self.path("arrive1"));
        thread::spawn(move || {
            for source in proxy.incoming().flatten() {
                let Ok(to) = UnixStream::connect(&destination) else { continue };
                for (from, to) in [(&source, &to), (&to, &source)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let killer = same.clone();
                    thread::spawn(move || {
                        let _ = relay(&from, &to, &killer);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
    }

    /// What the first server's operator says, and hears.
    fn order(&self) -> io::Result<String> {
        let mut control = BufReader::new(UnixStream::connect(self.path("control0"))?);
        control.get_mut().write_all(b"move proxy route\n")?;
        let mut answer = String::new();
        control.read_line(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for server in self.servers.iter() {
            let mut server = server.lock().unwrap();
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[derive(Clone)]
struct Killer {
    kill: Option<(Moment, usize)>,
    servers: Arc<[Mutex<Child>; 2]>,
}

impl Killer {
    fn at(&self, moment: Moment) {
        if let Some((when, victim)) = self.kill
            && when == moment
        {
            let mut server = self.servers[victim].lock().unwrap();
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Hands on messages, one by one.
fn relay(mut from: &UnixStream, mut to: &UnixStream, killer: &Killer) -> io::Result<()> {
    loop {
        let mut message = vec![0; 5];
        from.read_exact(&mut message)?;
        let length = u32::from_le_bytes(message[1..5].try_into().unwrap());
        message.resize(5 + usize::try_from(length).unwrap(), 0);
        from.read_exact(&mut message[5..])?;
        killer.at(Moment::Message(message[0]));
        to.write_all(&message)?;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Intact,
    Reset,
}

fn outcome(moment: Moment, victim: usize) -> Outcome {
    let pair = Pair::new(&[]);
    pair.lead(Some((moment, victim)));
    let client = Client::start(pair.connect(), Load::Paced);
    assert!(client.goes_on(300_000));
    let _ = pair.order(); // it may not live to answer
    // Until what a dead owner held is handed on.
    let since = Instant::now();
    while pair.lab.switch.is_holding() {
        assert!(since.elapsed() < Duration::from_secs(10), "frames are held for ever");
        thread::sleep(Duration::from_millis(5));
    }
    let intact = client.goes_on(1_000_000);
    match client.finish() {
        Ok(_) if intact => Outcome::Intact,
        Ok(back) => panic!(
            "{moment:?} {victim} {back} {:?}: it ended in order, and too early",
            since.elapsed()
        ),
        Err(error) => {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
            let kinds = [ConnectionReset, BrokenPipe, NotConnected];
            assert!(kinds.contains(&error.kind()), "{moment:?} {victim}: {error:?}");
            Outcome::Reset
        }
    }
}

/// Offer, connection, ready, commit, done.
const MESSAGES: [u8; 5] = [1, 2, 3, 5, 6];

fn moments() -> impl Iterator<Item = Moment> {
    let steps = STEPS.into_iter().take(5).map(Moment::Route);
    steps.chain(MESSAGES.into_iter().map(Moment::Message))
}

fn each(victim: usize, expected: impl Fn(Moment) -> Option<Outcome> + Sync) {
    let left: Mutex<Vec<Moment>> = Mutex::new(moments().collect());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(moment) = left.lock().unwrap().pop() else { break };
                    let found = outcome(moment, victim);
                    if let Some(expected) = expected(moment) {
                        assert_eq!(found, expected, "{moment:?}");
                    }
                }
            });
        }
    });
}

#[test]
fn the_new_home_is_killed() {
    use Moment::{Message, Route};
    each(1, |moment| match moment {
        Route("hold" | "drain" | "seal") | Message(1 | 2) => Some(Outcome::Intact),
        // It died with the connection, or with the decision to have it.
        _ => Some(Outcome::Reset),
    });
}

#[test]
fn the_old_home_is_killed() {
    use Moment::{Message, Route};
    each(0, |moment| match moment {
        Message(5 | 6) | Route("release") => Some(Outcome::Intact),
        _ => Some(Outcome::Reset),
    });
}

#[test]
fn an_operator_moves_clients() {
    let pair = Pair::new(&[]);
    pair.lead(None);
    let clients =
        [Load::PingPong, Load::Paced, Load::Bulk].map(|load| Client::start(pair.connect(), load));
    assert!(clients.iter().all(|client| client.goes_on(10_000)));
    assert!(pair.order().unwrap().starts_with("moved in "));
    assert_eq!(pair.lab.switch.home(), 1);
    assert!(clients.iter().all(|client| client.goes_on(10_000)));
    for client in clients {
        client.finish().unwrap();
    }
}

/// Its output's first line.
fn told(pair: &Pair) -> String {
    let output = pair.servers[0].lock().unwrap().stdout.take().unwrap();
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    line
}

#[test]
fn a_server_moves_its_clients_when_it_has_served_enough() {
    let pair = Pair::new(&["--move-after", "500000", "--to", "proxy", "--route", "route"]);
    pair.lead(None);
    let client = Client::start(pair.connect(), Load::Paced);
    assert!(told(&pair).starts_with("moved in "));
    assert!(client.goes_on(1_000_000));
    client.finish().unwrap();
}

#[test]
fn a_clients_agent_asks_for_a_move_and_nobody_else_does() {
    let agent = "10.7.0.100:7001";
    let pair = Pair::new(&["--agent", agent, "--to", "proxy", "--route", "route"]);
    pair.lead(None);
    let ask = || {
        pair.lab.client.run(|| {
            let socket = std::net::UdpSocket::bind("10.7.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.send_to(b"move", agent).unwrap();
            let mut answer = [0; 16];
            let length = socket.recv(&mut answer).unwrap();
            String::from_utf8(answer[..length].to_vec()).unwrap()
        })
    };
    assert_eq!(ask(), "refused", "it has no client here");
    let client = Client::start(pair.connect(), Load::PingPong);
    assert!(client.goes_on(1000));
    assert_eq!(ask(), "accepted");
    assert!(told(&pair).starts_with("moved in "));
    assert!(client.goes_on(1000));
    client.finish().unwrap();
}
