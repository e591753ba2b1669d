//! The nodes of a cache as this process knows them: idle connections and breaker of each.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use super::breaker::Breaker;
use super::error::NodeError;
use super::links::Sharing;
use super::tcp::connection::Connection;
use super::tcp::stream::Dialer;
use crate::cluster::address::NodeAddress;
use crate::cluster::members::{Member, Members};
use crate::cluster::placement::{MAX_REPLICAS, Placement, Replicas};
use crate::index::IndexKey;
use crate::parallel::lock;

/// Idle connections that are kept for each node.
const MAX_IDLE: usize = 8;

/// A node, shared by everything in this process that uses it.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: NodeAddress,
    weight: u32,
    pub(super) breaker: Breaker,
    /// Whether it knows leases, once it was asked.
    leases_known: OnceLock<bool>,
    /// Its memory, if it is on this host.
    pub(super) sharing: Sharing,
    idle: Mutex<Vec<Connection>>,
    dialer: Arc<Dialer>,
}

impl Node {
    fn new(member: &Member, dialer: &Arc<Dialer>) -> Self {
        Self {
            name: member.name.clone(),
            address: member.address.clone(),
            weight: member.weight,
            breaker: Breaker::default(),
            leases_known: OnceLock::new(),
            sharing: Sharing::default(),
            idle: Mutex::default(),
            dialer: Arc::clone(dialer),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Its share of the items, relative to the others'.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// A connection: one that is idle, or a new one. Give it back with [`Self::give_back`].
    ///
    /// # Errors
    /// [`NodeError::LeftAlone`] while the breaker is open; [`NodeError::Connect`].
    pub fn connect(&self, deadline: Instant) -> Result<Connection, NodeError> {
        self.connect_patiently(deadline, 0)
    }

    /// As [`connect`](Self::connect), by somebody who waits `1 << doublings` times as long for
    /// everything. Who does so has no other node to go to, and asks whatever the breaker says.
    pub(super) fn connect_patiently(
        &self,
        deadline: Instant,
        doublings: u32,
    ) -> Result<Connection, NodeError> {
        let now = Instant::now();
        if now >= deadline {
            return Err(NodeError::Deadline);
        }
        if doublings == 0 {
            self.breaker.admit(now)?;
        }
        let idle = lock(&self.idle).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.dial(doublings)?,
        };
        connection.set_patience(self.dialer.patient(doublings).progress);
        connection.set_deadline(deadline);
        Ok(connection)
    }

    /// A new connection, whatever is idle.
    fn dial(&self, doublings: u32) -> Result<Connection, NodeError> {
        let dialer = self.dialer.patient(doublings);
        Connection::open(&self.address, &dialer).inspect_err(|error| self.failed(error))
    }

    /// Keeps a connection for the next who wants one.
    pub fn give_back(&self, mut connection: Connection) {
        self.breaker.succeeded();
        let mut idle = lock(&self.idle);
        if connection.is_clean() && idle.len() < MAX_IDLE {
            connection.reused = true;
            idle.push(connection);
        }
    }

    /// Does `work` on a connection, once more on a new one if an idle one had died of age.
    ///
    /// # Errors
    /// That of connecting, or of `work`; the breaker hears of them.
    pub fn with<T>(
        &self,
        deadline: Instant,
        work: impl FnMut(&mut Connection) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.with_patience(deadline, 0, work)
    }

    /// As [`with`](Self::with), on a connection of [`Self::connect_patiently`].
    pub(super) fn with_patience<T>(
        &self,
        deadline: Instant,
        doublings: u32,
        mut work: impl FnMut(&mut Connection) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        let mut connection = self.connect_patiently(deadline, doublings)?;
        let mut result = work(&mut connection);
        if connection.reused && matches!(result, Err(NodeError::Closed | NodeError::Io(_))) {
            connection = self.dial(doublings)?;
            connection.set_deadline(deadline);
            result = work(&mut connection);
        }
        match result {
            // A refusal is no failure of the node.
            Ok(_) | Err(NodeError::Refused { .. }) => self.give_back(connection),
            Err(ref error) => self.failed(error),
        }
        result
    }

    /// Whether it knows leases; asked once, on one of its connections.
    ///
    /// # Errors
    /// The connection's failure.
    pub(super) fn knows_leases(&self, connection: &mut Connection) -> Result<bool, NodeError> {
        if let Some(known) = self.leases_known.get() {
            return Ok(*known);
        }
        let known = connection.knows_leases()?;
        Ok(*self.leases_known.get_or_init(|| known))
    }

    /// Counts a failure.
    pub(super) fn failed(&self, error: &NodeError) {
        // That the caller has run out of time, or did not ask, says nothing of the node.
        let asked = !matches!(error, NodeError::Deadline | NodeError::LeftAlone { .. });
        if asked && self.breaker.failed(Instant::now(), error) {
            log::warn!("cache node {}: {error}; it is left alone for a while", self.name);
        }
    }
}

/// Which nodes there are, and which hold what, as of one epoch.
#[derive(Debug)]
pub struct Topology {
    /// The epoch of the membership.
    pub epoch: u64,
    /// Every node that may hold something; placements speak of positions here.
    pub nodes: Vec<Arc<Node>>,
    placement: Placement,
    previous: Option<Placement>,
}

/// Where an item may be, in the order in which to look; positions in [`Topology::nodes`].
#[derive(Debug, Clone, Copy)]
pub struct Candidates {
    nodes: [u16; MAX_CANDIDATES],
    count: u8,
    current: u8,
}

/// The most nodes that an item may be on, while it moves.
pub(super) const MAX_CANDIDATES: usize = 2 * MAX_REPLICAS;

impl Candidates {
    /// All of them.
    pub fn all(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        self.nodes.into_iter().take(self.count.into()).map(usize::from)
    }

