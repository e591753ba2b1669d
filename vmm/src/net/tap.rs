//! TAP interfaces: made, or taken from who made them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use devices::virtio::net::HEADER_BYTES;
use devices::virtio::net::tap::{Offloads, Tap};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};

use super::NetError;
use super::bridge::Carrier;

/// The names of interfaces that are made here; the kernel puts a number in. Those for Open vSwitch have others: it
/// knows ports by their names, so one that it has not yet forgotten must not come to be on another bridge.
const NAME: &[u8] = b"vmtap%d";
const NAME_OVS: &[u8] = b"vmovs%d";
/// `ETH_P_ALL`-free frames with a header of virtio's before each.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes an interface for a bridge, which goes when its descriptor does; it, and its name.
///
/// # Errors
/// The host has none, or lets this process make none.
pub fn create(carrier: Carrier) -> Result<(OwnedFd, String), NetError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())
        .map_err(|error| NetError::system("open /dev/net/tun")(error.into()))?;
    let mut request = empty_request();
    let name = match carrier {
        Carrier::Linux => NAME,
        Carrier::Ovs => NAME_OVS,
    };
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(FLAGS).unwrap_or_default();
    // SAFETY: TUNSETIFF reads and writes an ifreq, which this is.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    result(made).map_err(NetError::system("make a TAP interface"))?;
    prepare(file.as_fd())?;
    Ok((file, name_of(&request)))
}

/// Takes over the interface that was opened as descriptor `fd`; it, and its name.
///
/// # Errors
/// It is none that speaks as this program does.
pub fn given(fd: i32) -> Result<(OwnedFd, String), NetError> {
    let none = |why: String| NetError::NoTap { fd, why };
    if fd < 0 {
        return Err(none("it is no descriptor".into()));
    }
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes an ifreq, which this is; of any other descriptor it is an error.
    let got = unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) };
    result(got).map_err(|error| none(error.to_string()))?;
    // SAFETY: TUNGETIFF has put the flags there.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let kind = libc::IFF_TUN | FLAGS;
    if flags & kind != FLAGS {
        return Err(none(format!("its flags are {flags:#x}")));
    }
    // SAFETY: an open descriptor, as the kernel has just said; who gave it on the command line has given
    // it to this process for this.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let configure = || {
        fcntl_setfd(&file, FdFlags::CLOEXEC)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)
    };
    configure().map_err(|error| NetError::system("set up the TAP interface")(error.into()))?;
    prepare(file.as_fd())?;
    Ok((file, name_of(&request)))
}

/// Agrees on the header, and that nothing is left undone until a driver says that it may be.
fn prepare(file: BorrowedFd<'_>) -> Result<(), NetError> {
    let length = libc::c_int::try_from(HEADER_BYTES).unwrap_or_default();
    // SAFETY: TUNSETVNETHDRSZ reads an int, which this is.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
    result(set).map_err(NetError::system("set the header of the TAP interface"))?;
    set_offloads(file, 0).map_err(NetError::system("set the offloads of the TAP interface"))
}

fn set_offloads(file: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number, and touches no memory of this process.
    let set =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    result(set)
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty_request() -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_map: empty_map() },
    }
}

fn empty_map() -> libc::__c_anonymous_ifru_map {
    // SAFETY: numbers, of which all may be 0.
    unsafe { std::mem::zeroed() }
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let bytes: Vec<u8> = bytes.flat_map(|byte| byte.to_ne_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An open TAP interface.
#[derive(Debug)]
pub struct TapFile(File);

impl TapFile {
    /// Of a descriptor that [`create`] or [`given`] gave.
    pub fn new(file: OwnedFd) -> Self {
        Self(file.into())
    }
}

impl AsFd for TapFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tap for TapFile {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }

    fn transmit(&mut self, frame: &[u8]) -> io::Result<()> {
        // Whole or not at all.
        rustix::io::write(&self.0, frame)?;
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut flags = 0;
        for (on, flag) in [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.checksum && offloads.tso4, libc::TUN_F_TSO4),
            (offloads.checksum && offloads.tso6, libc::TUN_F_TSO6),
            (offloads.checksum && offloads.ecn, libc::TUN_F_TSO_ECN),
        ] {
            if on {
                flags |= flag;
            }
        }
        set_offloads(self.as_fd(), flags)
    }
}
