//! Starts the process of a VM.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::folder::{Record, VmFolder};

/// How VMs are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program: this one.
    pub program: PathBuf,
    /// Words before `boot`: where images are.
    pub global: Vec<OsString>,
    /// Words of `boot`: how images come from a cache.
    pub load: Vec<OsString>,
}

/// What a VM is to be.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Words for its kernel.
    pub command_line: Option<String>,
    /// The cache that its image comes from, instead of the one in [`Launcher::load`].
    pub cache: Option<String>,
    /// Whether its chunks are handed over, through this socket, instead of fetched.
    pub chunks_from: Option<PathBuf>,
}

impl Launcher {
    /// Starts the process. It has `lock` as its standard input, and so holds it for as long as it lives;
    /// it is of a process group of its own, so that what ends this one at a terminal does not end it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(
        &self,
        folder: &VmFolder,
        record: &Record,
        wish: &Wish,
        lock: File,
    ) -> io::Result<Child> {
        let stderr = File::create(folder.file("stderr"))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.global)
            .arg("boot")
            .args(["--image", &record.image])
            .args(["--name", &record.name])
            .args(["--memory", &format!("{}K", record.memory_bytes >> 10)])
            .args(["--cpus", &record.cpus.to_string()])
            .args(self.load.iter().filter(|word| wish.cache.is_none() || !is_of_cache(word)));
        if let Some(words) = &wish.command_line {
            command.arg(joined("--cmdline-append=", words));
        }
        if let Some(url) = &wish.cache {
            command.arg(joined("--cache=", url));
        }
        if let Some(socket) = &wish.chunks_from {
            command.arg("--chunks-from").arg(socket);
        }
        for (option, file) in
            [("--console", "console"), ("--events", "events"), ("--report", "report")]
        {
            command.arg(option).arg(folder.file(file));
        }
        let child = command
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()?;
        if let Err(error) = std::fs::write(folder.file("pid"), child.id().to_string()) {
            log::warn!("VM {} cannot be stopped by others: {error}", record.number);
        }
        Ok(child)
    }
}

/// Whether a word says which cache the host itself has chosen, and how it is trusted.
fn is_of_cache(word: &OsString) -> bool {
    word.to_string_lossy().starts_with("--cache")
}

/// An option and its value in one word: what a guest says is never taken for an option.
fn joined(option: &str, value: &str) -> String {
    format!("{option}{value}")
}
