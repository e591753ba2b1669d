//! Which network a VM is on, and what it may do there.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use devices::virtio::net::limit::Limit;
use devices::virtio::net::mac::MacAddress;
use devices::virtio::net::ports::PortRules;
use devices::virtio::net::{MAX_MTU, MIN_MTU};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::size;

/// How long the bytes of a burst may be in coming, unless said otherwise: those of this part of a
/// second come at once.
const BURST_PART: u64 = 20;
/// The smallest burst that is made up.
const LEAST_BURST: u64 = 64 << 10;
/// The longest name of a network interface.
const MAX_INTERFACE: usize = 15;
/// Most name servers.
const MAX_DNS: usize = 3;

/// The network of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// What it is connected to.
    #[serde(default)]
    pub mode: NetMode,

    /// The bridge, if the mode is that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 15, example = "br0")]
    pub bridge: Option<String>,

    /// An open descriptor of a TAP interface, if the mode is that: never from afar.
    #[serde(skip)]
    pub fd: Option<i32>,

    /// The VM's Ethernet address; by default one that is made of the host's and the VM's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "02:00:00:12:34:56")]
    pub mac: Option<MacAddress>,

    /// Its IPv4 address and the length of its network's prefix. It can send from no other then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.0.0.2/24")]
    pub ip: Option<Ipv4Net>,

    /// Its IPv6 address and the length of its network's prefix. It can send from no other then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2001:db8::2/64")]
    pub ip6: Option<Ipv6Net>,

    /// Who carries what is for elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.0.0.1")]
    pub gateway: Option<Ipv4Addr>,

    /// Name servers, up to three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 3)]
    pub dns: Vec<Ipv4Addr>,

    /// The largest packet in bytes; by default that of the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68, maximum = 65521)]
    pub mtu: Option<u16>,

    /// How the guest learns its IPv4 address.
    #[serde(default)]
    pub address: AddressBy,

    /// Bytes a second that it may receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub rate_in: Option<u64>,

    /// Bytes a second that it may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub rate_out: Option<u64>,

    /// Bytes at once beyond these rates; by default those of a twentieth of a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub burst: Option<u64>,

    /// Packets a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub packets: Option<u64>,

    /// TCP and UDP ports of the VM that may be reached; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "tcp:22+tcp:80")]
    pub allow_in: Option<PortRules>,

    /// TCP and UDP ports that the VM may reach; all unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "tcp:443+udp:53")]
    pub allow_out: Option<PortRules>,

    /// Whether it is kept from other VMs of its bridge that are kept so too.
    #[serde(default)]
    pub isolated: bool,

    /// The network of the bridge that is made for 'nat', if there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.213.0.0/16")]
    pub subnet: Option<Ipv4Net>,
}

/// What a VM is connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetMode {
    /// Nothing.
    #[default]
    None,
    /// A bridge of this host's own, behind its address.
    Nat,
    /// A bridge that there is.
    Bridge,
    /// A TAP interface that was opened by who starts the VM.
    #[serde(skip)]
    Fd,
}

/// How a guest learns its IPv4 address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressBy {
    /// From 'ip=' on its kernel's command line.
    #[default]
    Cmdline,
    /// By DHCP, which its own device answers.
    Dhcp,
}

/// Why a text or a description is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("network: {0}")]
pub struct NetSpecError(String);

fn wrong<T>(what: impl Into<String>) -> Result<T, NetSpecError> {
    Err(NetSpecError(what.into()))
}

