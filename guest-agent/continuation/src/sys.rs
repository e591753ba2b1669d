//! The system calls that no library has: socket options as bytes, and the lengths of a socket's queues.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// An option of a socket: its level and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketOption(i32, i32);

impl SocketOption {
    /// An option of TCP.
    pub(crate) const fn tcp(number: i32) -> Self {
        Self(libc::IPPROTO_TCP, number)
    }

    /// An option of any socket.
    pub(crate) const fn socket(number: i32) -> Self {
        Self(libc::SOL_SOCKET, number)
    }
}

/// Reads an option into `value`; how many bytes the kernel has written.
pub(crate) fn get(fd: impl AsFd, option: SocketOption, value: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is borrowed for as long as the call
    // lasts and has so many; it writes to `length`, which is on the stack.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            option.0,
            option.1,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}

/// Sets an option to `value`.
pub(crate) fn set(fd: impl AsFd, option: SocketOption, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which is borrowed for as long as the call lasts.
    let result = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), option.0, option.1, value.as_ptr().cast(), length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An option that is a number.
pub(crate) fn get_number(fd: impl AsFd, option: SocketOption) -> io::Result<u32> {
    let mut value = [0; 4];
    get(fd, option, &mut value)?;
    Ok(u32::from_ne_bytes(value))
}

/// Sets an option that is a number.
pub(crate) fn set_number(fd: impl AsFd, option: SocketOption, value: u32) -> io::Result<()> {
    set(fd, option, &value.to_ne_bytes())
}

/// Which of a socket's lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// What has arrived and was not read (`SIOCINQ`).
    Unread,
    /// What was written and not acknowledged (`SIOCOUTQ`).
    Unacknowledged,
    /// The part of it that was not sent (`SIOCOUTQNSD`).
    Unsent,
}

/// A length of a socket's queue, in bytes.
pub(crate) fn length(fd: impl AsFd, which: Length) -> io::Result<usize> {
    /// Of <linux/sockios.h>; libc has it only for some targets.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    let request = match which {
        Length::Unread => libc::FIONREAD,
        Length::Unacknowledged => libc::TIOCOUTQ,
        Length::Unsent => SIOCOUTQNSD,
    };
    let mut value: libc::c_int = 0;
    // SAFETY: these requests write one int, to `value`, which is on the stack.
    if unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn options_and_lengths_of_a_connection_on_the_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.peek(&mut [0; 5]).unwrap();
        assert_eq!(length(&server, Length::Unread).unwrap(), 5);
        assert_eq!(length(&server, Length::Unacknowledged).unwrap(), 0);
        assert_eq!(length(&server, Length::Unsent).unwrap(), 0);
        let no_delay = SocketOption::tcp(libc::TCP_NODELAY);
        assert_eq!(get_number(&server, no_delay).unwrap(), 0);
        set_number(&server, no_delay, 1).unwrap();
        assert_eq!(get_number(&server, no_delay).unwrap(), 1);
        assert!(set(&server, no_delay, &[]).is_err());
        assert!(length(std::fs::File::open("/dev/null").unwrap(), Length::Unsent).is_err());
    }
}
