//! What the tests have in common: machines, the network between them, servers and clients.
#![allow(dead_code, reason = "no test uses all of it")]

pub mod clients;
pub mod network;
pub mod single;
pub mod switch;

#[path = "../../examples/stream-server/home.rs"]
pub mod home;
#[path = "../../examples/stream-server/server.rs"]
pub mod server;
#[path = "../../examples/stream-server/words.rs"]
pub mod words;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use continuation::mover::{Destination, Limits, Route, Times};
use continuation::privilege::Privilege;

use network::Lab;
use server::{Handle, Order, Server};
use switch::TestRoute;

/// How often a move is repeated: more with `VMM_TEST_LONG`.
pub fn repeats(usual: usize, long: usize) -> usize {
    if std::env::var_os("VMM_TEST_LONG").is_some() { long } else { usual }
}

/// Two homes that serve one endpoint, of which one has it.
pub struct Homes {
    pub lab: Lab,
    servers: [Handle; 2],
    destinations: [Arc<Destination>; 2],
    /// Which has it.
    pub at: usize,
}

impl Homes {
    pub fn new() -> Self {
        Self::with(&single::own(), Lab::new())
    }

    pub fn with(privilege: &Arc<dyn Privilege>, lab: Lab) -> Self {
        let servers = [0, 1].map(|home| {
            let (server, handle) = Server::new(Arc::clone(privilege)).unwrap();
            let namespace = lab.homes[home].another();
            thread::spawn(move || {
                namespace.enter();
                server.run().unwrap();
            });
            handle
        });
        let destinations = [0, 1].map(|_| {
            let policy = |state: &continuation::state::ConnectionState| match state.local.port() {
                7000 => Ok(()),
                other => Err(format!("port {other} does not move here")),
            };
            let limits = Limits { patience: Duration::from_secs(5), ..Limits::default() };
            Arc::new(Destination::new(Arc::clone(privilege), limits, Box::new(policy)))
        });
        Self { lab, servers, destinations, at: 0 }
    }

    /// A client's connection to the service.
    pub fn connect(&self, service: SocketAddr) -> TcpStream {
        let listener = self.lab.homes[self.at].run(|| TcpListener::bind(service).unwrap());
        let client = self.lab.client.run(|| TcpStream::connect(service).unwrap());
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        self.servers[self.at].tell(Order::Accept(listener.accept().unwrap().0));
        client
    }

    /// Streams to a home's side for arrivals.
    pub fn connector(
        &self,
        home: usize,
    ) -> impl FnMut() -> io::Result<UnixStream> + Send + 'static {
        let destination = Arc::clone(&self.destinations[home]);
        let server = self.servers[home].another().unwrap();
        let namespace = self.lab.homes[home].another();
        move || {
            let (ours, mut its) = UnixStream::pair()?;
            let (destination, server) = (Arc::clone(&destination), server.another()?);
            let namespace = namespace.another();
            let (ready, is_ready) = channel();
            thread::spawn(move || {
                namespace.enter();
                let _ = ready.send(());
                let _ = destination.serve(&mut its, &mut |all| server.tell(Order::Arrive(all)));
            });
            let _ = is_ready.recv();
            Ok(ours)
        }
    }

    /// Moves the service to the other home.
    pub fn try_move(&mut self) -> Result<Times, String> {
        let route = TestRoute::new(&self.lab, self.at, 1 - self.at);
        self.move_by(Box::new(route))
    }

    pub fn tell(&self, home: usize, order: Order) {
        self.servers[home].tell(order);
    }

    /// Moves the service to the other home, the network being led so.
    pub fn move_by(&mut self, route: Box<dyn Route + Send>) -> Result<Times, String> {
        let to = 1 - self.at;
        let mut connector = self.connector(to);
        let mut first = Some(connector().map_err(|error| error.to_string())?);
        let connect = move || first.take().map_or_else(&mut connector, Ok);
        let (reply, replied) = channel();
        self.servers[self.at].tell(Order::Move(Box::new(connect), route, reply));
        let result = replied.recv().unwrap();
        if result.is_ok() {
            self.at = to;
        }
        result
    }
}
