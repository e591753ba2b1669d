//! What memcached's meta commands need beyond the classic ones.

use super::super::{
    Arithmetic, ArithmeticOutcome, DeleteOutcome, DeleteRequest, Direction, Expires, GetRequest,
    Win,
};
use super::*;
use crate::index::reader::Lookup;

fn mg(cache: &Cache, request: &GetRequest, now: Now) -> Option<Item> {
    cache.get_with(&key("k"), request, now).unwrap()
}

#[test]
fn access_is_remembered_and_a_quiet_look_is_none() {
    let cache = cache(4);
    set(&cache, "k", b"x", at(0));
    let quiet = GetRequest { quiet: true, ..GetRequest::default() };
    let item = mg(&cache, &quiet, at(3)).unwrap();
    assert_eq!((item.fetched(), item.idle(at(3))), (false, 3));
    assert!(!mg(&cache, &GetRequest::default(), at(5)).unwrap().fetched());
    let item = mg(&cache, &GetRequest::default(), at(9)).unwrap();
    assert_eq!((item.fetched(), item.idle(at(9)), item.last_access()), (true, 4, START + 5));
    assert_eq!(cache.counters().counts.hits.total(), 2);
}

#[test]
fn one_wins_a_placeholder_that_no_remote_reader_sees() {
    let cache = cache(4);
    let vivify = GetRequest { vivify: Some(Expires::at(START + 30)), ..GetRequest::default() };
    let item = mg(&cache, &vivify, at(0)).unwrap();
    assert_eq!((item.win(), item.bytes()), (Win::Won, &b""[..]));
    assert_eq!(mg(&cache, &vivify, at(0)).unwrap().win(), Win::Taken);
    assert_eq!(reader::lookup(&cache, key("k").index()), Lookup::Absent);
    set(&cache, "k", b"made", at(1));
    let item = mg(&cache, &vivify, at(1)).unwrap();
    assert_eq!((item.win(), item.bytes()), (Win::Nobody, &b"made"[..]));
    assert!(matches!(reader::lookup(&cache, key("k").index()), Lookup::Found(_)));
}

#[test]
fn the_first_late_reader_is_told_to_renew() {
    let cache = cache(4);
    let attributes = Attributes { expires: Expires::at(START + 30), ..Attributes::default() };
    cache.store_bytes(&key("k"), StoreMode::Set, b"x", &attributes, at(0)).unwrap();
    let recache = GetRequest { recache: Some(10), ..GetRequest::default() };
    let wins = [20, 21, 22].map(|second| mg(&cache, &recache, at(second)).unwrap().win());
    assert_eq!(wins, [Win::Nobody, Win::Won, Win::Taken]);
    let touch = GetRequest { touch: Some(Expires::at(START + 90)), ..GetRequest::default() };
    assert_eq!(mg(&cache, &touch, at(23)).unwrap().expires().remaining(at(23)), Some(67));
}

#[test]
fn a_stale_item_is_served_once_to_a_winner_and_hidden_from_remote_readers() {
    let cache = cache(4);
    let cas = set(&cache, "k", b"old", at(0));
    let expires = Some(Expires::at(START + 50));
    let stale = DeleteRequest { invalidate: true, expires, ..DeleteRequest::default() };
    assert_eq!(cache.delete(&key("k"), &stale, at(0)).unwrap(), DeleteOutcome::Deleted);
    assert_eq!(reader::lookup(&cache, key("k").index()), Lookup::AskNode);
    let wins = [0, 1].map(|second| {
        let item = mg(&cache, &GetRequest::default(), at(second)).unwrap();
        assert!(item.stale() && item.cas() > cas && item.bytes() == b"old");
        item.win()
    });
    assert_eq!(wins, [Win::Won, Win::Taken]);
    // Who renews it late, after it was invalidated again, stores a stale item.
    let won = mg(&cache, &GetRequest::default(), at(2)).unwrap().cas();
    cache.delete(&key("k"), &stale, at(2)).unwrap();
    let late = |invalidate| {
        let attributes = Attributes { compare: Some(won), invalidate, ..Attributes::default() };
        cache.store_bytes(&key("k"), StoreMode::Set, b"new", &attributes, at(3)).unwrap()
    };
    assert_eq!(late(false), StoreOutcome::Exists);
    assert!(matches!(late(true), StoreOutcome::Stored { .. }));
    let item = mg(&cache, &GetRequest::default(), at(3)).unwrap();
    assert_eq!((item.bytes(), item.stale(), item.win()), (&b"new"[..], true, Win::Won));
    assert_eq!(item.expires().unix(), START + 50);
    set(&cache, "k", b"fresh", at(4));
    let item = mg(&cache, &GetRequest::default(), at(4)).unwrap();
    assert_eq!((item.stale(), item.win()), (false, Win::Nobody));
}

#[test]
fn cas_values_can_be_given() {
    let cache = cache(4);
    let attributes = Attributes { cas: Some(77), ..Attributes::default() };
    let stored = cache.store_bytes(&key("k"), StoreMode::Set, b"5", &attributes, at(0)).unwrap();
    assert_eq!(stored, StoreOutcome::Stored { cas: 77 });
    let request = Arithmetic {
        direction: Direction::Increment,
        delta: 2,
        initial: Some((40, Expires::NEVER)),
        touch: Some(Expires::at(START + 60)),
        compare: Some(77),
        cas: Some(99),
    };
    let ArithmeticOutcome::Value { value, item, created: false } =
        cache.arithmetic(&key("k"), &request, at(0)).unwrap()
    else {
        panic!()
    };
    assert_eq!((value, item.cas(), item.expires().remaining(at(0))), (7, 99, Some(60)));
    let again = cache.arithmetic(&key("k"), &request, at(0)).unwrap();
    assert!(matches!(again, ArithmeticOutcome::Exists), "{again:?}");
    let made = cache.arithmetic(&key("new"), &request, at(0)).unwrap();
    assert!(matches!(made, ArithmeticOutcome::Value { value: 40, .. }), "{made:?}");
    let clear = DeleteRequest { clear: true, cas: Some(5), ..DeleteRequest::default() };
    cache.delete(&key("k"), &clear, at(0)).unwrap();
    let item = cache.get(&key("k"), at(0)).unwrap();
    assert_eq!((item.bytes(), item.flags(), item.cas()), (&b""[..], 0, 5));
}

#[test]
fn appending_can_make_the_item() {
    let cache = cache(4);
    let attributes =
        Attributes { flags: 3, vivify: Some(Expires::at(START + 9)), ..Attributes::default() };
    for part in ["a", "b"] {
        cache
            .store_bytes(&key("k"), StoreMode::Append, part.as_bytes(), &attributes, at(0))
            .unwrap();
    }
    let item = cache.get(&key("k"), at(0)).unwrap();
    assert_eq!((item.bytes(), item.flags()), (&b"ab"[..], 3));
    assert_eq!(item.expires().remaining(at(0)), Some(9));
}
