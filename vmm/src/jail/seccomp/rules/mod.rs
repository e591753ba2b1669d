//! The rules, as data: a file for each kind of thread, and here what several have in common.
//!
//! A part of a machine that not every VM has (its [`Features`]) has lists of its own. To add a call, put
//! it into the list of the thread and the part that needs it, and say why; a test says whether it is
//! used.

mod control;
mod disk;
mod event_loop;
mod settle;
mod vcpu;

use super::rule::{Rule, permit, is, without};
use super::{Features, ThreadKind};

/// The rules of a thread of a machine with such parts.
pub fn of(kind: ThreadKind, features: Features) -> impl Iterator<Item = &'static Rule> {
    let lists: &[(bool, &[Rule])] = match kind {
        ThreadKind::EventLoop => &[
            (true, event_loop::RULES),
            (features.net, event_loop::NET),
            (features.vsock, event_loop::VSOCK),
            (features.disk, event_loop::DISK),
        ],
        ThreadKind::Vcpu => &[(true, vcpu::RULES)],
        ThreadKind::Control => &[(true, control::RULES)],
        ThreadKind::Settle => &[(true, settle::RULES)],
        ThreadKind::Disk => &[(true, disk::RULES)],
    };
    let lists: Vec<_> = lists.iter().filter(|(there, _)| *there).map(|(_, list)| *list).collect();
    [COMMON].into_iter().chain(lists).flatten()
}

/// No memory is made that code could be run in.
const NO_CODE: u32 = libc::PROT_EXEC.cast_unsigned();

/// What every thread does.
const COMMON: &[Rule] = &[
    permit!(SYS_futex, "locks, channels, and threads that wait for each other"),
    permit!(SYS_mmap, [without(2, NO_CODE)], "memory for the allocator"),
    permit!(SYS_munmap, "memory given back"),
    permit!(SYS_write, "eventfds, messages, the console"),
    permit!(SYS_exit_group, "an end for which nobody is waited for"),
    permit!(SYS_rt_sigreturn, "the way back from a signal"),
];
