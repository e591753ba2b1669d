//! The network's part of a move, asked for on a socket: a line for each step, answered by `ok` or by why not.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use continuation::mover::Route;

pub struct LineRoute(BufReader<UnixStream>);

impl LineRoute {
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(path)?)))
    }

    fn ask(&mut self, step: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{step}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.trim_end() {
            "ok" => Ok(()),
            "" => Err(io::ErrorKind::UnexpectedEof.into()),
            why => Err(io::Error::other(why.to_owned())),
        }
    }
}

impl Route for LineRoute {
    fn hold(&mut self) -> io::Result<()> {
        self.ask("hold")
    }

    fn drain(&mut self) -> io::Result<()> {
        self.ask("drain")
    }

    fn seal(&mut self) -> io::Result<()> {
        self.ask("seal")
    }

    fn point(&mut self) -> io::Result<()> {
        self.ask("point")
    }

    fn release(&mut self) -> io::Result<()> {
        self.ask("release")
    }

    fn revert(&mut self) -> io::Result<()> {
        self.ask("revert")
    }
}
