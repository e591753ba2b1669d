//! What a range's servers have in common: its addresses, and what clients are told.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The most addresses that one group of servers hands out: a snapshot of all fits one message.
pub const MOST_ADDRESSES: u64 = 1 << 17;
/// The longest name, of a host, a domain, a boot server: what DNS allows for a label and one.
pub const MOST_NAME_BYTES: usize = 64;
/// The longest name of a boot file: what the field of BOOTP holds, with its end.
pub const MOST_FILE_BYTES: usize = 127;
/// The most name servers, so that an answer fits the 548 bytes that each client takes (RFC 2131, 2).
const MOST_DNS: usize = 8;

/// Settings that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not two addresses in order.
    #[error("'{0}' is not a range of addresses; write FIRST-LAST, as in 10.0.0.10-10.0.0.99")]
    Range(String),
    /// An address that is not the subnet's.
    #[error("{address} is not an address for a client of {subnet}; give addresses within it")]
    Outside {
        /// The address.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// Two ranges share addresses.
    #[error("ranges {0} and {1} overlap; give each address once")]
    Overlap(Range, Range),
    /// More than is handed out.
    #[error("the ranges have {0} addresses, and one group of servers has at most {MOST_ADDRESSES}")]
    TooMany(u64),
    /// A lease that is too short to be renewed, or longer than is counted.
    #[error("a lease of {0} s; it is to be from 2 to 4294967294 s")]
    Lease(u32),
    /// An MTU that no IPv4 interface has.
    #[error(
        "an MTU of {0} bytes; the least is 576 (RFC 2132, 5.1: 68 is its least, which carries no DHCP)"
    )]
    Mtu(u16),
    /// Too many name servers.
    #[error("{0} name servers; at most {MOST_DNS} fit each client")]
    Dns(usize),
    /// A name that is too long, empty, or not of printable ASCII.
    #[error("'{0}' cannot be told to clients; it is to be of 1 to {1} printable ASCII characters")]
    Name(String, usize),
}

/// Addresses from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl Range {
    /// From `first` to `last`, if they are in order.
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Its first address.
    pub fn first(&self) -> Ipv4Addr {
        self.first
    }

    /// Its last.
    pub fn last(&self) -> Ipv4Addr {
        self.last
    }

    /// How many addresses it has.
    pub fn count(&self) -> u64 {
        u64::from(self.last.to_bits()) - u64::from(self.first.to_bits()) + 1
    }

    /// Whether it has `address`.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Range {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let read = || {
            let (first, last) = text.split_once('-')?;
            Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
        };
        read().ok_or_else(|| SettingsError::Range(text.chars().take(64).collect()))
    }
}

/// What clients of a pool are told beside their address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Told {
    /// Who carries what is for elsewhere (option 3).
    pub router: Option<Ipv4Addr>,
    /// Name servers (option 6).
    pub dns: Vec<Ipv4Addr>,
    /// The domain's name (option 15).
    pub domain: Option<String>,
    /// The largest packet, in bytes (option 26).
    pub mtu: Option<u16>,
    /// The boot server's name (option 66).
    pub boot_server: Option<String>,
    /// The boot file's name (option 67).
    pub boot_file: Option<String>,
}

/// What all servers of a range must have alike; they compare it when they meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The network of the clients.
    pub subnet: Ipv4Net,
    /// The addresses for clients that no record knows.
    pub ranges: Vec<Range>,
    /// Who the servers are to clients (option 54): one address for all of them, so that a client's request
    /// is answered by whoever serves then.
    pub identity: Ipv4Addr,
    /// How long a client has its address, in seconds (option 51).
    pub lease_seconds: u32,
    /// What clients are told.
    pub told: Told,
    /// The relays that may ask for clients elsewhere in the subnet (their `giaddr`).
    pub relays: Vec<Ipv4Addr>,
    /// How many addresses clients behind one port may have that no record knows.
    pub most_per_port: u32,
}

impl Settings {
    /// Looks whether they can be served.
    ///
    /// # Errors
    /// What cannot, with its value.
    pub fn check(&self) -> Result<(), SettingsError> {
        let mut sorted = self.ranges.clone();
        sorted.sort();
        for pair in sorted.windows(2) {
            if pair[0].last >= pair[1].first {
                return Err(SettingsError::Overlap(pair[0], pair[1]));
            }
        }
        for range in &self.ranges {
            self.check_address(range.first)?;
            self.check_address(range.last)?;
        }
        let count = self.ranges.iter().map(Range::count).sum();
        if count > MOST_ADDRESSES {
            return Err(SettingsError::TooMany(count));
        }
        if !(2..u32::MAX).contains(&self.lease_seconds) {
            return Err(SettingsError::Lease(self.lease_seconds));
        }
        self.told.check()
    }

