//! What runs in the jails of these tests: this program.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};

use vmm::jail::launch::{Jail, JailSpec, Program};
use vmm::jail::seccomp::Features;
use vmm::jail::{Confinement, JailedProcess, ThreadKind, first, is_confined, seal};

/// The variable that says what to do inside.
pub const WORD: &str = "JAIL_TEST_DO";

/// A program that confines itself and then does what `word` says.
pub fn program<'a>(jail: &Jail<'_>, word: &str, standard: [BorrowedFd<'a>; 3]) -> Program<'a> {
    let confinement = Confinement {
        user: jail.user(),
        leave_network: jail.has_network(),
        ..Confinement::default()
    };
    let environment = [format!("{WORD}={word}"), format!("JAIL_TEST_CONFINEMENT={confinement}")];
    Program {
        arguments: vec!["jail".into()],
        environment: environment.map(OsString::from).to_vec(),
        standard,
        files: Vec::new(),
    }
}

/// A jail as that of a VM.
pub fn spec<'a>() -> JailSpec<'a> {
    JailSpec {
        identity: vmm::jail::identity::Identity::best(std::process::id()),
        cgroup: None,
        loads_by_network: false,
        own_session: true,
        ends_by: None,
    }
}

/// Runs `word` in a jail, with nothing on standard input and what it prints on `output`.
pub fn start(word: &str, output: BorrowedFd<'_>) -> JailedProcess {
    let nothing = std::fs::File::open("/dev/null").unwrap();
    let jail = Jail::prepare(spec()).unwrap();
    jail.spawn(&program(&jail, word, [nothing.as_fd(), output, output])).unwrap()
}

/// Runs before the program's own beginning, which would start threads: then there are none yet, as in a
/// VM's process that is about to confine itself.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let Some(word) = std::env::var_os(WORD) else { return };
    match word.to_str().unwrap() {
        "many" => crate::process::many(),
        word => inside(word),
    }
    std::process::exit(0);
}

/// Confines itself, and does what `word` says.
fn inside(word: &str) {
    first::begin();
    let confinement: Confinement = std::env::var("JAIL_TEST_CONFINEMENT").unwrap().parse().unwrap();
    confinement.enter(Features::default(), Vec::new()).unwrap();
    assert!(is_confined());
    match word.split(':').collect::<Vec<_>>()[..] {
        ["wait"] => wait(),
        ["panic"] => panic!("as it was asked to"),
        ["open", path] => {
            let opened = std::fs::File::open(path).map(drop);
            println!("open: {:?}", opened.map_err(|error| error.kind()));
        }
        ["memory", mib] => {
            let mut all = Vec::new();
            for _ in 0..mib.parse::<u64>().unwrap() {
                all.push(vec![1_u8; 1 << 20]);
            }
            println!("memory: {}", all.len());
        }
        ["threads", count] => {
            let threads: Vec<_> = (0..count.parse().unwrap())
                .map(|_| std::thread::Builder::new().spawn(wait))
                .take_while(Result::is_ok)
                .collect();
            println!("threads: {}", threads.len());
        }
        ["call", kind, number] => call(kind, number.parse().unwrap()),
        _ => panic!("{word}"),
    }
}

/// Lasts until it is killed.
fn wait() {
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Makes a system call, with zeros, from a thread that is sealed as one of `kind`.
fn call(kind: &str, number: i64) {
    let kind = ThreadKind::ALL.into_iter().find(|other| other.to_string() == kind).unwrap();
    std::thread::spawn(move || {
        println!("before");
        seal(kind).unwrap();
        // SAFETY: calls that, with zeros for arguments, do nothing but fail, if anything lets them.
        let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        println!("after: {result}");
        // The main thread, as which it may be sealed, does not end in any other way.
        std::process::exit(0);
    })
    .join()
    .unwrap();
}
