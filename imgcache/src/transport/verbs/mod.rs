//! RDMA verbs: the only place that knows them. What it offers is safe to use.
//!
//! - [`devices`]: which devices the host has, or why there is none;
//! - [`Fabric`], [`Domain`]: a port in use, and what keeps users of it apart;
//! - [`Domain::scope`]: reading from peers into *borrowed* memory, and writing to them out of it, over
//!   [`LoadQueue`]s. The peer gets no right to anything;
//! - [`Domain::export`], [`Domain::serve`]: letting peers into memory that a node *owns* ([`Memory`]), as a
//!   whole or through windows that are bound to one [`ServeQueue`];
//! - [`Endpoint`], [`Settings`]: what the two sides tell each other, and how a connection behaves;
//! - [`Completion`], [`Status`]: what became of a request;
//! - [`VerbsError`]: what failed, and what to do about it.
//!
//! libibverbs is loaded when devices are first asked for: the program starts, and all but RDMA works, on
//! hosts without it. What is relied on is the interface of libibverbs as its manual pages describe it,
//! reliable connections (RC) with READ, WRITE and type 2 memory windows as in the InfiniBand
//! specification, volume 1, chapters 9 to 11, and RoCE version 2.
//!
//! # What makes it safe
//! A device writes to memory at times of its own, so memory that it may write to must be nobody else's, and
//! must stay until the device has done with it:
//! - a request *takes* the memory that it names, and its completion gives it back;
//! - the end of a queue pair is the end of its requests: destroying it is the way to get memory back that
//!   did not complete. If a device does not destroy it, the memory is not given back;
//! - borrowed memory is used in a scope only, which ends its queues before the borrow ends, even of queues
//!   that were forgotten; owned memory is kept by whatever names it;
//! - peers may only write to [`Part`]s that the queue owns meanwhile, and read what its owner has declared
//!   readable at any moment.

mod choice;
mod context;
mod device;
mod endpoint;
mod error;
mod fabric;
mod library;
mod pair;
mod queue;
mod region;
mod request;
mod scope;
mod settings;
mod status;
mod window;

pub use device::{Device, Driver, Gid, GidKind, Limits, LinkLayer, Port, PortState, devices};
pub use endpoint::{Endpoint, EndpointError, MAX_TEXT};
pub use error::{Refused, VerbsError};
pub use fabric::{Domain, Fabric};
pub use queue::{Completion, Queue, QueueState};
pub use region::{Export, Memory, Part, Region, Span};
pub use request::Remote;
pub use scope::{Buffer, Lent, LoadQueue, Loading, Scope, Source, Transfer};
pub use settings::{DEPTH, Settings};
pub use status::Status;
pub use window::{ServeQueue, Served, Serving, Window};
