//! The control device's worker: what the guest says is noted, and written to files that are open.

use super::Rule;

pub(super) const RULES: &[Rule] = &[];
