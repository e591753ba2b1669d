//! A streaming service whose clients move with it: see `server.rs`.
//!
//! A move begins when the server has served enough (`--move-after`), when an operator says so on the control
//! socket (`move DESTINATION ROUTE`), or when the agent of a client asks for it by a datagram (Migratory TCP).
//!
//! In a guest (`--service NAME`) the hosts move it, through the control device: then `--to` is a VM, and on the
//! control socket it is `move VM`. With `guest-agent` beside it, in the guest that has the service:
//!
//! ```text
//! guest-agent endpoint announce stream
//! guest-agent endpoint up stream --address 10.0.0.100/24
//! stream-server --service stream --listen 10.0.0.100:7000
//! guest-agent endpoint move stream --to other
//! ```
//!
//! and in the other `endpoint up` as well, and `stream-server --standby`.

mod guest;
mod home;
mod route;
mod server;
mod words;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::Parser;
use continuation::helper::Helper;
use continuation::mover::{Destination, Limits};
use continuation::privilege::{Own, Privilege};

use home::Home;
use route::LineRoute;
use server::{Handle, Order, Server};

/// Serves numbered words to clients that do not notice where.
#[derive(Debug, Parser)]
struct Options {
    /// Where clients come to.
    #[arg(long)]
    listen: SocketAddr,
    /// The socket of an operator.
    #[arg(long)]
    control: Option<PathBuf>,
    /// The socket to which other servers move their clients.
    #[arg(long)]
    arrive: Option<PathBuf>,
    /// Where the agents of clients ask for a move.
    #[arg(long, requires = "to")]
    agent: Option<SocketAddr>,
    /// Bytes to serve before all clients move, once.
    #[arg(long, requires = "to")]
    move_after: Option<u64>,
    /// Where to, if nobody says: the other server's socket; in a guest a VM, as VM, HOST/VM or any.
    #[arg(long)]
    to: Option<PathBuf>,
    /// How, if nobody says: the socket by which the network is led.
    #[arg(long, requires = "to")]
    route: Option<PathBuf>,
    /// In a guest: the service's name, by which its host knows it.
    #[arg(long, conflicts_with_all = ["arrive", "route"])]
    service: Option<String>,
    /// In a guest: the service is another VM's, and may come here.
    #[arg(long, requires = "service")]
    standby: bool,
    /// The helper that has the privilege; without it, this process has.
    #[arg(long)]
    helper: Option<PathBuf>,
    /// How long a move that comes here waits for its decision, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    patience: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let privilege: Arc<dyn Privilege> = match &options.helper {
        Some(path) => Arc::new(Helper::connect(path)?),
        None => Arc::new(Own),
    };
    let (server, handle) = Server::new(Arc::clone(&privilege))?;
    let service = options.listen;
    let leave = Arc::new(options.leave(&handle)?);
    if let Some(name) = options.service.clone() {
        let home = Home { server: handle.another()?, service };
        let privilege = Arc::clone(&privilege);
        thread::spawn(move || guest::carry_out(&name, home, privilege));
    }
    if let Some(path) = &options.arrive {
        let policy = move |state: &continuation::state::ConnectionState| {
            if state.local == service {
                Ok(())
            } else {
                Err(format!("{} is not served", state.local))
            }
        };
        let patience = Duration::from_millis(options.patience);
        let limits = Limits { patience, ..Limits::default() };
        let destination = Arc::new(Destination::new(privilege, limits, Box::new(policy)));
        arrivals(&UnixListener::bind(path)?, &destination, &handle)?;
    }
    let first = options.to.as_ref().map(|to| to.to_string_lossy().into_owned());
    if let (Some(address), Some(to)) = (options.agent, first.clone()) {
        agents(UdpSocket::bind(address)?, handle.another()?, to, Arc::clone(&leave));
    }
    if let (Some(bytes), Some(to)) = (options.move_after, first) {
        let (served, leave) = (server.served(), Arc::clone(&leave));
        thread::spawn(move || {
            while served.load(std::sync::atomic::Ordering::Relaxed) < bytes {
                thread::sleep(Duration::from_millis(1));
            }
            println!("{}", leave(&to, None));
        });
    }
    if let Some(path) = &options.control {
        operators(UnixListener::bind(path)?, leave);
    }
    let listener = match &options.service {
        Some(name) => {
            let listener = guest::listen(service)?;
            if !options.standby {
                guest::serve(name)?;
            }
            listener
        }
        None => TcpListener::bind(service)?,
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            handle.tell(Order::Accept(client));
        }
    });
    server.run()?;
    Ok(())
}

/// Has all clients move to somewhere, by a route if one is said; what is to be said of it.
type Leave = dyn Fn(&str, Option<&Path>) -> String + Send + Sync;

impl Options {
    fn leave(&self, handle: &Handle) -> io::Result<Box<Leave>> {
        if let Some(name) = self.service.clone() {
            return Ok(Box::new(move |to, _| guest::leave(&name, to)));
        }
        let (usual, handle) = (self.route.clone(), Mutex::new(handle.another()?));
        Ok(Box::new(move |to, route| {
            let Some(route) = route.or(usual.as_deref()) else {
                return "error: no route".into();
            };
            let handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
            carry(&handle, Path::new(to), route)
        }))
    }
}

/// Moves all clients; what is to be said of it.
fn carry(handle: &Handle, to: &Path, route: &Path) -> String {
    let route = match LineRoute::connect(route) {
        Ok(route) => route,
        Err(error) => return format!("error: no route: {error}"),
    };
    let (to, (reply, replied)) = (to.to_owned(), channel());
    let connect = move || UnixStream::connect(&to);
    handle.tell(Order::Move(Box::new(connect), Box::new(route), reply));
    match replied.recv() {
        Ok(Ok(times)) => format!("moved in {} us", times.total().as_micros()),
        Ok(Err(why)) => format!("error: {why}"),
        Err(_) => "error: the server has ended".into(),
    }
}

fn arrivals(
    listener: &UnixListener,
    destination: &Arc<Destination>,
    handle: &Handle,
) -> io::Result<()> {
    let (listener, destination) = (listener.try_clone()?, Arc::clone(destination));
    let handle = handle.another()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (destination, Ok(server)) = (Arc::clone(&destination), handle.another()) else {
                continue;
            };
            thread::spawn(move || {
                let arrive = &mut |all| server.tell(Order::Arrive(all));
                if let Err(error) = destination.serve(&mut stream, arrive) {
                    eprintln!("a move ends: {error}");
                }
            });
        }
    });
    Ok(())
}

fn operators(listener: UnixListener, leave: Arc<Box<Leave>>) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let answer = match words[..] {
                    ["move", to, route] => leave(to, Some(Path::new(route))),
                    ["move", to] => leave(to, None),
                    _ => "error: say move DESTINATION ROUTE, or in a guest move VM".into(),
                };
                if writeln!(stream.get_mut(), "{answer}").is_err() {
                    break;
                }
                line.clear();
            }
        }
    });
}

/// An agent may ask for the clients of its own host: it is where they are.
fn agents(socket: UdpSocket, handle: Handle, to: String, leave: Arc<Box<Leave>>) {
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let (reply, replied) = channel();
            handle.tell(Order::IsClient(from.ip(), reply));
            let known = replied.recv() == Ok(true);
            let asks = buffer.get(..length) == Some(b"move");
            let answer: &[u8] = if known && asks { b"accepted" } else { b"refused" };
            let _ = socket.send_to(answer, from); // before the network leads elsewhere
            if known && asks {
                println!("{}", leave(&to, None));
            }
        }
    });
}
