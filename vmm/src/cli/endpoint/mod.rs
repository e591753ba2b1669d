//! `vmm endpoint`: services that are reached by an identifier of their own, wherever they run.

mod table;
mod which;

use std::io::IsTerminal;
use std::time::Duration;

use ::endpoint::name::{Name, Pattern};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use self::which::{Target, Which};
use super::CliError;
use super::reach::Asking;
use crate::api::client::{Client, ClientError, part};
use crate::api::endpoint::{AnnounceEndpoint, EndpointAction, EndpointDone, EndpointInfo};
use crate::exit::Exit;
use crate::spec::name::VmName;

/// What a move has come to if all is well.
const MOVED: &str = "moved";

/// Look at virtual endpoints, and move them between VMs.
///
/// A virtual endpoint is a service that clients reach by an identifier of its
/// own, an Ethernet address, and not by the VM or the host that it runs on. So it
/// can move to another VM with its connections, and no client notices. A service
/// has a name, and one or more ranges of identifiers ('requests', counted from 0),
/// each of which is at one VM; ranges can be split, merged and mirrored.
///
/// VMs are booted with what they may serve; they announce it themselves, or it is
/// announced here. With 'web' booted as VMs a and b:
///
///   vmm boot --node -d --image web --name a --net nat --endpoint services=web
///   vmm boot --node -d --image web --name b --net nat --endpoint services=web
///   vmm endpoint announce web --vm a --listen
///   vmm endpoint move web --to b
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct EndpointCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the ranges of services: where each is, and what happens to it.
    Ls(LsCommand),
    /// Show all that is known of a service's ranges.
    Show(ShowCommand),
    /// Make identifiers known as those of a VM of this node.
    ///
    /// Nobody else may have them from then on. Frames reach the VM when it listens (--listen, or 'vmm endpoint
    /// listen').
    Announce(AnnounceCommand),
    /// Let frames to announced identifiers reach their VM.
    Listen(Plain),
    /// Give identifiers up: frames to them reach nobody.
    Withdraw(Plain),
    /// Move a service to another VM, with its connections.
    ///
    /// Waits until the move has ended. Frames are held meanwhile and none is lost; 'blackout' is for how long. A
    /// move that fails goes back: the service is where it was, and the exit code is 14.
    Move(MoveCommand),
    /// Split a range in two, of which the second may move at once.
    Split(SplitCommand),
    /// Make one range of those of one VM that follow each other.
    Merge(Plain),
    /// Note that a VM has a copy of a service's state, or has none any more.
    Mirror(MirrorCommand),
    /// Have a service stay where it is.
    Freeze(Plain),
    /// Let a service move again, after 'freeze' or after it was moved too often.
    Thaw(Plain),
}

