//! `vmm cache add`, `drain` and `remove`: nodes come and go, and their content moves.

use std::path::{Path, PathBuf};

use clap::Args;
use imgcache::cluster::address::NodeAddress;
use imgcache::cluster::members::{Member, MemberState, Members, MembersError, Previous, VERSION};
use imgcache::transport::cluster::ClusterError;
use imgcache::transport::cluster::survey::Survey;

use super::rebalance::{MovingOptions, rebalance};
use super::{CacheCommandError, CacheOptions};
use crate::cli::{CliError, print_text, say};
use crate::exit::Exit;

/// Add a node, and move to it what it is to hold.
///
/// Makes the membership file if there is none. A node that is draining becomes active again.
#[derive(Debug, Args)]
pub struct AddCommand {
    /// Name of the node. What it holds follows from its name: a node that comes back under the
    /// same name, wherever it runs, gets the same.
    name: String,

    /// Where it listens: HOST[:PORT] or unix:/PATH.
    address: NodeAddress,

    /// Its share relative to the others, such as its memory in GiB.
    #[arg(long, default_value_t = 1)]
    weight: u32,

    /// Copies that each item is to have. Only for the first node; changed in the file later.
    #[arg(long, value_name = "N", default_value_t = 2)]
    replicas: u32,

    /// Nodes are spoken to by TLS. Only for the first node.
    #[arg(long)]
    tls: bool,

    #[command(flatten)]
    moving: MovingOptions,

    #[command(flatten)]
    cache: CacheOptions,
}

/// Move away all that a node holds, and say when it can be stopped.
#[derive(Debug, Args)]
pub struct DrainCommand {
    /// Name of the node.
    name: String,

    #[command(flatten)]
    moving: MovingOptions,

    #[command(flatten)]
    cache: CacheOptions,
}

/// Take a node out of the membership file.
///
/// Refused while it is the only one to hold something, unless forced.
#[derive(Debug, Args)]
pub struct RemoveCommand {
    /// Name of the node.
    name: String,

    /// Even if something is lost with it; or if it cannot be asked, since it has died.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    moving: MovingOptions,

    #[command(flatten)]
    cache: CacheOptions,
}

impl AddCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let file = members_file(&self.cache)?;
        let member = Member {
            name: self.name.clone(),
            address: self.address.clone(),
            weight: self.weight,
            state: MemberState::Active,
        };
        let members = match Members::read(&file) {
            Ok(_) => {
                let members = settled_members(&self.cache, &file, &self.moving)?;
                let Some(changed) = with_member(&members, member, &file)? else {
                    say(&format!("vmm: '{}' is there already\n", self.name));
                    return self.rebalance(&file);
                };
                changed
            }
            Err(MembersError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Members {
                    version: VERSION,
                    epoch: 1,
                    replicas: self.replicas,
                    tls: self.tls,
                    nodes: vec![member],
                    previous: None,
                }
            }
            Err(error) => return Err(ClusterError::from(error).into()),
        };
        members.write(&file).map_err(ClusterError::from)?;
        self.rebalance(&file)
    }

    fn rebalance(&self, file: &Path) -> Result<Exit, CliError> {
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        rebalance(&cluster, Some(file), &self.moving)?;
        Ok(Exit::Success)
    }
}

impl DrainCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let file = members_file(&self.cache)?;
        let members = settled_members(&self.cache, &file, &self.moving)?;
        let position = position(&members, &self.name, &file)?;
        if members.nodes[position].state == MemberState::Active {
            require_another(&members, position, &file)?;
            let mut changed = successor(&members);
            changed.nodes[position].state = MemberState::Draining;
            changed.write(&file).map_err(ClusterError::from)?;
        }
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        rebalance(&cluster, Some(&file), &self.moving)?;
        only_copies(&self.cache, &self.moving, &self.name)?;
        if !self.moving.is_json() {
            print_text(&format!(
                "{} can be stopped: nothing is on it alone; then 'vmm cache remove'\n",
                self.name
            ))?;
        }
        Ok(Exit::Success)
    }
}

impl RemoveCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let file = members_file(&self.cache)?;
        let members = Members::read(&file).map_err(ClusterError::from)?;
        let position = position(&members, &self.name, &file)?;
        if members.nodes[position].state == MemberState::Active {
            require_another(&members, position, &file)?;
        }
        if !self.force {
            only_copies(&self.cache, &self.moving, &self.name)?;
        }
        let mut changed = successor(&members);
        changed.nodes.remove(position);
        // It is not looked at any more, whatever was under way.
        if let Some(previous) = &mut changed.previous {
            previous.nodes.retain(|node| node.name != self.name);
        }
        if changed.previous.as_ref().is_some_and(|previous| previous.nodes.is_empty()) {
            changed.previous = None;
        }
        changed.write(&file).map_err(ClusterError::from)?;
        let cluster = self.cache.open()?.ok_or(CliError::NoCache)?;
        rebalance(&cluster, Some(&file), &self.moving)?;
        Ok(Exit::Success)
    }
}

fn members_file(cache: &CacheOptions) -> Result<PathBuf, CliError> {
    if cache.cache.is_none() {
        return Err(CliError::NoCache);
    }
    Ok(cache.members_file().ok_or(CacheCommandError::NoFile)?.to_owned())
}

