//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, ValueEnum};
use imgcache::node::cache::{BackingChoice, CacheConfig, MAX_ITEM_BYTES};
use imgcache::node::push::{DEFAULT_EXPOSED_PERMILLE, PushChoice};
use imgcache::node::rdma::{DEFAULT_QUEUES, RdmaConfig};
use imgcache::node::server::{RdmaChoice, ServerConfig, TlsConfig, UnixConfig};
use imgcache::transport::verbs;

use crate::exit;

/// A storage node of the image cache: keeps chunks of images in memory, speaks memcached's text
/// protocol.
///
/// On this machine only, with 1 GiB:
///
///   imgcached
///
/// For others, encrypted, for clients with a certificate:
///
///   imgcached --memory 16G --listen 0.0.0.0:11211 \
///     --tls-cert node.pem --tls-key node.key --tls-client-ca ca.pem
///
/// Try it:
///
///   printf 'set greeting 0 0 5\r\nhello\r\nget greeting\r\nquit\r\n' | nc 127.0.0.1 11211
#[derive(Debug, Parser)]
#[command(name = "imgcached", version, after_long_help = exit::TABLE, verbatim_doc_comment)]
pub struct Cli {
    #[command(flatten)]
    memory: MemoryOptions,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    leases: LeaseOptions,
    #[command(flatten)]
    operation: OperationOptions,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
struct MemoryOptions {
    /// Memory for items, with K, M or G; the index comes on top (1/64 by default).
    #[arg(short, long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    memory: u64,

    /// A file that holds the memory, so that items survive a restart; best on tmpfs or hugetlbfs.
    #[arg(long, value_name = "FILE")]
    arena: Option<PathBuf>,

    /// In which pages the memory is: the best there are, or a kind that must be had.
    #[arg(long, value_enum, default_value_t = Pages::Auto)]
    backing: Pages,

    /// Entries of the index; by default one for each 4 KiB of memory.
    #[arg(long, value_name = "NUMBER")]
    index_entries: Option<u64>,

    /// The largest value, with K or M; at most 1M.
    #[arg(short = 'I', long, value_name = "SIZE", default_value = "1M", value_parser = item_size)]
    max_item_size: usize,

    /// How much of the memory values may take that are still being received, in thousandths.
    #[arg(long, value_name = "PERMILLE", default_value_t = 500)]
    max_reserved_permille: u16,

    /// How long memory rests after its item was removed, for those who read it from afar without a
    /// lease; 0: for 2000 where that is possible (--unix, --rdma), else not at all.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    quarantine_ms: u64,

