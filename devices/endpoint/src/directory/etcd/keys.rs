//! Where in etcd what is.

use etcd_client::KeyValue;
use serde::{Deserialize, Serialize};

use crate::range::{Form, Range};
use crate::record::{Owner, Record};

use super::DirectoryError;

/// The keys below a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn new(prefix: String) -> Self {
        Self(prefix)
    }

    /// What all of them begin with.
    pub(super) fn all(&self) -> String {
        self.0.clone()
    }

    pub(super) fn shape(&self) -> String {
        format!("{}shape", self.0)
    }

    pub(super) fn owners(&self) -> String {
        format!("{}owner/", self.0)
    }

    pub(super) fn owner(&self, owner: &Owner) -> String {
        format!("{}owner/{owner}", self.0)
    }

    /// The owner whose key this is.
    pub(super) fn owner_of(&self, key: &[u8]) -> Option<Owner> {
        let owner = key.strip_prefix(self.owners().as_bytes())?;
        std::str::from_utf8(owner).ok()?.parse().ok()
    }

    pub(super) fn records(&self) -> String {
        format!("{}record/", self.0)
    }

    pub(super) fn is_record(&self, key: &[u8]) -> bool {
        key.starts_with(self.records().as_bytes())
    }

    pub(super) fn form(&self, form: Form) -> String {
        let form = match form {
            Form::Prefix => "prefix",
            Form::Suffix => "suffix",
        };
        format!("{}record/{form}/", self.0)
    }

    pub(super) fn service(&self, (form, service): (Form, u32)) -> String {
        format!("{}{service:05x}/", self.form(form))
    }

    pub(super) fn record(&self, range: Range) -> String {
        format!("{}{:07x}", self.service((range.form(), range.service())), range.lo())
    }
}

/// A record as it is in etcd.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    #[serde(flatten)]
    pub(super) record: Record,
    /// The number of the change that wrote it.
    pub(super) change: u64,
}

impl Stored {
    pub(super) fn read(kv: &KeyValue) -> Result<Self, DirectoryError> {
        let mut stored: Self =
            serde_json::from_slice(kv.value()).map_err(|error| damaged(kv, &error))?;
        stored.record.revision = u64::try_from(kv.mod_revision()).unwrap_or_default();
        Ok(stored)
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, DirectoryError> {
        serde_json::to_vec(self).map_err(|error| DirectoryError::Damaged {
            key: self.record.range.to_string(),
            why: error.to_string(),
        })
    }
}

/// The highest epoch of what has been withdrawn.
pub(super) fn floor(kv: &KeyValue) -> Result<u64, DirectoryError> {
    serde_json::from_slice(kv.value()).map_err(|error| damaged(kv, &error))
}

fn damaged(kv: &KeyValue, why: &serde_json::Error) -> DirectoryError {
    let key = String::from_utf8_lossy(kv.key()).into_owned();
    DirectoryError::Damaged { key, why: why.to_string() }
}
