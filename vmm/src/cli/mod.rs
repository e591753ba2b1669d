//! The command line: one typed definition, from which help, completions and manual pages follow.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

mod boot;
mod cache;
mod check;
pub(crate) mod chunk_server;
mod console;
mod dhcp;
mod endpoint;
mod events;
mod fleet;
mod flow;
mod generate;
mod image;
mod inspect;
pub mod logging;
mod logs;
mod net;
mod node;
mod progress;
mod ps;
mod reach;
mod rm;
mod start;
mod stop;
mod timings;
mod top;
mod which;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use imgcache::client::LoadError;
use imgcache::image::manifest::ManifestError;
use imgcache::image::name::ImageName;
use imgcache::lazy::served::ServeError as ServeChunksError;
use imgcache::store::{Store, StoreError};
use imgcache::transport::TransportError;
use imgcache::transport::cluster::{ClusterError, TlsError};

use crate::api::client::{AddressError, ClientError};
use crate::boot::ReadyError;
use crate::disk::DiskError;
use crate::exit::{self, Exit};
use crate::host::kvm::HostError;
use crate::jail::cgroup::CgroupError;
use crate::jail::confine::ConfineError;
use crate::jail::launch::LaunchError;
use crate::loader::LoaderError;
use crate::machine::MachineError;
use crate::machine::boot::BootError;
use crate::machine::memory::MemoryError;
use crate::net::NetError;
use crate::node::error::NodeError;
use crate::node::http::listen::ListenError;
use crate::node::http::server::ServeError;
use crate::spec::name::VmName;

/// Boots microVMs by image name, out of a cache of hashed chunks.
///
/// Push a kernel and a ramdisk once, then boot them by name:
///
///   vmm image push hello --kernel vmlinuz --initrd initrd.img
///
///   vmm boot --image hello
#[derive(Debug, Parser)]
#[command(name = "vmm", version, after_long_help = exit::TABLE, verbatim_doc_comment)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Say more on standard error; twice for details of each step.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    #[command(flatten)]
    store: StoreOptions,

    #[command(subcommand)]
    command: Command,
}

/// Where images are.
#[derive(Debug, Clone, Args)]
struct StoreOptions {
    /// Directory of the image store; by default `$XDG_DATA_HOME/vmm/images`.
    #[arg(long, global = true, value_name = "DIR", env = "VMM_STORE")]
    store: Option<PathBuf>,
}

impl StoreOptions {
    /// The words that say the same again.
    fn arguments(&self) -> Vec<OsString> {
        let Some(store) = &self.store else { return Vec::new() };
        vec!["--store".into(), store.clone().into()]
    }

