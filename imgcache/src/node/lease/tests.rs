//! Leases and pins on things that are nothing but held.

use std::sync::Mutex;

use super::*;

#[derive(Debug, Default)]
struct Thing {
    offset: usize,
    leases: AtomicU32,
    pins: AtomicU32,
}

impl Holdable for Thing {
    fn offset(&self) -> usize {
        self.offset
    }
    fn capacity(&self) -> u64 {
        10
    }
    fn leases(&self) -> &AtomicU32 {
        &self.leases
    }
    fn pins(&self) -> &AtomicU32 {
        &self.pins
    }
}

const TTL: Duration = Duration::from_secs(10);

fn things(count: usize) -> Vec<Arc<Thing>> {
    things_at(0, count)
}

fn things_at(first: usize, count: usize) -> Vec<Arc<Thing>> {
    let thing = |offset| Arc::new(Thing { offset, ..Thing::default() });
    (first..first + count).map(thing).collect()
}

fn holds() -> Holds<Thing> {
    Holds::new(Limits { leases: 3, leased: 50, pins: 2, pinned: 30, items: 9 })
}

fn asked(id: u64, ttl: Duration) -> Asked<'static> {
    Asked { id, ttl, owner: "somebody" }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn leases_hold_until_their_time_is_up() {
    let (mut holds, things) = (holds(), things(4));
    let lease = |holds: &mut Holds<Thing>, id, ttl, things: &[Arc<Thing>], at| {
        holds.lease(&asked(id, ttl), things, false, seconds(at))
    };
    assert_eq!(lease(&mut holds, 1, TTL, &things[..2], 0), Ok(TTL));
    assert_eq!(lease(&mut holds, 2, seconds(100), &things[1..3], 5), Ok(MAX_TTL));
    assert_eq!((holds.leased(), holds.busy_permille()), (30, 666));
    // Renewed with one of the old ones and a new one.
    assert_eq!(lease(&mut holds, 1, TTL, &[things[1].clone(), things[3].clone()], 9), Ok(TTL));
    assert_eq!(holds.expire(seconds(10)), 0);
    assert_eq!(holds.leased(), 40);
    assert_eq!(Arc::strong_count(&things[1]), 3);
    assert_eq!(holds.expire(seconds(19)), 1);
    assert_eq!((holds.leased(), holds.lease_count()), (20, 1));
    assert_eq!(Arc::strong_count(&things[0]), 1);
    let info = &holds.lease_infos(seconds(20))[0];
    assert_eq!((info.id, info.items, info.bytes, info.remaining), (2, 2, 20, seconds(45)));
    assert!(holds.release(2) && !holds.release(2));
    assert_eq!((holds.leased(), holds.items()), (0, 0));
}

#[test]
fn limits_refuse_and_leave_all_as_it_was() {
    let (holds, things) = (holds(), things(9));
    let some = |from: usize, to: usize| things[from..to].to_vec();
    let refused = holds.lease(&asked(1, TTL), &some(0, 6), false, seconds(0));
    assert_eq!(refused, Err(HoldError::TooMuch { wanted: 60, limit: 50 }));
    holds.lease(&asked(1, TTL), &some(0, 4), false, seconds(0)).unwrap();
    let busy = Err(HoldError::Busy { retry_after: seconds(9) });
    assert_eq!(holds.lease(&asked(2, TTL), &some(4, 6), false, seconds(1)), busy);
    // The same once more costs nothing: leases share what they hold.
    holds.lease(&asked(2, TTL), &some(0, 4), false, seconds(1)).unwrap();
    assert_eq!(holds.lease(&asked(3, TTL), &some(0, 4), false, seconds(1)), busy, "too many items");
    holds.lease(&asked(3, TTL), &[], false, seconds(1)).unwrap();
    assert_eq!(holds.lease(&asked(4, TTL), &[], false, seconds(1)), busy, "too many leases");
    assert_eq!((holds.leased(), holds.items(), holds.busy_permille()), (40, 8, 1000));
    assert_eq!(holds.lease(&asked(5, TTL), &[], true, seconds(1)), Err(HoldError::Draining));
    assert_eq!(holds.lease(&asked(1, TTL), &[], true, seconds(1)), Ok(TTL), "renewed");
}

#[test]
fn pins_hold_until_they_are_ended_or_replaced() {
    let (holds, things) = (holds(), things(5));
    let some = |from: usize, to: usize| things[from..to].to_vec();
    holds.pin([1; 32], &some(0, 2)).unwrap();
    holds.pin([2; 32], &some(1, 3)).unwrap();
    assert_eq!((holds.pinned(), holds.pin_count()), (30, 2));
    assert!(matches!(holds.pin([3; 32], &[]), Err(HoldError::Busy { .. })));
    // Others are in the way; what could never be held is told apart.
    assert!(matches!(holds.pin([1; 32], &some(3, 4)), Err(HoldError::Busy { .. })));
    assert!(matches!(
        holds.pin([1; 32], &things_at(10, 4)),
        Err(HoldError::TooMuch { wanted: 40, .. })
    ));
    assert_eq!((holds.pinned(), holds.items()), (30, 4));
    holds.pin([1; 32], &some(1, 2)).unwrap();
    assert_eq!((holds.pinned(), Arc::strong_count(&things[0])), (20, 1));
    assert!(holds.unpin(&[2; 32]) && !holds.unpin(&[2; 32]));
    assert_eq!((holds.pinned(), Arc::strong_count(&things[1])), (10, 2));
    assert_eq!(holds.pin_infos()[0].bytes, 10);
}

/// Keeps what it is to close until the test says so.
#[derive(Debug, Default)]
struct Windows(Mutex<Vec<Closing>>);

