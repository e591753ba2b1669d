//! What the kernel gives only by calls that are unsafe: TAPs, packet sockets, a grace period, and the filter
//! that mutes a port.

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// 64 random bits.
///
/// # Errors
/// The kernel has none.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

fn result(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Makes a TAP interface in this thread's network namespace that goes when its descriptor does: frames as they
/// are, without a header. `name` may have a `%d`. The descriptor does not block.
///
/// # Errors
/// The host has none, or lets this process make none, or `name` is taken or too long (15 bytes).
pub fn tap(name: &str) -> io::Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: a structure of numbers, of which all may be 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let kind = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(kind).unwrap_or_default();
    // SAFETY: TUNSETIFF reads and writes an ifreq, which this is.
    result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok((file, name_of(&request)))
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let bytes: Vec<u8> = bytes.flat_map(|byte| byte.to_ne_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How many bytes precede each frame of a TAP: those of virtio's header, or none.
///
/// # Errors
/// It is no TAP.
pub fn tap_header(tap: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: a structure of numbers, of which all may be 0.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an ifreq, which this is; of any other descriptor it is an error.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF has put the flags there.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_VNET_HDR == 0 {
        return Ok(0);
    }
    let mut bytes: c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes an int, which this is.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut bytes) })?;
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Lets a TAP drop, and count, everything that is sent to it.
///
/// # Errors
/// The kernel's refusal.
pub fn drop_all(tap: BorrowedFd<'_>) -> io::Result<()> {
    // One instruction of classic BPF: return 0 bytes.
    let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: TUNATTACHFILTER reads a sock_fprog and the instructions that it points to, which live here.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) })?;
    Ok(())
}

/// A packet socket for frames of `ethertype` (0x0003: all) at the interface `index`, as whole frames. It does
/// not see what this host sends there, and does not block. With `header`, 10 bytes of virtio's header precede
/// each frame.
///
/// # Errors
/// The process may not, or there is no such interface.
pub fn packet_socket(index: u32, ethertype: u16, header: bool) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, which is checked. Protocol 0 receives nothing until it is bound.
    let fd = result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    if header {
        set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    }
    bind_packet(&socket, index, ethertype)?;
    Ok(socket)
}

/// The same, with virtio's header, for an interface whose frames something in the kernel takes for itself before those
/// who want one kind of them get any (`rx_handler`, as Open vSwitch's datapath has one): who wants all comes before.
///
/// # Errors
/// The process may not, or there is no such interface.
pub fn packet_socket_ahead(index: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let socket = packet_socket(index, 0, true)?;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Classic BPF: the two bytes behind the addresses.
    filter(
        socket.as_fd(),
        &mut [
            step(0x28, 0, 0, 12),
            step(0x15, 0, 1, ethertype.into()),
            step(0x06, 0, 0, u32::MAX),
            step(0x06, 0, 0, 0),
        ],
    )?;
    bind_packet(&socket, index, u16::try_from(libc::ETH_P_ALL).unwrap_or_default())?;
    Ok(socket)
}

fn bind_packet(socket: &OwnedFd, index: u32, ethertype: u16) -> io::Result<()> {
    // SAFETY: a structure of numbers, of which all may be 0.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: bind reads a sockaddr_ll of that length, which this is.
    result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(())
}

/// Sets how many bytes of frames may wait in a socket, above the limit of the system if that is allowed.
///
/// # Errors
/// The process may not.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Has a packet socket receive everything that is on its interface, whomever it is for, as long as it is open.
///
/// # Errors
/// The process may not, or there is no such interface.
pub fn promiscuous(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
        mr_type: libc::c_ushort::try_from(libc::PACKET_MR_PROMISC).unwrap_or_default(),
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::packet_mreq>()).unwrap_or_default();
    let (fd, option) = (socket.as_raw_fd(), libc::PACKET_ADD_MEMBERSHIP);
    // SAFETY: the option reads a packet_mreq of that length, which this is.
    let done = unsafe {
        libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const request).cast(), length)
    };
    result(done).map(|_| ())
}

