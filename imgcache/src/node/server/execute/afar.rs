//! Being read from afar: by RDMA, and out of the memory itself by clients on this host.

use std::fmt::Write as _;

use super::super::Shared;
use super::super::output::Output;
use super::{Next, answer};
use crate::node::rdma::{Granted, RdmaError};
use crate::transport::verbs::Endpoint;

/// `rdma`, up to what takes time.
pub(super) fn connect(shared: &Shared, lease: u64, endpoint: &str, out: &mut Output) -> Next {
    let endpoint = match endpoint.parse::<Endpoint>() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            answer(out, false, format_args!("CLIENT_ERROR {error}"));
            return Next::Done;
        }
    };
    let refusal = match &shared.rdma {
        None => "this node has no RDMA",
        // From here on the end of the lease waits for the end of the right to read.
        Some(rdma) if shared.cache.grant(lease, rdma.rights(lease)) => {
            return Next::Connect(lease, Box::new(endpoint));
        }
        Some(_) => "there is no such lease, or it has been connected before",
    };
    shared.counters.server_errors.add_one();
    answer(out, false, format_args!("SERVER_ERROR {refusal}"));
    Next::Done
}

/// The answer to `rdma`.
pub(in super::super) fn connected(
    shared: &Shared,
    granted: Result<Granted, RdmaError>,
    out: &mut Output,
) {
    let mut line = String::new();
    match granted {
        Ok(Granted { announcement, address, key, endpoint }) => {
            let _ = write!(line, "RDMA {announcement} {address} {key} {endpoint}");
        }
        Err(error) => {
            shared.counters.server_errors.add_one();
            let _ = write!(line, "SERVER_ERROR {error}");
        }
    }
    answer(out, false, line);
}
