//! The agent itself.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use imgcache::client::ImageClient;
use imgcache::notify;

use super::super::cache::{self, CacheOptions, LoadOptions};
use super::super::chunk_server;
use super::super::{CliError, StoreOptions, print_text};
use super::log::{self, LogFormat};
use crate::api::client::socket_in;
use crate::exit::Exit;
use crate::node::Node;
use crate::node::http::options::HttpOptions;
use crate::node::http::server::Server;
use crate::node::http::trace::Tracer;
use crate::node::moment;
use crate::node::options::NodeOptions;

/// How the agent is set up.
#[derive(Debug, Args)]
pub struct AgentOptions {
    #[command(flatten)]
    node: NodeOptions,

    #[command(flatten)]
    http: HttpOptions,

    /// How a line of the log on standard error is written; RUST_LOG says what is logged.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Watching")]
    log_format: LogFormat,

    /// Append to this file what boots and pulls of images did when: a line of JSON for each phase of each
    /// VM, in the words of OpenTelemetry.
    #[arg(long, value_name = "FILE", help_heading = "Watching")]
    trace: Option<PathBuf>,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    load: LoadOptions,
}

impl AgentOptions {
    /// Starts the log.
    pub fn start_logging(&self, verbose: u8) {
        log::start(self.log_format, verbose);
    }

    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        allow_many_files();
        moment::prepare();
        let trace = self.trace.as_ref().map(|file| {
            let source = |source| CliError::Output { what: file.display().to_string(), source };
            Tracer::open(file).map_err(source)
        });
        let trace = trace.transpose()?;
        let (cache, load, images) = (self.cache.clone(), self.load.clone(), store.clone());
        let opener = move || {
            cache::image_transport(&cache, &load, &images)
                .map(ImageClient::new)
                .map_err(|error| error.to_string())
        };
        let node = Node::start(&self.node, Box::new(opener))?;
        node.serve_chunks_by(chunk_server::words(store, &self.cache, &self.load));
        let server = Server::listen(&self.http, socket_in(&self.node.folder()))?;
        let mut line = format!("ready socket={}", server.socket().display());
        if let Some(address) = server.address() {
            let _ = write!(line, " listen={address}");
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "{line}");
        let served = server.serve(&node, trace, || {
            if let Err(error) = notify::tell("READY=1") {
                tracing::warn!("the service manager cannot be told: {error}");
            }
            // Nobody may be reading it.
            let _ = print_text(&format!("{line}\n"));
        });
        let _ = notify::tell("STOPPING=1");
        tracing::info!("ending; VMs live on");
        node.end();
        served?;
        Ok(Exit::Success)
    }
}

/// Each VM takes a few files of the agent, and so does each connection.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
