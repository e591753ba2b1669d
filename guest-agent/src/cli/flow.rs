//! `flow`: where frames to single identifiers of this VM go.

use clap::{Args, Subcommand};
use guest_agent::calls::endpoint::{Change, Synced, Vid};
use serde::Serialize;

use super::exit::Exit;
use super::{CliError, Global};

/// Lead frames to single identifiers of this VM to other VMs of its host.
///
/// Changes are noted by 'add', 'update' and 'del', and take effect together by 'sync', all or none. Only this VM's
/// own identifiers can be led, and only to VMs that may serve them.
#[derive(Debug, Args)]
pub struct FlowCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Note that frames to an identifier are to go to a VM.
    Add(Led),
    /// Note that frames to an identifier that is led are to go to another VM.
    Update(Led),
    /// Note that frames to an identifier are to come here again.
    Del(Back),
    /// Make all that was noted take effect, or none of it; ends with 1 if none.
    Sync,
}

#[derive(Debug, Args)]
struct Led {
    /// The identifier, as 0e:53:00:00:00:01.
    #[arg(value_name = "IDENTIFIER")]
    vid: Vid,

    /// The VM.
    #[arg(long, value_name = "VM")]
    to: String,
}

#[derive(Debug, Args)]
struct Back {
    /// The identifier, as 0e:53:00:00:00:01.
    #[arg(value_name = "IDENTIFIER")]
    vid: Vid,
}

#[derive(Debug, Serialize)]
struct Noted {
    change: Change,
    vid: Vid,
}

impl FlowCommand {
    pub fn run(&self, options: &Global) -> Result<Exit, CliError> {
        let (change, vid, place) = match &self.command {
            Command::Add(led) => (Change::Add, led.vid, Some(led.to.as_str())),
            Command::Update(led) => (Change::Update, led.vid, Some(led.to.as_str())),
            Command::Del(back) => (Change::Delete, back.vid, None),
            Command::Sync => {
                let synced = options.driver()?.sync()?;
                options.print(&synced, &describe(&synced))?;
                let exit = if synced.failed.is_some() { Exit::Refused } else { Exit::Success };
                return Ok(exit);
            }
        };
        options.driver()?.flow(change, vid, place)?;
        options.print(&Noted { change, vid }, "")?;
        Ok(Exit::Success)
    }
}

fn describe(synced: &Synced) -> String {
    match &synced.failed {
        None => format!("{} changes have taken effect\n", synced.count),
        Some(failed) => format!(
            "none has taken effect: {} of {} cannot: {}\n",
            failed.change, failed.vid, failed.message
        ),
    }
}

#[cfg(test)]
mod tests {
    use guest_agent::calls::endpoint::FailedFlow;

    use super::*;

    #[test]
    fn the_entry_that_fails_is_told() {
        let vid = Vid([2, 0, 0, 0, 0, 1]);
        let failed = FailedFlow { change: Change::Update, vid, message: "no such VM".to_owned() };
        let text = describe(&Synced { count: 0, failed: Some(failed) });
        assert!(text.contains("update of 02:00:00:00:00:01 cannot: no such VM"), "{text}");
        assert_eq!(describe(&Synced { count: 3, failed: None }), "3 changes have taken effect\n");
    }
}
