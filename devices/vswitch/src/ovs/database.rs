//! The database of Open vSwitch (OVSDB, RFC 7047), where ports of bridges are entered.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rovs_ovsdb::{Client, ClientConfig};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::plane::PlaneError;

/// How long the database, and the daemon that follows it, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// By what ports are known that were entered here: what they are.
const MARK: &str = "vmm";

/// The folder of the daemons' sockets: `$OVS_RUNDIR`, or `/run/openvswitch`.
pub fn folder() -> PathBuf {
    std::env::var_os("OVS_RUNDIR").map_or_else(|| "/run/openvswitch".into(), PathBuf::from)
}

/// Where the bridge `name` listens for those who set its flows; if it is one of a running Open vSwitch.
pub fn management(name: &str) -> Option<PathBuf> {
    let socket = folder().join(format!("{name}.mgmt"));
    // Not a name that leads elsewhere.
    let is_name = !name.is_empty() && !name.contains('/');
    (is_name && socket.exists()).then_some(socket)
}

/// What is behind a port that is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The interface of a guest; `isolated` from others that are.
    Guest {
        /// Whether it reaches no other that is isolated.
        isolated: bool,
    },
    /// A VXLAN tunnel. What comes by one leaves by no other.
    Tunnel {
        /// This host's end.
        local: IpAddr,
        /// The other end.
        remote: IpAddr,
        /// The number of the virtual network (VNI).
        network: u32,
        /// The UDP port.
        port: u16,
    },
}

/// A connection to the database.
pub struct Database {
    runtime: Runtime,
    client: Client,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

fn refused(what: &str, why: impl fmt::Display) -> PlaneError {
    PlaneError::Remote {
        what: format!("have Open vSwitch's database {what}"),
        why: why.to_string(),
    }
}

impl Database {
    /// The database of the daemons whose sockets are in [`folder`].
    ///
    /// # Errors
    /// Nobody is there.
    pub fn open() -> Result<Self, PlaneError> {
        Self::at(&folder().join("db.sock"))
    }

