//! `endpoint`: services that are found, served and moved.

mod local;

use std::fmt::Write;

use clap::{Args, Subcommand, ValueEnum};
use guest_agent::calls::endpoint::{self, Change, Endpoint, Moved, Range, Vid};
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global};

/// Find, serve and move services, which are reached by identifiers and not by where they are.
///
/// A service becomes reachable by 'announce' and 'up', and lets clients in by 'listen'. 'move' takes it, with
/// its connections, to another VM, where a server of it waits; its clients notice nothing. All but 'resolve' need
/// the right 'serve', which the operator gives with the names of the services.
#[derive(Debug, Args)]
pub struct EndpointCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Resolve(ResolveCommand),
    Announce(AnnounceCommand),
    Listen(ListenCommand),
    Bind(BindCommand),
    Withdraw(WithdrawCommand),
    Move(MoveCommand),
    Split(SplitCommand),
    Merge(MergeCommand),
    Mirror(MirrorCommand),
    Up(local::UpCommand),
    Down(local::DownCommand),
}

impl EndpointCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        match &self.command {
            Command::Resolve(command) => command.run(options),
            Command::Announce(command) => command.run(options),
            Command::Listen(command) => command.run(options),
            Command::Bind(command) => command.run(options),
            Command::Withdraw(command) => command.run(options),
            Command::Move(command) => command.run(options),
            Command::Split(command) => command.run(options),
            Command::Merge(command) => command.run(options),
            Command::Mirror(command) => command.run(options),
            Command::Up(command) => command.run(options),
            Command::Down(command) => command.run(options),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// The service stands first in the identifier, the request's number last.
    Prefix,
    /// The request's number stands first.
    Suffix,
}

/// Which identifiers of a service.
#[derive(Debug, Args)]
struct RangeOptions {
    /// The service, as 'web' or 'rsmgr.cpu'.
    service: String,

    /// Where the identifiers have the service.
    #[arg(long, value_enum)]
    form: Option<Form>,

    /// Numbers of the first and the last request, or one number; all that this VM has by default.
    #[arg(long, value_name = "LOW-HIGH", value_parser = numbers)]
    range: Option<(u32, u32)>,
}

/// `7` or `0-1023`.
fn numbers(text: &str) -> Result<(u32, u32), String> {
    let number = |digits: &str| {
        let plain = digits.bytes().all(|digit| digit.is_ascii_digit()).then_some(digits);
        plain.and_then(|digits| digits.parse::<u32>().ok())
    };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (number(low), number(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        _ => Err("a range is two numbers, the lower first, as 0-1023, or one number".to_owned()),
    }
}

impl RangeOptions {
    fn range(&self) -> Range {
        Range {
            service: self.service.clone(),
            form: self.form.map(|form| match form {
                Form::Prefix => endpoint::Form::Prefix,
                Form::Suffix => endpoint::Form::Suffix,
            }),
            low: self.range.map(|(low, _)| low),
            high: self.range.map(|(_, high)| high),
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    endpoints: Vec<Endpoint>,
}

fn print(options: &Global, endpoints: Vec<Endpoint>) -> Result<Exit, CliError> {
    let mut text = format!(
        "{:<24} {:<6} {:<15} {:<17} {:<6} {:<9} OWN\n",
        "SERVICE", "FORM", "RANGE", "FIRST", "EPOCH", "PHASE"
    );
    for one in &endpoints {
        let range = format!("{}-{}", one.low, one.high);
        let own = if one.own { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "{:<24} {:<6} {range:<15} {:<17} {:<6} {:<9} {own}",
            one.service, one.form, one.vid, one.epoch, one.phase
        );
    }
    options.print(&List { endpoints }, &text)?;
    Ok(Exit::Success)
}

/// Find a service and the identifiers by which it is reached.
#[derive(Debug, Args)]
struct ResolveCommand {
    /// The service, or a pattern, as 'rsmgr.*'.
    service: String,

    /// Of each range, show the identifier to which a request of this hash goes.
    #[arg(long, value_name = "NUMBER")]
    hash: Option<u64>,
}

impl ResolveCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let found = options.driver()?.resolve(&self.service, self.hash)?;
        print(options, found)
    }
}

/// Make identifiers of a service known as this VM's: number 0 if no range is said.
///
/// Nobody is let in before 'listen', so there is time to set a server up.
#[derive(Debug, Args)]
struct AnnounceCommand {
    #[command(flatten)]
    range: RangeOptions,
}

impl AnnounceCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let made = options.driver()?.announce(&self.range.range())?;
        print(options, made)
    }
}

