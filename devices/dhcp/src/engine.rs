//! What each request is answered, and what it changes (RFC 2131, 4.3), without input or output.
//!
//! A client is its interface's address: what it says of itself otherwise (option 61) is not asked, so that a boot
//! loader and the system that it starts are one client, and nobody has two addresses.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::settings::Settings;
use crate::table::{Change, Millis, Table, Use};
use crate::wire::reply::{Grant, Reply, reply};
use crate::wire::request::{Request, RequestError};

/// How long an offered address is kept for its client, in milliseconds.
const OFFER_MILLIS: u64 = 10_000;
/// The most offers that are remembered; of more, the oldest are forgotten, which does no harm.
const MOST_OFFERS: usize = 4096;
/// How long nobody looks again whether the pool has something left, in milliseconds: it takes long where many are.
const FULL_MILLIS: u64 = 1000;
/// How long nobody is to have an address where a client has found somebody, in seconds.
const DECLINE_SECONDS: u32 = 600;
/// How many addresses one client may so take out of the pool at a time.
const MOST_DECLINED: u32 = 3;

/// What became of requests, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that came.
    pub received: u64,
    /// Offers.
    pub offered: u64,
    /// Leases, and what was told to those that have an address.
    pub acknowledged: u64,
    /// Refusals.
    pub refused: u64,
    /// Requests for another server, or of clients unknown here.
    pub silent: u64,
    /// Messages that are none: cut short, with options that overrun, or the like.
    pub malformed: u64,
    /// Those without DHCP's cookie.
    pub wrong_cookie: u64,
    /// Messages whose client is not whose frame it was.
    pub spoofed: u64,
    /// Messages of relays that may not ask.
    pub foreign_relay: u64,
    /// Requests of ports that have all that they may have.
    pub over_cap: u64,
    /// Requests for which no address was left.
    pub exhausted: u64,
    /// Requests that came while this server may not answer.
    pub muted: u64,
}

/// What a request leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What changes; it has to be committed before the answer leaves.
    pub change: Option<Change>,
    /// The answer.
    pub reply: Option<Reply>,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The frame's source.
    pub source: Mac,
    /// The port of the switch that it came in at; 0 if that is not known.
    pub port: u64,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    client: Mac,
    until: Millis,
}

/// Who answers.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    /// What happened so far.
    pub counts: Counts,
    /// Offered addresses; they are nobody's yet.
    offers: HashMap<Ipv4Addr, Offer>,
    offered: HashMap<Mac, Ipv4Addr>,
    /// Until when nobody looks through the pool again, in which nothing was left.
    full_until: Millis,
}

