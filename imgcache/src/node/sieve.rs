//! SIEVE eviction.
