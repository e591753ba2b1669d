//! Which system calls the threads of a jailed VM make once they are sealed, and by which rules of their
//! filters: seen from outside, by `ptrace`, with the filters in force.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::process::Command;

use vmm::jail::seccomp::{Features, ThreadKind, allowing, rules};

/// What was seen.
#[derive(Debug, Default)]
pub struct Trace {
    /// The rules by which calls were allowed.
    pub used: BTreeSet<Used>,
    /// Calls that no rule allows.
    pub refused: BTreeSet<String>,
    /// Threads of a sealed process that made calls unsealed.
    pub unsealed: BTreeSet<String>,
    /// Kinds of threads that were sealed.
    pub sealed: BTreeSet<ThreadKind>,
    /// How the program ended: its code, or less than zero the signal.
    pub code: i32,
}

/// A rule that was used: whose, its name, and its conditions in words.
pub type Used = (ThreadKind, &'static str, String);

/// All rules of a machine with such parts, but for those that tests need not come by.
pub fn to_be_used(kinds: &BTreeSet<ThreadKind>, features: Features) -> BTreeSet<Used> {
    let all = kinds.iter().flat_map(|kind| rules::of(*kind, features).map(|rule| (*kind, rule)));
    all.filter(|(_, rule)| rule.seldom.is_none())
        .map(|(kind, rule)| (kind, rule.name, format!("{:x?}", rule.arguments)))
        .collect()
}

#[derive(Debug, Default)]
struct Thread {
    process: i32,
    name: String,
    sealed: Option<ThreadKind>,
    begun: bool,
}

/// Runs `command` to its end. What it starts is traced as well. `on_seal` is called when the thread that
/// is sealed last, the main one, is.
pub fn run(mut command: Command, features: Features, mut on_seal: impl FnMut(i32)) -> Trace {
    // SAFETY: a system call, between fork and exec.
    unsafe { command.pre_exec(|| check(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))) };
    #[expect(clippy::zombie_processes, reason = "waited for below, by the loop")]
    let child = command.spawn().unwrap();
    let first = i32::try_from(child.id()).unwrap();
    let mut threads = BTreeMap::<i32, Thread>::new();
    let mut trace = Trace::default();
    while let Some((tid, status)) = wait() {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            threads.remove(&tid);
            if tid == first {
                trace.code = if libc::WIFEXITED(status) {
                    libc::WEXITSTATUS(status)
                } else {
                    -libc::WTERMSIG(status)
                };
            }
            continue;
        }
        let thread = threads.entry(tid).or_default();
        let mut deliver = 0;
        match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => {
                if let Some((number, arguments)) = entry(tid) {
                    seen(&mut trace, &mut threads, tid, features, number, &arguments, &mut on_seal);
                }
            }
            libc::SIGTRAP if tid == first || status >> 16 != 0 => {
                if tid == first && !thread.begun {
                    options(tid);
                }
            }
            libc::SIGSTOP if !thread.begun => {}
            signal => deliver = signal,
        }
        threads.entry(tid).or_default().begun = true;
        // SAFETY: a system call. The thread may have been killed just now.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, tid, 0, deliver) };
    }
    trace
}

fn seen(
    trace: &mut Trace,
    threads: &mut BTreeMap<i32, Thread>,
    tid: i32,
    features: Features,
    number: i64,
    arguments: &[u64; 6],
    on_seal: &mut impl FnMut(i32),
) {
    let thread = threads.get_mut(&tid).unwrap();
    match thread.sealed {
        None if number == libc::SYS_seccomp && arguments[0] == 1 => {
            (thread.process, thread.name) = identify(tid);
            let kind = match thread.name.as_str() {
                "control" => ThreadKind::Control,
                "settle" => ThreadKind::Settle,
                name if name.starts_with("vcpu") => ThreadKind::Vcpu,
                "disk" => ThreadKind::Disk,
                name if name.starts_with("fetch") => ThreadKind::Fetch,
                _ => ThreadKind::EventLoop,
            };
            thread.sealed = Some(kind);
            trace.sealed.insert(kind);
            if kind == ThreadKind::EventLoop {
                on_seal(tid);
            }
        }
        None => {
            if thread.process == 0 {
                (thread.process, thread.name) = identify(tid);
            }
            let (process, name) = (thread.process, thread.name.clone());
            let main = threads.get(&process);
            if main.is_some_and(|main| main.sealed.is_some()) {
                trace.unsealed.insert(format!("{name}: call {number}"));
            }
        }
        Some(kind) => match allowing(kind, features, number, arguments) {
            Some(rule) => {
                trace.used.insert((kind, rule.name, format!("{:x?}", rule.arguments)));
            }
            None => {
                trace.refused.insert(format!("{kind}: call {number} {:x?}", &arguments[..4]));
            }
        },
    }
}

/// The process that a thread is of, and its name.
fn identify(tid: i32) -> (i32, String) {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
    (line("Tgid:").parse().unwrap_or(0), line("Name:").to_owned())
}

fn check(result: libc::c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn options(tid: i32) {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC;
    // SAFETY: a system call.
    check(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options) }).unwrap();
}

/// The next of this thread's tracees that stops or ends; none: there are no more.
fn wait() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: a system call.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (tid > 0).then_some((tid, status))
}

/// `struct ptrace_syscall_info` as far as an entry has it.
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
    rest: [u64; 4],
}

/// The call that a thread is about to make; none if it comes back from one.
fn entry(tid: i32) -> Option<(i64, [u64; 6])> {
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    let mut info = Info::default();
    // SAFETY: the kernel writes as much as it is told that there is room for.
    let result =
        unsafe { libc::ptrace(GET_SYSCALL_INFO as _, tid, size_of::<Info>(), &raw mut info) };
    (result > 0 && info.op == 1).then(|| (i64::try_from(info.number).unwrap(), info.arguments))
}
