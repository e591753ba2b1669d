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
        Keeper::start(dynamic, "a".parse().unwrap(), QUICK, Box::new(Told(sender)), None).unwrap();
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
fn a_keeper_goes_on_with_the_lease_that_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let note = Note::at(folder.path().join("lease"));
    let directory: Arc<dyn Directory> = Arc::new(LocalDirectory::new(Vec::new()).unwrap());
    // Long enough that nothing ends while this machine does something else.
    let options = KeeperOptions { lease: Duration::from_secs(60), ..QUICK };
    let (sender, told) = channel();
    let start = || {
        let gate = Box::new(Told(sender.clone()));
        let owner = "a".parse().unwrap();
        Keeper::start(directory.clone(), owner, options, gate, Some(note.clone()))
    };
    let first = start().unwrap();
    let kv = announce(&*directory, &first.lease(), record("kv", "h1/p", &first.lease()));
    let lease = first.lease();
    drop(first);
    assert!(!directory.find(kv.range.first()).unwrap().unwrap().is_orphan, "it is the next one's");
    let next = start().unwrap();
    assert_eq!(next.lease(), lease);
    let told: Vec<_> = told.try_iter().collect();
    assert_eq!(told, [Some(Vec::new()), Some(vec![kv])], "never muted");
    // Another host's is not gone on with, nor is what is no lease.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(folder.path().join("lease")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let gate = Box::new(Told(sender.clone()));
    let other =
        Keeper::start(directory.clone(), "b".parse().unwrap(), options, gate, Some(note.clone()));
    assert_eq!(other.unwrap().lease().owner, "b".parse().unwrap());
    std::fs::write(folder.path().join("lease"), "{").unwrap();
    assert!(matches!(start(), Err(KeeperError::Directory(DirectoryError::OwnerExists(_)))));
}

#[test]
fn a_noted_lease_that_has_ended_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let note = Note::at(folder.path().join("lease"));
    let directory: Arc<dyn Directory> = Arc::new(LocalDirectory::new(Vec::new()).unwrap());
    let (sender, _told) = channel();
    let start = || {
        let gate = Box::new(Told(sender.clone()));
        Keeper::start(directory.clone(), "a".parse().unwrap(), QUICK, gate, Some(note.clone()))
    };
    let lease = start().unwrap().lease();
    thread::sleep(QUICK.lease * 2);
    assert_ne!(start().unwrap().lease(), lease);
}

#[test]
fn times_that_do_not_fit_are_refused() {
    let directory: Arc<dyn Directory> = Arc::new(LocalDirectory::new(Vec::new()).unwrap());
    let (sender, _told) = channel();
    let options = KeeperOptions { renewal: QUICK.lease, ..QUICK };
    let result =
        Keeper::start(directory, "a".parse().unwrap(), options, Box::new(Told(sender)), None);
    assert!(matches!(result, Err(KeeperError::Times(..))));
}
