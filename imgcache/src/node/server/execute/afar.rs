//! Being read from afar: by RDMA, and out of the memory itself by clients on this host.

use std::fmt::Write as _;

use super::super::Shared;
use super::super::output::Output;
use super::{Next, answer};
use crate::node::rdma::{Granted, RdmaError};
use crate::transport::verbs::Endpoint;

/// `rdma`, up to what takes time.
pub(super) fn connect(shared: &Shared, lease: u64, endpoint: &str, out: &mut Output) -> Next {
    let refusal = if shared.rdma.is_none() {
        "SERVER_ERROR this node has no RDMA".into()
    } else if !shared.cache.has_lease(lease) {
        "SERVER_ERROR there is no such lease".into()
    } else {
        match endpoint.parse::<Endpoint>() {
            Ok(endpoint) => return Next::Connect(lease, Box::new(endpoint)),
            Err(error) => format!("CLIENT_ERROR {error}"),
        }
    };
    if refusal.starts_with("SERVER") {
        shared.counters.server_errors.add_one();
    }
    answer(out, false, refusal);
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
