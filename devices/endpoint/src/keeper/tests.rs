use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::*;
use crate::directory::conformance::{announce, home, open, record};
use crate::directory::local::LocalDirectory;
use crate::directory::{Change, Updates};
use crate::name::Pattern;
use crate::record::Entry;
use crate::vid::Vid;

const PATIENCE: Duration = Duration::from_secs(30);
const QUICK: KeeperOptions = KeeperOptions {
    lease: Duration::from_millis(400),
    renewal: Duration::from_millis(60),
    margin: Duration::from_millis(150),
};

/// A directory that can be cut off: then nothing that is asked is answered for a while.
#[derive(Debug)]
struct Cut {
    directory: LocalDirectory,
    is_cut: AtomicBool,
}

impl Cut {
    fn reach(&self) -> Result<&LocalDirectory, DirectoryError> {
        if !self.is_cut.load(Ordering::Relaxed) {
            return Ok(&self.directory);
        }
        // Longer than all of a lease: muting must not wait for it.
        thread::sleep(QUICK.lease * 2);
        Err(DirectoryError::Unreachable("it is cut off".into()))
    }
}

impl Directory for Cut {
    fn open(&self, owner: &Owner, ttl: Duration) -> Result<Lease, DirectoryError> {
        self.reach()?.open(owner, ttl)
    }

    fn renew(&self, lease: &Lease) -> Result<(), DirectoryError> {
        self.reach()?.renew(lease)
    }

    fn close(&self, lease: &Lease) -> Result<(), DirectoryError> {
        self.reach()?.close(lease)
    }

    fn change(&self, lease: &Lease, change: &Change) -> Result<Vec<Record>, DirectoryError> {
        self.reach()?.change(lease, change)
    }

    fn find(&self, vid: Vid) -> Result<Option<Entry>, DirectoryError> {
        self.reach()?.find(vid)
    }

    fn services(&self, pattern: &Pattern) -> Result<Vec<Entry>, DirectoryError> {
        self.reach()?.services(pattern)
    }

    fn list(&self) -> Result<Vec<Entry>, DirectoryError> {
        self.reach()?.list()
    }

    fn watch(&self) -> Result<Updates, DirectoryError> {
        self.reach()?.watch()
    }
}

/// What a gate was told: the records that pass, none when it is muted.
struct Told(Sender<Option<Vec<Record>>>);

impl Gate for Told {
    fn mute(&mut self) {
        let _ = self.0.send(None); // a test that has ended
    }

    fn unmute(&mut self, records: &[Record]) {
        let _ = self.0.send(Some(records.to_vec())); // a test that has ended
    }
}

fn start() -> (Arc<Cut>, Keeper, Receiver<Option<Vec<Record>>>) {
    let directory = LocalDirectory::new(Vec::new()).unwrap();
    let directory = Arc::new(Cut { directory, is_cut: AtomicBool::new(false) });
    let (sender, told) = channel();
    let dynamic: Arc<dyn Directory> = Arc::clone(&directory) as _;
    let keeper =
        Keeper::start(dynamic, "a".parse().unwrap(), QUICK, Box::new(Told(sender))).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(Vec::new()));
    (directory, keeper, told)
}

#[test]
fn what_is_cut_off_is_muted_before_it_can_be_taken() {
    let (directory, keeper, told) = start();
    let kv = announce(&directory.directory, &keeper.lease(), record("kv", "h1/p", &keeper.lease()));
    let lost =
        announce(&directory.directory, &keeper.lease(), record("lost", "h1/p", &keeper.lease()));
    directory.is_cut.store(true, Ordering::Relaxed);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
    let entry = directory.directory.find(kv.range.first()).unwrap().unwrap();
    assert!(!entry.is_orphan, "it could have been taken before it was muted");
    assert!(keeper.is_muted() && keeper.with_gate(|_| ()).is_none());

    let b = open(&directory.directory, "b");
    let take = Change::update(lost.clone(), lost.at(home("h2/p"), b.owner.clone()));
    let begun = Instant::now();
    while let Err(error) = directory.directory.change(&b, &take) {
        assert!(matches!(error, DirectoryError::NotOwner { .. }), "{error}");
        assert!(begun.elapsed() < PATIENCE, "the lease never ends");
        thread::sleep(Duration::from_millis(10));
    }
    directory.is_cut.store(false, Ordering::Relaxed);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![kv]), "what was taken stays muted");
    assert!(!keeper.is_muted() && keeper.with_gate(|_| ()).is_some());
}

#[test]
fn a_lease_that_is_renewed_never_ends() {
    let (directory, keeper, told) = start();
    let kv = announce(&directory.directory, &keeper.lease(), record("kv", "h1/p", &keeper.lease()));
    thread::sleep(QUICK.lease * 3);
    // On a machine without time to spare it may have been muted, but what passes is at home.
    assert!(told.try_iter().flatten().all(|records| records == [kv.clone()]));
    drop(keeper);
    assert_eq!(told.iter().last(), Some(None), "what ends is muted");
    assert!(directory.directory.find(kv.range.first()).unwrap().unwrap().is_orphan);
}

#[test]
fn times_that_do_not_fit_are_refused() {
    let directory: Arc<dyn Directory> = Arc::new(LocalDirectory::new(Vec::new()).unwrap());
    let (sender, _told) = channel();
    let options = KeeperOptions { renewal: QUICK.lease, ..QUICK };
    let result = Keeper::start(directory, "a".parse().unwrap(), options, Box::new(Told(sender)));
    assert!(matches!(result, Err(KeeperError::Times(..))));
}
