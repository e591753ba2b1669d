//! The table of leases: who has which address until when.
//!
//! It changes by [`Change`]s alone, each of which can be done at any server: so the table can be kept in a journal
//! and by mirrors. A change says how long a lease lasts, not when it ends: whoever takes it in counts from then, by
//! a clock of its own. No lease ends too soon so, whatever the clocks of two hosts say; after a restart it may
//! end later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::record::Record;

/// Since some time that is this process's own, in milliseconds; it never goes back.
pub type Millis = u64;

/// What happens to the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A client has an address, for so many seconds from now.
    Lease {
        /// The address.
        address: Ipv4Addr,
        /// The client.
        client: Mac,
        /// How long, in seconds.
        seconds: u32,
        /// Its name, if it told one.
        name: Option<String>,
        /// Behind which port it is: a number that stands for it.
        port: u64,
    },
    /// Nobody is to have an address, for so many seconds from now: a client has found somebody there.
    Decline {
        /// The address.
        address: Ipv4Addr,
        /// The client that said so.
        client: Mac,
        /// How long, in seconds.
        seconds: u32,
    },
    /// Nobody has this address any more.
    Free(Ipv4Addr),
    /// A client is known.
    Know(Record),
    /// A client is known no more.
    Forget(Mac),
}

/// What an address is to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// A client has it.
    Leased,
    /// A client found somebody else there.
    Declined,
    /// The client had it; it may have it again as long as nobody else wanted it.
    Former,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is or was.
    pub client: Mac,
    /// How.
    pub usage: Use,
    /// Until when.
    pub until: Millis,
    /// The client's name.
    pub name: Option<String>,
    /// The client's port.
    pub port: u64,
}

/// All leases and records.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: HashMap<Ipv4Addr, Entry>,
    /// The address that each client has or had.
    clients: HashMap<Mac, Ipv4Addr>,
    /// When leases end.
    ends: BTreeSet<(Millis, Ipv4Addr)>,
    /// How many addresses each port has.
    ports: HashMap<u64, u32>,
    /// How many addresses each client has found taken.
    declined: HashMap<Mac, u32>,
    records: BTreeMap<Mac, Record>,
    recorded: HashMap<Ipv4Addr, Mac>,
}

impl Table {
    /// Does `change`, now.
    pub fn apply(&mut self, change: &Change, now: Millis) {
        let until = |seconds: u32| match seconds {
            u32::MAX => Millis::MAX,
            seconds => now.saturating_add(u64::from(seconds) * 1000),
        };
        match change {
            Change::Lease { address, client, seconds, name, port } => {
                if let Some(other) = self.clients.get(client).copied().filter(|o| o != address) {
                    self.remove(other);
                }
                let (client, name, port) = (*client, name.clone(), *port);
                let (usage, until) = (Use::Leased, until(*seconds));
                self.put(*address, Entry { client, usage, until, name, port });
                self.clients.insert(client, *address);
            }
            Change::Decline { address, client, seconds } => {
                let (client, usage, until) = (*client, Use::Declined, until(*seconds));
                self.put(*address, Entry { client, usage, until, name: None, port: 0 });
            }
            Change::Free(address) => self.end(*address),
            Change::Know(record) => {
                self.forget(record.mac);
                if let Some(other) = self.recorded.get(&record.address).copied() {
                    self.forget(other);
                }
                self.recorded.insert(record.address, record.mac);
                self.records.insert(record.mac, record.clone());
            }
            Change::Forget(mac) => self.forget(*mac),
        }
    }

    fn forget(&mut self, mac: Mac) {
        if let Some(record) = self.records.remove(&mac) {
            self.recorded.remove(&record.address);
        }
    }

    fn put(&mut self, address: Ipv4Addr, entry: Entry) {
        self.remove(address);
        match entry.usage {
            Use::Leased => *self.ports.entry(entry.port).or_default() += 1,
            Use::Declined => *self.declined.entry(entry.client).or_default() += 1,
            Use::Former => {}
        }
        if entry.usage != Use::Former {
            self.ends.insert((entry.until, address));
        }
        self.entries.insert(address, entry);
    }

    fn remove(&mut self, address: Ipv4Addr) -> Option<Entry> {
        let entry = self.entries.remove(&address)?;
        self.ends.remove(&(entry.until, address));
        match entry.usage {
            Use::Leased => lessen(&mut self.ports, &entry.port),
            Use::Declined => lessen(&mut self.declined, &entry.client),
            Use::Former => {}
        }
        if self.clients.get(&entry.client) == Some(&address) {
            self.clients.remove(&entry.client);
        }
        Some(entry)
    }

    /// Whose it was, it may have again.
    fn end(&mut self, address: Ipv4Addr) {
        if let Some(mut entry) = self.remove(address).filter(|entry| entry.usage == Use::Leased) {
            self.clients.insert(entry.client, address);
            entry.usage = Use::Former;
            self.put(address, entry);
        }
    }

    /// Ends what has lasted until now.
    pub fn expire(&mut self, now: Millis) {
        while let Some(&(until, address)) = self.ends.first() {
            if until > now {
                return;
            }
            self.end(address);
        }
    }

    /// What is known of `address`.
    pub fn entry(&self, address: Ipv4Addr) -> Option<&Entry> {
        self.entries.get(&address)
    }

