//! Boot records: clients that are known before they ask.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mac::Mac;
use crate::settings::{MOST_NAME_BYTES, Settings, SettingsError, Told, check_name};

/// The most records: a snapshot of all fits one message.
pub const MOST_RECORDS: usize = 1 << 15;
/// The longest file of records, in bytes.
const MOST_FILE_BYTES: u64 = 64 << 20;

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its interface.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its name (option 12).
    #[serde(default)]
    pub name: Option<String>,
    /// What it is told other than clients of the pool are; what is not here is as theirs.
    #[serde(default)]
    pub told: Told,
}

/// Records that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read.
    #[error("cannot read the records in '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is too long.
    #[error("'{}' has {bytes} bytes; records have at most {MOST_FILE_BYTES}", path.display())]
    Long {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// It is not a list of records.
    #[error(
        "'{}' is not a list of records: {source}; write [{{\"mac\": \"02:00:00:00:00:01\", \
         \"address\": \"10.0.0.5\", \"name\": \"a\"}}, ...]",
        path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// Too many of them.
    #[error("{0} records; there are at most {MOST_RECORDS}")]
    TooMany(usize),
    /// The same client, or the same address, twice.
    #[error("{mac} with {address} is there twice, the one or the other; give each once")]
    Twice {
        /// The client.
        mac: Mac,
        /// Its address.
        address: Ipv4Addr,
    },
    /// An address of somebody whom clients are told of.
    #[error("{address} is the address of a server or router, and not one for {mac}")]
    Ours {
        /// The client.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
    },
    /// What the client would be told cannot be.
    #[error("the record of {mac}: {source}")]
    Told {
        /// The client.
        mac: Mac,
        /// What cannot.
        source: SettingsError,
    },
}

/// Reads the records in the file `path` and checks them.
///
/// # Errors
/// The file, or the record, that cannot be used.
pub fn load(path: &Path, settings: &Settings) -> Result<Vec<Record>, RecordError> {
    let read = |source| RecordError::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > MOST_FILE_BYTES {
        return Err(RecordError::Long { path: path.to_owned(), bytes });
    }
    let text = std::fs::read(path).map_err(read)?;
    let form = |source| RecordError::Form { path: path.to_owned(), source };
    let records: Vec<Record> = serde_json::from_slice(&text).map_err(form)?;
    check(&records, settings)?;
    Ok(records)
}

/// Looks whether `records` can be served together.
///
/// # Errors
/// The record that cannot.
pub fn check(records: &[Record], settings: &Settings) -> Result<(), RecordError> {
    if records.len() > MOST_RECORDS {
        return Err(RecordError::TooMany(records.len()));
    }
    let (mut macs, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        let (mac, address) = (record.mac, record.address);
        let told = |source| RecordError::Told { mac, source };
        settings.check_address(address).map_err(told)?;
        record.told.check().map_err(told)?;
        record.name.iter().try_for_each(|name| check_name(name, MOST_NAME_BYTES)).map_err(told)?;
        if settings.is_ours(address) {
            return Err(RecordError::Ours { mac, address });
        }
        if !macs.insert(mac) || !addresses.insert(address) {
            return Err(RecordError::Twice { mac, address });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::testing::settings;

    #[test]
    fn a_file_is_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            load(&path, &settings())
        };
        let one = r#"{"mac": "02:00:00:00:00:01", "address": "10.0.0.5", "name": "a"}"#;
        let records = read(&format!("[{one}]")).unwrap();
        assert_eq!(records[0].address, Ipv4Addr::new(10, 0, 0, 5));
        assert!(matches!(read(&format!("[{one}, {one}]")), Err(RecordError::Twice { .. })));
        assert!(matches!(read(&one.replace("0.5", "0.1")), Err(RecordError::Form { .. })));
        let ours = format!("[{}]", one.replace("10.0.0.5", "10.0.0.1"));
        assert!(matches!(read(&ours), Err(RecordError::Ours { .. })));
        let outside = format!("[{}]", one.replace("10.0.0.5", "10.1.0.5"));
        assert!(matches!(read(&outside), Err(RecordError::Told { .. })));
        assert!(matches!(load(Path::new("/nowhere"), &settings()), Err(RecordError::Read { .. })));
    }
}
