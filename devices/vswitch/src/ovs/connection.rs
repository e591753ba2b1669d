//! The connection to a bridge of Open vSwitch, by which flows are set; and what was set, for a daemon that has
//! started again and knows nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rovs_openflow::{
    ActionList, Flow, FlowCommand, FlowStatsRequest, InstructionList, Message, MessageType,
    OfError, VConn,
};
use rovs_transport::Address;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{Rest, flows};
use crate::plane::PlaneError;

/// How long Open vSwitch is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that is made again when it breaks.
pub struct Connection {
    runtime: Runtime,
    socket: PathBuf,
    rest: Rest,
    /// None after one broke.
    open: Option<VConn>,
    number: u32,
    /// How often it was made.
    times: u64,
    /// What is in force, by what flows are told apart.
    set: BTreeMap<Vec<u8>, Flow>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Why flows are not in force.
enum Trouble {
    /// Nobody is there, or not any more.
    Broken(String),
    /// Somebody is, and does not want one of them.
    Refused(String),
}

impl Connection {
    /// To the bridge with this management socket. All flows of a switch that was there before are taken away.
    pub fn open(socket: &Path, rest: Rest) -> Result<Self, PlaneError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PlaneError::system("start a runtime"))?;
        let number = 0x1000_0000; // apart from those that the connection counts by itself
        let (socket, set) = (socket.to_owned(), BTreeMap::new());
        let mut this = Self { runtime, socket, rest, open: None, number, times: 0, set };
        for flow in flows::first(rest) {
            this.set.insert(identity(&flow), flow);
        }
        match this.connect() {
            Ok(()) => Ok(this),
            Err(Trouble::Broken(why) | Trouble::Refused(why)) => Err(this.failed("set up", why)),
        }
    }

    fn failed(&self, what: &str, why: String) -> PlaneError {
        let what = format!("have Open vSwitch at {} {what}", self.socket.display());
        PlaneError::Remote { what, why }
    }

    /// Connects, and sets all that is to be in force.
    fn connect(&mut self) -> Result<(), Trouble> {
        let address = Address::Unix(self.socket.clone());
        let connecting = async { timeout(PATIENCE, VConn::connect(&address)).await };
        let connected = match self.runtime.block_on(connecting) {
            Ok(connected) => connected.map_err(|error| Trouble::Broken(error.to_string()))?,
            Err(_) => return Err(Trouble::Broken("no answer in time".into())),
        };
        self.open = Some(connected);
        self.times += 1;
        let all: Vec<Flow> =
            std::iter::once(flows::none(self.rest)).chain(self.set.values().cloned()).collect();
        self.exchange(&all)
    }

    /// How often it was made.
    pub fn times(&self) -> u64 {
        self.times
    }

    /// Sets `flows`, and waits until all are in force, or one is refused. If the daemon has started again
    /// meanwhile, it gets all others, too.
    pub fn send(&mut self, what: &str, flows: &[Flow]) -> Result<(), PlaneError> {
        let sent = match &self.open {
            Some(_) => self.exchange(flows),
            None => Err(Trouble::Broken("it is not there".into())),
        };
        let sent = match sent {
            Err(Trouble::Broken(_)) => self.connect().and_then(|()| self.exchange(flows)),
            sent => sent,
        };
        match sent {
            Ok(()) => {
                for flow in flows {
                    match flow.command {
                        FlowCommand::Add => self.set.insert(identity(flow), flow.clone()),
                        _ => self.set.remove(&identity(flow)),
                    };
                }
                Ok(())
            }
            Err(Trouble::Broken(why) | Trouble::Refused(why)) => Err(self.failed(what, why)),
        }
    }

    /// All that is set of what comes from a port.
    pub fn of_port(&self, number: u32) -> Vec<Flow> {
        let all = self.set.values();
        all.filter(|flow| flow.match_fields.in_port == Some(number)).cloned().collect()
    }

    fn exchange(&mut self, flows: &[Flow]) -> Result<(), Trouble> {
        let Self { runtime, open, number, .. } = self;
        let Some(connection) = open else {
            return Err(Trouble::Broken("it is not there".into()));
        };
        let version = connection.version();
        let mut next = || {
            *number = number.wrapping_add(1);
            *number
        };
        let mut messages: Vec<_> =
            flows.iter().map(|flow| flow.to_message(version, next())).collect();
        let barrier = next();
        let first = messages.first().map_or(barrier, |message| message.header.xid);
        messages.push(Message::new(
            version,
            MessageType::BarrierRequest,
            barrier,
            bytes_of_nothing(),
        ));
        let exchange = async {
            for message in &messages {
                connection.send_message(message).await?;
            }
            let mut refused = None;
            loop {
                let Message { mut header, body } = connection.recv_message().await?;
                match header.msg_type {
                    MessageType::BarrierReply if header.xid == barrier => return Ok(refused),
                    MessageType::Error if header.xid.wrapping_sub(first) < barrier - first => {
                        refused = Some(OfError::parse(&body)?);
                    }
                    MessageType::EchoRequest => {
                        header.msg_type = MessageType::EchoReply;
                        connection.send_message(&Message { header, body }).await?;
                    }
                    // What the switch tells unasked, or of a request that was given up.
                    _ => {}
                }
            }
        };
        let done: Result<Result<_, rovs_openflow::Error>, _> =
            runtime.block_on(async { timeout(PATIENCE, exchange).await });
        let broken = match done {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(error))) => return Err(Trouble::Refused(error.to_string())),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".into(),
        };
        *open = None;
        Err(Trouble::Broken(broken))
    }

    /// How many frames the flows of table `table` with `cookie` have matched since the daemon was started.
    pub fn count(&mut self, table: u8, cookie: u64) -> Result<u64, PlaneError> {
        // It may have started again.
        self.send("answer", &[])?;
        let request = FlowStatsRequest::new().table(table).cookie(cookie, u64::MAX);
        let Self { runtime, open, .. } = self;
        let Some(connection) = open else { return Ok(0) };
        let dump = async { timeout(PATIENCE, connection.dump_flows_filtered(request)).await };
        let why = match runtime.block_on(dump) {
            Ok(Ok(flows)) => return Ok(flows.iter().map(|flow| flow.packet_count).sum()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".into(),
        };
        *open = None;
        Err(self.failed("count", why))
    }
}

/// What no two flows of a bridge have in common: table, priority and match.
fn identity(flow: &Flow) -> Vec<u8> {
    let mut bare = flow.clone();
    (bare.command, bare.cookie, bare.cookie_mask) = (FlowCommand::Add, 0, 0);
    (bare.actions, bare.instructions) = (ActionList::new(), InstructionList::new());
    bare.encode()
}

/// The body of a message without one, in whatever type the library has for it.
fn bytes_of_nothing<T: Default>() -> T {
    T::default()
}
