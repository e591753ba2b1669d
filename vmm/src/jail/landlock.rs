//! Landlock: a second lock on what the namespaces have closed already.
//!
//! The empty root leaves nothing to open, and the empty network nothing to connect to. Should one of
//! them have a hole (a descriptor of a folder that was left open, a namespace that this host refused),
//! a process under this rule set still opens, makes and runs no file, binds and connects no TCP port,
//! reaches no abstract socket and signals no other process.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};

/// The newest interface that this was written for. What an older kernel lacks is left out.
const ABI: ABI = ABI::V6;

/// How far a kernel goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// All of it.
    Fully,
    /// What it knows of it.
    Partly,
    /// It has no Landlock, or it is switched off.
    Not,
}

/// Forbids this thread, and those that it starts, all that can be forbidden.
///
/// # Errors
/// A kernel that has Landlock and refuses.
pub fn forbid_all() -> Result<Enforced, RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI))?
        .handle_access(AccessNet::from_all(ABI))?
        .scope(Scope::from_all(ABI))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

/// The number of the kernel's Landlock interface; none if it has none, or it is switched off.
pub fn version() -> Option<u8> {
    const VERSION: libc::c_ulong = 1; // LANDLOCK_CREATE_RULESET_VERSION
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for its version, the call takes no structure and makes no descriptor.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    u8::try_from(version).ok().filter(|version| *version > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_thread_under_it_opens_makes_binds_and_connects_nothing_and_reads_what_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "words").unwrap();
        let mut open = File::open(&path).unwrap();
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        // Of a thread of its own: there is no way back.
        let thread = std::thread::spawn(move || {
            let enforced = forbid_all().unwrap();
            let refused = [
                File::open(&path).err(),
                File::create(folder.path().join("new")).err(),
                std::fs::remove_file(&path).err(),
                std::fs::create_dir(folder.path().join("folder")).err(),
            ];
            let network =
                [TcpListener::bind("127.0.0.1:0").err(), TcpStream::connect(address).err()];
            let mut words = String::new();
            open.read_to_string(&mut words).unwrap();
            (enforced, refused, network, words)
        });
        let (enforced, refused, network, words) = thread.join().unwrap();
        assert_eq!(words, "words");
        let kinds = |errors: &[Option<std::io::Error>]| -> Vec<_> {
            errors.iter().map(|error| error.as_ref().map(std::io::Error::kind)).collect()
        };
        match version() {
            None => assert_eq!(enforced, Enforced::Not),
            Some(version) => {
                assert!(enforced != Enforced::Not);
                assert_eq!(kinds(&refused), [Some(ErrorKind::PermissionDenied); 4]);
                // TCP came with the fourth version.
                if version >= 4 {
                    assert_eq!(kinds(&network), [Some(ErrorKind::PermissionDenied); 2]);
                }
            }
        }
    }
}
