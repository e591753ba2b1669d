//! In which pages the memory is: 2 MiB ones of the pool, transparent ones, or 4 KiB.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::mapping::Mapping;

/// The kernel's word on transparent huge pages of shared memory.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The pages that memory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB pages of the pool (`vm.nr_hugepages`).
    Hugetlb,
    /// 2 MiB pages where the kernel finds them.
    Thp,
    /// 4 KiB pages.
    Small,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hugetlb => "hugetlb",
            Self::Thp => "thp",
            Self::Small => "4k",
        })
    }
}

/// The pages that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackingChoice {
    /// The best there are.
    #[default]
    Auto,
    /// The pool's, or an error.
    Hugetlb,
    /// Transparent huge pages, or an error if the kernel gives none for shared memory.
    Thp,
    /// 4 KiB pages.
    Small,
}

/// Not one of `auto`, `hugetlb`, `thp`, `4k`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no kind of pages: expected auto, hugetlb, thp or 4k")]
pub struct InvalidBacking(String);

impl fmt::Display for BackingChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hugetlb => "hugetlb",
            Self::Thp => "thp",
            Self::Small => "4k",
        })
    }
}

impl FromStr for BackingChoice {
    type Err = InvalidBacking;

    fn from_str(text: &str) -> Result<Self, InvalidBacking> {
        match text {
            "auto" => Ok(Self::Auto),
            "hugetlb" => Ok(Self::Hugetlb),
            "thp" => Ok(Self::Thp),
            "4k" => Ok(Self::Small),
            _ => Err(InvalidBacking(text.to_owned())),
        }
    }
}

/// Memory that was got.
#[derive(Debug)]
pub(super) struct Backed {
    pub mapping: Mapping,
    pub backing: Backing,
    /// Why it is nothing better, kind by kind.
    pub fallbacks: Vec<String>,
}

/// Anonymous memory of `length` bytes, of which `control` are words.
///
/// # Errors
/// The reasons why `choice` cannot be had, and the last one as the kernel's.
pub(super) fn anonymous(
    choice: BackingChoice,
    length: usize,
    control: usize,
) -> Result<Backed, (Vec<String>, io::Error)> {
    let kinds: &[Backing] = match choice {
        BackingChoice::Auto => &[Backing::Hugetlb, Backing::Thp, Backing::Small],
        BackingChoice::Hugetlb => &[Backing::Hugetlb],
        BackingChoice::Thp => &[Backing::Thp],
        BackingChoice::Small => &[Backing::Small],
    };
    let mut fallbacks = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::OutOfMemory);
    for backing in kinds.iter().copied() {
        match attempt(backing, length, control) {
            Ok(mapping) => return Ok(Backed { mapping, backing, fallbacks }),
            Err(error) => {
                fallbacks.push(reason(backing, length, &error));
                last = error;
            }
        }
    }
    Err((fallbacks, last))
}

fn attempt(backing: Backing, length: usize, control: usize) -> io::Result<Mapping> {
    let flags = match backing {
        Backing::Hugetlb => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Backing::Thp | Backing::Small => MemfdFlags::empty(),
    };
    let always = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if backing == Backing::Thp {
        shared_huge_pages()?;
    }
    let file: OwnedFd = memfd_create("imgcached", flags | always)?;
    ftruncate(&file, length as u64)?;
    // A pool too small shows here: the pages of a shared mapping are reserved when it is made.
    let mapping = Mapping::new(file, length, control)?;
    // Where it is refused, memory is not shared with other processes, which is checked there.
    if let Err(error) = mapping.seal() {
        tracing::debug!("memory cannot be sealed: {error}");
    }
    match backing {
        Backing::Hugetlb => (),
        Backing::Thp => mapping.want_huge_pages(true)?,
        // A kernel without huge pages has none to be refused.
        Backing::Small => drop(mapping.want_huge_pages(false)),
    }
    Ok(mapping)
}

/// Whether anonymous shared memory gets transparent huge pages if it asks.
///
/// # Errors
/// It does not; the kernel's setting.
fn shared_huge_pages() -> io::Result<()> {
    match shmem_setting()?.as_str() {
        "always" | "within_size" | "advise" | "force" => Ok(()),
        other => Err(io::Error::other(format!("{SHMEM_ENABLED} is '{other}'"))),
    }
}

/// The kernel's setting of transparent huge pages of shared memory.
///
/// # Errors
/// There is none.
pub(super) fn shmem_setting() -> io::Result<String> {
    let text = fs::read_to_string(SHMEM_ENABLED)?;
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some((setting, _)) => Ok(setting.to_owned()),
        None => Err(io::Error::other(format!("{SHMEM_ENABLED} selects nothing"))),
    }
}

fn reason(backing: Backing, length: usize, error: &io::Error) -> String {
    let mend = match backing {
        Backing::Hugetlb => {
            let pages = length.div_ceil(2 << 20);
            format!("; {pages} free pages are needed: sysctl vm.nr_hugepages={pages}")
        }
        Backing::Thp => format!("; echo advise > {SHMEM_ENABLED}"),
        Backing::Small => String::new(),
    };
    format!("{backing}: {error}{mend}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_there_is_comes_with_reasons_for_what_there_is_not() {
        let length = 8 << 20;
        let backed = anonymous(BackingChoice::Auto, length, 1 << 20).unwrap();
        let better = match backed.backing {
            Backing::Hugetlb => 0,
            Backing::Thp => 1,
            Backing::Small => 2,
        };
        assert_eq!(backed.fallbacks.len(), better, "{:?}", backed.fallbacks);
        assert!(backed.mapping.populate(0, length, true).is_ok());
        let small = anonymous(BackingChoice::Small, length, 1 << 20).unwrap();
        assert_eq!((small.backing, small.fallbacks), (Backing::Small, vec![]));
    }

    #[test]
    fn what_cannot_be_had_is_an_error_with_what_mends_it() {
        // More than any machine's pool.
        let (reasons, _) = anonymous(BackingChoice::Hugetlb, 1 << 46, 0).unwrap_err();
        assert!(reasons[0].contains("vm.nr_hugepages=33554432"), "{reasons:?}");
    }

    #[test]
    fn choices_have_names() {
        assert_eq!("4k".parse(), Ok(BackingChoice::Small));
        assert_eq!(Backing::Thp.to_string().parse(), Ok(BackingChoice::Thp));
        assert!("huge".parse::<BackingChoice>().is_err());
    }
}
