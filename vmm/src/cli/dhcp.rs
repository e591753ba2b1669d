//! `vmm dhcp`: a DHCP server whose leases a mirror has too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Subcommand};
use dhcp::mirror::session::Secret;
use dhcp::serve::{self, Options, Report, ServeError, Server};
use dhcp::settings::{Range, Settings, Told};
use ipnet::Ipv4Net;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{CliError, print_json, print_text};
use crate::exit::Exit;

/// Give VMs and machines their addresses, with a second server that knows all that the first knows.
///
/// Every lease is at a mirror before its client hears of it. A mirror takes over within two seconds when the
/// server dies, and the server becomes its mirror when it comes back; never do both answer. Start the mirror with
/// the same options, and name each to the other:
///
///   vmm dhcp serve --interface br0 --range 10.0.0.10-10.0.0.99 --secret-file s --identity 10.0.0.1
///       --listen-mirror 10.0.0.2:6767 --mirror 10.0.0.3:6767 --first
///
///   vmm dhcp serve --interface br0 --range 10.0.0.10-10.0.0.99 --secret-file s --identity 10.0.0.1
///       --listen-mirror 10.0.0.3:6767 --mirror 10.0.0.2:6767
///
///   vmm dhcp leases
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct DhcpCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<ServeCommand>),
    Leases(LeasesCommand),
}

/// Where a server keeps what it knows.
#[derive(Debug, Args)]
struct StateOptions {
    /// Directory of the leases and of the socket at which the server is asked.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/vmm/dhcp")]
    state: PathBuf,
}

/// Serve the clients at an interface, or be the mirror of a server that does.
#[derive(Debug, Args)]
struct ServeCommand {
    /// The interface, which may be a bridge.
    #[arg(long, value_name = "NAME")]
    interface: String,

    /// Addresses for clients without a record, as 10.0.0.10-10.0.0.99; may be given several times.
    #[arg(long = "range", value_name = "FIRST-LAST")]
    ranges: Vec<Range>,

    /// The clients' network; by default the /24 of the first range.
    #[arg(long, value_name = "NETWORK")]
    subnet: Option<Ipv4Net>,

    /// Who the servers are to clients, the same at all of them; by default the interface's address.
    #[arg(long, value_name = "ADDRESS")]
    identity: Option<Ipv4Addr>,

    /// The clients' router.
    #[arg(long, value_name = "ADDRESS")]
    router: Option<Ipv4Addr>,

    /// The clients' name servers, with commas between.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<Ipv4Addr>,

    /// The clients' domain.
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,

    /// The largest packet that clients may send, in bytes.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,

    /// The server that clients boot from.
    #[arg(long, value_name = "NAME")]
    boot_server: Option<String>,

    /// The file that they boot.
    #[arg(long, value_name = "NAME")]
    boot_file: Option<String>,

    /// How long a client has its address, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    lease: u32,

    /// A relay that may ask for clients, by its address; may be given several times.
    #[arg(long = "relay", value_name = "ADDRESS")]
    relays: Vec<Ipv4Addr>,

    /// How many addresses clients without a record may have behind one circuit of a relay.
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    most_per_port: u32,

    /// File of clients that are known: a list as [{"mac": "02:00:00:00:00:01", "address": "10.0.0.5",
    /// "name": "a"}]. It is read again when it changes.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,

    /// Another server of these clients; may be given several times, for up to three mirrors.
    #[arg(long = "mirror", value_name = "ADDRESS:PORT")]
    mirrors: Vec<SocketAddr>,

    /// Where other servers find this one. Without --first, a server that knows nothing yet waits here for
    /// one to be the mirror of.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_mirror: Option<SocketAddr>,

    /// File with a secret by which the servers know each other.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// This is the first server: none has served these clients before.
    #[arg(long)]
    first: bool,

    /// Serve without a mirror, though leases are lost with this host. Of several servers, say it to one only,
    /// and when the others are known to be dead.
    #[arg(long)]
    no_mirror: bool,

    /// Write each lease to the disk before it is given, also where a mirror has it.
    #[arg(long)]
    sync: bool,

    #[command(flatten)]
    state: StateOptions,
}