    /// Looks whether a client can have `address`.
    ///
    /// # Errors
    /// It is not the subnet's, or is one that stands for the subnet or for all in it.
    pub fn check_address(&self, address: Ipv4Addr) -> Result<(), SettingsError> {
        let subnet = self.subnet.trunc();
        let reserved = subnet.prefix_len() < 31
            && (address == subnet.network() || address == subnet.broadcast());
        if reserved || !subnet.contains(&address) {
            return Err(SettingsError::Outside { address, subnet });
        }
        Ok(())
    }

    /// Whether `address` is one that clients without a record may have: nobody's of those that are told of.
    pub fn is_pooled(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address)) && !self.is_ours(address)
    }

    /// Whether `address` is that of somebody whom clients are told of.
    pub fn is_ours(&self, address: Ipv4Addr) -> bool {
        address == self.identity
            || self.told.router == Some(address)
            || self.told.dns.contains(&address)
            || self.relays.contains(&address)
    }

    /// What tells these settings from others.
    pub fn digest(&self) -> [u8; 32] {
        let bytes = postcard::to_stdvec(self).unwrap_or_default(); // addresses, numbers and words: it cannot fail
        *blake3::hash(&bytes).as_bytes()
    }
}

impl Told {
    /// Looks whether it can be told.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.dns.len() > MOST_DNS {
            return Err(SettingsError::Dns(self.dns.len()));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < 576) {
            return Err(SettingsError::Mtu(mtu));
        }
        for name in [&self.domain, &self.boot_server].into_iter().flatten() {
            check_name(name, MOST_NAME_BYTES)?;
        }
        self.boot_file.iter().try_for_each(|name| check_name(name, MOST_FILE_BYTES))
    }
}

/// Looks whether `name` can be told to clients.
///
/// # Errors
/// It is empty, has more than `most` bytes, or such as are not printed.
pub fn check_name(name: &str, most: usize) -> Result<(), SettingsError> {
    let good = !name.is_empty() && name.len() <= most && name.bytes().all(|b| b.is_ascii_graphic());
    good.then_some(()).ok_or_else(|| SettingsError::Name(name.chars().take(64).collect(), most))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A subnet whose pool is 10.0.0.10 to .19.
    pub(crate) fn settings() -> Settings {
        Settings {
            subnet: "10.0.0.0/24".parse().unwrap(),
            ranges: vec!["10.0.0.10-10.0.0.19".parse().unwrap()],
            identity: [10, 0, 0, 1].into(),
            lease_seconds: 60,
            told: Told {
                router: Some([10, 0, 0, 1].into()),
                dns: vec![[10, 0, 0, 2].into()],
                domain: Some("example".into()),
                mtu: Some(1400),
                boot_server: Some("boot".into()),
                boot_file: Some("kernel.efi".into()),
            },
            relays: vec![[10, 0, 0, 3].into()],
            most_per_port: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::settings;
    use super::*;

    #[test]
    fn what_cannot_be_served_is_refused() {
        assert_eq!(settings().check(), Ok(()));
        let wrong = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().unwrap_err()
        };
        let range = |text: &str| text.parse::<Range>().unwrap();
        assert!(matches!(
            wrong(|s| s.ranges.push("10.0.0.19-10.0.0.30".parse().unwrap())),
            SettingsError::Overlap(..)
        ));
        assert!(matches!(
            wrong(|s| s.ranges = vec!["10.0.0.0-10.0.0.30".parse().unwrap()]),
            SettingsError::Outside { .. }
        ));
        assert!(matches!(
            wrong(|s| {
                s.subnet = "10.0.0.0/8".parse().unwrap();
                s.ranges = vec!["10.0.0.1-10.9.0.0".parse().unwrap()];
            }),
            SettingsError::TooMany(_)
        ));
        assert!(matches!(wrong(|s| s.lease_seconds = 1), SettingsError::Lease(1)));
        assert!(matches!(wrong(|s| s.told.mtu = Some(100)), SettingsError::Mtu(100)));
        assert!(matches!(wrong(|s| s.told.domain = Some("a\n".into())), SettingsError::Name(..)));
        assert_eq!(range("10.0.0.1-10.0.0.1").count(), 1);
        assert!("10.0.0.2-10.0.0.1".parse::<Range>().is_err());
    }

    #[test]
    fn settings_that_differ_have_other_digests() {
        let mut other = settings();
        other.lease_seconds += 1;
        assert_ne!(settings().digest(), other.digest());
        assert_eq!(settings().digest(), settings().digest());
    }
}