fn position(members: &Members, name: &str, file: &Path) -> Result<usize, CacheCommandError> {
    members.nodes.iter().position(|node| node.name == name).ok_or_else(|| {
        CacheCommandError::NoNode {
            file: file.to_owned(),
            name: name.to_owned(),
            known: members.nodes.iter().map(|node| node.name.clone()).collect(),
        }
    })
}

fn require_another(
    members: &Members,
    position: usize,
    file: &Path,
) -> Result<(), CacheCommandError> {
    let mut others = members.nodes.iter().enumerate();
    if others.any(|(other, node)| other != position && node.state == MemberState::Active) {
        return Ok(());
    }
    let name = members.nodes[position].name.clone();
    Err(CacheCommandError::Last { file: file.to_owned(), name })
}

/// The next epoch, in which items are still looked for where they are by `members`.
fn successor(members: &Members) -> Members {
    let mut next = members.clone();
    next.epoch += 1;
    // Where a move has not ended, what it was to move from is where things still are.
    next.previous.get_or_insert_with(|| Previous {
        epoch: members.epoch,
        replicas: members.replicas,
        nodes: members.nodes.iter().filter(|n| n.state == MemberState::Active).cloned().collect(),
    });
    next
}

/// The members, after the move that an earlier change began has ended: there is room for one only.
fn settled_members(
    cache: &CacheOptions,
    file: &Path,
    options: &MovingOptions,
) -> Result<Members, CliError> {
    let members = Members::read(file).map_err(ClusterError::from)?;
    if members.previous.is_none() {
        return Ok(members);
    }
    say("vmm: first, what the last change began to move\n");
    rebalance(&cache.open()?.ok_or(CliError::NoCache)?, Some(file), options)?;
    let members = Members::read(file).map_err(ClusterError::from)?;
    if members.previous.is_some() {
        return Err(CacheCommandError::Moving(file.to_owned()).into());
    }
    Ok(members)
}

/// `members` with `member` in it; none if it is there as it is.
fn with_member(
    members: &Members,
    member: Member,
    file: &Path,
) -> Result<Option<Members>, CacheCommandError> {
    let Some(there) = members.nodes.iter().position(|node| node.name == member.name) else {
        let mut changed = successor(members);
        changed.nodes.push(member);
        return Ok(Some(changed));
    };
    if members.nodes[there] == member {
        return Ok(None);
    }
    if members.nodes[there].address != member.address {
        return Err(CacheCommandError::Exists {
            file: file.to_owned(),
            name: member.name,
            address: members.nodes[there].address.to_string(),
        });
    }
    let mut changed = successor(members);
    changed.nodes[there] = member;
    Ok(Some(changed))
}

/// Whether a node can go.
///
/// # Errors
/// It is the only one to hold something, or that cannot be known.
fn only_copies(cache: &CacheOptions, options: &MovingOptions, name: &str) -> Result<(), CliError> {
    let cluster = cache.open()?.ok_or(CliError::NoCache)?;
    let topology = cluster.topology();
    let survey = Survey::take(&topology, options.images());
    let Some(number) = topology.nodes.iter().position(|node| node.name() == name) else {
        return Ok(()); // settled, and out of the file already
    };
    if let Some(failure) = &survey.failures[number] {
        let (name, reason) = (name.to_owned(), failure.to_string());
        return Err(CacheCommandError::Unknown { name, reason }.into());
    }
    match survey.sole_copies()[number] {
        0 => Ok(()),
        items => Err(CacheCommandError::NotSafe { name: name.to_owned(), items }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            name: name.into(),
            address: format!("{name}.example").parse().unwrap(),
            weight: 1,
            state: MemberState::Active,
        }
    }

    fn members(names: &[&str]) -> Members {
        let nodes = names.iter().map(|name| member(name)).collect();
        Members { version: VERSION, epoch: 7, replicas: 2, tls: false, nodes, previous: None }
    }

    #[test]
    fn the_old_places_are_looked_at_until_the_move_has_ended() {
        let file = Path::new("members.json");
        let mut members = members(&["a", "b"]);
        members.nodes[1].state = MemberState::Draining;
        let once = with_member(&members, member("c"), file).unwrap().unwrap();
        let previous = once.previous.as_ref().unwrap();
        assert_eq!((once.epoch, previous.epoch), (8, 7));
        // What was draining held nothing any more.
        assert_eq!(previous.nodes, [member("a")]);
        // A node that dies meanwhile changes nothing of where the others have things.
        let twice = successor(&once);
        assert_eq!((twice.epoch, &twice.previous), (9, &once.previous));
        twice.check().unwrap();
    }

    #[test]
    fn a_node_is_added_once_and_keeps_its_address() {
        let file = Path::new("members.json");
        let members = members(&["a", "b"]);
        assert_eq!(with_member(&members, member("a"), file).unwrap(), None);
        let elsewhere = Member { address: "c.example".parse().unwrap(), ..member("a") };
        let error = with_member(&members, elsewhere, file).unwrap_err();
        assert!(error.to_string().contains("a.example"), "{error}");
        let heavier = Member { weight: 3, ..member("a") };
        assert_eq!(with_member(&members, heavier, file).unwrap().unwrap().nodes[0].weight, 3);
    }

    #[test]
    fn the_last_node_stays() {
        let (one, file) = (members(&["a"]), Path::new("members.json"));
        assert!(require_another(&one, 0, file).is_err());
        assert!(require_another(&members(&["a", "b"]), 0, file).is_ok());
        assert!(position(&one, "z", file).unwrap_err().to_string().contains("it has: a"));
    }
}
