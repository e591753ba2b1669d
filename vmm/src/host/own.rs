//! What the kernel tells this process of itself in `/proc`.
//!
//! A process that is about to confine itself keeps the files open ([`keep`]): in an empty root there is
//! no `/proc`. They are then read where they are, by nothing but `pread`.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Bytes read at once.
const PIECE: usize = 32 << 10;

/// The files, if they are kept.
static KEPT: OnceLock<Kept> = OnceLock::new();

#[derive(Debug)]
struct Kept {
    maps: File,
    smaps: File,
    pagemap: File,
}

/// Opens the files for as long as this process lives.
///
/// # Errors
/// One cannot be opened.
pub fn keep() -> io::Result<()> {
    let open = |name| File::open(format!("/proc/self/{name}"));
    let kept = Kept { maps: open("maps")?, smaps: open("smaps")?, pagemap: open("pagemap")? };
    // Kept twice, the first are as good.
    let _ = KEPT.set(kept);
    Ok(())
}

/// A file, kept or opened for now.
#[derive(Debug)]
pub enum Own {
    /// Kept.
    Kept(&'static File),
    /// Opened for now.
    New(File),
}

impl Deref for Own {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Self::Kept(file) => file,
            Self::New(file) => file,
        }
    }
}

fn open(name: &str, kept: impl FnOnce(&'static Kept) -> &'static File) -> io::Result<Own> {
    match KEPT.get() {
        Some(files) => Ok(Own::Kept(kept(files))),
        None => File::open(format!("/proc/self/{name}")).map(Own::New),
    }
}

/// How its pages are mapped, one by one.
///
/// # Errors
/// It cannot be opened.
pub fn pagemap() -> io::Result<Own> {
    open("pagemap", |kept| &kept.pagemap)
}

/// What is mapped where.
///
/// # Errors
/// It cannot be read.
pub fn maps() -> io::Result<String> {
    read(&*open("maps", |kept| &kept.maps)?)
}

/// The same with sums for each mapping.
///
/// # Errors
/// It cannot be read.
pub fn smaps() -> io::Result<String> {
    read(&*open("smaps", |kept| &kept.smaps)?)
}

fn read(file: &File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut length = 0;
    loop {
        text.resize(length + PIECE, 0);
        match file.read_at(&mut text[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    text.truncate(length);
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_kept_tell_what_is_so_now() {
        assert!(maps().unwrap().contains("[stack]"));
        keep().unwrap();
        let one = memory();
        let address = one.as_ptr().addr();
        assert!(matches!(pagemap().unwrap(), Own::Kept(_)));
        assert!(smaps().unwrap().contains("Rss:"));
        let has_it = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(start)?..number(end)?).contains(&address))
        };
        assert!(maps().unwrap().lines().any(|line| has_it(line) == Some(true)));
    }

    fn memory() -> Vec<u8> {
        vec![1; 64 << 20]
    }
}