impl Rights for Windows {
    fn close(&self, closing: Closing) {
        lock(&self.0).push(closing);
    }
}

#[test]
fn what_others_have_rights_on_stays_until_they_are_closed() {
    let (holds, things) = (holds(), things(4));
    let windows = Arc::new(Windows::default());
    for (id, range) in [(1, 0..2), (2, 1..3), (3, 3..4)] {
        holds.lease(&asked(id, TTL), &things[range], false, seconds(0)).unwrap();
        assert!(holds.grant(id, windows.clone()));
    }
    assert!(!holds.grant(4, windows.clone()), "there is no such lease");
    assert!(!holds.grant(1, windows.clone()), "one has them already");
    // The connection of the third one ended, and with it its rights; the lease goes on.
    assert!(holds.take_rights(3).is_some() && holds.take_rights(3).is_none());
    assert_eq!(holds.leased(), 40);
    assert!(holds.release(3));
    assert_eq!((holds.leased(), holds.closing()), (30, 0));

    assert!(holds.release(1) && !holds.release(1));
    assert_eq!(holds.expire(seconds(10)), 1);
    assert_eq!((holds.lease_count(), holds.closing()), (0, 2));
    assert_eq!((holds.leased(), holds.items()), (30, 4), "nothing is given back yet");
    assert_eq!(Arc::strong_count(&things[1]), 3);
    // The id is free for another lease, which holds for itself.
    holds.lease(&asked(1, TTL), &things[..1], false, seconds(10)).unwrap();
    let mut closings = std::mem::take(&mut *lock(&windows.0));
    closings.remove(0).closed();
    assert_eq!((holds.leased(), holds.closing(), Arc::strong_count(&things[1])), (30, 1, 2));
    holds.release(1);
    closings.remove(0).closed();
    assert_eq!((holds.leased(), holds.items(), holds.closing()), (0, 0, 0));
}

#[test]
fn what_was_never_said_to_be_closed_is_never_used_again() {
    let (holds, things) = (holds(), things(1));
    let windows = Arc::new(Windows::default());
    holds.lease(&asked(1, TTL), &things, false, seconds(0)).unwrap();
    assert!(holds.grant(1, windows.clone()));
    holds.release(1);
    lock(&windows.0).clear();
    assert_eq!((holds.leased(), Arc::strong_count(&things[0])), (10, 2));
}

#[test]
fn leases_by_many_threads_add_up() {
    let limits = Limits { leases: 100, leased: 400, pins: 100, pinned: 400, items: 1000 };
    let (holds, things) = (Holds::new(limits), things(64));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (holds, things) = (&holds, &things);
            scope.spawn(move || {
                for round in 0..500_usize {
                    // Two threads use each id.
                    let id = (thread + round as u64) % 2;
                    let first = round * 7 % 60;
                    let part = &things[first..first + 4];
                    let _ = holds.lease(&asked(id, TTL), part, false, seconds(0));
                    let _ = holds.pin([u8::try_from(id).unwrap(); 32], part);
                    if round % 5 == 0 {
                        holds.release(id);
                    }
                    if round % 9 == 0 {
                        holds.unpin(&[u8::try_from(id).unwrap(); 32]);
                    }
                }
            });
        }
    });
    for id in 0..2_u8 {
        holds.release(id.into());
        holds.unpin(&[id; 32]);
    }
    assert_eq!((holds.leased(), holds.pinned(), holds.items()), (0, 0, 0));
    assert!(things.iter().all(|thing| Arc::strong_count(thing) == 1));
}

/// Notes, when it is given back, whether the lists could be used just then.
#[derive(Debug)]
struct Watching {
    thing: Thing,
    holds: std::sync::Weak<Holds<Watching>>,
    seen: Arc<Mutex<Vec<bool>>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(holds) = self.holds.upgrade() {
            lock(&self.seen).push(holds.lists.try_lock().is_ok());
        }
    }
}

impl Holdable for Watching {
    fn offset(&self) -> usize {
        self.thing.offset
    }
    fn capacity(&self) -> u64 {
        self.thing.capacity()
    }
    fn leases(&self) -> &AtomicU32 {
        &self.thing.leases
    }
    fn pins(&self) -> &AtomicU32 {
        &self.thing.pins
    }
}

impl Rights for Mutex<Vec<bool>> {
    fn close(&self, closing: Closing) {
        closing.closed();
    }
}

#[test]
fn nobody_waits_while_contents_are_given_back() {
    let limits = Limits { leases: 9, leased: 900, pins: 9, pinned: 900, items: 9 };
    let (holds, seen) = (Arc::new(Holds::new(limits)), Arc::new(Mutex::new(Vec::new())));
    let one = |offset| {
        let thing = Thing { offset, ..Thing::default() };
        [Arc::new(Watching { thing, holds: Arc::downgrade(&holds), seen: seen.clone() })]
    };
    for id in 0..4 {
        holds.lease(&asked(id, TTL), &one(10), false, seconds(id)).unwrap();
    }
    assert!(holds.grant(1, seen.clone()) && holds.grant(3, seen.clone()));
    assert!(holds.release(0) && holds.release(1));
    assert_eq!(holds.expire(seconds(60)), 2);
    for offset in 20..22 {
        holds.pin([1; 32], &one(offset)).unwrap();
    }
    assert!(holds.unpin(&[1; 32]));
    // Refused at the end, when there is one lease too many.
    for id in 0..10 {
        let _ = holds.lease(&asked(id, TTL), &one(30), false, seconds(0));
    }
    assert_eq!(*lock(&seen), vec![true; 4 + 2 + 1]);
}