    /// The database that listens at `socket`.
    ///
    /// # Errors
    /// Nobody is there.
    pub fn at(socket: &Path) -> Result<Self, PlaneError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PlaneError::system("start a runtime"))?;
        let what = format!("answer at {}", socket.display());
        let address = format!("unix:{}", socket.display());
        // What is asked for is asked for; nothing is followed.
        let config = ClientConfig::default().tables(vec![]);
        let connecting =
            async { timeout(PATIENCE, Client::connect_with_config(&address, config)).await };
        match runtime.block_on(connecting) {
            Ok(Ok(client)) => Ok(Self { runtime, client }),
            Ok(Err(error)) => Err(refused(&what, error)),
            Err(_) => Err(refused(&what, "no answer in time")),
        }
    }

    /// Does all of `operations`, or nothing; their results.
    fn transact(&mut self, what: &str, operations: Vec<Value>) -> Result<Vec<Value>, PlaneError> {
        let Self { runtime, client } = self;
        let asked = async { timeout(PATIENCE, client.transact(Value::Array(operations))).await };
        let results = match runtime.block_on(asked) {
            Ok(Ok(Value::Array(results))) => results,
            Ok(Ok(other)) => return Err(refused(what, other)),
            Ok(Err(error)) => return Err(refused(what, error)),
            Err(_) => return Err(refused(what, "no answer in time")),
        };
        let error = results.iter().find(|result| !result["error"].is_null());
        error.map_or(Ok(()), |error| {
            Err(refused(what, format!("{}: {}", error["error"], error["details"])))
        })?;
        Ok(results)
    }

    /// The rows of a table that fit, with these columns.
    fn rows(
        &mut self,
        table: &str,
        condition: &Value,
        columns: &[&str],
    ) -> Result<Vec<Value>, PlaneError> {
        let select =
            json!({"op": "select", "table": table, "where": condition, "columns": columns});
        let results = self.transact(&format!("look into {table}"), vec![select])?;
        let rows = results.into_iter().next().unwrap_or_default();
        Ok(rows["rows"].as_array().cloned().unwrap_or_default())
    }

    /// The names of the ports of a bridge.
    ///
    /// # Errors
    /// There is no such bridge, or the database does not answer.
    pub fn ports(&mut self, bridge: &str) -> Result<BTreeSet<String>, PlaneError> {
        let found = self.rows("Bridge", &json!([["name", "==", bridge]]), &["ports"])?;
        let row = found.first().ok_or_else(|| refused("show a bridge", no_bridge(bridge)))?;
        let of_it: BTreeSet<String> = references(&row["ports"]).collect();
        let all = self.rows("Port", &json!([]), &["_uuid", "name"])?;
        let names =
            all.iter().filter(|row| references(&row["_uuid"]).any(|it| of_it.contains(&it)));
        Ok(names.filter_map(|row| row["name"].as_str().map(str::to_owned)).collect())
    }

    /// Enters the interface `name` as a port of a bridge, and waits until the daemon has it; `OpenFlow`'s number
    /// of it. A port of this name that was entered here before, wherever it is, is taken away.
    ///
    /// # Errors
    /// There is no such bridge, somebody else has entered a port of this name, or the daemon cannot use it.
    pub fn add(&mut self, bridge: &str, name: &str, kind: Kind) -> Result<u32, PlaneError> {
        if self.rows("Bridge", &json!([["name", "==", bridge]]), &["name"])?.is_empty() {
            return Err(refused("enter a port", no_bridge(bridge)));
        }
        let mut operations = self.removal(name)?;
        let (mark, is_protected) = match kind {
            Kind::Guest { isolated } => ("guest", isolated),
            Kind::Tunnel { .. } => ("tunnel", true),
        };
        let mut interface = json!({"name": name, "external_ids": ["map", [[MARK, mark]]]});
        if let Kind::Tunnel { local, remote, network, port } = kind {
            interface["type"] = "vxlan".into();
            interface["options"] = json!([
                "map",
                [
                    ["local_ip", local.to_string()],
                    ["remote_ip", remote.to_string()],
                    ["key", network.to_string()],
                    ["dst_port", port.to_string()],
                ]
            ]);
        }
        let port = json!({"name": name, "interfaces": ["named-uuid", "interface"],
            "protected": is_protected, "external_ids": ["map", [[MARK, mark]]]});
        operations.extend([
            json!({"op": "insert", "table": "Interface", "uuid-name": "interface", "row": interface}),
            json!({"op": "insert", "table": "Port", "uuid-name": "port", "row": port}),
            json!({"op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]],
                "mutations": [["ports", "insert", ["named-uuid", "port"]]]}),
            // The daemon is to see that there is something new.
            json!({"op": "mutate", "table": "Open_vSwitch", "where": [],
                "mutations": [["next_cfg", "+=", 1]]}),
        ]);
        self.transact(&format!("enter {name} as a port of {bridge}"), operations)?;
        self.number(name)
    }

    /// `OpenFlow`'s number of the port `name`, as soon as the daemon has it.
    ///
    /// # Errors
    /// The daemon cannot use it, or does not know it in time.
    pub fn number(&mut self, name: &str) -> Result<u32, PlaneError> {
        let begun = Instant::now();
        loop {
            let found =
                self.rows("Interface", &json!([["name", "==", name]]), &["ofport", "error"])?;
            let row = found.into_iter().next().unwrap_or_default();
            // None is an empty set.
            match row["ofport"].as_i64().map(u32::try_from) {
                Some(Ok(number)) if number > 0 => return Ok(number),
                Some(_) => return Err(refused(&format!("use {name}"), &row["error"])),
                None if begun.elapsed() > PATIENCE => {
                    return Err(refused(&format!("number {name}"), "ovs-vswitchd does not"));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// What takes a port of this name away, if it was entered here.
    fn removal(&mut self, name: &str) -> Result<Vec<Value>, PlaneError> {
        let found =
            self.rows("Port", &json!([["name", "==", name]]), &["_uuid", "external_ids"])?;
        let Some(row) = found.first() else { return Ok(Vec::new()) };
        if !is_ours(row) {
            return Err(refused("enter a port", format!("{name} is there, and another's")));
        }
        Ok(vec![json!({"op": "mutate", "table": "Bridge", "where": [],
            "mutations": [["ports", "delete", row["_uuid"]]]})])
    }

    /// Takes a port away that was entered here; there may be none.
    ///
    /// # Errors
    /// It is another's, or the database does not answer.
    pub fn remove(&mut self, name: &str) -> Result<(), PlaneError> {
        let operations = self.removal(name)?;
        if operations.is_empty() {
            return Ok(());
        }
        self.transact(&format!("take {name} away"), operations).map(drop)
    }

    /// Takes guests' ports away whose interfaces are gone with their processes.
    ///
    /// # Errors
    /// The database does not answer.
    pub fn sweep(&mut self, mut is_there: impl FnMut(&str) -> bool) -> Result<(), PlaneError> {
        let condition = json!([["external_ids", "includes", ["map", [[MARK, "guest"]]]]]);
        for row in self.rows("Port", &condition, &["name"])? {
            if let Some(name) = row["name"].as_str().filter(|name| !is_there(name)) {
                self.remove(name)?;
            }
        }
        Ok(())
    }
}

fn no_bridge(name: &str) -> String {
    format!("there is no bridge {name} (ovs-vsctl list-br)")
}

fn is_ours(row: &Value) -> bool {
    let pairs = row["external_ids"][1].as_array();
    pairs.is_some_and(|pairs| pairs.iter().any(|pair| pair[0] == MARK))
}

/// What a column refers to: one row (`["uuid", U]`), or several (`["set", [["uuid", U], ...]]`).
fn references(column: &Value) -> impl Iterator<Item = String> {
    let several = column[1].as_array().cloned().unwrap_or_else(|| vec![column.clone()]);
    several.into_iter().filter_map(|one| one[1].as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_refers_to_none_one_or_several() {
        let of = |column: Value| references(&column).collect::<Vec<_>>();
        assert_eq!(of(json!(["uuid", "a"])), ["a"]);
        assert_eq!(of(json!(["set", []])), [""; 0]);
        assert_eq!(of(json!(["set", [["uuid", "a"], ["uuid", "b"]]])), ["a", "b"]);
        assert_eq!(of(Value::Null), [""; 0]);
    }

    #[test]
    fn a_name_that_is_a_path_is_no_bridge() {
        assert_eq!(management("../x"), None);
        assert_eq!(management(""), None);
    }
}
