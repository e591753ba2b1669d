//! The guest agent, for putting it into a ramdisk.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use imgcache::image::import::{AddedContent, AddedFile};

use crate::cli::CliError;

/// The agent's path in a ramdisk.
const PATH: &str = "sbin/guest-agent";
/// What the kernel runs first in a ramdisk.
const INIT: &str = "init";
/// More than any agent has.
const MOST_BYTES: u64 = 64 << 20;

/// Which file is the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentFile {
    /// `guest-agent` beside this program.
    BesideProgram,
    /// This one.
    Named(PathBuf),
}

impl AgentFile {
    /// As on the command line, where nothing is behind the option for the file beside this program.
    #[expect(clippy::unnecessary_wraps, reason = "a parser for the command line")]
    pub fn parse(text: &str) -> Result<Self, Infallible> {
        Ok(if text.is_empty() { Self::BesideProgram } else { Self::Named(text.into()) })
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::BesideProgram => {
                std::env::current_exe().unwrap_or_default().with_file_name("guest-agent")
            }
            Self::Named(path) => path.clone(),
        }
    }
}

/// Why a file is no guest agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody has built one.
    #[error(
        "there is no guest agent: build it with scripts/guest-agent, and name the file that this prints \
         with --with-agent=FILE (or put it beside the vmm program)"
    )]
    Missing,
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is too large for any.
    #[error("it has more than {MOST_BYTES} bytes, which is no guest agent")]
    TooLarge,
    /// It does not run by itself.
    #[error("it is no static program for x86-64: {0}; scripts/guest-agent builds one")]
    NotStatic(&'static str),
}

/// The files that a ramdisk gets: the agent, and if there is no other, `init` as a link to it.
///
/// # Errors
/// If the file is no static program.
pub fn files(file: &AgentFile, is_init: bool) -> Result<Vec<AddedFile>, CliError> {
    let path = file.path();
    let content =
        read(&path).map_err(|source| CliError::Input { file: path, source: Box::new(source) })?;
    let program = AddedContent::Program(content);
    let mut files = vec![AddedFile { path: PATH.to_owned(), content: program }];
    if is_init {
        let content = AddedContent::Link(PATH.to_owned());
        files.push(AddedFile { path: INIT.to_owned(), content });
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, AgentError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => AgentError::Missing,
        _ => error.into(),
    })?;
    let mut content = Vec::new();
    if file.take(MOST_BYTES + 1).read_to_end(&mut content)?
        > usize::try_from(MOST_BYTES).unwrap_or(0)
    {
        return Err(AgentError::TooLarge);
    }
    check_static(&content).map_err(AgentError::NotStatic)?;
    Ok(content)
}

/// Looks that this is an ELF file for x86-64 that no interpreter has to load (System V ABI, chapters 4
/// and 5).
fn check_static(file: &[u8]) -> Result<(), &'static str> {
    const INTERPRETER: u32 = 3;
    if bytes(file, 0) != Some(*b"\x7fELF") {
        return Err("it is no ELF file");
    }
    let number = |at| bytes(file, at).map(u16::from_le_bytes).unwrap_or_default();
    // 64 bits, little-endian; executable or position-independent; x86-64.
    if bytes(file, 4) != Some([2, 1]) || !matches!(number(16), 2 | 3) || number(18) != 62 {
        return Err("it is no program for x86-64");
    }
    let table = bytes(file, 32).map(u64::from_le_bytes).unwrap_or_default();
    let table = usize::try_from(table).map_err(|_| "its program headers are beyond its end")?;
    let (size, count) = (usize::from(number(54)), usize::from(number(56)));
    if size < 56 || count == 0 {
        return Err("it has no program headers");
    }
    for index in 0..count {
        let kind = table.checked_add(index * size).and_then(|at| bytes(file, at));
        match kind.map(u32::from_le_bytes) {
            Some(INTERPRETER) => return Err("it needs an interpreter"),
            Some(_) => {}
            None => return Err("its program headers are beyond its end"),
        }
    }
    Ok(())
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with these program headers.
    fn program(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[16], file[18], file[32], file[54]) = (2, 62, 64, 56);
        file[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            file.extend_from_slice(&kind.to_le_bytes());
            file.resize(file.len() + 52, 0);
        }
        file
    }

    #[test]
    fn only_static_programs_are_taken() {
        assert_eq!(check_static(&program(&[1, 1, 7])), Ok(()));
        assert_eq!(check_static(&program(&[6, 3, 1])), Err("it needs an interpreter"));
        assert!(check_static(&program(&[])).is_err());
        assert!(check_static(b"#!/bin/sh\n").is_err());
        let mut other = program(&[1]);
        other[18] = 183;
        assert!(check_static(&other).is_err());
        let mut far = program(&[1]);
        far[32..40].fill(0xff);
        assert!(check_static(&far).is_err());
        let whole = program(&[1]);
        for length in 0..64 {
            assert!(check_static(&whole[..length]).is_err(), "{length}");
        }
        // This test's own program is loaded by an interpreter.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static(&own), Err("it needs an interpreter"));
    }

    #[test]
    fn the_agent_is_init_only_where_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        std::fs::write(&path, program(&[1])).unwrap();
        let file = AgentFile::parse(path.to_str().unwrap()).unwrap();
        assert_eq!(files(&file, false).unwrap().len(), 1);
        let both = files(&file, true).unwrap();
        assert_eq!(both[1].content, AddedContent::Link("sbin/guest-agent".into()));
        let error = files(&AgentFile::Named(folder.path().join("none")), false).unwrap_err();
        assert!(error.to_string().contains("scripts/guest-agent"), "{error}");
        let beside = AgentFile::parse("").unwrap().path();
        assert_eq!(beside.parent(), std::env::current_exe().unwrap().parent());
    }
}
