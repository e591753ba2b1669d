//! Signals that end this program, held until no command is on its way: until a command has ended, the
//! device writes to memory, and that must still be this program's.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::{CliError, tell};

static HELD: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Holds signals from now on. A second one ends the program all the same.
pub fn hold() {
    let hold = |signal| -> io::Result<()> {
        flag::register_conditional_default(signal, Arc::clone(&HELD))?;
        flag::register(signal, Arc::clone(&HELD))?;
        Ok(())
    };
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        if let Err(error) = hold(signal) {
            tell(&format!("signals cannot be held: {error}"));
        }
    }
}

/// Ends what goes on for long, between two commands.
pub fn check() -> Result<(), CliError> {
    if HELD.load(Ordering::SeqCst) { Err(CliError::Interrupted) } else { Ok(()) }
}
