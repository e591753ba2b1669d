//! Addresses of VMs: how they are made up, and how guests are told.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use devices::virtio::net::mac::MacAddress;
use ipnet::{Ipv4Net, Ipv6Net};

/// What a VM wants to be on a bridge.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its address, if it is to be a certain one.
    pub ip: Option<Ipv4Net>,
    /// The same of IPv6.
    pub ip6: Option<Ipv6Net>,
    /// The bridge's own address, if addresses are given out of its network.
    pub own: Option<Ipv4Net>,
}

/// The Ethernet address of the VM called `name` on this host: always the same.
pub fn mac_of(name: &str) -> MacAddress {
    let host = std::fs::read("/etc/machine-id")
        .or_else(|_| std::fs::read("/proc/sys/kernel/hostname"))
        .unwrap_or_default();
    mac(&host, name)
}

fn mac(host: &[u8], name: &str) -> MacAddress {
    let mut hasher = blake3::Hasher::new_derive_key("vmm Ethernet address of a VM");
    hasher.update(&(host.len() as u64).to_le_bytes()).update(host).update(name.as_bytes());
    let mut octets = [0; 6];
    octets.copy_from_slice(&hasher.finalize().as_bytes()[..6]);
    MacAddress::local(octets)
}

/// An address of `own`'s network that is not in `taken`, another for each `attempt`; the same name
/// finds the same again while it is free.
pub fn choose(
    own: Ipv4Net,
    taken: &BTreeSet<Ipv4Addr>,
    name: &str,
    attempt: u32,
) -> Option<Ipv4Net> {
    let network = u32::from(own.network());
    // Neither the network's own address nor that of all in it.
    let hosts = u32::from(own.broadcast()) - network - 1;
    let hash = blake3::derive_key("vmm IPv4 address of a VM", name.as_bytes());
    let start = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
        .wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
    let candidate = |offset: u32| {
        let host = 1 + (start % hosts + offset) % hosts;
        Ipv4Addr::from(network + host)
    };
    let free = |address: &Ipv4Addr| *address != own.addr() && !taken.contains(address);
    let found = (0..hosts).map(candidate).find(free)?;
    Ipv4Net::new(found, own.prefix_len()).ok()
}

/// `ip=` as Linux reads it (Documentation/admin-guide/nfs/nfsroot.rst), and the early user space of
/// Debian and others where the kernel itself does not.
pub fn kernel_word(ip: Ipv4Net, gateway: Option<Ipv4Addr>, dns: &[Ipv4Addr], name: &str) -> String {
    let gateway = gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    // There are two places.
    let dns: String = dns.iter().take(2).map(|server| format!(":{server}")).collect();
    format!("ip={}::{gateway}:{}:{name}::off{dns}", ip.addr(), ip.netmask())
}

/// The host's own name servers, those of them that VMs can reach.
pub fn host_dns() -> Vec<Ipv4Addr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    name_servers(&text)
}

fn name_servers(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse().ok();
    let found = text.lines().filter_map(server);
    found.filter(|address: &Ipv4Addr| !address.is_loopback()).take(2).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_name_on_the_same_host_is_the_same_address() {
        assert_eq!(mac(b"a", "vm"), mac(b"a", "vm"));
        assert_ne!(mac(b"a", "vm"), mac(b"b", "vm"));
        assert_ne!(mac(b"a", "vm"), mac(b"a", "vm2"));
        assert_eq!(mac(b"a", "vm").octets()[0] & 3, 2, "locally administered");
    }

    #[test]
    fn the_kernels_word() {
        let ip = "10.0.0.2/20".parse().unwrap();
        let dns = [[10, 0, 0, 1].into(), [1, 1, 1, 1].into(), [8, 8, 8, 8].into()];
        assert_eq!(
            kernel_word(ip, Some([10, 0, 0, 1].into()), &dns, "web"),
            "ip=10.0.0.2::10.0.0.1:255.255.240.0:web::off:10.0.0.1:1.1.1.1"
        );
        assert_eq!(kernel_word(ip, None, &[], "web"), "ip=10.0.0.2:::255.255.240.0:web::off");
    }

    #[test]
    fn name_servers_of_the_host() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\nsearch a\n";
        assert_eq!(name_servers(text), [Ipv4Addr::new(9, 9, 9, 9)]);
    }

    proptest! {
        #[test]
        fn all_addresses_of_a_network_are_given_and_none_twice(
            prefix in 26_u8..30, last in 0_u8..64, names in 0_u32..1000,
        ) {
            let network = Ipv4Net::new([10, 1, 2, last].into(), prefix).unwrap().trunc();
            let own = Ipv4Net::new((u32::from(network.addr()) + 1).into(), prefix).unwrap();
            let mut taken = BTreeSet::new();
            let mut attempt = 0;
            while let Some(found) = choose(own, &taken, &names.to_string(), attempt) {
                prop_assert!(own.contains(&found.addr()) && found.addr() != own.addr());
                prop_assert!(found.addr() != own.network() && found.addr() != own.broadcast());
                prop_assert!(taken.insert(found.addr()));
                attempt += 1;
            }
            prop_assert_eq!(taken.len(), (1 << (32 - prefix)) - 3);
        }
    }
}
