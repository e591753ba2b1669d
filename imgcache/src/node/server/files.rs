//! How many files this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::ServerError;

/// Files that are no connections: listeners, the arena, the runtime, logs.
const OTHERS: u64 = 64;

/// Raises the limit of open files to what may be had.
///
/// # Errors
/// If that is too little for `connections`.
pub fn raise_open_files(connections: usize) -> Result<(), ServerError> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    // Where it is refused, what there is decides.
    let _ = setrlimit(Resource::Nofile, raised);
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = OTHERS.saturating_add(connections as u64);
    if files > limit {
        return Err(ServerError::OpenFiles { wanted: connections, files, limit });
    }
    Ok(())
}
