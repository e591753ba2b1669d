//! Manners of the first process of a namespace, which the process of a VM in a jail is.
//!
//! The kernel drops signals to it that it does not handle, so it has to end by its own hand where others
//! are ended. And a panic's own report may read files, which a confined process has none of.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGABRT, SIGHUP, SIGINT, SIGTERM};

/// Whether nobody else handles the signals.
static UNHANDLED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether this process is the first of its namespace.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Signals end this process from now on as they would end another, and so does a panic; and it has a
/// name.
pub fn begin() {
    // Executed as /proc/self/exe, it would be "exe".
    let _ = rustix::thread::set_name(c"vmm");
    let unhandled = UNHANDLED.get_or_init(|| Arc::new(AtomicBool::new(true)));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = ends_if(signal, unhandled.clone()) {
            log::warn!("signal {signal} will not end this VM while it loads: {error}");
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let _ = write!(std::io::stderr(), "vmm: {panic}\r\n");
        // SAFETY: the end of this process, with nothing of it run any more, as by abort(), whose signal
        // the kernel would drop.
        unsafe { libc::_exit(128 + SIGABRT) };
    }));
}

/// Has `signal` end this process, as the shell tells it of others, whenever `condition` is set.
///
/// # Errors
/// No handler.
pub fn ends_if(signal: i32, condition: Arc<AtomicBool>) -> std::io::Result<signal_hook::SigId> {
    signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, condition)
}

/// Whether somebody else handles the signals now.
pub fn set_handled(handled: bool) {
    if let Some(unhandled) = UNHANDLED.get() {
        unhandled.store(!handled, Ordering::SeqCst);
    }
}