/// Let clients in, and what the server sends out.
#[derive(Debug, Args)]
struct ListenCommand {
    #[command(flatten)]
    range: RangeOptions,
}

impl ListenCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let open = options.driver()?.listen(&self.range.range())?;
        print(options, open)
    }
}

/// As 'listen', of one identifier.
#[derive(Debug, Args)]
struct BindCommand {
    /// The identifier, as 0e:53:00:00:00:01.
    #[arg(value_name = "IDENTIFIER")]
    vid: Vid,
}

impl BindCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let open = options.driver()?.bind(self.vid)?;
        print(options, open)
    }
}

#[derive(Debug, Serialize)]
struct Withdrawn<'a> {
    withdrawn: &'a str,
}

/// Give identifiers up: others may announce them, and nothing of them passes here.
#[derive(Debug, Args)]
struct WithdrawCommand {
    #[command(flatten)]
    range: RangeOptions,
}

impl WithdrawCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        options.driver()?.withdraw(&self.range.range())?;
        options.print(&Withdrawn { withdrawn: &self.range.service }, "")?;
        Ok(Exit::Success)
    }
}

/// Move a service of this VM to another, with its connections. Needs the right 'migrate'.
///
/// There a server of it must wait (as 'stream-server --service NAME --standby' does). The command ends when the
/// move has; if that fails, the service goes on here.
#[derive(Debug, Args)]
struct MoveCommand {
    #[command(flatten)]
    range: RangeOptions,

    /// Where to: 'VM', 'HOST/VM', or 'any' that may serve it.
    #[arg(long, value_name = "VM")]
    to: String,

    /// The service brings its state over by itself, and none is sent. Needs the right 'split' instead.
    #[arg(long)]
    own_state: bool,
}

impl MoveCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let (mut driver, range) = (options.driver()?, self.range.range());
        let moved: Moved = if self.own_state {
            driver.move_range(&range, &self.to)?
        } else {
            driver.migrate_request(&range, &self.to)?
        };
        let text = format!(
            "moved to {} in {} us (move {})\n",
            moved.place, moved.microseconds, moved.number
        );
        options.print(&moved, &text)?;
        Ok(Exit::Success)
    }
}

/// Split identifiers of this VM in two; the second part can go to another VM. Needs the right 'split'.
#[derive(Debug, Args)]
struct SplitCommand {
    #[command(flatten)]
    range: RangeOptions,

    /// Number of the first request of the second part.
    #[arg(long, value_name = "NUMBER")]
    at: u32,

    /// The VM to which the second part moves, as 'VM' or 'HOST/VM'; it stays here by default.
    #[arg(long, value_name = "VM")]
    to: Option<String>,
}

impl SplitCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let mut driver = options.driver()?;
        let parts = driver.split(&self.range.range(), self.at, self.to.as_deref())?;
        print(options, parts)
    }
}

/// Join identifiers of this VM that follow each other. Needs the right 'split'.
#[derive(Debug, Args)]
struct MergeCommand {
    #[command(flatten)]
    range: RangeOptions,
}

impl MergeCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let whole = options.driver()?.merge(&self.range.range())?;
        print(options, whole)
    }
}

/// Note another VM that has a copy of what is served. Needs the right 'split'.
#[derive(Debug, Args)]
struct MirrorCommand {
    #[command(flatten)]
    range: RangeOptions,

    /// The VM, as 'VM' or 'HOST/VM'.
    #[arg(long, value_name = "VM")]
    at: String,

    /// It has no copy any more.
    #[arg(long)]
    remove: bool,
}

impl MirrorCommand {
    fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let change = self.remove.then_some(Change::Delete);
        let noted = options.driver()?.mirror(&self.range.range(), &self.at, change)?;
        print(options, noted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers_or_one() {
        assert_eq!(numbers("0-1023"), Ok((0, 1023)));
        assert_eq!(numbers("7"), Ok((7, 7)));
        for wrong in ["", "-", "5-4", "1-", "-1", "+1", "1-2-3", "4294967296"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }
}
