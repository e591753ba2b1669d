//! Copies a mapped ramdisk out of its file, batch by batch.

use super::{Rule, permit};

pub(super) const RULES: &[Rule] = &[permit!(SYS_pread64, "the ramdisk is read")];
