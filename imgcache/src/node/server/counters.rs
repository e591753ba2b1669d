//! What the server counts; what the cache does is counted there.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$doc:meta] $field:ident,)*) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub(super) struct ServerCounters {
            $(#[$doc] pub $field: Counter,)*
        }

        /// What they were at one moment.
        #[derive(Debug, Clone, Copy, Default)]
        pub(super) struct ServerCounts {
            $(#[$doc] pub $field: u64,)*
        }

        impl ServerCounters {
            pub fn snapshot(&self) -> ServerCounts {
                ServerCounts { $($field: self.$field.get(),)* }
            }
        }

        impl ServerCounts {
            /// What was counted since `base`.
            pub fn since(&self, base: &Self) -> Self {
                Self { $($field: self.$field.saturating_sub(base.$field),)* }
            }
        }
    };
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn add_one(&self) {
        self.add(1);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// `rdma` requests.
    rdma,
    /// `share` requests.
    share,
    /// `push` requests.
    push,
    /// Connections accepted, those refused not among them.
    connections,
    /// Connections refused because there were too many.
    refused_connections,
    /// Times that there were no files for another connection.
    out_of_files,
    /// Microseconds of not accepting for that.
    out_of_files_us,
    /// Bytes received.
    bytes_read,
    /// Bytes sent.
    bytes_written,
    /// Times that a connection had to let others go on.
    yields,
    /// Connections closed for having been idle.
    idle_kicks,
    /// Connections closed for an unfinished request or an unread reply.
    stall_kicks,
    /// Connections closed because memory for long lines was used up.
    input_out_of_memory,
    /// TLS handshakes that failed.
    handshake_errors,
    /// Connections closed for speaking something else.
    violations,
    /// `ERROR` replies.
    errors,
    /// `CLIENT_ERROR` replies.
    client_errors,
    /// `SERVER_ERROR` replies.
    server_errors,
    /// Values refused because of their size.
    too_large,
    /// Values refused for want of memory or index entries.
    no_memory,
    /// Values refused because their content is not what their key says.
    hash_mismatches,
    /// Data blocks without their end.
    bad_data,
    /// `get`, `gets`.
    get,
    /// `gat`, `gats`.
    gat,
    /// Storage commands whose value arrived, `ms` among them.
    set,
    /// `delete`.
    delete,
    /// `incr`, `decr`.
    arithmetic,
    /// `touch`.
    touch,
    /// `mg`.
    meta_get,
    /// `ms`.
    meta_set,
    /// `md`.
    meta_delete,
    /// `ma`.
    meta_arithmetic,
    /// `me`.
    meta_debug,
    /// `mn`.
    meta_noop,
    /// `flush_all`.
    flush,
    /// `stats`.
    stats,
    /// `lease`.
    lease,
    /// `release`.
    release,
    /// `pin`, `unpin`.
    pin,
    /// Any other.
    other,
}

impl ServerCounts {
    /// Requests by command, for labels.
    pub fn by_command(&self) -> [(&'static str, u64); 17] {
        [
            ("get", self.get),
            ("gat", self.gat),
            // Those of `ms` are counted by both.
            ("set", self.set.saturating_sub(self.meta_set)),
            ("delete", self.delete),
            ("arithmetic", self.arithmetic),
            ("touch", self.touch),
            ("mg", self.meta_get),
            ("ms", self.meta_set),
            ("md", self.meta_delete),
            ("ma", self.meta_arithmetic),
            ("me", self.meta_debug),
            ("mn", self.meta_noop),
            ("stats", self.stats),
            ("lease", self.lease),
            ("release", self.release),
            ("pin", self.pin),
            ("other", self.other + self.flush),
        ]
    }

    /// Errors by kind, for labels.
    pub fn by_error(&self) -> [(&'static str, u64); 13] {
        [
            ("unknown_command", self.errors),
            ("client", self.client_errors),
            ("server", self.server_errors),
            ("too_large", self.too_large),
            ("no_memory", self.no_memory),
            ("hash_mismatch", self.hash_mismatches),
            ("bad_data", self.bad_data),
            ("violation", self.violations),
            ("handshake", self.handshake_errors),
            ("refused_connection", self.refused_connections),
            ("out_of_files", self.out_of_files),
            ("input_memory", self.input_out_of_memory),
            ("stalled", self.stall_kicks),
        ]
    }

    /// Meta commands in all.
    pub fn meta(&self) -> u64 {
        self.meta_get
            + self.meta_set
            + self.meta_delete
            + self.meta_arithmetic
            + self.meta_debug
            + self.meta_noop
    }
}
