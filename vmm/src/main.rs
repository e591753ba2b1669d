//! `vmm`: boots any image by name.

use std::process::ExitCode;

use clap::Parser;
use vmm::cli::Cli;
use vmm::machine::terminal;
use vmm::process;

fn main() -> ExitCode {
    // The terminal's guardian is this program too, and must start before all else.
    if std::env::args_os().nth(1).is_some_and(|first| first == terminal::GUARDIAN_ARGUMENT) {
        return match terminal::guard() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if std::env::args_os().nth(1).is_some_and(|first| first == process::ARGUMENT) {
        vmm::cli::logging::start(0);
        return process::main();
    }
    let cli = Cli::parse();
    cli.start_logging();
    match cli.run() {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            vmm::cli::say(&format!("vmm: {error}\n"));
            ExitCode::from(error.exit().code())
        }
    }
}
