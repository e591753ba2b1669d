//! Requests of clients that are right, wrong, and worse.

use dhcproto::v4::{DhcpOption, Message, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable};
use proptest::prelude::*;

use super::*;
use crate::record::Record;
use crate::settings::testing::settings;

struct Desk {
    engine: Engine,
    table: Table,
    now: Millis,
}

fn mac(n: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, n]).unwrap()
}

fn ask(n: u8, kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message.set_chaddr(&mac(n).octets()).set_xid(n.into());
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    message.to_vec().unwrap()
}

fn wants(address: Ipv4Addr) -> impl FnOnce(&mut Message) {
    move |message| {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    }
}

fn pooled(n: u8) -> Ipv4Addr {
    [10, 0, 0, n].into()
}

impl Desk {
    fn new() -> Self {
        Self { engine: Engine::new(settings()), table: Table::default(), now: 0 }
    }

    fn hand_in(&mut self, data: &[u8], origin: Origin) -> Option<(Message, Reply)> {
        self.table.expire(self.now);
        self.engine.expire(self.now);
        let outcome = self.engine.handle(&self.table, data, origin, self.now);
        if let Some(change) = outcome.change {
            self.table.apply(&change, self.now);
        }
        let reply = outcome.reply?;
        let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
        assert_eq!(message.opcode(), Opcode::BootReply);
        assert!((300..=548).contains(&reply.message.len()));
        Some((message, reply))
    }

    fn at_port(&mut self, n: u8, port: u64, data: &[u8]) -> Option<Message> {
        Some(self.hand_in(data, Origin { source: mac(n), port })?.0)
    }

    fn ask(&mut self, n: u8, kind: MessageType, how: impl FnOnce(&mut Message)) -> Option<Message> {
        self.at_port(n, 0, &ask(n, kind, how))
    }

    /// Has client `n` ask as it should; its address.
    fn lease(&mut self, n: u8) -> Option<Ipv4Addr> {
        let offer = self.ask(n, MessageType::Discover, |_| {})?;
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        let ack = self.ask(n, MessageType::Request, |message| {
            wants(offer.yiaddr())(message);
            let server = offer.opts().get(OptionCode::ServerIdentifier).unwrap();
            message.opts_mut().insert(server.clone());
        })?;
        assert_eq!(kind(Some(&ack)), Some(MessageType::Ack));
        assert_eq!(ack.yiaddr(), offer.yiaddr());
        Some(ack.yiaddr())
    }
}

fn kind(message: Option<&Message>) -> Option<MessageType> {
    message?.opts().msg_type()
}

#[test]
fn a_client_is_offered_and_given_all_that_is_told() {
    let mut desk = Desk::new();
    let origin = Origin { source: mac(1), port: 0 };
    let discover = ask(1, MessageType::Discover, |_| {});
    let (offer, reply) = desk.hand_in(&discover, origin).unwrap();
    assert!(desk.engine.settings().is_pooled(offer.yiaddr()));
    assert_eq!((reply.to.mac, reply.to.address), (mac(1).octets(), offer.yiaddr()));
    for option in [
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::Router(vec![[10, 0, 0, 1].into()]),
        DhcpOption::DomainNameServer(vec![[10, 0, 0, 2].into()]),
        DhcpOption::DomainName("example".into()),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::AddressLeaseTime(60),
        DhcpOption::ServerIdentifier([10, 0, 0, 1].into()),
        DhcpOption::TFTPServerName(b"boot".to_vec()),
        DhcpOption::BootfileName(b"kernel.efi".to_vec()),
    ] {
        assert!(offer.opts().iter().any(|(_, found)| *found == option), "{option:?}");
    }
    assert_eq!(desk.lease(1), Some(offer.yiaddr()), "what was offered");
    assert_eq!(desk.lease(1), Some(offer.yiaddr()), "and the same again");
    let loud = ask(2, MessageType::Discover, |message| {
        message.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    });
    let (_, reply) = desk.hand_in(&loud, Origin { source: mac(2), port: 0 }).unwrap();
    assert_eq!((reply.to.mac, reply.to.address), ([255; 6], Ipv4Addr::BROADCAST));
}

