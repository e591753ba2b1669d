//! The rules, as data: a file for each kind of thread, and here what several have in common.
//!
//! A part of a machine that not every VM has (its [`Features`]) has lists of its own. To add a call, put
//! it into the list of the thread and the part that needs it, and say why; a test in the lab says whether
//! it is used (`tests/lab/jail.rs`).

mod control;
mod disk;
mod event_loop;
mod fetch;
mod settle;
mod vcpu;

use super::rule::{Rule, is, permit, without};
use super::{Features, ThreadKind};

/// The rules of a thread of a machine with such parts.
pub fn of(kind: ThreadKind, features: Features) -> impl Iterator<Item = &'static Rule> {
    let lists: &[(bool, &[Rule])] = match kind {
        ThreadKind::EventLoop => &[
            (true, event_loop::RULES),
            (true, TELLING),
            (features.attach || features.vsock, event_loop::LISTENING),
            (features.attach, event_loop::ATTACH),
            (features.net, event_loop::NET),
            (features.vsock, event_loop::VSOCK),
            (features.net || features.vsock, event_loop::WAITING),
            (true, CLOSING),
        ],
        ThreadKind::Vcpu => {
            let waits = features.net || features.vsock;
            &[
                (true, vcpu::RULES),
                (true, TELLING),
                (features.attach, vcpu::ATTACH),
                (waits, vcpu::WAITING),
                (true, CLOSING),
                (true, ENDING),
            ]
        }
        ThreadKind::Control => {
            &[(true, TELLING), (features.images, control::IMAGES), (true, CLOSING), (true, ENDING)]
        }
        ThreadKind::Settle => &[(true, settle::RULES), (true, TELLING), (true, ENDING)],
        ThreadKind::Disk => {
            &[(true, disk::RULES), (true, TELLING), (true, CLOSING), (true, ENDING)]
        }
        ThreadKind::Fetch => &[(true, fetch::RULES), (true, CLOSING), (true, ENDING)],
    };
    let lists: Vec<_> = lists.iter().filter(|(there, _)| *there).map(|(_, list)| *list).collect();
    [ALWAYS, ALLOCATOR].into_iter().chain(lists).flatten()
}

/// No memory is made that code could be run in.
const NO_CODE: u32 = libc::PROT_EXEC.cast_unsigned();

const DONT_WAIT: u32 = libc::MSG_DONTWAIT.cast_unsigned();

/// What every thread does, or may have to.
const ALWAYS: &[Rule] = &[
    permit!(SYS_futex, "locks, channels, and threads that wait for each other"),
    permit!(SYS_sendto, [is(3, DONT_WAIT)], "a signal's handler tells the event loop")
        .seldom("a signal to the process comes to any of its threads"),
    permit!(SYS_rt_sigreturn, "the way back from a signal")
        .seldom("a signal to the process comes to any of its threads"),
    permit!(SYS_exit_group, "a panic, and the end of the process")
        .seldom("few threads end the process, and none panics"),
    permit!(SYS_sched_yield, "channels whose other side is at the very same place")
        .seldom("nobody can arrange it"),
    permit!(SYS_restart_syscall, "waiting goes on after the process was stopped or frozen")
        .seldom("nobody can arrange at what a thread is stopped"),
    permit!(SYS_clock_gettime, "the time").seldom("most hosts have a clock that needs no call"),
];

/// What threads do that tell others something in the course of their work.
const TELLING: &[Rule] = &[permit!(SYS_write, "eventfds, messages, the console")];

/// Memory, which an allocator asks for when it likes.
const ALLOCATOR: &[Rule] = &[
    permit!(SYS_mmap, [without(2, NO_CODE)], "memory").seldom(ALLOCATOR_S),
    permit!(SYS_munmap, "memory").seldom(ALLOCATOR_S),
    permit!(SYS_mremap, "memory; and a ramdisk's copy is put in its place").seldom(ALLOCATOR_S),
    permit!(SYS_mprotect, [without(2, NO_CODE)], "memory").seldom(ALLOCATOR_S),
    permit!(SYS_madvise, "memory; and huge pages for a ramdisk's copy").seldom(ALLOCATOR_S),
    permit!(SYS_brk, "memory").seldom(ALLOCATOR_S),
];
const ALLOCATOR_S: &str = "the allocator's own affair, and another one of each C library";

/// What threads do that have descriptors of their own.
const CLOSING: &[Rule] = &[
    permit!(SYS_close, "the end of a device, a file, a processor"),
    // The standard library looks, in debug builds, whether what it closes is open.
    #[cfg(debug_assertions)]
    permit!(SYS_fcntl, [is(1, libc::F_GETFD.cast_unsigned())], "the same")
        .seldom("a program that is tested may be of another build than its tests"),
];

/// What threads do as they end.
const ENDING: &[Rule] = &[
    permit!(SYS_exit, "the end of a thread"),
    permit!(SYS_sigaltstack, "the end of a thread"),
    permit!(SYS_rt_sigprocmask, "the end of a thread"),
];