impl Engine {
    /// One that answers by `settings`, which were checked.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            counts: Counts::default(),
            offers: HashMap::new(),
            offered: HashMap::new(),
            full_until: 0,
        }
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads the message `data` and decides what comes of it. `table` is as of `now`, and the change is not done in
    /// it yet.
    pub fn handle(&mut self, table: &Table, data: &[u8], origin: Origin, now: Millis) -> Outcome {
        self.counts.received += 1;
        let request = match Request::parse(data) {
            Ok(request) => request,
            Err(RequestError::Cookie) => {
                self.counts.wrong_cookie += 1;
                return Outcome::default();
            }
            Err(_) => {
                self.counts.malformed += 1;
                return Outcome::default();
            }
        };
        let mut origin = origin;
        if request.relay.is_unspecified() {
            if request.client != origin.source {
                self.counts.spoofed += 1;
                return Outcome::default();
            }
        } else if self.settings.relays.contains(&request.relay) {
            origin.port = relayed_port(&request);
        } else {
            self.counts.foreign_relay += 1;
            return Outcome::default();
        }
        match request.kind {
            MessageType::Discover => self.discover(table, &request, origin, now),
            MessageType::Request => self.request(table, &request, origin),
            MessageType::Inform => self.inform(table, &request, origin),
            MessageType::Decline => self.decline(table, &request),
            MessageType::Release => self.release(table, &request),
            _ => Outcome::default(),
        }
    }

    fn discover(
        &mut self,
        table: &Table,
        request: &Request,
        origin: Origin,
        now: Millis,
    ) -> Outcome {
        let Some(address) = self.choose(table, request, origin.port, now) else {
            return Outcome::default();
        };
        if request.rapid {
            return self.lease(table, request, origin, address);
        }
        self.counts.offered += 1;
        self.remember(address, Offer { client: request.client, until: now + OFFER_MILLIS });
        let reply = self.grant(table, request, origin, MessageType::Offer, Some(address));
        Outcome { change: None, reply }
    }

    /// The address for a client that has not said that it has one.
    fn choose(
        &mut self,
        table: &Table,
        request: &Request,
        port: u64,
        now: Millis,
    ) -> Option<Ipv4Addr> {
        let client = request.client;
        if let Some(record) = table.record(client) {
            let free = table.is_free_for(record.address, client);
            self.counts.exhausted += u64::from(!free);
            return free.then_some(record.address);
        }
        if !self.may_have(table, client, port) {
            self.counts.over_cap += 1;
            return None;
        }
        let fits = |address: &Ipv4Addr| {
            self.settings.is_pooled(*address) && table.is_free_for(*address, client)
        };
        let open = |address: &Ipv4Addr| {
            let offer = self.offers.get(address);
            offer.is_none_or(|offer| offer.client == client || offer.until <= now)
        };
        let before = [table.address_of(client), self.offered.get(&client).copied(), request.wanted];
        let known = before.into_iter().flatten().find(|address| fits(address) && open(address));
        let full = now < self.full_until;
        // An offer that nobody has taken up yet does not keep anybody from an address.
        let search = || {
            let open = self.search(client, |address| fits(address) && open(address));
            open.or_else(|| self.search(client, fits))
        };
        let chosen = known.or_else(|| if full { None } else { search() });
        if chosen.is_none() {
            self.counts.exhausted += 1;
            if !full {
                self.full_until = now + FULL_MILLIS;
            }
        }
        chosen
    }

    /// The first good address, from one on that is as good as the client's own.
    fn search(&self, client: Mac, good: impl Fn(&Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let ranges = &self.settings.ranges;
        let count: u64 = ranges.iter().map(super::settings::Range::count).sum();
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        let start = hasher.finish().checked_rem(count)?;
        (start..count).chain(0..start).filter_map(|number| nth(ranges, number)).find(good)
    }

    fn may_have(&self, table: &Table, client: Mac, port: u64) -> bool {
        let has = table.address_of(client).and_then(|address| table.entry(address));
        let has_here = has.is_some_and(|e| e.usage == Use::Leased && e.port == port);
        has_here || port == 0 || table.at_port(port) < self.settings.most_per_port
    }

    fn request(&mut self, table: &Table, request: &Request, origin: Origin) -> Outcome {
        let client = request.client;
        match request.server {
            Some(server) if server != self.settings.identity => {
                if let Some(address) = self.offered.remove(&client) {
                    self.offers.remove(&address);
                }
                self.counts.silent += 1;
                return Outcome::default();
            }
            _ => {}
        }
        // Selecting and rebooting clients say what they want, those that renew what they have.
        let wanted = request.wanted.unwrap_or(request.address);
        if wanted.is_unspecified() {
            self.counts.malformed += 1;
            return Outcome::default();
        }
        let (good, known) = match table.record(client) {
            Some(record) => (record.address == wanted && table.is_free_for(wanted, client), true),
            None if !self.settings.is_pooled(wanted) => (false, false),
            None => (table.is_free_for(wanted, client), true),
        };
        if good {
            if table.record(client).is_none() && !self.may_have(table, client, origin.port) {
                self.counts.over_cap += 1;
                return self.refuse(request, origin);
            }
            return self.lease(table, request, origin, wanted);
        }
        // An address of this subnet that is not handed out here may be another server's.
        let elsewhere = !known && self.settings.check_address(wanted).is_ok();
        if elsewhere && request.server.is_none() {
            self.counts.silent += 1;
            return Outcome::default();
        }
        self.refuse(request, origin)
    }

    fn refuse(&mut self, request: &Request, origin: Origin) -> Outcome {
        self.counts.refused += 1;
        let reply = reply(&self.settings, request, origin.source, MessageType::Nak, None);
        Outcome { change: None, reply }
    }

    fn lease(
        &mut self,
        table: &Table,
        request: &Request,
        origin: Origin,
        address: Ipv4Addr,
    ) -> Outcome {
        self.counts.acknowledged += 1;
        let client = request.client;
        self.offered.remove(&client);
        self.offers.remove(&address);
        let change = Change::Lease {
            address,
            client,
            seconds: self.settings.lease_seconds,
            name: request.name.clone(),
            port: origin.port,
        };
        let reply = self.grant(table, request, origin, MessageType::Ack, Some(address));
        Outcome { change: Some(change), reply }
    }

    fn inform(&mut self, table: &Table, request: &Request, origin: Origin) -> Outcome {
        if self.settings.check_address(request.address).is_err() {
            self.counts.malformed += 1;
            return Outcome::default();
        }
        self.counts.acknowledged += 1;
        let reply = self.grant(table, request, origin, MessageType::Ack, None);
        Outcome { change: None, reply }
    }

    /// Somebody else is at the client's address. That of a record is not taken from its client.
    fn decline(&mut self, table: &Table, request: &Request) -> Outcome {
        let client = request.client;
        let own = request.wanted.filter(|_| self.is_to_us(request)).filter(|address| {
            table.entry(*address).is_some_and(|e| e.client == client && e.usage == Use::Leased)
        });
        let Some(address) = own else {
            self.counts.silent += 1;
            return Outcome::default();
        };
        log::warn!("{client} has found somebody else at {address}");
        let pooled = table.recorded(address).is_none();
        let change = if pooled && table.declined_by(client) < MOST_DECLINED {
            Change::Decline { address, client, seconds: DECLINE_SECONDS }
        } else {
            Change::Free(address)
        };
        Outcome { change: Some(change), reply: None }
    }

    fn release(&mut self, table: &Table, request: &Request) -> Outcome {
        let (client, address) = (request.client, request.address);
        let own = table
            .entry(address)
            .is_some_and(|entry| entry.client == client && entry.usage == Use::Leased);
        if !own || !self.is_to_us(request) {
            self.counts.silent += 1;
            return Outcome::default();
        }
        Outcome { change: Some(Change::Free(address)), reply: None }
    }

    fn is_to_us(&self, request: &Request) -> bool {
        request.server.is_none_or(|server| server == self.settings.identity)
    }

    fn grant(
        &self,
        table: &Table,
        request: &Request,
        origin: Origin,
        kind: MessageType,
        address: Option<Ipv4Addr>,
    ) -> Option<Reply> {
        let record = table.record(request.client);
        let grant = Grant {
            address,
            seconds: self.settings.lease_seconds,
            name: record.and_then(|record| record.name.as_deref()),
            told: record.map(|record| &record.told),
        };
        reply(&self.settings, request, origin.source, kind, Some(&grant))
    }

    fn remember(&mut self, address: Ipv4Addr, offer: Offer) {
        if self.offers.len() >= MOST_OFFERS {
            let oldest = self.offers.iter().min_by_key(|(_, offer)| offer.until);
            if let Some(address) = oldest.map(|(address, _)| *address) {
                self.drop_offer(address);
            }
        }
        self.drop_offer(address);
        if let Some(before) = self.offered.insert(offer.client, address) {
            self.offers.remove(&before);
        }
        self.offers.insert(address, offer);
    }

    fn drop_offer(&mut self, address: Ipv4Addr) {
        if let Some(offer) = self.offers.remove(&address) {
            self.offered.remove(&offer.client);
        }
    }

    /// Forgets offers that were not taken up.
    pub fn expire(&mut self, now: Millis) {
        let offered = &mut self.offered;
        self.offers.retain(|_, offer| {
            let keep = offer.until > now;
            if !keep {
                offered.remove(&offer.client);
            }
            keep
        });
    }
}

/// The number that stands for the port of a relay that a request came in at; never 0.
fn relayed_port(request: &Request) -> u64 {
    let mut bytes = request.relay.octets().to_vec();
    bytes.extend(request.relay_options.iter().flatten());
    // The same at every server, whatever it was built with.
    let hash = blake3::hash(&bytes);
    hash.as_bytes().first_chunk().map_or(1, |first| u64::from_le_bytes(*first)).max(1)
}

/// The address with this number in `ranges`.
fn nth(ranges: &[crate::settings::Range], mut number: u64) -> Option<Ipv4Addr> {
    for range in ranges {
        if number < range.count() {
            let number = u32::try_from(number).ok()?;
            return Some(range.first().to_bits().checked_add(number)?.into());
        }
        number -= range.count();
    }
    None
}
