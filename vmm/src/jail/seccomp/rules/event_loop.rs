//! The main thread: it waits for events and serves them, ends the machine, and reports.

use super::{NO_CODE, Rule, permit, is, without};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_epoll_wait, "waiting for events"),
    permit!(SYS_epoll_pwait, "waiting for events"),
    permit!(SYS_epoll_ctl, "events that are not waited for any more, or again"),
    permit!(SYS_read, "eventfds, signals, the keyboard"),
    permit!(SYS_pread64, "KVM's counters"),
    permit!(SYS_lseek, "how much memory is mapped"),
    permit!(SYS_close, "the end of the machine"),
    permit!(SYS_brk, "memory for the allocator"),
    permit!(SYS_mprotect, [without(2, NO_CODE)], "memory for the allocator"),
    permit!(SYS_mremap, "a copied part of the ramdisk is put in its place"),
    permit!(SYS_madvise, "whether there is memory at an address"),
    permit!(SYS_ioctl, [is(1, PAGEMAP_SCAN)], "which pages of a mapped ramdisk were written"),
    permit!(SYS_ioctl, [is(1, TCSETS)], "the terminal is as it was"),
    permit!(SYS_getpid, "a signal to a vCPU"),
    permit!(SYS_tgkill, "a signal to a vCPU"),
    permit!(SYS_tkill, "a signal to a vCPU"),
    permit!(SYS_rt_sigprocmask, "a signal to a vCPU"),
    permit!(SYS_clock_nanosleep, "waiting for a serial port that is busy"),
    permit!(SYS_getrandom, "the guest's random numbers"),
    permit!(SYS_sigaltstack, "the end of the process"),
];

/// `PAGEMAP_SCAN` (Linux, include/uapi/linux/fs.h).
const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// `TCSETS`.
const TCSETS: u32 = 0x5402;

/// A network device: a TAP, and a timer for its rate.
pub(super) const NET: &[Rule] = &[
    permit!(SYS_readv, "packets from the network"),
    permit!(SYS_writev, "packets to the network"),
    permit!(SYS_timerfd_settime, "a device that has used up its rate"),
];

/// A vsock device: connections through unix sockets.
pub(super) const VSOCK: &[Rule] = &[
    permit!(SYS_accept4, "a connection from the host"),
    permit!(SYS_socket, [is(0, AF_UNIX)], "a connection from the guest"),
    permit!(SYS_connect, "a connection from the guest"),
    permit!(SYS_recvfrom, "what a connection brings"),
    permit!(SYS_sendto, "what goes to a connection"),
    permit!(SYS_shutdown, "a connection that is half closed"),
    permit!(SYS_ioctl, [is(1, FIONBIO)], "connections that do not block"),
];

const AF_UNIX: u32 = libc::AF_UNIX.cast_unsigned();
/// `FIONBIO`.
const FIONBIO: u32 = 0x5421;

/// Disks, whose threads do the work.
pub(super) const DISK: &[Rule] = &[];