impl NetSpec {
    /// Checks that what it says goes together.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), NetSpecError> {
        if self.mode == NetMode::None && *self != Self::default() {
            return wrong("'none' takes nothing else; use nat, bridge=NAME or fd=N");
        }
        match (&self.bridge, self.mode) {
            (Some(name), NetMode::Bridge) => check_interface(name)?,
            (None, NetMode::Bridge) => return wrong("the mode bridge needs the bridge's name"),
            (Some(_), _) => return wrong("a bridge's name goes with the mode bridge"),
            (None, _) => {}
        }
        if self.subnet.is_some() && self.mode != NetMode::Nat {
            return wrong("subnet= goes with nat");
        }
        if let Some(subnet) = self.subnet
            && !(8..=29).contains(&subnet.prefix_len())
        {
            return wrong(format!("subnet={subnet} is none of /8 to /29"));
        }
        if self.isolated && self.mode == NetMode::Fd {
            return wrong("isolated is for ports of a bridge, and fd= says nothing of one");
        }
        if let Some(mtu) = self.mtu
            && !(MIN_MTU..=MAX_MTU).contains(&mtu)
        {
            return wrong(format!("mtu={mtu} is none of {MIN_MTU} to {MAX_MTU}"));
        }
        if self.mode != NetMode::Nat && self.ip.is_none() {
            if self.gateway.is_some() || !self.dns.is_empty() {
                return wrong("gateway= and dns= need ip=A.B.C.D/N: they are told with it");
            }
            if self.address == AddressBy::Dhcp {
                return wrong(
                    "address=dhcp needs ip=A.B.C.D/N, which is what is answered; without ip= the \
                     guest can ask a DHCP server of the network",
                );
            }
        }
        if let Some(ip) = self.ip
            && !is_host(ip)
        {
            return wrong(format!("ip={ip} is no address of a host in its network"));
        }
        if self.dns.len() > MAX_DNS {
            return wrong(format!("dns= has {} servers; up to {MAX_DNS}", self.dns.len()));
        }
        let none = [self.rate_in, self.rate_out, self.burst, self.packets].contains(&Some(0));
        if none {
            return wrong("a rate of 0 would let nothing through; leave it out for no limit");
        }
        if self.burst.is_some() && self.rate_in.is_none() && self.rate_out.is_none() {
            return wrong("burst= goes with rate=, rate-in= or rate-out=");
        }
        Ok(())
    }

    fn limit(&self, rate: Option<u64>) -> Limit {
        let bytes = rate.unwrap_or(0);
        let burst = self.burst.unwrap_or_else(|| (bytes / BURST_PART).max(LEAST_BURST));
        Limit { bytes, burst, packets: self.packets.unwrap_or(0) }
    }

    /// How much the VM may receive.
    pub fn receive_limit(&self) -> Limit {
        self.limit(self.rate_in)
    }

    /// How much it may send.
    pub fn send_limit(&self) -> Limit {
        self.limit(self.rate_out)
    }
}

/// Reads a description, and checks it too: who sends one hears at once what is wrong.
///
/// # Errors
/// It is none, or does not go together.
pub fn checked<'de, D: Deserializer<'de>>(reader: D) -> Result<NetSpec, D::Error> {
    let spec = NetSpec::deserialize(reader)?;
    spec.check().map_err(D::Error::custom)?;
    Ok(spec)
}

/// Whether an address can be a host's: not that of its network, nor of all in it.
fn is_host(ip: Ipv4Net) -> bool {
    let special =
        ip.prefix_len() < 31 && (ip.addr() == ip.network() || ip.addr() == ip.broadcast());
    let address = ip.addr();
    !special && !address.is_multicast() && !address.is_unspecified() && !address.is_broadcast()
}

fn check_interface(name: &str) -> Result<(), NetSpecError> {
    let good = |byte: u8| byte.is_ascii_graphic() && !b"/:%,".contains(&byte);
    if name.is_empty()
        || name.len() > MAX_INTERFACE
        || !name.bytes().all(good)
        || name == "."
        || name == ".."
    {
        return wrong(format!(
            "'{}' is no name of a bridge: 1 to {MAX_INTERFACE} characters",
            name.chars().take(40).collect::<String>().escape_default()
        ));
    }
    Ok(())
}

impl FromStr for NetSpec {
    type Err = NetSpecError;

    fn from_str(text: &str) -> Result<Self, NetSpecError> {
        let mut spec = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for (index, word) in text.split(',').enumerate() {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word, None),
            };
            if seen.contains(&key) && key != "dns" {
                return wrong(format!("{key} is given twice"));
            }
            seen.push(key);
            match (index, key, value) {
                (0, "none", None) => {}
                (0, "nat", None) => spec.mode = NetMode::Nat,
                (0, "bridge", Some(name)) => {
                    spec.mode = NetMode::Bridge;
                    spec.bridge = Some(name.to_owned());
                }
                (0, "fd", Some(number)) => {
                    let number = parse::<i32>("fd", number)?;
                    if number < 3 {
                        return wrong(format!("fd={number}: 0, 1 and 2 are the terminal's"));
                    }
                    (spec.mode, spec.fd) = (NetMode::Fd, Some(number));
                }
                (0, _, _) => {
                    return wrong(format!(
                        "'{}' is none of none, nat, bridge=NAME and fd=N",
                        word.chars().take(80).collect::<String>().escape_default()
                    ));
                }
                (_, key, value) => spec.set(key, value)?,
            }
        }
        spec.check()?;
        Ok(spec)
    }
}

