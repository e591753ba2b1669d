//! `log`, `ready`, `heartbeat`, `mark` and `metrics`: what a guest tells its VMM.

use clap::{Args, ValueEnum};
use control_abi::register::{Register, mark};
use guest_agent::calls;
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global};

/// Put a message into the VM's log on the host.
#[derive(Debug, Args)]
pub struct LogCommand {
    /// The message, of at most 1024 bytes.
    text: String,

    /// How bad it is.
    #[arg(long, value_enum, default_value_t = Level::Info)]
    level: Level,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Error,
    Warning,
    Info,
    Debug,
}

/// What a command prints that has nothing to tell but that it is done.
#[derive(Debug, Serialize)]
struct Done {
    done: bool,
}

fn done(options: &Global) -> Result<Exit, CliError> {
    options.print(&Done { done: true }, "")?;
    Ok(Exit::Success)
}

impl LogCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let level = match self.level {
            Level::Error => calls::Level::Error,
            Level::Warning => calls::Level::Warning,
            Level::Info => calls::Level::Information,
            Level::Debug => calls::Level::Debugging,
        };
        options.driver()?.log(&self.text, level)?;
        done(options)
    }
}

/// Say that this VM does what it was booted for.
#[derive(Debug, Args)]
pub struct ReadyCommand {
    /// What to add to it.
    text: Option<String>,
}

impl ReadyCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        options.driver()?.ready(self.text.as_deref())?;
        done(options)
    }
}

/// Say that this VM is alive.
#[derive(Debug, Args)]
pub struct HeartbeatCommand {}

impl HeartbeatCommand {
    pub fn run(options: &Global) -> Result<Exit, CliError> {
        options.driver()?.heartbeat()?;
        done(options)
    }
}

/// Have the VMM note a name with its time, for tracing the boot.
///
/// 'init' and 'user-space' are the VMM's own marks, and a number from 16 on is one without a name:
/// these cost no more than an access to a register.
#[derive(Debug, Args)]
pub struct MarkCommand {
    /// The name, of at most 64 bytes.
    name: String,
}

impl MarkCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        match number(&self.name) {
            Some(number) => options.registers()?.write(Register::Mark, number),
            None => options.driver()?.mark(&self.name)?,
        }
        done(options)
    }
}

fn number(name: &str) -> Option<u32> {
    match name {
        "init" => Some(mark::INIT),
        "user-space" => Some(mark::USER_SPACE),
        name => name.parse().ok().filter(|number| *number >= mark::FIRST_OWN),
    }
}

/// Tell values of metrics, at most 64 at once.
#[derive(Debug, Args)]
pub struct MetricsCommand {
    /// Names and values, which are whole numbers from 0 on.
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = metric)]
    metrics: Vec<(String, u64)>,
}

fn metric(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.rsplit_once('=').ok_or("it is no NAME=VALUE")?;
    let value = value.parse().map_err(|_| format!("'{value}' is no whole number from 0 on"))?;
    if name.is_empty() { Err("there is no name".to_owned()) } else { Ok((name.to_owned(), value)) }
}

impl MetricsCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let metrics = self.metrics.iter().map(|(name, value)| (name.as_str(), *value));
        options.driver()?.metrics(metrics)?;
        done(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_a_name_and_a_number() {
        assert_eq!(metric("a=b=7"), Ok(("a=b".to_owned(), 7)));
        for wrong in ["a", "a=", "a=-1", "=1", "a=1.5"] {
            assert!(metric(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn some_marks_are_numbers() {
        assert_eq!((number("init"), number("user-space")), (Some(1), Some(2)));
        assert_eq!((number("16"), number("15"), number("1x")), (Some(16), None, None));
    }
}
