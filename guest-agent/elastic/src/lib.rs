//! Services that split, merge, mirror and move ranges of identifiers, with their state.
