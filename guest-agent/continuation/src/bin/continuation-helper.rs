//! The helper of programs whose TCP connections move: it has `CAP_NET_ADMIN` and nothing else.
//!
//! Without arguments it serves the socket that is its standard input, and ends with it. With `--listen PATH` it
//! serves whoever may connect to PATH, which only the user who started it, and root, may.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use continuation::helper;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let result = match (arguments.next(), arguments.next(), arguments.next()) {
        (None, ..) => helper::confine()
            .map_err(io::Error::other)
            .and_then(|()| helper::serve(io::stdin().as_fd())),
        (Some(option), Some(path), None) if option == "--listen" => listen(Path::new(&path)),
        _ => Err(io::Error::other("the helper takes nothing, or --listen PATH")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("continuation-helper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Nobody else may connect, not even between its making and the change of its mode.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::process::umask(mask);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    helper::confine().map_err(io::Error::other)?;
    rustix::net::listen(&socket, 16)?;
    loop {
        let client = rustix::net::accept_with(&socket, flags)?;
        thread::Builder::new().name("client".into()).spawn(move || {
            if let Err(error) = helper::serve(&client) {
                eprintln!("continuation-helper: {error}");
            }
        })?;
    }
}
