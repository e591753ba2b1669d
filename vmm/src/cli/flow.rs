//! `vmm flow`: where a node's switches lead frames to single identifiers.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ::endpoint::vid::{InvalidVid, Vid};
use clap::{Args, Subcommand};

use super::CliError;
use super::reach::Asking;
use crate::api::endpoint::{FlowChange, FlowInfo};
use crate::exit::Exit;
use crate::spec::name::{NameError, VmName};

/// The largest file of changes, in bytes: agents take no larger bodies.
const LARGEST: usize = 256 << 10;

/// Look at the flows of a node's switches, and change them.
///
/// A flow leads frames to one identifier of a virtual endpoint (see 'vmm endpoint')
/// to a VM. Flows follow the endpoints by themselves; here single ones can be led
/// elsewhere, as of one request of a service that is asked too often:
///
///   vmm flow ls
///   printf 'del 02:00:00:00:00:07\nadd 02:00:00:00:00:08 b\n' | vmm flow sync -
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct FlowCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List where frames to identifiers go.
    Ls(Asking),
    /// Lead frames to an identifier that had no home to a VM of the node.
    Add(AddCommand),
    /// Lead frames to an identifier to nobody: they are dropped.
    Del(DelCommand),
    /// Make several changes, all or none.
    ///
    /// The file has a line for each: 'add IDENTIFIER VM', 'update IDENTIFIER VM', 'del IDENTIFIER'. Empty lines,
    /// and what comes behind a #, say nothing. Or it is JSON, a list as the agent's API takes it.
    Sync(SyncCommand),
}

#[derive(Debug, Args)]
struct AddCommand {
    /// The identifier, an Ethernet address.
    #[arg(value_name = "IDENTIFIER")]
    vid: Vid,

    /// The VM.
    vm: VmName,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct DelCommand {
    /// The identifier, an Ethernet address.
    #[arg(value_name = "IDENTIFIER")]
    vid: Vid,

    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
struct SyncCommand {
    /// File of changes; - is standard input.
    file: PathBuf,

    #[command(flatten)]
    asking: Asking,
}

/// Why a file is none of changes.
#[derive(Debug, thiserror::Error)]
pub enum FlowFileError {
    /// It cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is too large.
    #[error("{} has more than {LARGEST} bytes: split it", .0.display())]
    TooLarge(PathBuf),
    /// It is no list of changes.
    #[error("{}: no list of changes: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// One of its lines.
    #[error("{}, line {line}: {source}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Which, counted from 1.
        line: usize,
        /// What is wrong with it.
        source: LineError,
    },
}

/// Why a line is no change.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Its words.
    #[error(
        "'{}' is none of 'add IDENTIFIER VM', 'update IDENTIFIER VM' and 'del IDENTIFIER'",
        .0.escape_debug()
    )]
    Words(String),
    /// The identifier.
    #[error(transparent)]
    Vid(#[from] InvalidVid),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] NameError),
}

impl FlowFileError {
    /// The exit code for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } => Exit::Failure,
            Self::TooLarge(_) | Self::Json { .. } | Self::Line { .. } => Exit::Usage,
        }
    }
}

/// The change that a line says, if it says one.
fn line_change(line: &str) -> Result<Option<FlowChange>, LineError> {
    let said = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = said.split_whitespace().collect();
    let vid = |text: &str| text.parse().map(|vid: Vid| vid.to_string());
    let vm = |text: &str| text.parse().map(|vm: VmName| vm.to_string());
    Ok(match words[..] {
        [] => None,
        ["add", id, to] => Some(FlowChange::Add { vid: vid(id)?, vm: vm(to)? }),
        ["update", id, to] => Some(FlowChange::Update { vid: vid(id)?, vm: vm(to)? }),
        ["del", id] => Some(FlowChange::Delete { vid: vid(id)? }),
        _ => return Err(LineError::Words(line.trim().to_owned())),
    })
}

/// The changes that `text` says, in either form.
fn changes(file: &Path, text: &str) -> Result<Vec<FlowChange>, FlowFileError> {
    if text.trim_start().starts_with('[') {
        let wrong = |source| FlowFileError::Json { file: file.to_owned(), source };
        return serde_json::from_str(text).map_err(wrong);
    }
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let wrong = |source| FlowFileError::Line { file: file.to_owned(), line: at + 1, source };
        all.extend(line_change(line).map_err(wrong)?);
    }
    Ok(all)
}

