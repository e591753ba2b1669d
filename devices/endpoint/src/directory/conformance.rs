//! What every directory does, however it is made.
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::name::Name;
use crate::range::{Form, Range};
use crate::record::{Home, Owner, Phase, Record};
use crate::vid::Vid;

use super::cache::Cache;
use super::{Change, Directory, DirectoryError, Lease, Update};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

/// An address that the directories of these tests are told that an interface has.
pub(crate) fn reserved() -> Vid {
    Range::whole(Form::Prefix, &name("reserved")).first()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn home(text: &str) -> Home {
    text.parse().unwrap()
}

pub(crate) fn open(directory: &dyn Directory, owner: &str) -> Lease {
    directory.open(&owner.parse().unwrap(), LONG).unwrap()
}

pub(crate) fn record(service: &str, at: &str, owner: &Lease) -> Record {
    let service = name(service);
    Record::new(Range::whole(Form::Prefix, &service), service, home(at), owner.owner.clone())
}

pub(crate) fn announce(directory: &dyn Directory, lease: &Lease, record: Record) -> Record {
    directory.change(lease, &Change::announce(vec![record])).unwrap().remove(0)
}

fn update(directory: &dyn Directory, lease: &Lease, from: &Record, to: Record) -> Record {
    directory.change(lease, &Change::update(from.clone(), to)).unwrap().remove(0)
}

/// All of it, each part with a directory of its own.
pub(crate) fn all(make: &dyn Fn() -> Arc<dyn Directory>) {
    what_is_announced_is_found(&*make());
    others_are_named(&*make());
    only_the_last_change_is_changed(&*make());
    a_move_has_rising_epochs(&*make());
    the_dead_are_taken_over(&*make());
    ranges_are_split_and_merged_at_once(&*make());
    watchers_and_caches_follow(make());
    one_of_many_wins(&make());
}

fn what_is_announced_is_found(directory: &dyn Directory) {
    let lease = open(directory, "a");
    let kv = announce(directory, &lease, record("kv", "h1/p", &lease));
    let slurm = announce(directory, &lease, record("rsmgr.slurm", "h2/p", &lease));
    assert!(kv.epoch > 0 && kv.revision > 0 && slurm.revision > kv.revision);
    let found = directory.find(kv.range.pick(12345)).unwrap().unwrap();
    assert_eq!((found.record.clone(), found.is_orphan), (kv.clone(), false));
    assert_eq!(directory.home_of(slurm.range.first()).unwrap(), Some(home("h2/p")));
    assert_eq!(directory.ranges_at(&home("h1/p")).unwrap(), [kv.range]);
    assert_eq!(directory.list().unwrap().len(), 2);
    let services = |text: &str| directory.services(&text.parse().unwrap()).unwrap();
    assert_eq!(services("rsmgr.*").len(), 1);
    assert_eq!(services("rsmgr.*")[0].record, slurm);
    assert_eq!(services("kv")[0].record, kv);
    assert_eq!(directory.change(&lease, &Change::withdraw(vec![kv.clone()])).unwrap(), []);
    assert_eq!(directory.find(kv.range.first()).unwrap(), None);
    // Whoever saw the old one must take this for newer.
    assert!(announce(directory, &lease, record("kv", "h3/p", &lease)).epoch > kv.epoch);
}

fn others_are_named(directory: &dyn Directory) {
    let (a, b) = (open(directory, "a"), open(directory, "b"));
    announce(directory, &a, record("kv", "h1/p", &a));
    let part = Range::of(Form::Prefix, &name("kv"), 5, 5).unwrap();
    let wanted =
        |record: Record| directory.change(&b, &Change::announce(vec![record])).unwrap_err();
    let error = wanted(record("kv", "h2/p", &b).with_range(part));
    assert!(
        matches!(&error, DirectoryError::Overlap { held, .. } if held.owner == a.owner),
        "{error}"
    );

    // Of so many names two have the same identifiers.
    let names: Vec<Name> = (0..3000).map(|number| name(&format!("n{number}"))).collect();
    let bits = |name: &Name| Form::Suffix.service(name);
    let same = names.iter().find_map(|one| {
        let other = names.iter().find(|other| *other != one && bits(other) == bits(one))?;
        Some((one.clone(), other.clone()))
    });
    let (one, other) = same.unwrap();
    let of = |name: &Name, lo: u32, lease: &Lease| {
        let range = Range::of(Form::Suffix, name, lo, lo).unwrap();
        Record::new(range, name.clone(), home("h1/p"), lease.owner.clone())
    };
    announce(directory, &a, of(&one, 0, &a));
    let error = wanted(of(&other, 1, &b));
    assert!(matches!(&error, DirectoryError::Collision { other, .. } if *other == one), "{error}");
    // The same service in other requests is no collision.
    announce(directory, &b, of(&one, 1, &b));

    let foreign = record("kv", "h2/p", &b).with_range(Range::whole(Form::Prefix, &name("other")));
    assert!(matches!(wanted(foreign), DirectoryError::Foreign { .. }));
    let error = wanted(record("reserved", "h2/p", &b));
    assert!(
        matches!(error, DirectoryError::Reserved { address, .. } if address == reserved()),
        "{error}"
    );
    let gift = Record { owner: a.owner.clone(), ..record("gift", "h1/p", &b) };
    assert!(matches!(wanted(gift), DirectoryError::NotOwner { .. }));
    let none = directory.change(&b, &Change::default());
    assert!(matches!(none, Err(DirectoryError::Size(0))));
    let twice = vec![record("twice", "h/p", &b), record("twice", "h/p", &b)];
    let error = directory.change(&b, &Change::announce(twice)).unwrap_err();
    assert!(matches!(error, DirectoryError::Overlap { .. }), "{error}");
}

fn only_the_last_change_is_changed(directory: &dyn Directory) {
    let lease = open(directory, "a");
    let old = announce(directory, &lease, record("kv", "h1/p", &lease));
    let frozen = update(directory, &lease, &old, old.with_phase(Phase::Frozen));
    assert_eq!((frozen.epoch, frozen.revision > old.revision), (old.epoch, true));
    let error = directory.change(&lease, &Change::update(old.clone(), old.clone())).unwrap_err();
    assert!(
        matches!(error, DirectoryError::Stale { seen, current, .. } if seen == old.revision && current == frozen.revision),
        "{error}"
    );
    let error = directory.change(&lease, &Change::withdraw(vec![frozen.clone(), frozen.clone()]));
    assert!(matches!(error, Err(DirectoryError::Stale { .. })));
    directory.change(&lease, &Change::withdraw(vec![frozen.clone()])).unwrap();
    let error = directory.change(&lease, &Change::withdraw(vec![frozen])).unwrap_err();
    assert!(matches!(error, DirectoryError::Stale { current: 0, .. }), "{error}");
}

fn a_move_has_rising_epochs(directory: &dyn Directory) {
    let (a, b, c) = (open(directory, "a"), open(directory, "b"), open(directory, "c"));
    let at_home = announce(directory, &a, record("kv", "h1/p", &a));
    let (to, heir) = (home("h2/p"), b.owner.clone());
    let preparing = update(
        directory,
        &a,
        &at_home,
        at_home.with_phase(Phase::Preparing { to: to.clone(), heir: heir.clone() }),
    );
    assert_eq!(preparing.epoch, at_home.epoch);
    let error =
        directory.change(&c, &Change::update(preparing.clone(), at_home.clone())).unwrap_err();
    assert!(
        matches!(&error, DirectoryError::NotOwner { owner, .. } if *owner == a.owner),
        "{error}"
    );
    let moving = update(
        directory,
        &a,
        &preparing,
        at_home.with_phase(Phase::Moving { to: to.clone(), heir: heir.clone() }),
    );
    assert_eq!((moving.epoch, moving.route()), (at_home.epoch + 1, &to));
    let aborted = update(directory, &a, &moving, moving.at(home("h1/p"), a.owner.clone()));
    assert_eq!(aborted.epoch, at_home.epoch + 2);
    let error =
        directory.change(&b, &Change::update(moving.clone(), moving.at(to.clone(), heir.clone())));
    assert!(matches!(error, Err(DirectoryError::Stale { .. })), "the abort was first");
    let moving = update(
        directory,
        &a,
        &aborted,
        aborted.with_phase(Phase::Moving { to: to.clone(), heir: heir.clone() }),
    );
    let moved = update(directory, &b, &moving, moving.at(to, heir));
    assert_eq!((moved.epoch, &moved.owner), (moving.epoch, &b.owner));
    let error = directory.change(&a, &Change::update(moved.clone(), at_home));
    assert!(matches!(error, Err(DirectoryError::NotOwner { .. })), "it is b's now");
}

fn the_dead_are_taken_over(directory: &dyn Directory) {
    let a: Owner = "a".parse().unwrap();
    let dying = directory.open(&a, Duration::from_secs(1)).unwrap();
    let b = open(directory, "b");
    assert!(matches!(directory.open(&a, LONG), Err(DirectoryError::OwnerExists(_))));
    let at_a = announce(directory, &dying, record("kv", "h1/p", &dying));
    let take = Change::update(at_a.clone(), at_a.at(home("h2/p"), b.owner.clone()));
    assert!(matches!(directory.change(&b, &take), Err(DirectoryError::NotOwner { .. })));
    let begun = Instant::now();
    directory.renew(&dying).unwrap();
    let is_orphan = || directory.find(at_a.range.first()).unwrap().unwrap().phase() == "orphan";
    while !is_orphan() {
        assert!(begun.elapsed() < PATIENCE, "the lease never ends");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "it ended before its time");
    assert!(matches!(directory.renew(&dying), Err(DirectoryError::LeaseLost(_))));
    let withdraw = Change::withdraw(vec![at_a.clone()]);
    assert!(matches!(directory.change(&dying, &withdraw), Err(DirectoryError::LeaseLost(_))));
    let taken = directory.change(&b, &take).unwrap().remove(0);
    assert!(taken.epoch > at_a.epoch);
    // The same owner comes back: what was taken stays taken.
    let again = directory.open(&a, LONG).unwrap();
    assert!(
        matches!(directory.change(&dying, &withdraw), Err(DirectoryError::LeaseLost(_))),
        "an old lease"
    );
    assert!(matches!(directory.change(&again, &withdraw), Err(DirectoryError::Stale { .. })));
    directory.close(&b).unwrap();
    assert!(matches!(directory.close(&b), Err(DirectoryError::LeaseLost(_))));
    assert!(is_orphan(), "who has closed is dead at once");
}

fn ranges_are_split_and_merged_at_once(directory: &dyn Directory) {
    let lease = open(directory, "a");
    let whole = announce(directory, &lease, record("kv", "h1/p", &lease));
    let (first, second) = whole.range.split(1000).unwrap();
    let to = vec![
        whole.with_range(first),
        whole.with_range(second).at(home("h2/p"), lease.owner.clone()),
    ];
    let split = directory.change(&lease, &Change { from: vec![whole.clone()], to }).unwrap();
    assert_eq!(split.iter().map(|record| record.epoch - whole.epoch).collect::<Vec<_>>(), [0, 1]);
    let home_of = |request| directory.home_of(whole.range.vid(request).unwrap()).unwrap().unwrap();
    assert_eq!((home_of(999), home_of(1000)), (home("h1/p"), home("h2/p")));
    // A merge that would swallow another's is refused as a whole.
    let swallow = Change { from: vec![split[0].clone()], to: vec![whole.clone()] };
    assert!(matches!(directory.change(&lease, &swallow), Err(DirectoryError::Overlap { .. })));
    let merge = Change { from: split.clone(), to: vec![whole.clone()] };
    let merged = directory.change(&lease, &merge).unwrap();
    assert_eq!(merged[0].epoch, split[1].epoch + 1);
    assert_eq!(directory.ranges_at(&home("h1/p")).unwrap(), [whole.range]);
    assert_eq!(directory.list().unwrap().len(), 1);
}

fn watchers_and_caches_follow(directory: Arc<dyn Directory>) {
    let lease = open(&*directory, "a");
    let kv = announce(&*directory, &lease, record("kv", "h1/p", &lease));
    let updates = directory.watch().unwrap();
    let next = || updates.recv_timeout(PATIENCE).unwrap();
    let first = next();
    assert!(
        matches!(&first, Update::All { records, owners } if *records == [kv.clone()] && *owners == [lease.owner.clone()])
    );
    let cache = Cache::new(&*directory).unwrap();
    let followed = cache.follow();
    assert_eq!(cache.home_of(kv.range.first()), Some(home("h1/p")));

    let (one, other) = kv.range.split(77).unwrap();
    let to = vec![kv.with_range(one), kv.with_range(other).at(home("h2/p"), lease.owner.clone())];
    let split = directory.change(&lease, &Change { from: vec![kv.clone()], to }).unwrap();
    let update = next();
    assert!(
        matches!(&update, Update::Records { removed, put } if *removed == [kv.range] && *put == split),
        "{update:?}"
    );
    assert!(
        cache
            .wait(PATIENCE, |cache| cache.home_of(kv.range.vid(77).unwrap()) == Some(home("h2/p")))
    );
    assert_eq!(cache.ranges_at(&home("h1/p")), [one]);

    let b = open(&*directory, "b");
    assert!(matches!(next(), Update::Owner { owner, is_alive: true } if owner == b.owner));
    directory.close(&lease).unwrap();
    assert!(matches!(next(), Update::Owner { owner, is_alive: false } if owner == lease.owner));
    assert!(cache.wait(PATIENCE, |cache| cache.find(kv.range.first()).unwrap().is_orphan));
    directory.change(&b, &Change::withdraw(split)).unwrap();
    let update = next();
    assert!(
        matches!(&update, Update::Records { removed, put } if removed.len() == 2 && put.is_empty())
    );
    assert!(cache.wait(PATIENCE, |cache| cache.list().is_empty()));
    // All there was, and what the watcher saw since.
    assert_eq!(followed.try_iter().count(), 5);

    drop(directory);
    assert!(updates.recv_timeout(PATIENCE).is_err(), "what has ended says nothing");
    assert!(!cache.wait(PATIENCE, |_| false) && cache.has_ended());
}

/// Of those that want the same at once one gets it, and each change is seen by the next.
fn one_of_many_wins(directory: &Arc<dyn Directory>) {
    const MANY: u32 = 4;
    const EACH: u32 = 5;
    let threads: Vec<_> = (0..MANY)
        .map(|number| {
            let directory = Arc::clone(directory);
            thread::spawn(move || {
                let lease = open(&*directory, &format!("o{number}"));
                let won = (0..EACH).filter(|piece| {
                    // No two of them want the very same, but each overlaps all others of its piece.
                    let range =
                        Range::of(Form::Prefix, &name("kv"), piece * 10 + number, piece * 10 + 9);
                    let wanted = record("kv", "h1/p", &lease).with_range(range.unwrap());
                    match directory.change(&lease, &Change::announce(vec![wanted])) {
                        Ok(_) => true,
                        Err(DirectoryError::Overlap { .. }) => false,
                        Err(error) => panic!("{error}"),
                    }
                });
                won.count()
            })
        })
        .collect();
    let won: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let all = directory.list().unwrap();
    assert_eq!((won, all.len()), (EACH as usize, EACH as usize));
    for (index, one) in all.iter().enumerate() {
        assert!(!all[..index].iter().any(|other| other.record.range.overlaps(one.record.range)));
    }
}
