//! `imgcached`: a storage node of the image cache.

mod cli;
mod exit;
mod logging;
mod opening;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use imgcache::node::cache::{CacheError, OpenReport};
use imgcache::node::server::{
    Addresses, Drained, Http, Reload, Server, ServerConfig, ServerError, raise_open_files,
};
use imgcache::notify;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::opening::Opener;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Of the cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Of the server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Of the threads that serve.
    #[error("cannot start threads: {0}")]
    Runtime(#[source] io::Error),
    /// Of signals.
    #[error("cannot receive signals: {0}")]
    Signals(#[source] io::Error),
    /// Of telling that it is ready.
    #[error("cannot tell that it is ready: {0}")]
    Output(#[source] io::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = cli.check() {
        error.exit();
    }
    let (format, verbose) = cli.logging();
    logging::start(format, verbose);
    let exit = run(&cli).unwrap_or_else(|failed| {
        tracing::error!("{failed}");
        Exit::from(&failed)
    });
    ExitCode::from(exit.code())
}

fn run(cli: &Cli) -> Result<Exit, Failed> {
    let config = cli.server(raise_open_files(cli.max_connections())?);
    // Connections have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::Runtime)?;
    let exit = runtime.block_on(live(cli, config))?;
    // What still waits for a client is not waited for.
    runtime.shutdown_background();
    Ok(exit)
}

/// From the first signal that is heeded to the end.
async fn live(cli: &Cli, config: ServerConfig) -> Result<Exit, Failed> {
    let listen = |kind| signal(kind).map_err(Failed::Signals);
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let hang_up = listen(SignalKind::hangup())?;
    let http = cli.http().map(Http::start).transpose()?;
    let opening = http.as_ref().map(Http::opening);
    let mut opener = Opener::start(cli.cache(), opening).map_err(Failed::Runtime)?;
    let cache = tokio::select! {
        cache = opener.wait() => cache?,
        signal = ended(&mut terminate, &mut interrupt) => {
            // What a file holds stays whole wherever this leaves off.
            tracing::info!(signal, "ended before the memory was there");
            stopping();
            return Ok(Exit::Success);
        }
    };
    report(cache.open_report());
    let server = Server::bind(Arc::new(cache), config, http)?;
    let reloading = tokio::spawn(reload_certificates(hang_up, server.reload()));
    announce(server.addresses()).map_err(Failed::Output)?;
    let stop = async {
        let signal = ended(&mut terminate, &mut interrupt).await;
        tracing::info!(signal, "draining: waiting for leases and requests");
        stopping();
        // The next signal ends it at once.
        tokio::spawn(async move {
            let signal = ended(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal, "ended at once");
            std::process::exit(Exit::Signal(signal).code().into());
        });
    };
    let drained = server.run(stop).await;
    reloading.abort();
    match drained {
        Drained::Whole => tracing::info!("drained"),
        Drained::TimedOut { leases, busy } => {
            tracing::warn!(leases, requests = busy, "cut off after --drain-timeout");
        }
    }
    Ok(drained.into())
}

fn report(report: &OpenReport) {
    for fallback in &report.fallbacks {
        tracing::warn!("no better pages: {fallback}");
    }
    tracing::info!(
        backing = %report.backing,
        bytes = report.memory_bytes,
        index_entries = report.index_entries,
        restored = report.restored,
        expired = report.expired,
        damaged = report.damaged,
        "memory is there"
    );
}

fn stopping() {
    if let Err(error) = notify::tell("STOPPING=1") {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

/// Waits for SIGTERM or SIGINT; returns its number.
async fn ended(terminate: &mut Signal, interrupt: &mut Signal) -> u8 {
    tokio::select! {
        _ = terminate.recv() => 15,
        _ = interrupt.recv() => 2,
    }
}

async fn reload_certificates(mut hang_up: Signal, reload: Reload) {
    while hang_up.recv().await.is_some() {
        match reload.reload() {
            Ok(()) => tracing::info!("certificates read again"),
            Err(error) => tracing::error!("certificates stay as they were: {error}"),
        }
    }
}

/// One line on standard output with where it really listens, and the service manager's.
fn announce(addresses: &Addresses) -> io::Result<()> {
    let mut words = vec!["ready".to_owned()];
    words.extend(addresses.tcp.iter().map(|address| format!("listen={address}")));
    words.extend(addresses.unix.iter().map(|path| format!("unix={}", path.display())));
    words.extend(addresses.http.iter().map(|address| format!("http={address}")));
    let line = words.join(" ");
    tracing::info!("{line}");
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).or_else(|error| match error.kind() {
        // Nobody wants to know.
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })?;
    notify::tell("READY=1")
}
