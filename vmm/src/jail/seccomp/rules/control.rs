//! The control device's worker: what the guest says is noted, and written to files that are open.

use super::{Rule, permit};

/// Of images that it may read.
pub(super) const IMAGES: &[Rule] = &[permit!(SYS_pread64, "a chunk of an image")];
