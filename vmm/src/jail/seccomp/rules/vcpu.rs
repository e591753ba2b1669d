//! A virtual processor: it runs the guest, and serves its accesses to devices.

use super::{Rule, is, permit};

pub(super) const RULES: &[Rule] = &[
    permit!(SYS_ioctl, [is(1, KVM_RUN)], "the guest runs"),
    permit!(SYS_ioctl, [is(1, KVM_SET_GSI_ROUTING)], "the guest routes its interrupts"),
    permit!(SYS_ioctl, [is(1, KVM_GET_REGS)], "where a guest was that cannot go on")
        .seldom("KVM emulates all that a stock kernel does"),
];

/// A console that is watched.
pub(super) const ATTACH: &[Rule] = &[
    permit!(SYS_shutdown, "who watches and reads too slowly is cut off")
        .seldom("a test of that would depend on how fast a guest prints"),
    permit!(SYS_sendto, [is(3, NO_SIGNAL)], "what is printed, to who watches")
        .seldom("a standard library may write to sockets as to files"),
];
const NO_SIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();

/// Devices that wait for several things, and for a time: drivers start and reset them by their registers.
pub(super) const WAITING: &[Rule] = &[
    permit!(SYS_timerfd_settime, "a device has the loop look at it")
        .seldom("only some devices have one"),
    permit!(SYS_epoll_ctl, "a device that is reset waits for nothing any more")
        .seldom("guests that end do not reset their devices"),
];

// Linux, include/uapi/linux/kvm.h.
const KVM_RUN: u32 = 0xae80;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_GET_REGS: u32 = 0x8090_ae81;
