//! The options that say where the distributed cache is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use imgcache::cluster::address::CacheUrl;
use imgcache::store::Store;
use imgcache::transport::Transport;
use imgcache::transport::cluster::{Cluster, ClusterOptions, LinkChoice, TlsFiles};

use crate::cli::{CliError, StoreOptions, find_store, open_store};

const CACHE_HELP: &str = "\
Cache of several nodes to use, each imgcached or memcached 1.6 or later. One of
  memcached://HOST[:PORT],HOST2,...   these nodes; port 11211 if none is given
  memcacheds://HOST[:PORT],...        these nodes, by TLS
  unix:/PATH                          a socket of this host
  members:FILE                        the nodes that a membership file lists";

/// The distributed cache, if there is one.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Distributed cache")]
pub struct CacheOptions {
    /// Cache of several nodes to use.
    #[arg(long, value_name = "URL", env = "VMM_CACHE", long_help = CACHE_HELP)]
    pub cache: Option<CacheUrl>,

    /// PEM file with the authorities that the nodes' certificates must come from (memcacheds://).
    #[arg(long, value_name = "FILE", env = "VMM_CACHE_TLS_CA")]
    cache_tls_ca: Option<PathBuf>,

    /// PEM file with this host's certificate, for nodes that ask for one.
    #[arg(long, value_name = "FILE", env = "VMM_CACHE_TLS_CERT", requires = "cache_tls_key")]
    cache_tls_cert: Option<PathBuf>,

    /// PEM file with the key of that certificate.
    #[arg(long, value_name = "FILE", env = "VMM_CACHE_TLS_KEY", requires = "cache_tls_cert")]
    cache_tls_key: Option<PathBuf>,
}

/// What a load from the cache needs beyond its address.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Distributed cache")]
pub struct LoadOptions {
    /// Store to fetch from what no node of the cache has; it is then put into the cache. By default
    /// the store of this host (--store), if there is one.
    #[arg(long, value_name = "DIR", env = "VMM_ORIGIN", requires = "cache")]
    origin: Option<PathBuf>,

    /// Seconds that a load from the cache may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    load_deadline: u64,

    /// What chunks shall come by: shared (out of a node's memory on this host), rdma (READs of a node's
    /// memory), tcp (the memcached protocol), or auto, the first of these that works for each node. The
    /// report says what it was, and why nothing faster.
    #[arg(long, value_name = "KIND", default_value = "auto", env = "VMM_TRANSPORT")]
    transport: LinkChoice,
}

/// How an image is put into the cache.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Distributed cache")]
pub struct WriteOptions {
    /// What chunks shall go by: rdma (WRITEs to a node's memory, imgcached --rdma-push), tcp (the memcached
    /// protocol), or auto: rdma to nodes on other hosts that offer it, else tcp. With rdma, a node that
    /// does not offer it is left out; what it has no room for at that moment goes by tcp all the same.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    transport: LinkChoice,
}

impl CacheOptions {
    /// How the cache is to be used.
    fn options(&self) -> ClusterOptions {
        let tls = TlsFiles {
            authorities: self.cache_tls_ca.clone(),
            certificate: self.cache_tls_cert.clone(),
            key: self.cache_tls_key.clone(),
            server_name: None,
        };
        ClusterOptions { tls, ..ClusterOptions::default() }
    }

    /// The words that say the same again.
    pub fn arguments(&self) -> Vec<OsString> {
        let url = self.cache.as_ref().map(|url| url.to_string().into());
        let file = |file: &Option<PathBuf>| file.clone().map(PathBuf::into_os_string);
        words([
            ("--cache", url),
            ("--cache-tls-ca", file(&self.cache_tls_ca)),
            ("--cache-tls-cert", file(&self.cache_tls_cert)),
            ("--cache-tls-key", file(&self.cache_tls_key)),
        ])
    }

    /// The membership file, if that is how the cache was named.
    pub fn members_file(&self) -> Option<&Path> {
        match &self.cache {
            Some(CacheUrl::Members(path)) => Some(path),
            Some(CacheUrl::Nodes { .. }) | None => None,
        }
    }

    /// The cache, without anything behind it; `None` if none was named.
    pub fn open(&self) -> Result<Option<Cluster>, CliError> {
        let Some(url) = &self.cache else { return Ok(None) };
        Ok(Some(Cluster::open(url, self.options(), None)?))
    }
}

impl LoadOptions {
    /// The words that say the same again.
    pub fn arguments(&self) -> Vec<OsString> {
        words([
            ("--origin", self.origin.clone().map(PathBuf::into_os_string)),
            ("--load-deadline", Some(self.load_deadline.to_string().into())),
            ("--transport", Some(self.transport.to_string().into())),
        ])
    }
}

/// Options and their values, of those that have one; each in one word.
fn words<const N: usize>(options: [(&str, Option<OsString>); N]) -> Vec<OsString> {
    let word = |(option, value): (&str, Option<OsString>)| {
        let mut word = OsString::from(format!("{option}="));
        word.push(value?);
        Some(word)
    };
    options.into_iter().filter_map(word).collect()
}

/// The cache that an image is to be put into; `None` if none was named.
pub fn open_for_writing(
    cache: &CacheOptions,
    write: &WriteOptions,
) -> Result<Option<Cluster>, CliError> {
    let Some(url) = &cache.cache else { return Ok(None) };
    let options = ClusterOptions { link: write.transport, ..cache.options() };
    Ok(Some(Cluster::open(url, options, None)?))
}

/// Where a boot gets its image: the cache if one was named, with a store behind it, else the store.
pub fn image_transport(
    cache: &CacheOptions,
    load: &LoadOptions,
    store: &StoreOptions,
) -> Result<Box<dyn Transport>, CliError> {
    let Some(url) = &cache.cache else { return Ok(Box::new(open_store(store)?)) };
    let origin = match &load.origin {
        Some(folder) => Some(open_origin(folder)?),
        None => find_store(store)?,
    };
    let origin = origin.map(|store| Box::new(store) as Box<dyn Transport>);
    let deadline = Duration::from_secs(load.load_deadline);
    let options =
        ClusterOptions { load_deadline: deadline, link: load.transport, ..cache.options() };
    Ok(Box::new(Cluster::open(url, options, origin)?))
}

/// A store that was named must be there.
fn open_origin(folder: &Path) -> Result<Store, CliError> {
    Ok(Store::open(folder)?)
}
