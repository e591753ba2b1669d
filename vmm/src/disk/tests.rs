//! Tests of a disk as its device sees it.