#[test]
fn a_client_in_a_hurry_has_its_lease_at_once() {
    let mut desk = Desk::new();
    let ack = desk.ask(1, MessageType::Discover, |message| {
        message.opts_mut().insert(DhcpOption::RapidCommit);
    });
    assert_eq!(kind(ack.as_ref()), Some(MessageType::Ack));
    assert!(ack.as_ref().unwrap().opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(desk.table.address_of(mac(1)), Some(ack.unwrap().yiaddr()));
}

#[test]
fn a_lease_is_renewed_and_that_of_another_refused() {
    let mut desk = Desk::new();
    let address = desk.lease(1).unwrap();
    desk.now = 50_000;
    let renew = |message: &mut Message| {
        message.set_ciaddr(address);
    };
    assert_eq!(kind(desk.ask(1, MessageType::Request, renew).as_ref()), Some(MessageType::Ack));
    desk.now = 100_000;
    assert_eq!(kind(desk.ask(2, MessageType::Request, renew).as_ref()), Some(MessageType::Nak));
    desk.now = 120_000;
    desk.table.expire(desk.now);
    assert!(desk.table.is_free_for(address, mac(2)), "it has ended");
    let elsewhere = desk.ask(2, MessageType::Request, wants([192, 168, 0, 1].into()));
    assert_eq!(kind(elsewhere.as_ref()), Some(MessageType::Nak), "not of this network");
    let not_pooled = desk.ask(2, MessageType::Request, wants(pooled(200)));
    assert_eq!(kind(not_pooled.as_ref()), None, "another server's, perhaps");
    let other = desk.ask(2, MessageType::Request, |message| {
        wants(pooled(10))(message);
        message.opts_mut().insert(DhcpOption::ServerIdentifier([10, 0, 0, 9].into()));
    });
    assert_eq!(kind(other.as_ref()), None, "it has chosen another server");
}

#[test]
fn who_only_asks_is_told_and_has_no_lease() {
    let mut desk = Desk::new();
    let told = desk.ask(1, MessageType::Inform, |message| {
        message.set_ciaddr([10, 0, 0, 77]);
    });
    let told = told.unwrap();
    assert!(told.opts().get(OptionCode::AddressLeaseTime).is_none());
    assert_eq!(told.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(desk.table.entries().count(), 0);
}

#[test]
fn what_is_released_is_free_and_only_its_client_releases_it() {
    let mut desk = Desk::new();
    let address = desk.lease(1).unwrap();
    let release = |message: &mut Message| {
        message.set_ciaddr(address);
    };
    desk.ask(2, MessageType::Release, release);
    assert!(!desk.table.is_free_for(address, mac(2)));
    desk.ask(1, MessageType::Release, release);
    assert!(desk.table.is_free_for(address, mac(2)));
    assert_eq!(desk.lease(1), Some(address), "its own, as nobody wanted it");
}

#[test]
fn what_is_declined_is_kept_from_all_and_no_client_declines_the_pool() {
    let mut desk = Desk::new();
    let mut declined = Vec::new();
    for _ in 0..5 {
        let address = desk.lease(1).unwrap();
        assert!(!declined.contains(&address));
        desk.ask(1, MessageType::Decline, wants(address));
        if !desk.table.is_free_for(address, mac(2)) {
            declined.push(address);
        }
    }
    assert_eq!(declined.len(), usize::try_from(MOST_DECLINED).unwrap());
    desk.ask(3, MessageType::Decline, wants(pooled(19)));
    desk.now = 600_000;
    desk.table.expire(desk.now);
    assert!(desk.table.is_free_for(declined[0], mac(2)));
}

#[test]
fn a_relay_is_answered_with_what_it_has_added_if_it_may_ask() {
    let mut desk = Desk::new();
    let relayed = |relay: [u8; 4]| {
        ask(1, MessageType::Discover, move |message| {
            message.set_giaddr(relay);
            let code = OptionCode::RelayAgentInformation;
            let circuit = UnknownOption::new(code, vec![1, 2, 7, 7]);
            message.opts_mut().insert(DhcpOption::Unknown(circuit));
        })
    };
    let origin = Origin { source: mac(99), port: 0 };
    let (_, reply) = desk.hand_in(&relayed([10, 0, 0, 3]), origin).unwrap();
    assert_eq!(reply.to.address, Ipv4Addr::new(10, 0, 0, 3));
    assert_eq!((reply.to.port, reply.to.mac), (67, mac(99).octets()));
    let added = [82, 4, 1, 2, 7, 7];
    assert!(reply.message.windows(6).any(|window| window == added));
    assert!(desk.hand_in(&relayed([10, 0, 0, 4]), origin).is_none());
    assert_eq!(desk.engine.counts.foreign_relay, 1);
}

#[test]
fn who_claims_to_be_another_is_not_heard() {
    let mut desk = Desk::new();
    assert!(desk.at_port(2, 0, &ask(1, MessageType::Discover, |_| {})).is_none());
    let mut cookie = ask(1, MessageType::Discover, |_| {});
    cookie[236] = 0;
    assert!(desk.at_port(1, 0, &cookie).is_none());
    assert!(desk.at_port(1, 0, &cookie[..100]).is_none());
    let counts = desk.engine.counts;
    assert_eq!((counts.spoofed, counts.wrong_cookie, counts.malformed), (1, 1, 1));
    assert_eq!(counts.received, 3);
}

#[test]
fn a_port_has_so_many_addresses_and_offers_keep_nobody_out() {
    let mut desk = Desk::new();
    for n in 1..=4 {
        let rapid = ask(n, MessageType::Discover, |message| {
            message.opts_mut().insert(DhcpOption::RapidCommit);
        });
        assert!(desk.at_port(n, 7, &rapid).is_some());
    }
    assert!(desk.at_port(5, 7, &ask(5, MessageType::Discover, |_| {})).is_none());
    assert_eq!(desk.engine.counts.over_cap, 1);
    assert!(desk.at_port(1, 7, &ask(1, MessageType::Discover, |_| {})).is_some());
    // Six are left; all are offered, and the next client has one all the same.
    for n in 10..16 {
        assert!(desk.ask(n, MessageType::Discover, |_| {}).is_some());
    }
    for n in 20..26 {
        assert!(desk.lease(n).is_some(), "{n}");
    }
    assert_eq!(desk.lease(30), None);
    assert_eq!(desk.engine.counts.exhausted, 1);
}

#[test]
fn a_client_with_a_record_has_its_address_and_nobody_else() {
    let mut desk = Desk::new();
    let told = crate::settings::Told { boot_file: Some("own".into()), ..Default::default() };
    for (n, address) in [(1, pooled(100)), (2, pooled(10))] {
        let name = Some("named".into());
        let record = Record { mac: mac(n), address, name, told: told.clone() };
        desk.table.apply(&Change::Know(record), 0);
    }
    let offer = desk.ask(1, MessageType::Discover, wants(pooled(11))).unwrap();
    assert_eq!(offer.yiaddr(), pooled(100));
    for option in [DhcpOption::Hostname("named".into()), DhcpOption::BootfileName(b"own".into())] {
        assert!(offer.opts().iter().any(|(_, found)| *found == option), "{option:?}");
    }
    let refused = desk.ask(1, MessageType::Request, wants(pooled(11)));
    assert_eq!(kind(refused.as_ref()), Some(MessageType::Nak));
    let refused = desk.ask(3, MessageType::Request, wants(pooled(10)));
    assert_eq!(kind(refused.as_ref()), Some(MessageType::Nak), "it is another's by its record");
    for n in 10..19 {
        assert!(desk.lease(n).is_some_and(|address| address != pooled(10)));
    }
    assert_eq!(desk.lease(20), None);
    assert_eq!(desk.lease(2), Some(pooled(10)));
}

proptest! {
    #[test]
    fn whoever_asks_what_nobody_has_the_address_of_another(
        steps in proptest::collection::vec(
            (1..20_u8, 1..9_u8, 5..25_u8, 0..3_u64, 0..30_000_u64, any::<(bool, bool)>()), 1..80,
        ),
    ) {
        let mut desk = Desk::new();
        let mut settings = settings();
        settings.most_per_port = 3;
        desk.engine = Engine::new(settings);
        // What each client was told that it has, until when.
        let mut has: HashMap<Ipv4Addr, (Mac, Millis)> = HashMap::new();
        for (n, what, address, port, pause, (rapid, has_address)) in steps {
            desk.now += pause;
            let address = pooled(address);
            let data = ask(n, MessageType::from(what), |message| {
                if has_address {
                    message.set_ciaddr(address);
                } else {
                    wants(address)(message);
                }
                if rapid {
                    message.opts_mut().insert(DhcpOption::RapidCommit);
                }
            });
            let answer = desk.at_port(n, port, &data);
            if matches!(what, 4 | 7) {
                has.retain(|_, (client, _)| *client != mac(n));
            }
            let Some(answer) = answer else { continue };
            let given = answer.yiaddr();
            if kind(Some(&answer)) == Some(MessageType::Ack) && !given.is_unspecified() {
                prop_assert!(desk.engine.settings().is_pooled(given));
                let other = has.get(&given).filter(|(_, until)| *until > desk.now);
                prop_assert!(other.is_none_or(|(client, _)| *client == mac(n)), "given twice");
                has.retain(|_, (client, _)| *client != mac(n));
                has.insert(given, (mac(n), desk.now + 60_000));
            }
            for port in 1..3 {
                prop_assert!(desk.table.at_port(port) <= 3);
            }
        }
    }

    #[test]
    fn hostile_bytes_change_nothing_of_others(
        flips in proptest::collection::vec((0_usize..300, any::<u8>()), 1..20),
    ) {
        let mut desk = Desk::new();
        let address = desk.lease(1).unwrap();
        let mut data = ask(2, MessageType::Request, wants(address));
        data.resize(300, 0);
        for (at, byte) in flips {
            data[at] = byte;
        }
        desk.at_port(2, 0, &data);
        prop_assert_eq!(desk.table.address_of(mac(1)), Some(address));
    }
}
