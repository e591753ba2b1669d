//! The image cache: what an image is, where its chunks live, and how they reach guest memory.
//!
//! - [`image`]: the manifest (the landing plan), and the import of kernels and ramdisks into it;
//! - [`store`]: the embedded store on local disk;
//! - [`record`]: how images are kept as memcached items;
//! - [`cluster`]: which nodes make up a distributed cache, and which of them hold what;
//! - [`tls`]: TLS of servers;
//! - [`notify`]: what programs tell the service manager;
//! - [`transport`]: the one interface through which a client sees any store;
//! - [`protocol`]: the memcached protocol, as bytes;
//! - [`lazy`]: chunks that are brought one by one, when somebody needs them;
//! - [`client`]: resolves a name and loads the chunks of an image, each verified;
//! - [`index`]: the table in which a storage node lists what it holds, and how it is read from afar;
//! - `node`: the storage node (feature `node`).
#![deny(unsafe_code)]

pub mod client;
pub mod cluster;
pub mod image;
pub mod index;
pub mod key;
pub mod lazy;
#[cfg(feature = "node")]
pub mod node;
pub mod notify;
pub mod parallel;
pub mod protocol;
pub mod record;
pub mod store;
pub mod tls;
pub mod transport;

#[cfg(test)]
mod testing;
