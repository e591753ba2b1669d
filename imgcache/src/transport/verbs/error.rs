//! Why RDMA does not do what it was asked for, and what to do about it.

use std::io;

use super::endpoint::EndpointError;

/// Why there is no RDMA, or why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// The library is not there, or too old.
    #[error(
        "libibverbs cannot be used ({reason}); RDMA needs version 32 or newer of the packages \
         libibverbs1 and ibverbs-providers (rdma-core)"
    )]
    Library {
        /// The loader's reason.
        reason: String,
    },
    /// The kernel does not offer verbs to user space.
    #[error("the kernel offers no RDMA verbs ({source}); load the module ib_uverbs")]
    Kernel {
        /// The system's reason.
        source: io::Error,
    },
    /// There is none.
    #[error("there is no RDMA device")]
    NoDevice,
    /// No device of this name.
    #[error("there is no RDMA device '{0}'")]
    UnknownDevice(String),
    /// The kernel has devices that the library knows no driver for.
    #[error(
        "libibverbs has no driver for {}; install the package ibverbs-providers",
        devices.join(", ")
    )]
    Driver {
        /// Their names.
        devices: Vec<String>,
    },
    /// Not allowed to open the device.
    #[error(
        "not allowed to open RDMA device {device} ({source}); its node in /dev/infiniband must be \
         readable and writable, and a container must be given it"
    )]
    Permission {
        /// The device.
        device: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The device cannot do what this module needs.
    #[error("RDMA device {device} cannot be used: {reason}")]
    Unusable {
        /// The device.
        device: String,
        /// What it lacks.
        reason: &'static str,
    },
    /// The port cannot be used now.
    #[error("port {port} of RDMA device {device} cannot be used: {reason}")]
    Port {
        /// The device.
        device: String,
        /// The port's number, from 1.
        port: u8,
        /// What it lacks.
        reason: &'static str,
    },
    /// Registration pins memory, and the limit for that is too low.
    #[error(
        "cannot register {length} bytes with RDMA device {device}: the limit for locked memory is \
         {limit} bytes; raise it (ulimit -l, LimitMEMLOCK=infinity, --ulimit memlock=-1), or give \
         CAP_IPC_LOCK ({source})"
    )]
    MemoryLock {
        /// The device.
        device: String,
        /// Bytes wanted.
        length: usize,
        /// `RLIMIT_MEMLOCK`, in bytes.
        limit: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// Memory cannot be registered for another reason.
    #[error("cannot register {length} bytes at {address:#x} with RDMA device {device}: {source}")]
    Register {
        /// The device.
        device: String,
        /// Where they are.
        address: usize,
        /// Bytes wanted.
        length: usize,
        /// The system's reason; `EFAULT` where not all of it is mapped and writable.
        source: io::Error,
    },
    /// A call failed.
    #[error("{call} failed on RDMA device {device}: {source}")]
    Call {
        /// The function.
        call: &'static str,
        /// The device.
        device: String,
        /// The system's reason.
        source: io::Error,
    },
    /// What the other side said of itself cannot be connected to.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A setting outside its range.
    #[error("{name} must be from {least} to {most}, not {value}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The least allowed.
        least: u32,
        /// The most allowed.
        most: u32,
    },
    /// The queue is connected already, or not yet.
    #[error("the queue is {0}")]
    State(&'static str),
    /// More requests than the queue has room for.
    #[error("{wanted} requests for a queue with room for {room} of {depth}")]
    Full {
        /// Requests that were to be posted.
        wanted: usize,
        /// Room that was left.
        room: usize,
        /// Requests that it can hold.
        depth: usize,
    },
    /// A transfer that the port cannot make in one piece, or an empty one.
    #[error("a transfer has 1 to {most} bytes, not {length}")]
    Length {
        /// Its length in bytes.
        length: usize,
        /// The most that the port takes.
        most: u32,
    },
    /// A part of memory that is not inside what it should be part of.
    #[error("{length} bytes at {start:#x} are not inside the {whole} bytes at {base:#x}")]
    Outside {
        /// Where the part begins.
        start: u64,
        /// Its length in bytes.
        length: u64,
        /// Where the whole begins.
        base: u64,
        /// Length of the whole in bytes.
        whole: u64,
    },
    /// The region, the window and the queue belong to different protection domains, or the region
    /// does not give the right.
    #[error("{0}")]
    Rights(&'static str),
    /// No window with this key is bound in the queue.
    #[error("no window with the key {0:#x} is bound here")]
    NoWindow(u32),
}

/// What was not taken, and why; nothing of it was begun.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused<T> {
    /// Why.
    #[source]
    pub error: VerbsError,
    /// What the caller gets back.
    pub items: Vec<T>,
}

impl<T> Refused<T> {
    pub(super) fn new(error: VerbsError, items: Vec<T>) -> Self {
        Self { error, items }
    }

    pub(super) fn filter_map<R>(self, form: impl FnMut(T) -> Option<R>) -> Refused<R> {
        Refused { error: self.error, items: self.items.into_iter().filter_map(form).collect() }
    }
}

impl VerbsError {
    /// The device that it is about, if it is about one.
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Permission { device, .. }
            | Self::Unusable { device, .. }
            | Self::Port { device, .. }
            | Self::MemoryLock { device, .. }
            | Self::Register { device, .. }
            | Self::Call { device, .. } => Some(device),
            _ => None,
        }
    }
}
