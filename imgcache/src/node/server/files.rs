//! How many files this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::ServerError;

/// Files that are no connections: listeners, the arena, the runtime, logs.
const OTHERS: u64 = 64;
/// Connections at once where nothing else is asked for and there may be as many files.
pub const DEFAULT_CONNECTIONS: usize = 16_384;

/// Raises the limit of open files to what may be had; returns how many connections there can be:
/// as many as are `wanted`, or, if nobody said how many, [`DEFAULT_CONNECTIONS`] or what fits.
///
/// # Errors
/// If what may be had is too little for those that are wanted.
pub fn raise_open_files(wanted: Option<usize>) -> Result<usize, ServerError> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    // Where it is refused, what there is decides.
    let _ = setrlimit(Resource::Nofile, raised);
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fit = usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    match wanted {
        None => Ok(DEFAULT_CONNECTIONS.min(fit).max(1)),
        Some(wanted) if wanted <= fit => Ok(wanted),
        Some(wanted) => {
            let files = OTHERS.saturating_add(wanted as u64);
            Err(ServerError::OpenFiles { wanted, files, limit })
        }
    }
}
