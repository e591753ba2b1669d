//! Which part of the memory belongs to which size of item.

/// A slot of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The slab's number.
    pub slab: u32,
    /// The slot's number in it.
    pub slot: u16,
}