#[derive(Debug, Args)]
struct LsCommand {
    /// Only this service, or those that a pattern stands for, as 'kv.*'.
    pattern: Option<String>,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct ShowCommand {
    /// Name of the service.
    service: Name,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct AnnounceCommand {
    #[command(flatten)]
    which: Which,

    /// The VM of this node whose they are to be; it was booted with '--endpoint services=...'.
    #[arg(long, value_name = "VM")]
    vm: VmName,

    /// Let frames reach it at once.
    #[arg(long)]
    listen: bool,

    #[command(flatten)]
    asking: Asking,
}

/// A command that needs no more than to know which identifiers.
#[derive(Debug, Args)]
struct Plain {
    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct MoveCommand {
    #[command(flatten)]
    which: Which,

    /// Where to: VM, HOST/VM, or any VM of this node that may serve it ('any').
    #[arg(long, value_name = "VM")]
    to: Target,

    /// The service brings its state over by itself.
    #[arg(long)]
    stateless: bool,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct SplitCommand {
    #[command(flatten)]
    which: Which,

    /// The first request of the second part.
    #[arg(long, value_name = "N")]
    at: u32,

    /// Move the second part to this VM: VM, HOST/VM, or any.
    #[arg(long, value_name = "VM")]
    to: Option<Target>,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct MirrorCommand {
    #[command(flatten)]
    which: Which,

    /// The VM with the copy: VM or HOST/VM.
    #[arg(long, value_name = "VM")]
    to: Target,

    /// It has none any more.
    #[arg(long)]
    remove: bool,

    #[command(flatten)]
    asking: Asking,
}

impl EndpointCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Ls(command) => command.run(),
            Command::Show(command) => command.run(),
            Command::Announce(command) => command.run(),
            Command::Listen(plain) => plain.run(|range| EndpointAction::Listen { range }),
            Command::Withdraw(plain) => plain.run(|range| EndpointAction::Withdraw { range }),
            Command::Merge(plain) => plain.run(|range| EndpointAction::Merge { range }),
            Command::Freeze(plain) => plain.run(|range| EndpointAction::Freeze { range }),
            Command::Thaw(plain) => plain.run(|range| EndpointAction::Thaw { range }),
            Command::Move(MoveCommand { which, to, stateless, asking }) => {
                let range = which.range.to_api();
                let (to, stateless) = (to.to_api(), *stateless);
                asking.act(&which.service, &EndpointAction::Move { range, to, stateless })
            }
            Command::Split(SplitCommand { which, at, to, asking }) => {
                let (range, to) = (which.range.to_api(), to.as_ref().map(Target::to_api));
                asking.act(&which.service, &EndpointAction::Split { range, at: *at, to })
            }
            Command::Mirror(MirrorCommand { which, to, remove, asking }) => {
                let (range, to) = (which.range.to_api(), to.to_api());
                let action = EndpointAction::Mirror { range, to, remove: *remove };
                asking.act(&which.service, &action)
            }
        }
    }
}

impl LsCommand {
    fn run(&self) -> Result<Exit, CliError> {
        let mut path = "/v1/endpoints".to_owned();
        if let Some(pattern) = &self.pattern {
            // One that is none is refused before anybody is asked.
            pattern.parse::<Pattern>()?;
            path = format!("{path}?service={}", part(pattern));
        }
        let mut all = Vec::new();
        for client in self.asking.reach.all()? {
            join(&mut all, client.get::<Vec<EndpointInfo>>(&path)?);
        }
        self.asking.print(&all, &table::endpoints(&all))
    }
}

/// Adds what another node knows; of a range that both know, what its own node says holds.
fn join(all: &mut Vec<EndpointInfo>, more: Vec<EndpointInfo>) {
    for info in more {
        // Hosts with directories of their own may have the same range each.
        let is_it = |other: &&mut EndpointInfo| {
            (&other.vid, other.lo, other.hi) == (&info.vid, info.lo, info.hi)
                && (&other.form, &other.owner) == (&info.form, &info.owner)
        };
        match all.iter_mut().find(is_it) {
            None => all.push(info),
            Some(other) if info.listening.is_some() => *other = info,
            Some(_) => {}
        }
    }
}

impl ShowCommand {
    fn run(&self) -> Result<Exit, CliError> {
        let client = self.asking.reach.one()?;
        let path = format!("/v1/endpoints/{}", part(self.service.as_str()));
        let all: Vec<EndpointInfo> = client.get(&path)?;
        self.asking.print(&all, &table::details(&all))
    }
}

impl AnnounceCommand {
    fn run(&self) -> Result<Exit, CliError> {
        let wish = AnnounceEndpoint {
            service: self.which.service.to_string(),
            range: self.which.range.to_api(),
            vm: self.vm.to_string(),
            listen: self.listen,
        };
        let made: EndpointInfo = self.asking.reach.one()?.post("/v1/endpoints", &wish)?;
        self.asking.print(&made, &table::endpoints(std::slice::from_ref(&made)))
    }
}

impl Plain {
    fn run(
        &self,
        action: impl FnOnce(crate::api::endpoint::EndpointRange) -> EndpointAction,
    ) -> Result<Exit, CliError> {
        self.asking.act(&self.which.service, &action(self.which.range.to_api()))
    }
}

impl Asking {
    /// Has the agent do something, and tells what came of it.
    fn act(&self, service: &Name, action: &EndpointAction) -> Result<Exit, CliError> {
        let client = self.reach.one()?;
        let done = match action {
            EndpointAction::Move { to, .. } | EndpointAction::Split { to: Some(to), .. } => {
                let spinner = spinner(service, to);
                let done = post(&client, service, action);
                if let Some(spinner) = spinner {
                    spinner.finish_and_clear();
                }
                done?
            }
            _ => post(&client, service, action)?,
        };
        self.print(&done, &said(service, &done))?;
        let went_back = done.moved.is_some_and(|info| info.outcome != MOVED);
        Ok(if went_back { Exit::MoveAborted } else { Exit::Success })
    }
}

fn post(
    client: &Client,
    service: &Name,
    action: &EndpointAction,
) -> Result<EndpointDone, ClientError> {
    client.post(&format!("/v1/endpoints/{}/actions", part(service.as_str())), action)
}

/// Shows that a move goes on, on a terminal.
fn spinner(service: &Name, to: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{spinner} {msg}: {elapsed}").ok()?;
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.set_message(format!("moving {service} to {to}"));
    spinner.enable_steady_tick(Duration::from_millis(100));
    Some(spinner)
}

fn said(service: &Name, done: &EndpointDone) -> String {
    let mut text = match (done.endpoints.as_slice(), &done.moved) {
        ([], None) => format!("{service}\n"),
        ([], Some(_)) => String::new(),
        (all, _) => table::endpoints(all),
    };
    if let Some(info) = &done.moved {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table::moved(info));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        endpoint: EndpointCommand,
    }

    fn is_taken(words: &str) -> bool {
        let words = std::iter::once("endpoint").chain(words.split_whitespace());
        Line::try_parse_from(words).is_ok()
    }

    #[test]
    fn commands_are_read() {
        for words in [
            "ls",
            "ls kv.* --json",
            "show web",
            "announce web --vm a --range 0-9 --form suffix --listen",
            "listen web",
            "withdraw web --range 4",
            "move web --to host-2/b --json",
            "split web --at 5 --to any",
            "merge web",
            "mirror web --to b --remove",
            "freeze web",
            "thaw rsmgr.slurm",
        ] {
            assert!(is_taken(words), "{words}");
        }
        for words in [
            "",
            "show",
            "show Web",
            "show kv.*",
            "announce web",
            "announce web --vm a/b",
            "announce web --vm a --range 9-0",
            "announce web --vm a --form middle",
            "move web",
            "move web --to /b",
            "split web",
            "split web --at -1",
            "mirror web",
        ] {
            assert!(!is_taken(words), "{words}");
        }
    }

    #[test]
    fn what_its_own_node_says_of_a_range_holds() {
        let info = |owner: &str, listening| EndpointInfo {
            service: "web".into(),
            form: "prefix".into(),
            lo: 0,
            hi: 0,
            vid: "02:00:00:00:00:00".into(),
            home: format!("{owner}/a"),
            mirrors: Vec::new(),
            phase: "home".into(),
            to: None,
            owner: owner.into(),
            epoch: 1,
            listening,
        };
        let mut all = Vec::new();
        join(&mut all, vec![info("one", None), info("two", Some(true))]);
        join(&mut all, vec![info("one", Some(false)), info("two", None)]);
        assert_eq!(all, [info("one", Some(false)), info("two", Some(true))]);
    }
}
