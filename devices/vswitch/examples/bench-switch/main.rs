//! Measures switches.
fn main() {}
