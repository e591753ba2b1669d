//! What an image is: its name, its manifest, how files become one, and where it lands in RAM.

pub mod import;
pub mod manifest;
pub mod name;
pub mod plan;
pub mod prepared;
