//! `guest-agent`: the control device for whoever is in a guest, and the guest's part of being managed.
//! `docs/guest-agent.md` says what it is for.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