impl NetSpec {
    fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), NetSpecError> {
        let Some(value) = value else {
            if key == "isolated" {
                self.isolated = true;
                return Ok(());
            }
            return wrong(format!("'{}' is no KEY=VALUE", key.escape_default()));
        };
        match key {
            "mac" => self.mac = Some(parse(key, value)?),
            "ip" => self.ip = Some(parse(key, value)?),
            "ip6" => self.ip6 = Some(parse(key, value)?),
            "gateway" => self.gateway = Some(parse(key, value)?),
            "dns" => self.dns.push(parse(key, value)?),
            "mtu" => self.mtu = Some(parse(key, value)?),
            "subnet" => self.subnet = Some(parse(key, value)?),
            "address" => {
                self.address = match value {
                    "cmdline" => AddressBy::Cmdline,
                    "dhcp" => AddressBy::Dhcp,
                    _ => return wrong(format!("address={value} is none of cmdline and dhcp")),
                }
            }
            "rate" => {
                let rate = Some(bytes(key, value)?);
                (self.rate_in, self.rate_out) = (rate, rate);
            }
            "rate-in" => self.rate_in = Some(bytes(key, value)?),
            "rate-out" => self.rate_out = Some(bytes(key, value)?),
            "burst" => self.burst = Some(bytes(key, value)?),
            "packets" => self.packets = Some(parse(key, value)?),
            "allow-in" => self.allow_in = Some(parse(key, value)?),
            "allow-out" => self.allow_out = Some(parse(key, value)?),
            _ => {
                return wrong(format!(
                    "no key '{}'; there are mac, ip, ip6, gateway, dns, mtu, address, rate, rate-in, \
                     rate-out, burst, packets, allow-in, allow-out, isolated and subnet",
                    key.chars().take(40).collect::<String>().escape_default()
                ));
            }
        }
        Ok(())
    }
}

fn parse<T: FromStr>(key: &str, value: &str) -> Result<T, NetSpecError>
where
    T::Err: fmt::Display,
{
    value.parse().map_err(|error| {
        let value: String = value.chars().take(100).collect();
        NetSpecError(format!("{key}={}: {error}", value.escape_default()))
    })
}

