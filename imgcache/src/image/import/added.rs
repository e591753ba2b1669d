//! Files that are put into a ramdisk in addition to its own: a newc archive behind all others.
//!
//! Linux unpacks archives one after the other into the same tree, and a folder in a later one takes the
//! place of a symbolic link in an earlier one, as distributions have for `/sbin`. So a folder is only
//! added that the ramdisk does not have under that name.

use std::collections::BTreeSet;

/// A file to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedFile {
    /// Its path, without a slash in front, as `sbin/agent`.
    pub path: String,
    /// What it is.
    pub content: AddedContent,
}

/// What a file is that is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedContent {
    /// A program: a regular file of mode 0755.
    Program(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive with these files, and with the folders that they are in unless `present` has them. None if
/// a path or a file is longer than an archive can say.
pub fn added_archive(files: &[AddedFile], present: &BTreeSet<String>) -> Option<Vec<u8>> {
    let mut folders = BTreeSet::new();
    for file in files {
        folders.extend(parents(&file.path).filter(|folder| !present.contains(*folder)));
    }
    let mut archive = Vec::new();
    let mut number = 1;
    let mut add = |path: &str, mode, content: &[u8]| {
        number += 1;
        entry(&mut archive, number, path, mode, content)
    };
    // A folder comes before what is in it: the set is in the order of the names.
    for folder in folders {
        add(folder, FOLDER, &[])?;
    }
    for file in files {
        match &file.content {
            AddedContent::Program(content) => add(&file.path, PROGRAM, content)?,
            AddedContent::Link(target) => add(&file.path, LINK, target.as_bytes())?,
        }
    }
    entry(&mut archive, 0, "TRAILER!!!", 0, &[])?;
    Some(archive)
}

/// The folders that a path is in, from the outermost on.
pub(super) fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|folder| !folder.is_empty())
}

/// Adds an entry, with its name and content padded to 4 bytes.
fn entry(archive: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8]) -> Option<()> {
    let length = u32::try_from(content.len()).ok()?;
    let name = u32::try_from(path.len() + 1).ok().filter(|length| *length <= 4096)?;
    let links = if mode == FOLDER { 2 } else { 1 };
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize,
    // check.
    let fields = [number, mode, 0, 0, links, 0, length, 0, 0, 0, 0, name, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::import::{ImportOptions, import_initrd};

    fn files() -> [AddedFile; 2] {
        let program = AddedContent::Program(b"program".to_vec());
        let link = AddedContent::Link("usr/sbin/agent".into());
        [
            AddedFile { path: "usr/sbin/agent".into(), content: program },
            AddedFile { path: "init".into(), content: link },
        ]
    }

    fn names(archive: &[u8]) -> Vec<&str> {
        let text = std::str::from_utf8(archive).unwrap();
        text.split("070701").skip(1).map(|entry| entry[104..].split('\0').next().unwrap()).collect()
    }

    #[test]
    fn folders_come_first_and_only_those_that_are_missing() {
        let all = added_archive(&files(), &BTreeSet::new()).unwrap();
        assert_eq!(names(&all), ["usr", "usr/sbin", "usr/sbin/agent", "init", "TRAILER!!!"]);
        assert!(all.len().is_multiple_of(4));
        let present = BTreeSet::from(["usr/sbin".to_owned()]);
        let some = added_archive(&files(), &present).unwrap();
        assert_eq!(names(&some), ["usr", "usr/sbin/agent", "init", "TRAILER!!!"]);
    }

    #[test]
    fn it_is_an_archive_as_the_import_takes_them() {
        let archive = added_archive(&files(), &BTreeSet::new()).unwrap();
        let mut written = Vec::new();
        let initrd = import_initrd(&archive, &ImportOptions::default(), &mut written).unwrap();
        assert!(written == archive);
        assert!(initrd.notes[0].contains("4 entries"), "{:?}", initrd.notes);
    }

    #[test]
    fn what_an_archive_cannot_say_is_refused() {
        let path = "x".repeat(4096);
        let file = AddedFile { path, content: AddedContent::Link("y".into()) };
        assert!(added_archive(&[file], &BTreeSet::new()).is_none());
    }
}
