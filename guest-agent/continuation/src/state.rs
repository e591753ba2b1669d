//! One end of a TCP connection outside of any kernel, and its bytes between machines.
//!
//! Whoever sends such bytes may lie: they are of one length, and the numbers in them agree with each other, or
//! they are refused. That a connection is whose it is said to be, only who restores it can know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::wire::{Reader, Writer};

/// Bytes in one queue that are moved; a socket with the default limits holds much less
/// ([`crate::repair::mark_migratable`]).
pub const MOST_QUEUED: usize = 32 << 20;
/// Bytes of a state at most.
pub const MOST_BYTES: usize = 2 * MOST_QUEUED + 512;

const MAGIC: [u8; 4] = *b"TcpC";
const VERSION: u16 = 1;
/// The kernel's bounds: of segments that any IPv4 host takes, and that fit into a packet.
const SEGMENTS: std::ops::RangeInclusive<u32> = 88..=65535;
/// RFC 7323, section 2.3.
const LARGEST_SCALE: u8 = 14;
/// The largest window that there can be: 65535 << 14, and what can be said of it.
const LARGEST_WINDOW: u32 = 1 << 30;
/// A buffer's size, as the kernel gives it, at most: it doubles what is set, in an int.
const LARGEST_BUFFER: u32 = 1 << 30;
/// Of names of congestion control: `TCP_CA_NAME_MAX`.
const LONGEST_NAME: usize = 16;

/// Why bytes are no state of a connection, or a state is none that can be.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum StateError {
    /// Something else was sent.
    #[error("this is no state of a TCP connection; send what ConnectionState::encode has made")]
    NotAState,
    /// A version that is not known here.
    #[error(
        "version {0} of a connection's state is not known, but {VERSION} is; bring both sides to one version"
    )]
    Version(u16),
    /// It says that it has another length than it has.
    #[error("the state of a connection has {found} bytes and says {said}; send it again, whole")]
    Length {
        /// What it says.
        said: u32,
        /// What there is.
        found: usize,
    },
    /// It ends too early, too late, or has a length or a flag that cannot be.
    #[error("the state of a connection is broken at byte {0}; send it again, as it was made")]
    Broken(usize),
    /// Numbers that contradict each other or TCP.
    #[error("the state of a connection cannot be: {what} {value}; refuse who sent it")]
    Impossible {
        /// Which.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// Addresses between which there is no connection that can move.
    #[error(
        "no connection from {local} to {peer} can move; use addresses that are of one host and not of a link"
    )]
    Addresses {
        /// Of the end that moves.
        local: SocketAddr,
        /// Of the other.
        peer: SocketAddr,
    },
}

/// What was written and is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SendQueue {
    /// The sequence number behind the last byte.
    pub end: u32,
    /// How many bytes at the end were not sent.
    pub unsent: usize,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// What has arrived and was not read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReceiveQueue {
    /// The next sequence number that is expected.
    pub end: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The windows, in bytes and sequence numbers (`struct tcp_repair_window`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The segment by which the peer's window was last set.
    pub snd_wl1: u32,
    /// The peer's window.
    pub snd_wnd: u32,
    /// The largest window that the peer had.
    pub max_window: u32,
    /// Our window.
    pub rcv_wnd: u32,
    /// What was expected next when we last said our window.
    pub rcv_wup: u32,
}

/// What was agreed when the connection began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The largest segment to send, in bytes.
    pub mss: u32,
    /// The scales of the peer's window and of ours (RFC 7323).
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Timestamps, and the clock of ours; as the kernel gives it.
    pub timestamps: Option<u32>,
}

/// How the socket was set up by its program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `SO_SNDBUF`, in bytes as the kernel gives it.
    pub send_buffer: u32,
    /// `SO_RCVBUF`, likewise.
    pub receive_buffer: u32,
    /// `SO_REUSEADDR`.
    pub reuse_address: bool,
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// `SO_KEEPALIVE`, with seconds until the first probe, between probes, and their number.
    pub keep_alive: Option<[u32; 3]>,
    /// `TCP_USER_TIMEOUT` in milliseconds; 0 is the kernel's own.
    pub user_timeout: u32,
    /// `TCP_CONGESTION`; used where the other kernel has it.
    pub congestion: String,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionState {
    /// Where this end is.
    pub local: SocketAddr,
    /// Where the other is.
    pub peer: SocketAddr,
    /// What was written and is not acknowledged.
    pub send: SendQueue,
    /// What has arrived and was not read.
    pub receive: ReceiveQueue,
    /// The windows.
    pub window: Window,
    /// What was agreed.
    pub options: Options,
    /// How the socket was set up.
    pub settings: Settings,
    /// Whether nothing more is read: the peer has sent its last byte (`CLOSE_WAIT`).
    pub read_closed: bool,
}