/// Bytes, as a number or a size.
fn bytes(key: &str, value: &str) -> Result<u64, NetSpecError> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse(key, value);
    }
    size::parse(value).map_err(|error| NetSpecError(format!("{key}: {error}")))
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            NetMode::None => f.write_str("none")?,
            NetMode::Nat => f.write_str("nat")?,
            NetMode::Bridge => write!(f, "bridge={}", self.bridge.as_deref().unwrap_or_default())?,
            NetMode::Fd => write!(f, "fd={}", self.fd.unwrap_or_default())?,
        }
        let mut put = |key: &str, value: Option<String>| match value {
            Some(value) => write!(f, ",{key}={value}"),
            None => Ok(()),
        };
        let text = |value: &dyn fmt::Display| Some(value.to_string());
        put("mac", self.mac.as_ref().and_then(|v| text(v)))?;
        put("ip", self.ip.as_ref().and_then(|v| text(v)))?;
        put("ip6", self.ip6.as_ref().and_then(|v| text(v)))?;
        put("gateway", self.gateway.as_ref().and_then(|v| text(v)))?;
        for server in &self.dns {
            put("dns", text(server))?;
        }
        put("mtu", self.mtu.as_ref().and_then(|v| text(v)))?;
        let dhcp = self.address == AddressBy::Dhcp;
        put("address", dhcp.then(|| "dhcp".into()))?;
        if self.rate_in == self.rate_out {
            put("rate", self.rate_in.as_ref().and_then(|v| text(v)))?;
        } else {
            put("rate-in", self.rate_in.as_ref().and_then(|v| text(v)))?;
            put("rate-out", self.rate_out.as_ref().and_then(|v| text(v)))?;
        }
        put("burst", self.burst.as_ref().and_then(|v| text(v)))?;
        put("packets", self.packets.as_ref().and_then(|v| text(v)))?;
        put("allow-in", self.allow_in.as_ref().and_then(|v| text(v)))?;
        put("allow-out", self.allow_out.as_ref().and_then(|v| text(v)))?;
        put("subnet", self.subnet.as_ref().and_then(|v| text(v)))?;
        if self.isolated {
            f.write_str(",isolated")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_network_is_read_as_written() {
        for text in [
            "none",
            "nat",
            "nat,address=dhcp,rate=1048576,subnet=10.9.0.0/16,isolated",
            "bridge=br0,mac=02:00:00:00:00:01,ip=10.0.0.2/24,ip6=2001:db8::2/64,gateway=10.0.0.1,\
             dns=10.0.0.1,dns=1.1.1.1,mtu=9000,rate-in=5,rate-out=6,burst=7,packets=8,\
             allow-in=tcp:22+tcp:80,allow-out=none",
            "fd=7,ip=10.0.0.2/24,address=dhcp",
        ] {
            let spec: NetSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            if spec.mode != NetMode::Fd {
                let json = serde_json::to_string(&spec).unwrap();
                assert_eq!(serde_json::from_str::<NetSpec>(&json).unwrap(), spec, "{json}");
            }
        }
        let spec: NetSpec = "nat,rate=10M".parse().unwrap();
        assert_eq!(spec.send_limit().bytes, 10 << 20);
        assert_eq!(spec.send_limit().burst, (10 << 20) / 20);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, named) in [
            ("", "none of none"),
            ("tap", "none of none"),
            ("none,mtu=1500", "takes nothing else"),
            ("nat,mtu=67", "mtu=67"),
            ("nat,mtu=1500,mtu=1500", "twice"),
            ("nat,speed=1", "no key 'speed'"),
            ("nat,fast", "KEY=VALUE"),
            ("bridge", "none of none"),
            ("bridge=", "no name"),
            ("bridge=a-name-that-is-long", "no name"),
            ("bridge=a/b", "no name"),
            ("bridge=br0,gateway=10.0.0.1", "need ip="),
            ("bridge=br0,address=dhcp", "needs ip="),
            ("bridge=br0,ip=10.0.0.0/24", "no address of a host"),
            ("bridge=br0,ip=10.0.0.1", "ip=10.0.0.1"),
            ("bridge=br0,subnet=10.0.0.0/24", "goes with nat"),
            ("nat,subnet=10.0.0.0/30", "/8 to /29"),
            ("nat,rate=0", "nothing through"),
            ("nat,burst=5", "goes with rate"),
            ("nat,mac=01:00:00:00:00:01", "mac=01"),
            ("nat,allow-in=22", "no list of ports"),
            ("fd=1", "terminal"),
            ("fd=7,isolated", "isolated"),
            ("nat,dns=1.1.1.1,dns=1.1.1.1,dns=1.1.1.1,dns=1.1.1.1", "up to 3"),
        ] {
            let error = text.parse::<NetSpec>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_from_afar_too() {
        let read = |json: &str| checked(&mut serde_json::Deserializer::from_str(json));
        assert!(read(r#"{"mode":"nat","mtu":9000}"#).is_ok());
        let error = read(r#"{"mode":"bridge"}"#).unwrap_err().to_string();
        assert!(error.contains("bridge's name"), "{error}");
    }

    #[test]
    fn descriptors_are_not_given_from_afar() {
        for json in [r#"{"mode":"fd"}"#, r#"{"mode":"nat","fd":3}"#] {
            assert!(serde_json::from_str::<NetSpec>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_so_that_it_reads_the_same(
            text in "(none|nat|bridge=b|fd=5)(,(mtu=[0-9]{1,5}|ip=10\\.[0-9]\\.0\\.[1-9]/24|rate=[1-9]K|\
                     allow-in=tcp:[1-9]{1,4}|isolated|address=dhcp|burst=[1-9]|dns=1\\.1\\.1\\.1)){0,4}",
        ) {
            if let Ok(spec) = text.parse::<NetSpec>() {
                prop_assert_eq!(spec.to_string().parse::<NetSpec>().unwrap(), spec);
            }
        }
    }
}