    /// The address that `client` has or had.
    pub fn address_of(&self, client: Mac) -> Option<Ipv4Addr> {
        self.clients.get(&client).copied()
    }

    /// The record of `client`.
    pub fn record(&self, client: Mac) -> Option<&Record> {
        self.records.get(&client)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Whose address this is by its record.
    pub fn recorded(&self, address: Ipv4Addr) -> Option<Mac> {
        self.recorded.get(&address).copied()
    }

    /// Whether `client` could have `address` now, as far as others go.
    pub fn is_free_for(&self, address: Ipv4Addr, client: Mac) -> bool {
        let recorded = self.recorded.get(&address).is_none_or(|owner| *owner == client);
        recorded
            && self.entries.get(&address).is_none_or(|entry| match entry.usage {
                Use::Leased => entry.client == client,
                Use::Declined => false,
                Use::Former => true,
            })
    }

    /// How many addresses clients behind `port` have.
    pub fn at_port(&self, port: u64) -> u32 {
        self.ports.get(&port).copied().unwrap_or(0)
    }

    /// How many addresses `client` has found taken.
    pub fn declined_by(&self, client: Mac) -> u32 {
        self.declined.get(&client).copied().unwrap_or(0)
    }

    /// All that is known of addresses.
    pub fn entries(&self) -> impl Iterator<Item = (Ipv4Addr, &Entry)> {
        self.entries.iter().map(|(address, entry)| (*address, entry))
    }

    /// The changes that make this table of an empty one. What is left of a lease is rounded up.
    pub fn snapshot(&self, now: Millis) -> Vec<Change> {
        let known = self.records.values().cloned().map(Change::Know);
        let left = |until: Millis| match until {
            Millis::MAX => u32::MAX,
            until => {
                let seconds = until.saturating_sub(now).div_ceil(1000);
                u32::try_from(seconds).unwrap_or(u32::MAX - 1).max(1)
            }
        };
        let mut entries: Vec<_> = self.entries().collect();
        entries.sort_by_key(|(address, _)| *address);
        let leases = entries.into_iter().filter_map(|(address, entry)| {
            let (client, seconds) = (entry.client, left(entry.until));
            match entry.usage {
                Use::Leased => {
                    let (name, port) = (entry.name.clone(), entry.port);
                    Some(Change::Lease { address, client, seconds, name, port })
                }
                Use::Declined => Some(Change::Decline { address, client, seconds }),
                Use::Former => None,
            }
        });
        known.chain(leases).collect()
    }

    /// The table that `changes` make of an empty one.
    pub fn restore(changes: &[Change], now: Millis) -> Self {
        let mut table = Self::default();
        for change in changes {
            table.apply(change, now);
        }
        table
    }
}

fn lessen<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mac(n: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, n]).unwrap()
    }

    fn address(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    fn change() -> impl Strategy<Value = Change> {
        let lease = (0..8_u8, 0..8_u8, 1..20_u32, 0..3_u64).prop_map(|(a, c, seconds, port)| {
            Change::Lease { address: address(a), client: mac(c), seconds, name: None, port }
        });
        let decline = (0..8_u8, 0..8_u8, 1..20_u32).prop_map(|(a, c, seconds)| Change::Decline {
            address: address(a),
            client: mac(c),
            seconds,
        });
        let know = (0..8_u8, 0..8_u8).prop_map(|(a, c)| {
            let (mac, address) = (mac(c), address(a));
            Change::Know(Record {
                mac,
                address,
                name: None,
                told: crate::settings::Told::default(),
            })
        });
        prop_oneof![
            4 => lease,
            1 => decline,
            1 => (0..8_u8).prop_map(|a| Change::Free(address(a))),
            1 => know,
            1 => (0..8_u8).prop_map(|c| Change::Forget(mac(c))),
        ]
    }

    proptest! {
        #[test]
        fn every_client_has_one_address_and_every_count_is_right(
            changes in proptest::collection::vec((change(), 0..5000_u64), 0..60),
        ) {
            let (mut table, mut now) = (Table::default(), 0);
            for (change, pause) in changes {
                now += pause;
                table.expire(now);
                table.apply(&change, now);
                let mut clients = BTreeSet::new();
                let mut ports = HashMap::new();
                for (address, entry) in table.entries().filter(|(_, e)| e.usage == Use::Leased) {
                    prop_assert!(clients.insert(entry.client), "two addresses");
                    prop_assert_eq!(table.address_of(entry.client), Some(address));
                    *ports.entry(entry.port).or_insert(0) += 1;
                }
                prop_assert_eq!(&table.ports, &ports);
                prop_assert_eq!(table.recorded.len(), table.records.len());
                let again = Table::restore(&table.snapshot(now), now);
                prop_assert_eq!(again.snapshot(now), table.snapshot(now));
            }
            table.expire(Millis::MAX - 1);
            prop_assert!(table.entries().all(|(_, entry)| entry.usage == Use::Former));
        }
    }

    #[test]
    fn a_lease_ends_and_its_client_is_remembered() {
        let mut table = Table::default();
        let lease =
            Change::Lease { address: address(1), client: mac(1), seconds: 2, name: None, port: 0 };
        table.apply(&lease, 0);
        table.expire(1999);
        assert!(!table.is_free_for(address(1), mac(2)));
        table.expire(2000);
        assert!(table.is_free_for(address(1), mac(2)));
        assert_eq!(table.address_of(mac(1)), Some(address(1)));
    }
}