    /// Take memory page by page as it is used, not all at the start.
    #[arg(long)]
    no_populate: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkOptions {
    /// Where to listen, again for more than one; port 0 takes any. By default this machine only.
    #[arg(short, long, value_name = "ADDR:PORT", default_value = "127.0.0.1:11211")]
    listen: Vec<SocketAddr>,

    /// Listen on no TCP address; needs --unix.
    #[arg(long, conflicts_with = "listen", requires = "unix")]
    no_tcp: bool,

    /// Listen on a unix socket, never with TLS.
    #[arg(short = 's', long, value_name = "PATH")]
    unix: Option<PathBuf>,

    /// Permissions of the unix socket, octal.
    #[arg(long, value_name = "MODE", default_value = "700", value_parser = mode)]
    unix_mode: u32,

    /// Serve /metrics, /healthz and /readyz here, also while the arena is verified; not by default.
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,

    /// Let clients read the memory by RDMA: auto (if there is a device; of several that of the first
    /// --listen address that any has), off, or the name of a device, without which the node then does not
    /// start.
    #[arg(long, value_name = "auto|off|DEVICE", default_value = "auto")]
    rdma: String,

    /// Let clients write chunks by RDMA, each into memory of its own, which is hashed before anybody else can
    /// see it: auto (where the device keeps them to that memory), on (on any device), off. Soft-RoCE does
    /// not enforce it: with "on", whoever may connect could overwrite other chunks there, which readers
    /// then refuse by their hashes.
    #[arg(long, value_enum, default_value_t = PushMode::Auto, value_name = "auto|on|off")]
    rdma_push: PushMode,

    /// How much of the memory may be open to writers by RDMA at once, in thousandths.
    #[arg(long, value_name = "PERMILLE", default_value_t = DEFAULT_EXPOSED_PERMILLE)]
    max_exposed_permille: u16,

    /// Clients that may be connected by RDMA at once.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_QUEUES)]
    rdma_queues: usize,

    /// Connections at once; one more is turned away. By default 16384, or as many as the limit of
    /// open files allows.
    #[arg(short = 'c', long, value_name = "NUMBER")]
    max_connections: Option<usize>,

    /// Close connections without a request for so long; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    idle_timeout: u64,

    /// Close connections that leave a request unfinished or a reply unread for so long, and 1 s for
    /// each 64 KiB of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stall_timeout: u64,

    /// Threads that serve; by default as many as there are processors.
    #[arg(short = 't', long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they are the names of the options")]
#[command(next_help_heading = "TLS (certificates are read again on SIGHUP)")]
struct TlsOptions {
    /// The node's certificate and those that lead to its authority, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Authorities of clients, PEM: only clients with a certificate of theirs are served.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they are the names of the options")]
#[command(next_help_heading = "Leases and pins")]
struct LeaseOptions {
    /// How much of the memory leases may hold, in thousandths.
    #[arg(long, value_name = "PERMILLE", default_value_t = CacheConfig::default().max_leased_permille)]
    max_leased_permille: u16,

    /// How much of the memory pins may hold, in thousandths.
    #[arg(long, value_name = "PERMILLE", default_value_t = CacheConfig::default().max_pinned_permille)]
    max_pinned_permille: u16,

    /// Leases at once.
    #[arg(long, value_name = "NUMBER", default_value_t = CacheConfig::default().max_leases)]
    max_leases: usize,

    /// Pinned images at once.
    #[arg(long, value_name = "NUMBER", default_value_t = CacheConfig::default().max_pins)]
    max_pins: usize,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Operation")]
struct OperationOptions {
    /// What this node calls itself in statistics; by default the host's name.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,

    /// How long ending waits for leases and requests (SIGTERM, SIGINT; a second one ends at once).
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u64,

    /// Log lines for people or for machines, on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Log more; twice for each connection. `RUST_LOG` says it in detail.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Kinds of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pages {
    /// The best there are.
    Auto,
    /// 2 MiB pages of the pool (`vm.nr_hugepages`).
    Hugetlb,
    /// Transparent huge pages.
    Thp,
    /// 4 KiB pages.
    #[value(name = "4k")]
    Small,
}

/// Whether clients may write by RDMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PushMode {
    /// Where the device enforces the bounds of memory windows.
    Auto,
    /// On any device.
    On,
    /// Not at all.
    Off,
}

/// Forms of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A number of bytes with K, M, G or T (times 1024 each).
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: expected a number with K, M or G, as in 512M");
    let digits = text.trim_end_matches(|last: char| !last.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(wrong)
}

fn item_size(text: &str) -> Result<usize, String> {
    usize::try_from(size(text)?).ok().filter(|&bytes| bytes <= MAX_ITEM_BYTES).ok_or_else(|| {
        format!("{text} is more than the {MAX_ITEM_BYTES} bytes that a value may have")
    })
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o777)
        .ok_or_else(|| format!("'{text}' are no permissions: expected octal digits, as in 660"))
}

/// The name of this host.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl NetworkOptions {
    fn rdma(&self) -> RdmaChoice {
        let push = match self.rdma_push {
            PushMode::Auto => PushChoice::Auto,
            PushMode::On => PushChoice::On,
            PushMode::Off => PushChoice::Off,
        };
        let (queues, max_exposed_permille) = (self.rdma_queues, self.max_exposed_permille);
        let config = |device| RdmaConfig { device, queues, push, max_exposed_permille };
        match self.rdma.as_str() {
            "off" => RdmaChoice::Off,
            "auto" => RdmaChoice::Auto(config(None)),
            name => RdmaChoice::Required(config(Some(name.to_owned()))),
        }
    }

    /// Whether others than the node's own threads may read its memory.
    fn exports(&self) -> bool {
        let device = || verbs::devices().is_ok_and(|devices| !devices.is_empty());
        self.unix.is_some() || (self.rdma != "off" && device())
    }
}

impl Cli {
    /// Checks that the options go together.
    ///
    /// # Errors
    /// Two that do not, for clap to print.
    pub fn check(&self) -> Result<(), clap::Error> {
        if self.network.rdma == "off" && self.network.rdma_push == PushMode::On {
            let words = "--rdma-push on needs RDMA, which --rdma off forbids";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, words));
        }
        Ok(())
    }

