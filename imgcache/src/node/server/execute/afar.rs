//! Being read and written from afar: by RDMA, which the device's own threads see to.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use super::super::Shared;
use super::super::output::Output;
use super::{Next, answer, push};
use crate::node::push::table::Wanted;
use crate::node::rdma::{Granted, RdmaError};
use crate::transport::verbs::Endpoint;

/// What the device's threads are asked.
#[derive(Debug)]
pub(in super::super) enum Afar {
    /// To connect a queue for a lease.
    Connect(u64, Box<Endpoint>),
    /// To begin a push.
    Push(Box<Endpoint>, Vec<Wanted>),
    /// To end it, having written so many slots.
    Pushed(u64, usize),
}

impl Afar {
    /// Asks, on behalf of `connection`, and puts the reply into `out`, which is empty.
    ///
    /// # Errors
    /// There is no reply, so the connection cannot go on.
    pub async fn ask(
        self,
        shared: &Arc<Shared>,
        connection: u64,
        out: &mut Output,
    ) -> io::Result<()> {
        match self {
            Self::Connect(lease, endpoint) => {
                let Some(rdma) = &shared.rdma else { return Ok(()) };
                connected(shared, rdma.connect(connection, lease, *endpoint).await, out);
            }
            Self::Push(peer, wanted) => {
                let Ok(pushes) = &shared.push else { return Ok(()) };
                push::begun(shared, pushes.begin(connection, peer, wanted).await, out);
            }
            Self::Pushed(id, written) => {
                let Ok(pushes) = &shared.push else { return Ok(()) };
                let ended = pushes.end(connection, id, written).await;
                *out = push::publish(ended).run(Arc::clone(shared)).await?;
            }
        }
        Ok(())
    }
}

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
            return Next::Afar(Afar::Connect(lease, Box::new(endpoint)));
        }
        Some(_) => "there is no such lease, or it has been connected before",
    };
    shared.counters.server_errors.add_one();
    answer(out, false, format_args!("SERVER_ERROR {refusal}"));
    Next::Done
}

/// The answer to `rdma`.
fn connected(shared: &Shared, granted: Result<Granted, RdmaError>, out: &mut Output) {
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