/// Whether `a` is behind `b`, as sequence numbers go round (RFC 9293, section 3.4).
pub(crate) fn is_after(a: u32, b: u32) -> bool {
    (1..1 << 31).contains(&a.wrapping_sub(b))
}

impl ConnectionState {
    /// Whether it can be the state of a connection: what the kernel would refuse, and what it would believe.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), StateError> {
        let impossible = |what, value: u64| Err(StateError::Impossible { what, value });
        if !may_move(self.local) || !may_move(self.peer) || !of_one_family(self.local, self.peer) {
            return Err(StateError::Addresses { local: self.local, peer: self.peer });
        }
        let (window, end) = (&self.window, self.receive.end);
        for length in [self.send.bytes.len(), self.receive.bytes.len()] {
            if length > MOST_QUEUED {
                return impossible("length of a queue", length as u64);
            }
        }
        if self.send.unsent > self.send.bytes.len() {
            return impossible("number of unsent bytes", self.send.unsent as u64);
        }
        if window.max_window < window.snd_wnd || window.max_window > LARGEST_WINDOW {
            return impossible("window of the peer", window.snd_wnd.into());
        }
        if window.rcv_wnd > LARGEST_WINDOW {
            return impossible("window", window.rcv_wnd.into());
        }
        if is_after(window.snd_wl1, end.wrapping_add(window.rcv_wnd)) {
            return impossible("segment that set the window", window.snd_wl1.into());
        }
        if is_after(window.rcv_wup, end) || end.wrapping_sub(window.rcv_wup) > LARGEST_WINDOW {
            return impossible("number at which the window was said", window.rcv_wup.into());
        }
        if !SEGMENTS.contains(&self.options.mss) {
            return impossible("size of a segment", self.options.mss.into());
        }
        if let Some((ours, theirs)) = self.options.window_scale
            && ours.max(theirs) > LARGEST_SCALE
        {
            return impossible("scale of a window", ours.max(theirs).into());
        }
        let settings = &self.settings;
        for buffer in [settings.send_buffer, settings.receive_buffer] {
            if buffer > LARGEST_BUFFER {
                return impossible("size of a buffer", buffer.into());
            }
        }
        let name = settings.congestion.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if name.len() >= LONGEST_NAME || !name.iter().all(plain) {
            return impossible("name of congestion control of length", name.len() as u64);
        }
        Ok(())
    }

    /// The bytes to send to another machine.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.0.extend(MAGIC);
        to.u16(VERSION);
        to.u32(0); // its length, when it is known
        for address in [self.local, self.peer] {
            match address.ip() {
                IpAddr::V4(ip) => {
                    to.u8(4);
                    to.0.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    to.u8(6);
                    to.0.extend(ip.octets());
                }
            }
            to.u16(address.port());
        }
        let Window { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = self.window;
        for number in [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup, self.options.mss] {
            to.u32(number);
        }
        to.u8(self.options.window_scale.is_some().into());
        let (ours, theirs) = self.options.window_scale.unwrap_or_default();
        to.u8(ours);
        to.u8(theirs);
        to.u8(self.options.sack.into());
        to.u8(self.options.timestamps.is_some().into());
        to.u32(self.options.timestamps.unwrap_or_default());
        let settings = &self.settings;
        to.u32(settings.send_buffer);
        to.u32(settings.receive_buffer);
        to.u8(settings.reuse_address.into());
        to.u8(settings.no_delay.into());
        to.u8(settings.keep_alive.is_some().into());
        for number in settings.keep_alive.unwrap_or_default() {
            to.u32(number);
        }
        to.u32(settings.user_timeout);
        to.bytes(settings.congestion.as_bytes());
        to.u8(self.read_closed.into());
        to.u32(self.send.end);
        to.u32(u32::try_from(self.send.unsent).unwrap_or(u32::MAX));
        to.bytes(&self.send.bytes);
        to.u32(self.receive.end);
        to.bytes(&self.receive.bytes);
        let length = u32::try_from(to.0.len()).unwrap_or(u32::MAX);
        to.0[6..10].copy_from_slice(&length.to_le_bytes());
        to.0
    }

    /// The state that `bytes` are.
    ///
    /// # Errors
    /// They are none, or what they say cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut from = Reader(bytes);
        if from.array() != Some(MAGIC) {
            return Err(StateError::NotAState);
        }
        match from.u16() {
            Some(VERSION) => {}
            Some(other) => return Err(StateError::Version(other)),
            None => return Err(StateError::NotAState),
        }
        let said = from.u32().ok_or(StateError::NotAState)?;
        if usize::try_from(said) != Ok(bytes.len()) {
            return Err(StateError::Length { said, found: bytes.len() });
        }
        let state = Self::read(&mut from)
            .filter(|_| from.0.is_empty())
            .ok_or(StateError::Broken(bytes.len() - from.0.len()))?;
        state.check()?;
        Ok(state)
    }

    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let local = address(from)?;
        let peer = address(from)?;
        let window = Window {
            snd_wl1: from.u32()?,
            snd_wnd: from.u32()?,
            max_window: from.u32()?,
            rcv_wnd: from.u32()?,
            rcv_wup: from.u32()?,
        };
        let mss = from.u32()?;
        let (scaled, ours, theirs) = (from.flag()?, from.u8()?, from.u8()?);
        let sack = from.flag()?;
        let (timed, clock) = (from.flag()?, from.u32()?);
        let (send_buffer, receive_buffer) = (from.u32()?, from.u32()?);
        let (reuse_address, no_delay, keeps) = (from.flag()?, from.flag()?, from.flag()?);
        let keep_alive = [from.u32()?, from.u32()?, from.u32()?];
        let user_timeout = from.u32()?;
        let congestion = std::str::from_utf8(from.bytes(LONGEST_NAME)?).ok()?.to_owned();
        let read_closed = from.flag()?;
        let (end, unsent) = (from.u32()?, usize::try_from(from.u32()?).ok()?);
        let send = SendQueue { end, unsent, bytes: from.bytes(MOST_QUEUED)?.to_vec() };
        let receive = ReceiveQueue { end: from.u32()?, bytes: from.bytes(MOST_QUEUED)?.to_vec() };
        let options = Options {
            mss,
            window_scale: scaled.then_some((ours, theirs)),
            sack,
            timestamps: timed.then_some(clock),
        };
        let settings = Settings {
            send_buffer,
            receive_buffer,
            reuse_address,
            no_delay,
            keep_alive: keeps.then_some(keep_alive),
            user_timeout,
            congestion,
        };
        Some(Self { local, peer, send, receive, window, options, settings, read_closed })
    }
}

