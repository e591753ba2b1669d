//! `vmm console`: this terminal as the console of a VM of the node agent.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use clap::Args;

use super::reach::Reach;
use super::{CliError, copy_out, say};
use crate::api::client::Client;
use crate::api::{VmInfo, VmState};
use crate::exit::Exit;
use crate::machine::escape::{EscapeFilter, Wish};
use crate::machine::terminal::RawTerminal;
use crate::spec::name::VmName;

/// The most that is typed at once, in bytes.
const MAX_INPUT: usize = 4096;
/// What the escape can do, where it leaves the VM alone.
const LEAVE_HELP: &str =
    "\r\n[vmm: Ctrl-A x leaves the console, Ctrl-A Ctrl-A types Ctrl-A, Ctrl-A ? is this help]\r\n";

/// Use a VM's console: what it prints is shown, the last 64 KiB first, and what is typed it gets.
///
/// Ctrl-A x leaves the console, and the VM lives on. Several may use a console at a time.
#[derive(Debug, Args)]
pub struct ConsoleCommand {
    /// Name of the VM.
    #[arg(value_name = "NAME")]
    name: VmName,

    #[command(flatten)]
    reach: Reach,
}

impl ConsoleCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        let info: VmInfo = client.get(&format!("/v1/vms/{}", self.name))?;
        if info.state == VmState::Ended {
            return Err(CliError::VmEnded(self.name.clone()));
        }
        let attached = Attached::begin(&client, &self.name, LEAVE_HELP)?;
        match attached.wait() {
            Happened::Quit => say("\nvmm: left the console; the VM lives on\n"),
            Happened::Output(ended) => {
                drop(attached);
                ended?;
                say("\nvmm: the console has ended\n");
            }
        }
        Ok(Exit::Success)
    }
}

/// What happened at a console.
#[derive(Debug)]
pub enum Happened {
    /// Who sits there is done.
    Quit,
    /// It prints no more.
    Output(Result<(), CliError>),
}

/// This terminal as a console; as it was when this is dropped.
#[derive(Debug)]
pub struct Attached {
    happened: std::sync::mpsc::Receiver<Happened>,
    _terminal: Option<RawTerminal>,
}

impl Attached {
    /// Begins. `help` is what the escape shows.
    ///
    /// # Errors
    /// The agent's refusal, or the terminal's.
    pub fn begin(client: &Client, name: &VmName, help: &'static str) -> Result<Self, CliError> {
        let path = format!("/v1/vms/{name}/console");
        let stream = client.stream(&format!("{path}?follow=true"))?;
        let terminal = RawTerminal::enter().map_err(CliError::terminal)?;
        let (sender, happened) = channel();
        let (printed, client) = (sender.clone(), client.clone());
        // They end with the process: one waits for the agent, the other for the keyboard.
        thread::spawn(move || printed.send(Happened::Output(copy_out(stream))));
        thread::spawn(move || type_all(&client, &path, help, &sender));
        Ok(Self { happened, _terminal: terminal })
    }

    /// Waits until something happens.
    pub fn wait(&self) -> Happened {
        // The thread that prints always says so.
        self.happened.recv().unwrap_or(Happened::Output(Ok(())))
    }
}

/// Hands on what is typed, until there is nobody who types.
fn type_all(client: &Client, path: &str, help: &str, quit: &Sender<Happened>) {
    let (mut filter, mut buffer) = (EscapeFilter::default(), [0; MAX_INPUT / 2]);
    loop {
        let count = match rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut buffer)) {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let mut keys = Vec::with_capacity(2 * count);
        let wish = filter.filter(&buffer[..count], &mut keys);
        if !keys.is_empty()
            && let Err(error) = client.post_bytes(path, &keys)
        {
            say(&format!("\r\n[vmm: that was not typed: {error}]\r\n"));
        }
        match wish {
            Some(Wish::Quit) => {
                let _ = quit.send(Happened::Quit);
            }
            Some(Wish::Help) => say(help),
            None => {}
        }
    }
}
