//! The event line: a serial line on which the device sends a byte when there are events, because a
//! stock kernel lets a program wait for a serial line, and for no other interrupt of a device that it
//! has no driver for.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

/// Where the kernel puts the machine's second serial line.
pub const PATH: &str = "/dev/ttyS1";

/// The line, in raw mode.
#[derive(Debug)]
pub struct Line(File);

impl Line {
    /// Opens the line at `path`, and drops what has come before.
    ///
    /// # Errors
    /// If it is not there, or no terminal.
    pub fn open(path: &str) -> io::Result<Self> {
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let line = File::options().read(true).write(true).custom_flags(flags).open(path)?;
        let mut mode = tcgetattr(&line)?;
        mode.make_raw();
        tcsetattr(&line, OptionalActions::Now, &mode)?;
        tcflush(&line, QueueSelector::IFlush)?;
        Ok(Self(line))
    }

    /// Waits until the device announces something, or for so long; returns whether it did. Signals end
    /// the waiting too.
    ///
    /// # Errors
    /// If the line is gone.
    pub fn wait(&mut self, most: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(most).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut wanted, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => (),
            Err(error) => return Err(error.into()),
        }
        // One byte stands for all events so far, so what is waiting is taken as one.
        match self.0.read(&mut [0; 256]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_byte_on_a_terminal_ends_the_waiting() {
        let Ok((mut device, path)) = pty() else { return };
        let mut line = Line::open(&path).unwrap();
        assert!(!line.wait(Duration::ZERO).unwrap());
        device.write_all(b"\n\n\n").unwrap();
        assert!(line.wait(Duration::from_secs(60)).unwrap());
        assert!(!line.wait(Duration::ZERO).unwrap());
        drop(device);
        assert!(line.wait(Duration::from_secs(60)).is_err());
    }

    /// A terminal of which the test has the other end; there may be none in a bare chroot.
    fn pty() -> io::Result<(File, String)> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let device = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&device)?;
        unlockpt(&device)?;
        let path = ptsname(&device, Vec::new())?;
        Ok((device.into(), path.into_string().map_err(io::Error::other)?))
    }

    #[test]
    fn what_is_no_terminal_is_no_line() {
        assert!(Line::open("/dev/null").is_err());
        assert!(Line::open("/dev/no-such-line").is_err());
    }
}
