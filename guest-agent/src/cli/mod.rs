//! The command line: a typed definition, with a struct for each subcommand.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

mod cache;
mod device;
mod endpoint;
mod exit;
mod flow;
mod image;
mod interrupt;
mod run;
mod say;
mod vm;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use guest_agent::discover::{self, Device, DiscoverError};
use guest_agent::driver::{Driver, DriverError, Options};
use guest_agent::interface::InterfaceError;
use guest_agent::lock::LockError;
use guest_agent::registers::{self, Access, RegisterError, Registers};
use serde::Serialize;

use exit::Exit;

/// Talks to the VMM through the control device of this VM. Needs root.
#[derive(Debug, Parser)]
#[command(name = "guest-agent", version, after_help = exit::TABLE)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    options: Global,

    #[command(subcommand)]
    command: Command,
}

/// What all subcommands take.
#[derive(Debug, Args)]
struct Global {
    /// Print results as lines of JSON.
    #[arg(long, global = true)]
    json: bool,

    /// How to reach the device's registers.
    #[arg(long, global = true, value_enum, default_value_t = Way::Auto)]
    access: Way,

    /// Where the device is, where nothing says so: port and address, as 0xd00,0xd0100000.
    #[arg(long, global = true, value_name = "PORT,ADDRESS")]
    device: Option<String>,

    /// Do without the device's event ring and line.
    #[arg(long, global = true)]
    no_events: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    /// By ports, else in memory.
    Auto,
    /// By I/O ports.
    Ports,
    /// In memory, through /dev/mem.
    Memory,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(device::StatusCommand),
    Ping(device::PingCommand),
    Cancel(device::CancelCommand),
    Log(say::LogCommand),
    Ready(say::ReadyCommand),
    Heartbeat(say::HeartbeatCommand),
    Mark(say::MarkCommand),
    Metrics(say::MetricsCommand),
    Stat(image::StatCommand),
    Fetch(image::FetchCommand),
    Boot(vm::BootCommand),
    Load(vm::LoadCommand),
    Ps(vm::PsCommand),
    Inspect(vm::InspectCommand),
    Console(vm::ConsoleCommand),
    Stop(vm::StopCommand),
    Cache(cache::CacheCommand),
    Endpoint(endpoint::EndpointCommand),
    Flow(flow::FlowCommand),
    Run(run::RunCommand),
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error(transparent)]
    Registers(#[from] RegisterError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("there is no service '{0}'; announce it, or name its identifier by --vid")]
    NoService(String),
    #[error("{0}")]
    Unequal(&'static str),
    #[error("interrupted")]
    Interrupted,
    #[error("cannot {what}: {source}")]
    File { what: String, source: io::Error },
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Discover(DiscoverError::BadPlace(_)) => Exit::Usage,
            Self::Discover(DiscoverError::Hidden(_)) => Exit::Closed,
            Self::Discover(_) | Self::Registers(RegisterError::BadMagic { .. }) => Exit::NoDevice,
            Self::Registers(_) => Exit::Closed,
            Self::Driver(error) => match error {
                DriverError::Refused { .. } => Exit::Refused,
                DriverError::Argument { .. } => Exit::Usage,
                DriverError::Pin(_) | DriverError::Lock(_) | DriverError::NoBuffer { .. } => {
                    Exit::Closed
                }
                _ => Exit::NoAnswer,
            },
            Self::Interface(
                InterfaceError::Name(_)
                | InterfaceError::Address { .. }
                | InterfaceError::Gateway(_),
            ) => Exit::Usage,
            Self::Interface(_) => Exit::File,
            Self::NoService(_) => Exit::Refused,
            Self::Unequal(_) => Exit::NoAnswer,
            Self::Interrupted => Exit::Interrupted,
            Self::File { .. } => Exit::File,
        }
    }
}

impl From<LockError> for CliError {
    fn from(error: LockError) -> Self {
        Self::Driver(error.into())
    }
}

impl Global {
    fn find(&self) -> Result<Device, CliError> {
        Ok(match &self.device {
            Some(place) => discover::parse_place(place)?,
            None => discover::discover()?,
        })
    }