fn read(file: &Path) -> Result<Vec<FlowChange>, FlowFileError> {
    let wrong = |source| FlowFileError::Read { file: file.to_owned(), source };
    let limit = u64::try_from(LARGEST).map_or(u64::MAX, |limit| limit.saturating_add(1));
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut text).map_err(wrong)?;
    } else {
        let opened = File::open(file).map_err(wrong)?;
        opened.take(limit).read_to_string(&mut text).map_err(wrong)?;
    }
    if text.len() > LARGEST {
        return Err(FlowFileError::TooLarge(file.to_owned()));
    }
    changes(file, &text)
}

fn table(flows: &[FlowInfo]) -> String {
    let line = |cells: [&str; 4]| {
        let [bridge, vid, home, moving] = cells;
        format!("{bridge:<16} {vid:<18} {home:<24} {moving}").trim_end().to_owned() + "\n"
    };
    let mut text = line(["BRIDGE", "IDENTIFIER", "HOME", "MOVING TO"]);
    for flow in flows {
        let moving = flow.moving.as_deref().unwrap_or("-");
        text.push_str(&line([&flow.bridge, &flow.vid, &flow.home, moving]));
    }
    text
}

/// The flows as they are then.
fn sync(asking: &Asking, changes: &[FlowChange]) -> Result<Exit, CliError> {
    let now: Vec<FlowInfo> = asking.reach.one()?.post("/v1/flows", &changes)?;
    asking.print(&now, &table(&now))
}

impl FlowCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        match &self.command {
            Command::Ls(asking) => {
                let mut all = Vec::new();
                for client in asking.reach.all()? {
                    all.extend(client.get::<Vec<FlowInfo>>("/v1/flows")?);
                }
                asking.print(&all, &table(&all))
            }
            Command::Add(AddCommand { vid, vm, asking }) => {
                sync(asking, &[FlowChange::Add { vid: vid.to_string(), vm: vm.to_string() }])
            }
            Command::Del(DelCommand { vid, asking }) => {
                sync(asking, &[FlowChange::Delete { vid: vid.to_string() }])
            }
            Command::Sync(SyncCommand { file, asking }) => sync(asking, &read(file)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_text(text: &str) -> Result<Vec<FlowChange>, FlowFileError> {
        changes(Path::new("f"), text)
    }

    const VID: &str = "02:00:00:00:00:07";

    #[test]
    fn lines_and_json_say_the_same() {
        let vid = || VID.parse::<Vid>().unwrap().to_string();
        let lines = format!("# moved by hand\n\nadd {VID} a  # here\nupdate {VID} b\ndel {VID}\n");
        let all = read_text(&lines).unwrap();
        let wanted = [
            FlowChange::Add { vid: vid(), vm: "a".into() },
            FlowChange::Update { vid: vid(), vm: "b".into() },
            FlowChange::Delete { vid: vid() },
        ];
        assert_eq!(all, wanted);
        assert_eq!(read_text(&serde_json::to_string(&all).unwrap()).unwrap(), wanted);
        assert_eq!(read_text(" \n#\n").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let bad = |text: &str| read_text(text).unwrap_err().to_string();
        assert!(bad(&format!("del {VID}\nadd {VID}\n")).contains("line 2: 'add"));
        assert!(bad(&format!("add {VID} a/b")).contains("line 1"));
        assert!(bad("del x").contains("'x'"));
        assert!(bad("remove all").contains("del IDENTIFIER"));
        assert!(bad("[{\"change\":\"add\"}]").contains("vid"));
        assert_eq!(read_text("x").unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn a_flow_has_one_line() {
        let flow = FlowInfo {
            bridge: "br0".into(),
            vid: VID.into(),
            home: "a".into(),
            moving: Some("b".into()),
        };
        assert_eq!(table(&[flow]).lines().count(), 2);
    }

    proptest! {
        #[test]
        fn any_change_is_read_as_it_is_written(bytes: [u8; 5], vm in "[a-z][a-z0-9]{0,9}") {
            let [a, b, c, d, e] = bytes;
            let vid = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
            let parsed = line_change(&format!(" add  {vid}\t{vm} # x"));
            match vid.parse::<Vid>() {
                Ok(vid) => {
                    let vid = vid.to_string();
                    prop_assert_eq!(parsed.unwrap(), Some(FlowChange::Add { vid, vm }));
                }
                Err(_) => prop_assert!(parsed.is_err()),
            }
        }

        #[test]
        fn no_text_is_too_strange_to_be_refused(text in "(?s).{0,80}") {
            let _ = read_text(&text);
        }
    }
}
