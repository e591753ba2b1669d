//! A key-value service that splits and merges: servers on one host that share a folder of routes.
//!
//! ```text
//! elastic-kv serve --folder F --server 0 --announce     the first, which has everything
//! elastic-kv serve --folder F --server 1                a spare one
//! elastic-kv put|get|delete --folder F NAME [VALUE]
//! elastic-kv command --folder F --server 0 '{"move":1}' or '"status"', '{"mirror":1}', '{"merge":1}'
//! elastic-kv balance --folder F --servers 4 --threshold 10000     split and merge by rate, until killed
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use elastic::Peer;
use elastic::client::{self, Client};
use elastic::node::Limits;
use elastic::policy::{Balancer, Decision, Policy};
use elastic::range::Range;
use elastic::routes::{FileRoutes, Routes};
use elastic::server::{Command, Config, Local, Report, Server};

/// An elastic key-value service.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where routes and journals are.
    #[arg(long, global = true, default_value = ".")]
    folder: PathBuf,
    /// What servers have in common: 16 bytes in hexadecimal.
    #[arg(
        long,
        global = true,
        default_value = "00000000000000000000000000000000",
        env = "ELASTIC_SECRET"
    )]
    secret: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a server until standard input ends.
    Serve {
        /// Its number.
        #[arg(long)]
        server: u32,
        /// Where it listens.
        #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
        address: IpAddr,
        /// Announce every identifier, if nobody has any.
        #[arg(long)]
        announce: bool,
        /// Keep nothing in a file: what only this server has is lost with it.
        #[arg(long)]
        memory: bool,
        /// How long it waits for a peer that says nothing; what else it waits for is shorter in proportion.
        #[arg(long, default_value_t = Limits::default().patience)]
        patience_ms: u64,
        /// Bytes of a chunk of what is transferred.
        #[arg(long, default_value_t = Limits::default().chunk)]
        chunk: usize,
    },
    /// Write an object.
    Put {
        /// Its name.
        name: String,
        /// Its content.
        value: String,
    },
    /// Read an object.
    Get {
        /// Its name.
        name: String,
    },
    /// Remove an object.
    Delete {
        /// Its name.
        name: String,
    },
    /// Command a server.
    Command {
        /// Which.
        #[arg(long)]
        server: u32,
        /// What, as JSON.
        command: String,
    },
    /// Split and merge by the rate of requests.
    Balance {
        /// How many servers there are, from 0.
        #[arg(long)]
        servers: u32,
        /// Requests per second above which a server splits.
        #[arg(long, default_value_t = 10_000.0)]
        threshold: f64,
        /// The length of a window.
        #[arg(long, default_value_t = 1000)]
        window_ms: u64,
    },
}

fn secret(text: &str) -> Result<[u8; 16], Box<dyn Error>> {
    let value = u128::from_str_radix(text, 16)?;
    Ok(value.to_be_bytes())
}

fn balance(routes: &FileRoutes, secret: [u8; 16], servers: u32, policy: Policy, window: Duration) {
    let mut balancer = Balancer::new(policy);
    let mut last = std::collections::BTreeMap::new();
    let command = |peer: Peer, command: &Command| {
        let address = routes.address(peer).unwrap_or_default();
        client::command(&address, secret, command)
            .unwrap_or_else(|error| Report::Failed(error.to_string()))
    };
    loop {
        thread::sleep(window);
        let mut active = Vec::new();
        let mut spare = Vec::new();
        for peer in (0..servers).map(Peer) {
            let Report::Status { mut owned, served, .. } = command(peer, &Command::Status) else {
                continue;
            };
            let before = last.insert(peer, served).unwrap_or(served);
            owned.sort_unstable();
            // Requests of one window are far fewer than what a float holds exactly.
            let requests = u32::try_from(served.saturating_sub(before)).unwrap_or(u32::MAX);
            match owned.first() {
                Some(range) => {
                    active.push((*range, peer, f64::from(requests) / window.as_secs_f64(), owned));
                }
                None => spare.push(peer),
            }
        }
        active.sort_by_key(|(range, ..)| *range);
        let rates: Vec<_> = active.iter().map(|(_, peer, rate, _)| (*peer, *rate)).collect();
        let Some(decision) = balancer.window(&rates) else { continue };
        let report = match decision {
            Decision::Split(peer) => {
                let owned =
                    active.iter().find(|(_, other, ..)| *other == peer).map(|(.., owned)| owned);
                let largest = owned.and_then(|owned| {
                    owned.iter().max_by_key(|range| range.last() - range.first())
                });
                match (largest.and_then(|range| range.halves()), spare.first()) {
                    (Some((_, upper)), Some(new)) => command(peer, &Command::Split(*new, upper)),
                    _ => continue,
                }
            }
            Decision::Merge(one, other) => command(one, &Command::Merge(other)),
        };
        println!("{decision:?}: {report:?}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { folder, secret: text, action } = Arguments::parse();
    let secret = secret(&text)?;
    let routes = FileRoutes::new(&folder);
    let shared: Arc<dyn Routes> = Arc::new(routes.clone());
    match action {
        Action::Serve { server, address, announce, memory, patience_ms, chunk } => {
            let usual = Limits::default();
            let part = |of: u64| of * patience_ms / usual.patience;
            let limits = Limits {
                repeat: part(usual.repeat),
                patience: patience_ms,
                freeze: part(usual.freeze),
                silence: part(usual.silence),
                chunk,
                ..usual
            };
            let config = Config {
                me: Peer(server),
                listen: SocketAddr::new(address, 0),
                secret,
                journal: (!memory).then(|| folder.join(format!("server-{server}.journal"))),
                sync: false,
                limits,
            };
            let server = Server::start(config, Arc::clone(&shared), &Local::default())?;
            if announce && shared.home(0).is_none() {
                server.announce(Range::ALL)?;
            }
            println!("{}", server.address());
            std::io::stdout().flush()?;
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        }
        Action::Put { name, value } => {
            println!("{}", Client::new(shared)?.put(name.as_bytes(), value.into())?);
        }
        Action::Get { name } => match Client::new(shared)?.get(name.as_bytes())? {
            Some(value) => println!("{}", String::from_utf8_lossy(&value)),
            None => return Err(format!("there is no {name}").into()),
        },
        Action::Delete { name } => println!("{}", Client::new(shared)?.delete(name.as_bytes())?),
        Action::Command { server, command } => {
            let address = shared.address(Peer(server)).ok_or("there is no such server")?;
            let report =
                client::command(&address, secret, &serde_json::from_str::<Command>(&command)?)?;
            println!("{}", serde_json::to_string(&report)?);
        }
        Action::Balance { servers, threshold, window_ms } => {
            let policy =
                Policy { threshold, servers_max: usize::try_from(servers)?, ..Policy::default() };
            balance(&routes, secret, servers, policy, Duration::from_millis(window_ms));
        }
    }
    Ok(())
}
