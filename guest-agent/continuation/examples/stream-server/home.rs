//! A home of the service: what its host asks of it, it has the server do.

use std::net::SocketAddr;
use std::sync::mpsc::channel;

use continuation::errand::{Service, drain, left_behind};
use continuation::mover::Arrived;
use continuation::service::Continuation;
use continuation::state::ConnectionState;
use guest_agent::calls::endpoint::Errand;

use super::server::{Handle, Order};

/// The server, as a service at this address.
pub struct Home {
    pub server: Handle,
    pub service: SocketAddr,
}

impl Service for Home {
    fn prepare(&mut self, _: &Errand) -> Result<(), String> {
        // It listens all the time.
        Ok(())
    }

    fn stop(&mut self, _: &Errand) -> Result<Vec<Continuation>, String> {
        // Clients that have come and are not served yet would be left behind: the move is asked for again.
        drain().map_err(|error| format!("it is not known whether all was processed: {error}"))?;
        let (reply, replied) = channel();
        self.server.tell(Order::Stop(self.service, reply));
        let stopped = replied.recv().map_err(|_| "the server has ended".to_owned())?;
        match left_behind(self.service, stopped.len()) {
            Ok(0) => Ok(stopped),
            other => {
                self.server.tell(Order::GoOn(stopped));
                match other {
                    Ok(count) => Err(format!(
                        "{count} connections are not accepted yet, or have not quite ended: try again"
                    )),
                    Err(error) => Err(format!("connections cannot be counted: {error}")),
                }
            }
        }
    }

    fn go_on(&mut self, connections: Vec<Continuation>) {
        self.server.tell(Order::GoOn(connections));
    }

    fn takes(&self, state: &ConnectionState) -> Result<(), String> {
        if state.local == self.service {
            Ok(())
        } else {
            Err(format!("{} is not served here", state.local))
        }
    }

    fn arrive(&mut self, connections: Vec<Arrived>) {
        self.server.tell(Order::Arrive(connections));
    }

    fn tell(&mut self, text: &str) {
        eprintln!("{text}");
    }
}
