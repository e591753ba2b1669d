//! Which nodes make up a cache, and which of them hold what.
//!
//! - [`address`]: how people write where a cache is;
//! - [`members`]: the nodes of a cache, as a file that can change while it is used;
//! - [`placement`]: from an item's index key to the nodes that hold it;
//! - [`rebalance`]: what must move so that everything is where the placement says.

pub mod address;
pub mod members;
pub mod placement;
pub mod rebalance;