/// Has a packet socket receive only frames to `address`, by a filter in the kernel.
///
/// # Errors
/// The kernel's refusal.
pub fn receive_only(socket: BorrowedFd<'_>, address: [u8; 6]) -> io::Result<()> {
    let (high, low) = (address.first_chunk().copied(), address.last_chunk().copied());
    let high = u32::from_be_bytes(high.unwrap_or_default());
    let low = u32::from(u16::from_be_bytes(low.unwrap_or_default()));
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Classic BPF: the first four bytes, then the next two, or nothing.
    filter(
        socket,
        &mut [
            step(0x20, 0, 0, 0),
            step(0x15, 0, 3, high),
            step(0x28, 0, 0, 4),
            step(0x15, 0, 1, low),
            step(0x06, 0, 0, u32::MAX),
            step(0x06, 0, 0, 0),
        ],
    )
}

/// Has a socket receive only what a program of classic BPF lets through.
fn filter(socket: BorrowedFd<'_>, code: &mut [libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default();
    let (fd, option) = (socket.as_raw_fd(), libc::SO_ATTACH_FILTER);
    // SAFETY: the option reads a sock_fprog, and the instructions that it points to, which live here.
    let done = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const program).cast(), length)
    };
    result(done).map(|_| ())
}

fn set(socket: &impl AsFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the option reads an int, which this is.
    result(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) })?;
    Ok(())
}

/// Waits until every processor has done with the frames that it was at, and with what it knew of forwarding
/// tables then: a grace period (membarrier(2), `MEMBARRIER_CMD_GLOBAL`, is one of RCU). Some milliseconds.
///
/// # Errors
/// The kernel cannot: it has processors without ticks.
pub fn grace_period() -> io::Result<()> {
    const GLOBAL: c_int = 1;
    // SAFETY: touches no memory of this process.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The part of `union bpf_attr` that loading a program needs (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// A filter of traffic control that drops all frames but those of `ethertype`.
///
/// # Errors
/// The process may load no programs into the kernel.
pub fn dropper(ethertype: u16) -> io::Result<OwnedFd> {
    const PROG_LOAD: c_int = 5;
    const SCHED_CLS: u32 = 3;
    // struct bpf_insn: code, registers (source << 4 | destination), offset, immediate. The context is a
    // __sk_buff, of which `protocol` lies at 16, in the network's byte order; 2 is TC_ACT_SHOT, -1 TC_ACT_UNSPEC.
    let step = |code: u8, registers: u8, offset: i16, immediate: i32| {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = immediate.to_ne_bytes();
        [code, registers, low, high, a, b, c, d]
    };
    let code = [
        step(0x61, 0x12, 16, 0),                           // r2 = *(u32 *)(r1 + 16)
        step(0xb7, 0x00, 0, -1),                           // r0 = -1
        step(0x15, 0x02, 1, i32::from(ethertype.to_be())), // if r2 == ethertype goto +1
        step(0xb7, 0x00, 0, 2),                            // r0 = 2
        step(0x95, 0x00, 0, 0),                            // exit
    ];
    let license = c"Apache-2.0";
    let request = LoadProgram {
        kind: SCHED_CLS,
        instructions: u32::try_from(code.len()).unwrap_or_default(),
        code: u64::try_from(code.as_ptr().addr()).unwrap_or_default(),
        license: u64::try_from(license.as_ptr().addr()).unwrap_or_default(),
        ..LoadProgram::default()
    };
    let (at, length) = (&raw const request, size_of::<LoadProgram>());
    // SAFETY: BPF_PROG_LOAD reads a bpf_attr of that length, which this is the beginning of, and the code and
    // licence that it points to, which live here.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, at, length) };
    let fd = result(c_int::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
