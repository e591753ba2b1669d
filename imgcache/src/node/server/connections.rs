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
    /// When the request that is not finished, or the reply that is not read, began.
    since: AtomicU32,
    /// How many bytes it has, as far as is known.
    bytes: AtomicU64,
    kick: Notify,
    leave: Notify,
}

/// The slowest that a request or reply may go, in bytes per second, beyond the time that it may stand
/// still: what it holds of the node's memory is not to be held for ever.
const SLOWEST: u64 = 64 << 10;

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

    /// What is under way, of so many bytes, began at `since`.
    pub fn begin(&self, state: State, since: Duration, bytes: usize) {
        self.since.store(seconds(since), Ordering::Relaxed);
        self.bytes.store(bytes as u64, Ordering::Relaxed);
        self.set_state(state);
    }

    /// Whether what is under way stands still, or is not done though it had time for all its bytes.
    fn is_stalled(&self, now: Duration, timeout: Duration) -> bool {
        match self.state() {
            // The node's own time.
            State::Read | State::Parse => return false,
            // Nothing of it is kept.
            State::Swallow => return self.stalled(now) > seconds(timeout),
            State::Waiting | State::Nread | State::Write => (),
        }
        let age = seconds(now).saturating_sub(self.since.load(Ordering::Relaxed));
        let allowed = self.bytes.load(Ordering::Relaxed) / SLOWEST + timeout.as_secs();
        self.stalled(now) > seconds(timeout) || u64::from(age) > allowed
    }

    /// Seconds since the last command.
    pub fn idle(&self, now: Duration) -> u32 {
        seconds(now).saturating_sub(self.last_command.load(Ordering::Relaxed))
    }

    fn stalled(&self, now: Duration) -> u32 {
        seconds(now).saturating_sub(self.last_progress.load(Ordering::Relaxed))
    }

    /// Ends when the connection is to be closed, whatever it does.
    pub async fn kicked(&self) {
        self.kick.notified().await;
    }

    /// Ends when the connection is to be closed if it has no request.
    pub async fn sent_away(&self) {
        self.leave.notified().await;
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
            since: AtomicU32::new(seconds(now)),
            bytes: AtomicU64::new(0),
            kick: Notify::new(),
            leave: Notify::new(),
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
            if connection.is_stalled(now, stall_timeout) {
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

    /// Ends those that have no request. One that gets a request just then carries it out.
    pub fn send_idle_away(&self) {
        for connection in lock(&self.all).values().filter(|one| one.state() == State::Read) {
            connection.leave.notify_one();
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
    fn who_sends_or_reads_a_byte_now_and_then_is_stalled_too() {
        let connections = Arc::new(Connections::new(3));
        let counters = ServerCounters::default();
        let enter = |id| connections.enter(id, address(), address(), Duration::ZERO).unwrap();
        let (value, reply, swallowed) = (enter(1), enter(2), enter(3));
        value.connection.begin(State::Nread, Duration::ZERO, 1 << 20);
        reply.connection.begin(State::Write, Duration::ZERO, 5 << 20);
        swallowed.connection.begin(State::Swallow, Duration::ZERO, 0);
        let minute = Duration::from_secs(60);
        let mut kicked_at = Vec::new();
        for second in (0..600).map(Duration::from_secs) {
            let all = [&value, &reply, &swallowed];
            for one in all {
                one.connection.progress(second);
            }
            let before = counters.stall_kicks.get();
            connections.sweep(None, minute, second, &counters);
            if counters.stall_kicks.get() > before && kicked_at.len() < 2 {
                kicked_at.push(second.as_secs());
                // It is gone.
                all[kicked_at.len() - 1].connection.set_state(State::Read);
            }
        }
        // A minute, and 16 s for each MiB.
        assert_eq!((kicked_at, counters.stall_kicks.get()), (vec![60 + 16 + 1, 60 + 80 + 1], 2));
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