fn address(from: &mut Reader<'_>) -> Option<SocketAddr> {
    let ip = match from.u8()? {
        4 => IpAddr::V4(Ipv4Addr::from(from.array::<4>()?)),
        6 => IpAddr::V6(Ipv6Addr::from(from.array::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, from.u16()?))
}

/// Whether two sockets at these addresses can be connected: an IPv6 socket has an IPv4 peer by a mapped address,
/// and is at one itself then.
fn of_one_family(a: SocketAddr, b: SocketAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && a.ip().to_canonical().is_ipv4() == b.ip().to_canonical().is_ipv4()
}

/// An address of one host, that is the same on another network card: an address of a link is not.
fn may_move(address: SocketAddr) -> bool {
    let of_link = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let ip = address.ip().to_canonical();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !of_link
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> ConnectionState {
        ConnectionState {
            local: "10.7.0.100:7000".parse().unwrap(),
            peer: "10.7.0.1:40000".parse().unwrap(),
            send: SendQueue { end: 5, unsent: 1, bytes: vec![1, 2, 3] },
            receive: ReceiveQueue { end: 2, bytes: vec![9; 7] },
            window: Window { snd_wl1: 1, snd_wnd: 9, max_window: 9, rcv_wnd: 8, rcv_wup: u32::MAX },
            options: Options {
                mss: 1448,
                window_scale: Some((7, 9)),
                sack: true,
                timestamps: Some(77),
            },
            settings: Settings {
                send_buffer: 524_288,
                receive_buffer: 524_288,
                congestion: "cubic".into(),
                ..Settings::default()
            },
            read_closed: false,
        }
    }

    fn any_ip() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<[u8; 6]>().prop_map(|n| {
                (IpAddr::from([10, n[0], n[1], n[2]]), IpAddr::from([192, n[3], n[4], n[5]]))
            }),
            any::<[u16; 6]>().prop_map(|n| {
                let a = Ipv6Addr::new(0x2001, 0xdb8, n[0], n[1], n[2], 0, 0, 1);
                (a.into(), Ipv6Addr::new(0xfd00, 1, n[3], n[4], n[5], 0, 0, 2).into())
            }),
        ]
    }

    prop_compose! {
        pub(crate) fn any_state()(
            (local, peer) in any_ip(),
            ports in any::<[u16; 2]>(),
            send in proptest::collection::vec(any::<u8>(), 0..3000),
            receive in proptest::collection::vec(any::<u8>(), 0..3000),
            numbers in any::<[u32; 8]>(),
            flags in any::<[bool; 7]>(),
            keep in any::<[u32; 3]>(),
            scales in (0..=14_u8, 0..=14_u8),
            mss in SEGMENTS,
            name in "[a-z_]{0,15}",
        ) -> ConnectionState {
            let unsent = usize::try_from(numbers[2]).unwrap() % (send.len() + 1);
            let rcv_wnd = numbers[3] % LARGEST_WINDOW;
            let max_window = numbers[4] % LARGEST_WINDOW;
            ConnectionState {
                local: SocketAddr::new(local, ports[0].max(1)),
                peer: SocketAddr::new(peer, ports[1].max(1)),
                send: SendQueue { end: numbers[0], unsent, bytes: send },
                receive: ReceiveQueue { end: numbers[1], bytes: receive },
                window: Window {
                    snd_wl1: numbers[1].wrapping_sub(numbers[5] >> 2),
                    snd_wnd: max_window / 2,
                    max_window,
                    rcv_wnd,
                    rcv_wup: numbers[1].wrapping_sub(numbers[6] >> 2),
                },
                options: Options {
                    mss,
                    window_scale: flags[0].then_some(scales),
                    sack: flags[1],
                    timestamps: flags[2].then_some(numbers[7]),
                },
                settings: Settings {
                    send_buffer: numbers[5] >> 2,
                    receive_buffer: numbers[6] >> 2,
                    reuse_address: flags[3],
                    no_delay: flags[4],
                    keep_alive: flags[5].then_some(keep),
                    user_timeout: numbers[7],
                    congestion: name,
                },
                read_closed: flags[6],
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(state in any_state()) {
            prop_assert_eq!(ConnectionState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ConnectionState::decode(&bytes);
            let mut headed = sample().encode()[..6].to_vec();
            headed.extend(u32::try_from(bytes.len() + 10).unwrap().to_le_bytes());
            headed.extend(bytes);
            let _ = ConnectionState::decode(&headed);
        }

        /// Whatever passes with a byte changed is a state that can be, and is what its bytes say.
        #[test]
        fn a_changed_byte_is_refused_or_said(at in 0_usize..200, to in any::<u8>(), state in any_state()) {
            let mut bytes = state.encode();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            if let Ok(state) = ConnectionState::decode(&bytes) {
                prop_assert_eq!(state.check(), Ok(()));
                let again = ConnectionState::decode(&state.encode());
                prop_assert_eq!(again, Ok(state));
            }
        }

        #[test]
        fn a_part_is_refused(cut in any::<prop::sample::Index>(), state in any_state()) {
            let bytes = state.encode();
            prop_assert!(ConnectionState::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn lies_are_refused_by_name() {
        let refused = |change: fn(&mut ConnectionState)| {
            let mut state = sample();
            change(&mut state);
            ConnectionState::decode(&state.encode()).unwrap_err()
        };
        let impossible = |error| matches!(error, StateError::Impossible { .. });
        assert!(impossible(refused(|state| state.send.unsent = 4)));
        assert!(impossible(refused(|state| state.window.snd_wnd = 10)));
        assert!(impossible(refused(|state| state.window.snd_wl1 = 11)));
        assert!(impossible(refused(|state| state.window.rcv_wup = 3)));
        assert!(impossible(refused(|state| state.window.rcv_wnd = u32::MAX)));
        assert!(impossible(refused(|state| state.options.mss = 40)));
        assert!(impossible(refused(|state| state.options.window_scale = Some((15, 0)))));
        assert!(impossible(refused(|state| state.settings.receive_buffer = u32::MAX)));
        assert!(impossible(refused(|state| state.settings.congestion = "../x".into())));
        let addresses = |error| matches!(error, StateError::Addresses { .. });
        for text in ["0.0.0.0:1", "224.0.0.1:1", "10.0.0.1:0", "[::1]:1", "[fe80::1]:1"] {
            let mut state = sample();
            state.local = text.parse().unwrap();
            assert!(addresses(ConnectionState::decode(&state.encode()).unwrap_err()), "{text}");
        }
        let mut bytes = sample().encode();
        bytes[4] = 9;
        assert_eq!(ConnectionState::decode(&bytes), Err(StateError::Version(9)));
        bytes[4] = 1;
        bytes.push(0);
        assert!(matches!(ConnectionState::decode(&bytes), Err(StateError::Length { .. })));
        assert_eq!(ConnectionState::decode(b"GET / HTTP"), Err(StateError::NotAState));
    }
}
