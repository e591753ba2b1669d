//! The agents of other hosts, to which endpoints of this one can move.

use std::net::IpAddr;

use super::guests::Outcome;
use super::moves::Order;
use crate::api::client::Client;

/// Bytes of a state that are sent at a time: an agent takes no larger bodies.
const PIECE: usize = 128 << 10;

/// The agent of another host.
#[derive(Debug, Clone)]
pub struct Peer {
    client: Client,
    tunnel: IpAddr,
}

impl Peer {
    /// Reached by `client`; frames to its VMs go through the tunnel endpoint `tunnel`.
    pub fn new(client: Client, tunnel: IpAddr) -> Self {
        Self { client, tunnel }
    }

    /// Its tunnel endpoint.
    pub fn tunnel(&self) -> IpAddr {
        self.tunnel
    }

    /// Has it do something for a move.
    pub fn order(&self, order: &Order) -> Outcome {
        self.client.post("/v1/moves/orders", order).unwrap_or_else(|error| {
            log::debug!("{}: {error}", self.client.node());
            match error {
                crate::api::client::ClientError::Refused(body) => Outcome::Refused(body.message),
                _ => Outcome::Silent,
            }
        })
    }

    /// Sends it the state of a move.
    pub fn send(&self, number: u64, state: &[u8]) -> Outcome {
        let mut at = 0;
        for piece in state.chunks(PIECE) {
            let path = format!("/v1/moves/{number}/state?at={at}");
            if let Err(error) = self.client.post_bytes(&path, piece) {
                return Outcome::Refused(error.to_string());
            }
            at += piece.len();
        }
        Outcome::Done
    }
}
