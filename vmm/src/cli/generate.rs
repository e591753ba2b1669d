//! `vmm completions` and `vmm man`: from the same definitions as the command line itself.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, CliError, print_text};
use crate::exit::Exit;

/// Print a shell's completion script.
///
/// For bash: `vmm completions bash > /etc/bash_completion.d/vmm`
#[derive(Debug, Args)]
pub struct CompletionsCommand {
    /// The shell.
    shell: clap_complete::Shell,
}

impl CompletionsCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vmm", &mut script);
        print_text(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Success)
    }
}

/// Write the manual pages, one for each command.
#[derive(Debug, Args)]
pub struct ManCommand {
    /// Directory to write them to, such as /usr/local/share/man/man1.
    directory: PathBuf,
}

impl ManCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        clap_mangen::generate_to(Cli::command(), &self.directory).map_err(|source| {
            CliError::Output {
                what: format!("manual pages to {}", self.directory.display()),
                source,
            }
        })?;
        Ok(Exit::Success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
