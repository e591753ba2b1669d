//! Reads what clients ask.
//!
//! The crate that writes the answers is not asked to read: of some options its decoder asserts what a client may
//! make untrue.

use std::net::Ipv4Addr;

use dhcproto::v4::{MessageType, OptionCode};

use crate::mac::Mac;

/// The broadcast bit of a message's flags.
pub const BROADCAST: u16 = 0x8000;
/// The longest message that is looked at, in bytes: what fits a packet.
const MOST_BYTES: usize = 1500;
/// Where the options begin, in bytes: behind the fixed part and the cookie.
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The most relays on the way (RFC 1542, 4.1.1).
const MOST_HOPS: u8 = 16;

/// Why a message is not looked at further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Shorter than the fixed part.
    #[error("a message of {0} bytes, cut short")]
    Short(usize),
    /// Longer than a packet.
    #[error("a message of {0} bytes, longer than a packet")]
    Long(usize),
    /// Not a request of an Ethernet interface.
    #[error("not a request of an Ethernet interface")]
    Kind,
    /// Not DHCP.
    #[error("not the cookie of DHCP")]
    Cookie,
    /// An option that goes on behind the message's end, or has another length than it must have.
    #[error("option {0} has a wrong length")]
    Option(u8),
    /// No message type, or none that clients send.
    #[error("no type of message that clients send")]
    Type,
    /// No interface's address.
    #[error("a client at no interface's address")]
    Client,
    /// It has been going round.
    #[error("a message that {0} relays have passed on")]
    Hops(u8),
}

/// What counts of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number, which goes into the answer.
    pub transaction: u32,
    /// Its flags.
    pub flags: u16,
    /// The address that the client says it has (`ciaddr`); unspecified if none.
    pub address: Ipv4Addr,
    /// The relay that passed it on (`giaddr`); unspecified if none did.
    pub relay: Ipv4Addr,
    /// The client.
    pub client: Mac,
    /// What it asks.
    pub kind: MessageType,
    /// The address that it wants (option 50).
    pub wanted: Option<Ipv4Addr>,
    /// Whom it asks (option 54).
    pub server: Option<Ipv4Addr>,
    /// Its name (option 12), if it can be one.
    pub name: Option<String>,
    /// Whether it takes a lease without asking twice (option 80).
    pub rapid: bool,
    /// What the relay has added (option 82), as it is.
    pub relay_options: Option<Vec<u8>>,
}

impl Request {
    /// Reads the message of a client.
    ///
    /// # Errors
    /// Why it is none that is answered.
    pub fn parse(bytes: &[u8]) -> Result<Self, RequestError> {
        if bytes.len() > MOST_BYTES {
            return Err(RequestError::Long(bytes.len()));
        }
        let short = RequestError::Short(bytes.len());
        let (fixed, rest) = bytes.split_at_checked(FIXED_BYTES).ok_or(short)?;
        let (cookie, options) = rest.split_at_checked(COOKIE.len()).ok_or(short)?;
        // A request, Ethernet, six octets.
        if fixed[..3] != [1, 1, 6] {
            return Err(RequestError::Kind);
        }
        if cookie != COOKIE {
            return Err(RequestError::Cookie);
        }
        if fixed[3] > MOST_HOPS {
            return Err(RequestError::Hops(fixed[3]));
        }
        let word = |at: usize| [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
        let client = [fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]];
        let mut request = Self {
            transaction: u32::from_be_bytes(word(4)),
            flags: u16::from_be_bytes([fixed[10], fixed[11]]),
            address: word(12).into(),
            relay: word(24).into(),
            client: Mac::new(client).ok_or(RequestError::Client)?,
            kind: MessageType::Unknown(0),
            wanted: None,
            server: None,
            name: None,
            rapid: false,
            relay_options: None,
        };
        request.read_options(options)?;
        match request.kind {
            MessageType::Discover
            | MessageType::Request
            | MessageType::Decline
            | MessageType::Release
            | MessageType::Inform => Ok(request),
            _ => Err(RequestError::Type),
        }
    }

    fn read_options(&mut self, mut options: &[u8]) -> Result<(), RequestError> {
        // Each turn takes at least a byte.
        while let [code, after @ ..] = options {
            options = after;
            match *code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let wrong = RequestError::Option(*code);
            let (&length, after) = after.split_first().ok_or(wrong)?;
            let (value, after) = after.split_at_checked(length.into()).ok_or(wrong)?;
            options = after;
            let address = || <[u8; 4]>::try_from(value).map(Ipv4Addr::from).map_err(|_| wrong);
            match OptionCode::from(*code) {
                OptionCode::MessageType => {
                    let [kind] = value else { return Err(wrong) };
                    self.kind = MessageType::from(*kind);
                }
                OptionCode::RequestedIpAddress => self.wanted = Some(address()?),
                OptionCode::ServerIdentifier => self.server = Some(address()?),
                OptionCode::Hostname => self.name = name(value),
                OptionCode::RapidCommit => self.rapid = true,
                OptionCode::RelayAgentInformation => self.relay_options = Some(value.to_vec()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A name that is shown and told to others is one of hosts (RFC 1123), or none.
fn name(value: &[u8]) -> Option<String> {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    let is_name = (1..=crate::settings::MOST_NAME_BYTES).contains(&value.len());
    (is_name && value.iter().all(good)).then(|| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use dhcproto::Encodable;
    use dhcproto::v4::{DhcpOption, Message};
    use proptest::prelude::*;

    use super::*;

    fn discover() -> Vec<u8> {
        let mut message = Message::default();
        message.set_chaddr(&[2, 0, 0, 0, 0, 1]).set_xid(77);
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        message.opts_mut().insert(DhcpOption::Hostname("a-b".into()));
        message.opts_mut().insert(DhcpOption::RapidCommit);
        message.to_vec().unwrap()
    }

    #[test]
    fn what_is_asked_is_read() {
        let request = Request::parse(&discover()).unwrap();
        assert_eq!((request.transaction, request.kind), (77, MessageType::Discover));
        assert_eq!((request.name.as_deref(), request.rapid), (Some("a-b"), true));
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        let wrong = |change: fn(&mut Vec<u8>)| {
            let mut bytes = discover();
            change(&mut bytes);
            Request::parse(&bytes).unwrap_err()
        };
        assert_eq!(wrong(|b| b.truncate(200)), RequestError::Short(200));
        assert_eq!(wrong(|b| b.resize(1501, 0)), RequestError::Long(1501));
        assert_eq!(wrong(|b| b[0] = 2), RequestError::Kind);
        assert_eq!(wrong(|b| b[236] = 0), RequestError::Cookie);
        assert_eq!(wrong(|b| b[28] = 1), RequestError::Client);
        assert_eq!(wrong(|b| b[3] = 17), RequestError::Hops(17));
        assert_eq!(wrong(|b| b.truncate(240)), RequestError::Type);
        assert_eq!(
            wrong(|b| {
                b.truncate(240);
                b.extend([53, 1, 1, 12, 200, b'a']);
            }),
            RequestError::Option(12)
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(
            options in proptest::collection::vec(any::<u8>(), 0..400),
            flips in proptest::collection::vec((0_usize..240, any::<u8>()), 0..4),
        ) {
            let mut bytes = discover();
            bytes.truncate(240);
            bytes.extend(options);
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert!(request.name.is_none_or(|name| name.len() <= 64));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let _ = Request::parse(&bytes);
        }
    }
}