    fn path(&self) -> Result<PathBuf, CliError> {
        match &self.store {
            Some(path) => Ok(path.clone()),
            None => Ok(Store::default_path()?),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Boot(Box<boot::BootCommand>),
    Node(Box<node::NodeCommand>),
    Fleet(Box<fleet::FleetCommand>),
    Ps(ps::PsCommand),
    Top(top::TopCommand),
    Inspect(inspect::InspectCommand),
    Timings(timings::TimingsCommand),
    Logs(logs::LogsCommand),
    Console(console::ConsoleCommand),
    Events(events::EventsCommand),
    Start(start::StartCommand),
    Stop(stop::StopCommand),
    Rm(rm::RmCommand),
    Image(image::ImageCommand),
    Cache(cache::CacheCommand),
    Net(net::NetCommand),
    Dhcp(dhcp::DhcpCommand),
    Endpoint(endpoint::EndpointCommand),
    Flow(flow::FlowCommand),
    #[command(hide = true)]
    ChunkServer(chunk_server::ChunkServerCommand),
    Check(check::CheckCommand),
    Completions(generate::CompletionsCommand),
    Man(generate::ManCommand),
}

impl Cli {
    /// Starts the log that the command has.
    pub fn start_logging(&self) {
        match &self.command {
            Command::Node(command) if let Some(agent) = command.agent() => {
                agent.start_logging(self.verbose);
            }
            _ => logging::start(self.verbose),
        }
    }

    /// Does what the command line says.
    ///
    /// # Errors
    /// What went wrong, with the exit code for it.
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Boot(command) => command.run(&self.store),
            Command::Node(command) => command.run(&self.store),
            Command::Fleet(command) => command.run(),
            Command::Ps(command) => command.run(),
            Command::Top(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Timings(command) => command.run(),
            Command::Logs(command) => command.run(),
            Command::Console(command) => command.run(),
            Command::Events(command) => command.run(),
            Command::Start(command) => command.run(),
            Command::Stop(command) => command.run(),
            Command::Rm(command) => command.run(),
            Command::Image(command) => command.run(&self.store),
            Command::Cache(command) => command.run(),
            Command::Net(command) => command.run(),
            Command::Dhcp(command) => command.run(),
            Command::Endpoint(command) => command.run(),
            Command::Flow(command) => command.run(),
            Command::ChunkServer(command) => command.run(&self.store),
            Command::Check(command) => command.run(&self.store),
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

/// What to do where there are no images.
const HOW_TO_PUSH: &str = "vmm image push NAME --kernel FILE --initrd FILE";

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Of the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image was asked for where nothing was ever pushed.
    #[error("there are no images yet at '{}'; push one: {HOW_TO_PUSH}", .0.display())]
    NoImages(PathBuf),
    /// A kernel command line that no boot of the image could pass on.
    #[error(
        "the kernel command line has {length} bytes, and at each boot {own} more are put in front \
         of it; this kernel takes at most {limit} in all"
    )]
    CommandLine {
        /// Bytes of what the image is to have.
        length: usize,
        /// Bytes of the machine's own words, with the space behind them.
        own: usize,
        /// What the kernel takes, in bytes.
        limit: u64,
    },
    /// Of resolving or reading an image.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The socket of a VM's socket device.
    #[error("--vsock: cannot listen at '{}': {source}", .socket.display())]
    Vsock {
        /// Where.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Of the distributed cache.
    #[error(transparent)]
    Cache(#[from] ClusterError),
    /// Of publishing an image in the distributed cache.
    #[error("image '{image}' is not in the cache: {source}")]
    Publish {
        /// The image.
        image: ImageName,
        /// Why not.
        source: Box<TransportError>,
    },
    /// Of changing the nodes of the cache.
    #[error(transparent)]
    CacheCommand(#[from] cache::CacheCommandError),
    /// A command that needs the distributed cache, without one.
    #[error("no cache is named: use --cache memcached://HOST[:PORT],... or set VMM_CACHE")]
    NoCache,
    /// Of serving the chunks of a disk.
    #[error(transparent)]
    ServeChunks(#[from] ServeChunksError),
    /// Of the guest's disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Of loading an image into a guest.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// Of guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Of the machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Of starting a VM's process in a jail.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Of a VM's process that gives up what it does not need.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Of limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Of the network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Of the DHCP server.
    #[error(transparent)]
    Dhcp(#[from] dhcp::DhcpCommandError),
    /// A text that is no name of services.
    #[error(transparent)]
    Service(#[from] ::endpoint::name::InvalidName),
    /// Of a file of changes of flows.
    #[error(transparent)]
    FlowFile(#[from] flow::FlowFileError),
    /// Rights of a guest that do not go together.
    #[error("{0}")]
    Rights(String),
    /// Of taking chunks from a manager.
    #[error("no manager hands chunks over at '{}': {source}", socket.display())]
    HandOver {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Of a kernel or ramdisk file.
    #[error("{file}: {source}", file = file.display())]
    Input {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Of a node agent, as its client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Of the node agent itself.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Of the agent's sockets.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Of the files with which agents are spoken to.
    #[error("how agents are spoken to: {0}")]
    NodeTls(TlsError),
    /// Of an agent's address.
    #[error(transparent)]
    NodeAddress(#[from] AddressError),
    /// A command for one agent, with several.
    #[error("this command asks one agent, and --node or VMM_NODE names several")]
    SeveralNodes,
    /// A VM that lives, and was to be deleted.
    #[error("VM '{0}' lives; stop it first ('vmm stop {0}'), or kill it with --force")]
    VmLives(VmName),
    /// A VM that has ended.
    #[error("VM '{0}' has ended; 'vmm logs {0}' prints what its console printed")]
    VmEnded(VmName),
    /// Of several VMs, of which some failed; what was wrong was said.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// Of how many.
        all: usize,
        /// The exit code for the first that failed.
        exit: Exit,
    },
    /// Of this terminal, or what an agent sends.
    #[error("{what}: {source}")]
    Stream {
        /// What failed.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// Of writing a result.
    #[error("cannot write {what}: {source}")]
    Output {
        /// What was to be written.
        what: String,
        /// The reason.
        source: std::io::Error,
    },
}

impl From<ReadyError> for CliError {
    fn from(error: ReadyError) -> Self {
        match error {
            ReadyError::Memory(error) => Self::Memory(error),
            ReadyError::Loader(error) => Self::Loader(error),
            ReadyError::Machine(error) => Self::Machine(error),
        }
    }
}

impl CliError {
    fn stream(source: std::io::Error) -> Self {
        Self::Stream { what: "the connection to the agent was lost", source }
    }

    fn terminal(source: std::io::Error) -> Self {
        Self::Stream { what: "this terminal cannot be used", source }
    }

    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Host(_) => Exit::HostNotAble,
            Self::NoImages(_) => Exit::ImageNotFound,
            Self::CommandLine { .. } => Exit::Usage,
            Self::Memory(error) | Self::Loader(LoaderError::Memory(error)) => memory_exit(error),
            Self::Load(error) | Self::Loader(LoaderError::Load(error)) => match error {
                LoadError::NotFound(_) => Exit::ImageNotFound,
                LoadError::Damaged { .. } | LoadError::DamagedInPlace { .. } => Exit::ImageDamaged,
                LoadError::Io { source, .. } => transport_exit(source),
                LoadError::NoSuchChunk { .. } => Exit::Failure,
            },
            Self::Cache(error) => cache_exit(error),
            Self::Publish { source, .. } => transport_exit(source),
            Self::CacheCommand(error) => error.exit(),
            Self::Net(error) => net_exit(error),
            Self::Dhcp(error) => error.exit(),
            Self::FlowFile(error) => error.exit(),
            Self::NoCache | Self::Rights(_) | Self::Service(_) | Self::Disk(DiskError::NoDisk) => {
                Exit::Usage
            }
            Self::Loader(LoaderError::Plan { .. }) => Exit::DoesNotFit,
            Self::Store(error) => store_exit(error),
            Self::Launch(LaunchError::Argument) => Exit::Usage,
            Self::Launch(_) | Self::Confine(_) | Self::Cgroup(_) => Exit::HostNotAble,
            Self::Machine(
                MachineError::Kvm(_)
                | MachineError::Seal(_)
                | MachineError::Boot(BootError::Seed(_)),
            ) => Exit::HostNotAble,
            Self::Machine(MachineError::Boot(_)) => Exit::DoesNotFit,
            Self::Input { .. } => Exit::BadInput,
            Self::Client(error) => error.exit(),
            Self::Node(error) => error.exit(),
            Self::NodeTls(_) | Self::NodeAddress(_) | Self::SeveralNodes => Exit::Usage,
            Self::Serve(ServeError::Listen(ListenError::Group(_))) => Exit::Usage,
            Self::Some { exit, .. } => *exit,
            Self::Machine(_)
            | Self::Disk(_)
            | Self::Output { .. }
            | Self::HandOver { .. }
            | Self::Vsock { .. }
            | Self::Serve(_)
            | Self::ServeChunks(_)
            | Self::VmLives(_)
            | Self::VmEnded(_)
            | Self::Stream { .. } => Exit::Failure,
        }
    }
}

/// Opens the store that an image is asked of; there must be one.
fn open_store(options: &StoreOptions) -> Result<Store, CliError> {
    Store::open(&options.path()?).map_err(|error| match error {
        StoreError::NoFolder(path) => CliError::NoImages(path),
        error => error.into(),
    })
}

/// Opens the store, if anything was ever pushed to it: where it is not there, it is empty.
fn find_store(options: &StoreOptions) -> Result<Option<Store>, CliError> {
    match Store::open(&options.path()?) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::NoFolder(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn net_exit(error: &NetError) -> Exit {
    match error {
        NetError::Spec(_)
        | NetError::NoTap { .. }
        | NetError::Mtu { .. }
        | NetError::Elsewhere { .. }
        | NetError::OtherSubnet { .. } => Exit::Usage,
        NetError::Kernel { .. }
        | NetError::System { .. }
        | NetError::NoBridge(_)
        | NetError::NotABridge(_)
        | NetError::Switch(_)
        | NetError::Overlaps { .. } => Exit::HostNotAble,
        _ => Exit::Failure,
    }
}

fn memory_exit(error: &MemoryError) -> Exit {
    match error {
        MemoryError::Size(_) => Exit::Usage,
        MemoryError::Range { .. } => Exit::DoesNotFit,
        _ => Exit::HostNotAble,
    }
}

fn transport_exit(error: &TransportError) -> Exit {
    match error {
        TransportError::Cache(error) => cache_exit(error),
        TransportError::Store(error) => store_exit(error),
        error if error.is_damage() => Exit::ImageDamaged,
        _ => Exit::Failure,
    }
}

fn cache_exit(error: &ClusterError) -> Exit {
    match error {
        ClusterError::Tls(TlsError::NoAuthorities) => Exit::Usage,
        ClusterError::Manifest(_) => Exit::ImageDamaged,
        error if error.is_unavailable() => Exit::CacheUnavailable,
        _ => Exit::Failure,
    }
}

fn store_exit(error: &StoreError) -> Exit {
    match error {
        StoreError::UnknownImage(_) => Exit::ImageNotFound,
        // Only names lead to manifests, so one of them lost its own.
        StoreError::UnknownManifest(_) => Exit::ImageDamaged,
        StoreError::InvalidImage { source: ManifestError::Cmdline(_), .. } => Exit::Usage,
        error if error.is_damage() => Exit::ImageDamaged,
        _ => Exit::Failure,
    }
}

/// Prints `value` as one line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let output = |source| CliError::Output { what: "JSON".into(), source };
    let text = serde_json::to_string(value).map_err(|error| output(error.into()))?;
    print_text(&format!("{text}\n"))
}

/// Prints to standard error. If nobody listens there, that changes nothing of how a command ends.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints to standard output; a reader that has gone is an error, not a panic.
fn print_text(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| CliError::Output { what: "to standard output".into(), source })
}

/// Prints all that comes, as it comes.
fn copy_out(mut from: impl std::io::Read) -> Result<(), CliError> {
    use std::io::Write;
    let output = |source| CliError::Output { what: "to standard output".into(), source };
    let (mut buffer, mut out) = (vec![0; 16 << 10], std::io::stdout());
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(CliError::stream(error)),
        };
        // A console's prompt has no end of line.
        out.write_all(&buffer[..count]).and_then(|()| out.flush()).map_err(output)?;
    }
}

/// Does something with each of several VMs; what goes wrong with one does not keep it from the others.
fn each(
    names: &[VmName],
    what: impl Fn(&VmName) -> Result<(), CliError>,
) -> Result<Exit, CliError> {
    let mut failed = Vec::new();
    for name in names {
        match what(name) {
            Ok(()) => {}
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                say(&format!("vmm: {error}\n"));
                failed.push(error.exit());
            }
        }
    }
    match failed.first() {
        None => Ok(Exit::Success),
        Some(exit) => Err(CliError::Some { failed: failed.len(), all: names.len(), exit: *exit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_whose_manifest_is_gone_is_a_damaged_image() {
        let id = "0".repeat(64).parse().unwrap();
        assert_eq!(CliError::from(StoreError::UnknownManifest(id)).exit(), Exit::ImageDamaged);
    }

    #[test]
    fn what_the_host_has_not_and_what_the_machine_is_too_small_for_are_told_apart() {
        let no_seed = BootError::Seed(std::io::Error::other("no entropy"));
        let too_long = BootError::CommandLineTooLong { length: 5, limit: 4 };
        let outside = || MemoryError::Range { start: 1 << 30, end: 1 << 31 };
        for (error, exit) in [
            (MachineError::from(no_seed).into(), Exit::HostNotAble),
            (MachineError::from(too_long).into(), Exit::DoesNotFit),
            (outside().into(), Exit::DoesNotFit),
            (LoaderError::Memory(outside()).into(), Exit::DoesNotFit),
            (MemoryError::NoTransparentHugePages.into(), Exit::HostNotAble),
            (MemoryError::Size(1).into(), Exit::Usage),
        ] {
            let error: CliError = error;
            assert_eq!(error.exit(), exit, "{error}");
        }
    }
}