    /// What the cache is to be like.
    pub fn cache(&self) -> CacheConfig {
        let (memory, leases) = (&self.memory, &self.leases);
        CacheConfig {
            memory_bytes: memory.memory,
            index_entries: memory.index_entries,
            backing: match memory.backing {
                Pages::Auto => BackingChoice::Auto,
                Pages::Hugetlb => BackingChoice::Hugetlb,
                Pages::Thp => BackingChoice::Thp,
                Pages::Small => BackingChoice::Small,
            },
            file: memory.arena.clone(),
            max_item_bytes: memory.max_item_size,
            quarantine: Duration::from_millis(memory.quarantine_ms),
            exported: self.network.exports(),
            max_leased_permille: leases.max_leased_permille,
            max_pinned_permille: leases.max_pinned_permille,
            max_reserved_permille: memory.max_reserved_permille,
            max_leases: leases.max_leases,
            max_pins: leases.max_pins,
            populate: !memory.no_populate,
        }
    }

    /// Where metrics and health are to be served.
    pub fn http(&self) -> Option<SocketAddr> {
        self.network.http
    }

    /// How many connections there are to be, if anybody said so.
    pub fn max_connections(&self) -> Option<usize> {
        self.network.max_connections
    }

    /// What the server is to be like.
    pub fn server(&self, max_connections: usize) -> ServerConfig {
        let (network, tls, operation) = (&self.network, &self.tls, &self.operation);
        let seconds = Duration::from_secs;
        ServerConfig {
            listen: if network.no_tcp { Vec::new() } else { network.listen.clone() },
            unix: network.unix.clone().map(|path| UnixConfig { path, mode: network.unix_mode }),
            tls: tls.tls_cert.clone().zip(tls.tls_key.clone()).map(|(certificates, key)| {
                TlsConfig { certificates, key, client_authorities: tls.tls_client_ca.clone() }
            }),
            max_connections,
            idle_timeout: (network.idle_timeout > 0).then(|| seconds(network.idle_timeout)),
            stall_timeout: seconds(network.stall_timeout),
            drain_timeout: seconds(operation.drain_timeout),
            max_item_bytes: self.memory.max_item_size,
            node_name: operation.node_name.clone().unwrap_or_else(host_name),
            threads: self.threads(),
            rdma: network.rdma(),
        }
    }

    /// Threads that serve.
    fn threads(&self) -> usize {
        match self.network.threads {
            Some(threads) => threads.into(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Form and detail of log lines.
    pub fn logging(&self) -> (LogFormat, u8) {
        (self.operation.log_format, self.operation.verbose)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_but_this_machine_is_served_unless_asked() {
        let cli = Cli::parse_from(["imgcached"]);
        let server = cli.server(1);
        assert!(server.listen.iter().all(|address| address.ip().is_loopback()));
        assert_eq!((cli.http(), server.unix.is_none()), (None, true));
        let server = Cli::parse_from(["imgcached", "--no-tcp", "--unix", "x"]).server(1);
        assert!(server.listen.is_empty());
    }

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!(size("3k"), Ok(3 << 10));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for wrong in ["", "G", "1X", "-1", "0", "1.5G", "99999999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(item_size("2M").is_err());
        assert_eq!(mode("660"), Ok(0o660));
        assert!(mode("888").is_err() && mode("1777").is_err());
    }

    #[test]
    fn half_of_tls_is_an_error() {
        for half in [&["--tls-cert", "x"][..], &["--tls-key", "x"], &["--tls-client-ca", "x"]] {
            let arguments = ["imgcached"].iter().chain(half);
            assert!(Cli::try_parse_from(arguments).is_err(), "{half:?}");
        }
    }
}