/// List the leases that a server on this host knows of, and what it is.
#[derive(Debug, Args)]
struct LeasesCommand {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateOptions,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DhcpCommandError {
    /// Of the server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Neither a range nor a network.
    #[error(
        "whose clients? give a --range of addresses, or a --subnet whose clients all have records"
    )]
    NoSubnet,
    /// Of the secret.
    #[error("cannot read the secret in '{}': {source}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The secret says nothing.
    #[error(
        "the secret in '{}' has fewer than 16 bytes; make one with 'head -c 32 /dev/urandom > FILE'",
        .0.display()
    )]
    Short(PathBuf),
    /// Of signals.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// No server.
    #[error("no DHCP server answers in '{}': {source}; is it run with this --state?", state.display())]
    NoServer {
        /// Its directory.
        state: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl DhcpCommandError {
    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoSubnet
            | Self::Serve(ServeError::Settings(_) | ServeError::NoMirror | ServeError::NoSecret) => {
                Exit::Usage
            }
            Self::Serve(ServeError::Records(_)) | Self::Secret { .. } | Self::Short(_) => {
                Exit::BadInput
            }
            Self::Serve(ServeError::Interface { .. } | ServeError::Socket { .. }) => {
                Exit::HostNotAble
            }
            Self::Serve(ServeError::Journal(_)) | Self::Signals(_) | Self::NoServer { .. } => {
                Exit::Failure
            }
        }
    }
}

impl DhcpCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Serve(command) => command.run()?,
            Command::Leases(command) => command.run()?,
        }
        Ok(Exit::Success)
    }
}

impl ServeCommand {
    fn run(&self) -> Result<(), DhcpCommandError> {
        let server = Server::new(self.options()?)?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .map_err(DhcpCommandError::Signals)?;
        }
        Ok(server.run(&stop)?)
    }

    fn options(&self) -> Result<Options, DhcpCommandError> {
        let of_range =
            || Some(Ipv4Net::new(self.ranges.first()?.first(), 24).unwrap_or_default().trunc());
        let subnet = self.subnet.or_else(of_range).ok_or(DhcpCommandError::NoSubnet)?;
        let identity = match self.identity {
            Some(identity) => identity,
            None => serve::address_of(&self.interface, subnet)?,
        };
        let settings = Settings {
            subnet: subnet.trunc(),
            ranges: self.ranges.clone(),
            identity,
            lease_seconds: self.lease,
            told: Told {
                router: self.router,
                dns: self.dns.clone(),
                domain: self.domain.clone(),
                mtu: self.mtu,
                boot_server: self.boot_server.clone(),
                boot_file: self.boot_file.clone(),
            },
            relays: self.relays.clone(),
            most_per_port: self.most_per_port,
        };
        Ok(Options {
            interface: self.interface.clone(),
            settings,
            records: self.records.clone(),
            state: self.state.state.clone(),
            mirrors: self.mirrors.clone(),
            listen: self.listen_mirror,
            secret: self.secret_file.as_ref().map(read_secret).transpose()?,
            first: self.first,
            alone: self.no_mirror,
            sync: self.sync,
        })
    }
}

fn read_secret(path: &PathBuf) -> Result<Secret, DhcpCommandError> {
    let failed = |source| DhcpCommandError::Secret { path: path.clone(), source };
    let bytes = std::fs::read(path).map_err(failed)?;
    if bytes.len() < 16 {
        return Err(DhcpCommandError::Short(path.clone()));
    }
    Ok(Secret::new(&bytes))
}

impl LeasesCommand {
    fn run(&self) -> Result<(), CliError> {
        let state = self.state.state.clone();
        let report =
            serve::ask(&state).map_err(|source| DhcpCommandError::NoServer { state, source })?;
        if self.json { print_json(&report) } else { print_text(&text(&report)) }
    }
}

fn text(report: &Report) -> String {
    let stage = format!("{:?}", report.stage).to_lowercase();
    let mut text = format!(
        "server {}: {stage}, epoch {}, {} mirrors, {} reached and {} needed\n",
        report.node,
        report.epoch,
        report.mirrors.len(),
        report.reached,
        report.needed
    );
    let mut row = |words: [&str; 5]| {
        let [address, mac, usage, left, name] = words;
        let line = format!("{address:<15} {mac:<17} {usage:<9} {left:<10} {name}");
        text.push_str(line.trim_end());
        text.push('\n');
    };
    row(["ADDRESS", "MAC", "USE", "SECONDS", "NAME"]);
    for lease in &report.leases {
        let usage = if lease.recorded { "record".into() } else { format!("{:?}", lease.usage) };
        let left = lease.seconds.map_or_else(|| "-".into(), |seconds| seconds.to_string());
        let name = lease.name.as_deref().unwrap_or("-");
        let (address, mac) = (lease.address.to_string(), lease.mac.to_string());
        row([&address, &mac, &usage.to_lowercase(), &left, name]);
    }
    text
}