    /// Where it belongs now: the first of all.
    pub fn current(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        self.nodes.into_iter().take(self.current.into()).map(usize::from)
    }

    fn push(&mut self, node: usize) {
        if self.all().any(|one| one == node) {
            return;
        }
        if let (Some(slot), Ok(node)) =
            (self.nodes.get_mut(usize::from(self.count)), u16::try_from(node))
        {
            *slot = node;
            self.count += 1;
        }
    }
}

impl Topology {
    /// The nodes of `members`; those that `before` has too keep their connections and breakers.
    pub(super) fn new(members: &Members, dialer: &Arc<Dialer>, before: Option<&Self>) -> Self {
        let known = |member: &Member| {
            let nodes = before.into_iter().flat_map(|before| &before.nodes);
            nodes.into_iter().find(|node| {
                node.name == member.name
                    && node.address == member.address
                    && node.weight == member.weight
            })
        };
        let node = |member: &&Member| match known(member) {
            Some(node) => Arc::clone(node),
            None => Arc::new(Node::new(member, dialer)),
        };
        Self {
            epoch: members.epoch,
            nodes: members.all().iter().map(node).collect(),
            placement: members.placement(),
            previous: members.previous_placement(),
        }
    }

    /// Where the item may be: the nodes that it belongs to, then those that it is moving from.
    pub fn candidates(&self, key: &IndexKey) -> Candidates {
        let mut found = Candidates { nodes: [0; MAX_CANDIDATES], count: 0, current: 0 };
        for node in self.placement.replicas_of(key).as_slice() {
            found.push(*node);
        }
        found.current = found.count;
        let previous = self.previous.as_ref().map(|placement| placement.replicas_of(key));
        for node in previous.iter().flat_map(Replicas::as_slice) {
            found.push(*node);
        }
        found
    }

    /// Which nodes an item belongs to now.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Whether items may still be where they belonged before the last change of the members.
    pub fn is_moving(&self) -> bool {
        self.previous.is_some()
    }

    /// How many nodes hold each item.
    pub fn replicas(&self) -> usize {
        self.placement.replicas()
    }
}
