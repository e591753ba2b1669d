//! One connection between a client and a home, without a program, for what is done to it by hand.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use continuation::mover::Route;
use continuation::privilege::{Own, Privilege};
use continuation::repair::{self, RepairError};
use continuation::state::ConnectionState;

use super::network::Lab;
use super::switch::TestRoute;

pub fn own() -> Arc<dyn Privilege> {
    Arc::new(Own)
}

/// The client's end and the server's, at the first home.
pub fn pair(lab: &Lab, service: &str, mark: bool) -> (TcpStream, TcpStream) {
    let service: SocketAddr = service.parse().unwrap();
    let listener = lab.homes[0].run(|| TcpListener::bind(service).unwrap());
    if mark {
        repair::mark_migratable(&listener, repair::BUFFER).unwrap();
    }
    let client = lab.client.run(|| TcpStream::connect(service).unwrap());
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.set_nodelay(true).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (client, server)
}

/// Moves a connection by hand, with all steps of the network's.
pub fn carry(lab: &Lab, from: usize, server: TcpStream) -> TcpStream {
    let mut route = TestRoute::new(lab, from, 1 - from);
    route.hold().unwrap();
    route.drain().unwrap();
    let frozen = lab.homes[from].run(|| repair::freeze(server, &own())).unwrap();
    let state = ConnectionState::decode(&frozen.state.encode()).unwrap();
    route.seal().unwrap();
    let restored = lab.homes[1 - from].run(|| repair::restore(&state, &own())).unwrap();
    route.point().unwrap();
    let socket: OwnedFd = restored.start().unwrap();
    frozen.close();
    route.release().unwrap();
    let server = TcpStream::from(socket);
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    server
}

/// Why a connection does not freeze. It goes on.
pub fn refusal(lab: &Lab, server: TcpStream) -> (TcpStream, RepairError) {
    lab.homes[0].run(|| repair::freeze(server, &own())).unwrap_err()
}
