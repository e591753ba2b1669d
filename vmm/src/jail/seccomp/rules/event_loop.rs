//! The main thread: it waits for events and serves them, ends the machine, and reports.

use super::{Rule, is, permit};

pub(super) const RULES: &[Rule] = &[
    #[cfg(not(target_env = "musl"))]
    permit!(SYS_epoll_wait, "waiting for events"),
    #[cfg(target_env = "musl")]
    permit!(SYS_epoll_pwait, "waiting for events"),
    permit!(SYS_epoll_ctl, "events that are not waited for any more, or again"),
    permit!(SYS_read, "eventfds, signals, the keyboard"),
    permit!(SYS_pread64, "KVM's counters, and how much memory is taken"),
    permit!(SYS_ioctl, [is(1, PAGEMAP_SCAN)], "which pages of a mapped ramdisk were written"),
    permit!(SYS_ioctl, [is(1, TCSETS2)], "the terminal is as it was"),
    #[cfg(not(target_env = "musl"))]
    permit!(SYS_getpid, "a signal to a vCPU"),
    #[cfg(not(target_env = "musl"))]
    permit!(SYS_tgkill, "a signal to a vCPU"),
    #[cfg(target_env = "musl")]
    permit!(SYS_tkill, "a signal to a vCPU"),
    permit!(SYS_rt_sigprocmask, "a signal to a vCPU"),
    permit!(SYS_clock_nanosleep, "a serial port that is busy, a worker that has much to do")
        .seldom("both are rare"),
    permit!(SYS_getrandom, "the guest's random numbers"),
    permit!(SYS_sigaltstack, "the end of the process"),
];

/// `PAGEMAP_SCAN` (Linux, include/uapi/linux/fs.h).
const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// `TCSETS2`, of x86.
const TCSETS2: u32 = 0x402c_542b;

/// Sockets to which the host connects.
pub(super) const LISTENING: &[Rule] = &[
    permit!(SYS_accept4, "a connection from the host"),
    permit!(SYS_shutdown, "the end of a connection, or of a side of it"),
    permit!(SYS_recvfrom, [is(3, 0)], "what a connection brings"),
    permit!(SYS_sendto, [is(3, NO_SIGNAL)], "what goes to a connection"),
];

const NO_SIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();

/// A console that is watched over a socket.
pub(super) const ATTACH: &[Rule] =
    &[permit!(SYS_ioctl, [is(1, FIONBIO)], "a connection that nobody waits for")];
const FIONBIO: u32 = 0x5421;

/// A network device: a TAP, which is read and written as files are.
pub(super) const NET: &[Rule] = &[permit!(
    SYS_ioctl,
    [is(1, TUNSETOFFLOAD)],
    "what the guest's driver takes of the TAP's work"
)];
/// `TUNSETOFFLOAD` (Linux, `include/uapi/linux/if_tun.h`).
const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// A vsock device: connections through unix sockets.
pub(super) const VSOCK: &[Rule] = &[
    permit!(SYS_socket, [is(0, AF_UNIX)], "a connection from the guest"),
    permit!(SYS_connect, "a connection from the guest"),
    permit!(SYS_recvfrom, [is(3, PEEK)], "whether a connection has ended"),
];

const PEEK: u32 = libc::MSG_PEEK.cast_unsigned();
const AF_UNIX: u32 = libc::AF_UNIX.cast_unsigned();

/// Devices that wait for several things, and for a time.
pub(super) const WAITING: &[Rule] = &[
    #[cfg(not(target_env = "musl"))]
    permit!(SYS_epoll_pwait, "which of them came"),
    permit!(SYS_timerfd_settime, "the time that is waited for")
        .seldom("not every guest reaches the limit of a rate"),
];