    fn registers(&self) -> Result<Box<dyn Registers>, CliError> {
        let access = match self.access {
            Way::Auto => Access::Any,
            Way::Ports => Access::Ports,
            Way::Memory => Access::Memory,
        };
        Ok(registers::open(&self.find()?, access)?)
    }

    fn driver(&self) -> Result<Driver, CliError> {
        let mut options = Options::default();
        if self.no_events {
            options.line = None;
            options.events = false;
        }
        Ok(Driver::new(self.registers()?, options)?)
    }

    /// Prints a result: as JSON if that is wanted, else the text.
    fn print(&self, result: &impl Serialize, text: &str) -> Result<(), CliError> {
        if !self.json {
            return print(text.as_bytes());
        }
        let file = |source: serde_json::Error| CliError::File {
            what: "write the result".to_owned(),
            source: source.into(),
        };
        let mut line = serde_json::to_vec(result).map_err(file)?;
        line.push(b'\n');
        print(&line)
    }
}

/// Prints to standard output. Nobody who reads it is no error.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::File { what: "write the result".to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Says something to people, on standard error.
fn tell(message: &str) {
    // There is nobody to tell that it cannot be told.
    let _ = writeln!(io::stderr(), "guest-agent: {message}");
}

/// The program, whose exit code this is.
pub fn main() -> ExitCode {
    let command_line = command_line(std::env::args_os().collect(), run::is_init());
    let cli = Cli::parse_from(command_line);
    let options = &cli.options;
    if !matches!(cli.command, Command::Run(_)) {
        interrupt::hold();
    }
    let result = match &cli.command {
        Command::Status(_) => device::StatusCommand::run(options),
        Command::Cancel(_) => device::CancelCommand::run(options),
        Command::Ping(command) => command.run(options),
        Command::Log(command) => command.run(options),
        Command::Ready(command) => command.run(options),
        Command::Heartbeat(_) => say::HeartbeatCommand::run(options),
        Command::Mark(command) => command.run(options),
        Command::Metrics(command) => command.run(options),
        Command::Stat(command) => command.run(options),
        Command::Fetch(command) => command.run(options),
        Command::Boot(command) => command.run(options),
        Command::Load(command) => command.run(options),
        Command::Ps(_) => vm::PsCommand::run(options),
        Command::Inspect(command) => command.run(options),
        Command::Console(command) => command.run(options),
        Command::Stop(command) => command.run(options),
        Command::Cache(command) => command.run(options),
        Command::Endpoint(command) => command.run(options),
        Command::Flow(command) => command.run(options),
        Command::Run(command) => command.run(options),
    };
    let exit = result.unwrap_or_else(|error| {
        tell(&error.to_string());
        error.exit()
    });
    exit.code().into()
}

/// What was asked for. The kernel gives init the words of its command line that it does not know: for
/// init they are the command to run, unless they say what else.
fn command_line(mut words: Vec<OsString>, is_init: bool) -> Vec<OsString> {
    if is_init && words.get(1).is_none_or(|word| word != "run") {
        let end = words.len().min(1);
        words.splice(end..end, ["run".into(), "--".into()]);
        words[0] = "guest-agent".into();
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn init_runs_what_the_kernel_gives_it() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(command_line(words("/init"), true), words("guest-agent run --"));
        assert_eq!(command_line(words("/init sh -c x"), true), words("guest-agent run -- sh -c x"));
        assert_eq!(command_line(words("/init run -- sh"), true), words("/init run -- sh"));
        assert_eq!(command_line(words("guest-agent ping"), false), words("guest-agent ping"));
    }

    #[test]
    fn errors_have_the_exit_codes_of_their_kind() {
        let code = |error: CliError| error.exit().code();
        assert_eq!(code(discover::parse_place("x").unwrap_err().into()), 2);
        assert_eq!(code(DriverError::Echo.into()), 5);
        let refused = DriverError::Refused {
            operation: control_abi::operation::Operation::VmBoot,
            error: control_abi::status::Error::NotPermitted,
        };
        assert_eq!(code(refused.into()), 1);
        let nowhere = Device { port: None, address: None, source: discover::Source::Caller };
        let closed = registers::open(&nowhere, Access::Any).unwrap_err();
        assert_eq!(code(closed.into()), 4);
    }
}
