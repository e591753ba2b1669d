//! The terminal under the console: raw while a guest runs, as it was on every way out.
//!
//! Normal ends and errors restore it as the guard is dropped, signals because the event loop turns
//! them into a normal end, a panic by a hook. For SIGKILL nothing in this process can help, so a
//! second, tiny process waits for the end of this one and restores the terminal if it was not told
//! that all is well.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::jail::is_confined;

/// The argument that makes this program the second process.
pub const GUARDIAN_ARGUMENT: &str = "__restore-terminal";

/// Says that the first process restored the terminal by itself.
const ALL_IS_WELL: u8 = b'.';

/// A terminal in raw mode; restored when dropped.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
    guardian: Option<(Child, ChildStdin)>,
}

impl RawTerminal {
    /// Switches standard input to raw mode; `None` if it is not a terminal.
    ///
    /// # Errors
    /// The terminal's refusal.
    pub fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        // In a jail there are no programs; who started it restores the terminal.
        let guardian = if is_confined() { None } else { start_guardian_or_warn(&terminal) };
        let mut raw = before.clone();
        raw.make_raw();
        restore_on_panic(terminal.try_clone()?, before.clone());
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before, guardian }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, OptionalActions::Now, &self.before) {
            log::error!("the terminal cannot be restored: {error}; type 'reset'");
        }
        if let Some((mut child, mut stdin)) = self.guardian.take() {
            // If it is gone already, so much the better.
            let _ = stdin.write_all(&[ALL_IS_WELL]);
            drop(stdin);
            let _ = child.wait();
        }
    }
}

/// Before the message of a panic, so that it can be read, and because nothing is dropped after it.
fn restore_on_panic(terminal: OwnedFd, before: Termios) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
        report(panic);
    }));
}

fn start_guardian_or_warn(terminal: &OwnedFd) -> Option<(Child, ChildStdin)> {
    match start_guardian(terminal) {
        Ok(guardian) => Some(guardian),
        Err(error) => {
            log::warn!("the terminal will not be restored after a SIGKILL: {error}");
            None
        }
    }
}

fn start_guardian(terminal: &OwnedFd) -> std::io::Result<(Child, ChildStdin)> {
    let mut child = Command::new("/proc/self/exe")
        .arg(GUARDIAN_ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::from(terminal.try_clone()?))
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(stdin), Some(mut stderr)) = (child.stdin.take(), child.stderr.take()) else {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    };
    // It has seen the terminal as it was.
    let mut ready = [0];
    stderr.read_exact(&mut ready)?;
    Ok((child, stdin))
}

/// The second process: standard input is the pipe to the first, standard output the terminal.
///
/// # Errors
/// The terminal's refusal.
pub fn guard() -> std::io::Result<()> {
    // Out of the process group that a SIGKILL or a Ctrl-C may go to.
    let _ = rustix::process::setsid();
    let terminal = std::io::stdout();
    let before = tcgetattr(&terminal)?;
    std::io::stderr().write_all(&[ALL_IS_WELL])?;
    let mut word = [0];
    if std::io::stdin().read(&mut word)? == 0 {
        tcsetattr(&terminal, OptionalActions::Now, &before)?;
    }
    Ok(())
}
