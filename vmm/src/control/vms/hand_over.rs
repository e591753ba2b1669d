//! Chunks that a manager guest hands over to a VM that waits for them: through a socket, one frame each.
//!
//! ```text
//!   0  u32 chunk    its number, little-endian
//!   4  u32 length   bytes
//!   8  the chunk
//! ```

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a VM may take until it is there, and then for each chunk.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// The way to a VM that waits.
#[derive(Debug)]
pub struct HandOver {
    vm: u64,
    stream: Option<UnixStream>,
}

/// A socket in `folder` to which a VM can connect.
///
/// # Errors
/// The kernel's: the path of a socket has at most 107 bytes.
pub fn listen(folder: &Path) -> io::Result<(PathBuf, UnixListener)> {
    let path = folder.join(format!("load-{}", std::process::id()));
    // What is there under this name was left by a process that had this one's number.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    Ok((path, listener))
}

/// Waits until a VM has connected, while it `lives`; nobody else can then.
///
/// # Errors
/// It has not.
pub fn accept(
    path: &Path,
    listener: &UnixListener,
    lives: impl Fn() -> bool,
) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    let wait = || {
        listener.set_nonblocking(true)?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if !lives() {
                return Err(io::Error::new(ErrorKind::NotConnected, "it has ended"));
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            std::thread::sleep(POLL);
        }
    };
    let stream = wait();
    let _ = std::fs::remove_file(path);
    stream
}

impl HandOver {
    /// To the VM of this number, which has connected.
    pub fn new(vm: u64, stream: UnixStream) -> Self {
        Self { vm, stream: Some(stream) }
    }

    /// The number of the VM.
    pub fn vm(&self) -> u64 {
        self.vm
    }

    /// Whether it has not failed yet.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Sends a chunk.
    ///
    /// # Errors
    /// The VM has all it needs, or has ended, or does not take it. Nothing can be sent after that.
    pub fn send(&mut self, chunk: u32, data: &[u8]) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or(ErrorKind::NotConnected)?;
        let length = u32::try_from(data.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let mut head = [0; 8];
        head[..4].copy_from_slice(&chunk.to_le_bytes());
        head[4..].copy_from_slice(&length.to_le_bytes());
        let sent = stream.write_all(&head).and_then(|()| stream.write_all(data));
        if sent.is_err() {
            self.stream = None;
        }
        sent
    }
}
