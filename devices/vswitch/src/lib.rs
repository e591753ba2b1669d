//! Switches that forward frames by virtual identifier.
