//! All connections: how many there may be, what each is doing, and how one is ended from outside.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::counters::ServerCounters;
use crate::parallel::lock;

/// An end of a connection, as `stats conns` writes it.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(Arc<PathBuf>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address @ SocketAddr::V4(_)) => write!(f, "tcp:{address}"),
            Self::Tcp(address) => write!(f, "tcp6:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a connection is doing, in memcached's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Between requests.
    Read,
    /// A part of a request is there.
    Waiting,
    /// Receiving a data block.
    Nread,
    /// Working.
    Parse,
    /// Sending.
    Write,
    /// Throwing away a data block.
    Swallow,
}

impl State {
    const ALL: [Self; 6] =
        [Self::Read, Self::Waiting, Self::Nread, Self::Parse, Self::Write, Self::Swallow];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "conn_read",
            Self::Waiting => "conn_waiting",
            Self::Nread => "conn_nread",
            Self::Parse => "conn_parse_cmd",
            Self::Write => "conn_mwrite",
            Self::Swallow => "conn_swallow",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One connection, as others see it.
#[derive(Debug)]
pub(super) struct Connection {
    /// Number of its file.
    pub id: i32,
    /// The client.
    pub peer: Address,
    /// Where it connected to.
    pub local: Address,
    state: AtomicU8,
    /// Seconds of the monotonic clock.
    last_command: AtomicU32,
    last_progress: AtomicU32,
    kick: Notify,
}

impl Connection {
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub fn state(&self) -> State {
        let state = self.state.load(Ordering::Relaxed);
        State::ALL.into_iter().find(|known| *known as u8 == state).unwrap_or(State::Parse)
    }

    /// A command came at `now`.
    pub fn command(&self, now: Duration) {
        self.last_command.store(seconds(now), Ordering::Relaxed);
    }

    /// Bytes went in or out at `now`.
    pub fn progress(&self, now: Duration) {
        self.last_progress.store(seconds(now), Ordering::Relaxed);
    }

    /// Seconds since the last command.
    pub fn idle(&self, now: Duration) -> u32 {
        seconds(now).saturating_sub(self.last_command.load(Ordering::Relaxed))
    }

    fn stalled(&self, now: Duration) -> u32 {
        seconds(now).saturating_sub(self.last_progress.load(Ordering::Relaxed))
    }

    /// Ends when the connection is to be closed.
    pub async fn kicked(&self) {
        self.kick.notified().await;
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    all: Mutex<HashMap<u64, Arc<Connection>>>,
    /// Names of connections: numbers of files are taken again before their last owner is gone.
    next: AtomicU64,
}

/// A connection's entry, which goes with it.
#[derive(Debug)]
pub(super) struct Registered {
    pub connection: Arc<Connection>,
    key: u64,
    connections: Arc<Connections>,
}

impl Connections {
    pub fn new(limit: usize) -> Self {
        Self { limit, all: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// Enters a connection, if there may be another one.
    pub fn enter(
        self: &Arc<Self>,
        id: i32,
        peer: Address,
        local: Address,
        now: Duration,
    ) -> Option<Registered> {
        let mut all = lock(&self.all);
        if all.len() >= self.limit {
            return None;
        }
        let connection = Arc::new(Connection {
            id,
            peer,
            local,
            state: AtomicU8::new(State::Read as u8),
            last_command: AtomicU32::new(seconds(now)),
            last_progress: AtomicU32::new(seconds(now)),
            kick: Notify::new(),
        });
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        all.insert(key, connection.clone());
        Some(Registered { connection, key, connections: self.clone() })
    }

    pub fn count(&self) -> usize {
        lock(&self.all).len()
    }

    /// All of them, in the order of their numbers.
    pub fn list(&self) -> Vec<Arc<Connection>> {
        let mut list: Vec<_> = lock(&self.all).values().cloned().collect();
        list.sort_unstable_by_key(|connection| connection.id);
        list
    }

    /// How many have a request.
    pub fn busy(&self) -> usize {
        lock(&self.all).values().filter(|connection| connection.state() != State::Read).count()
    }

    /// Ends those that were idle or stalled for too long.
    pub fn sweep(
        &self,
        idle_timeout: Option<Duration>,
        stall_timeout: Duration,
        now: Duration,
        counters: &ServerCounters,
    ) {
        for connection in lock(&self.all).values() {
            let is_idle = connection.state() == State::Read;
            if !is_idle && connection.stalled(now) > seconds(stall_timeout) {
                counters.stall_kicks.add_one();
                connection.kick.notify_one();
            } else if let Some(timeout) = idle_timeout
                && is_idle
                && connection.idle(now) > seconds(timeout)
            {
                counters.idle_kicks.add_one();
                connection.kick.notify_one();
            }
        }
    }

    /// Ends all.
    pub fn kick_all(&self) {
        for connection in lock(&self.all).values() {
            connection.kick.notify_one();
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.connections.all).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    #[test]
    fn there_are_never_more_than_the_limit() {
        let connections = Arc::new(Connections::new(2));
        let enter = |id| connections.enter(id, address(), address(), Duration::ZERO);
        let first = enter(1).unwrap();
        let _second = enter(2).unwrap();
        assert!(enter(3).is_none());
        drop(first);
        assert!(enter(3).is_some());
        assert_eq!(connections.count(), 1);
    }

    #[test]
    fn the_idle_and_the_stalled_are_told_apart() {
        let connections = Arc::new(Connections::new(2));
        let idle = connections.enter(1, address(), address(), Duration::ZERO).unwrap();
        let stalled = connections.enter(2, address(), address(), Duration::ZERO).unwrap();
        stalled.connection.set_state(State::Nread);
        let counters = ServerCounters::default();
        let minute = Duration::from_secs(60);
        connections.sweep(None, minute, minute, &counters);
        assert_eq!((counters.idle_kicks.get(), counters.stall_kicks.get()), (0, 0));
        connections.sweep(None, minute, minute * 2, &counters);
        assert_eq!((counters.idle_kicks.get(), counters.stall_kicks.get()), (0, 1));
        idle.connection.command(minute);
        connections.sweep(Some(minute), minute * 9, minute * 2, &counters);
        assert_eq!(counters.idle_kicks.get(), 0);
        connections.sweep(Some(minute), minute * 9, minute * 3, &counters);
        assert_eq!(counters.idle_kicks.get(), 1);
        assert_eq!(connections.busy(), 1);
    }
}
