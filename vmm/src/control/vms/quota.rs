//! What a manager may boot, as its operator says it.

use std::str::FromStr;

use glob::Pattern;

use crate::size;

/// The limits of a manager: such as `count=4,memory=2G,images=debian:*|base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootQuota {
    /// VMs that run at a time.
    pub count: u32,
    /// Bytes of RAM that they have in all.
    pub memory: u64,
    /// Names of images, with `*` and `?`.
    pub images: Vec<Pattern>,
}

/// Why a text is no quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// A part that is not `key=value`, or another key.
    #[error("'{0}' is none of count=N, memory=SIZE, images=PATTERN|PATTERN...")]
    Part(String),
    /// A value that is none of its key.
    #[error("{key}={value}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that is not there: there are no defaults for what a guest may take of a host.
    #[error("{0}=... is missing; all of count, memory and images are needed")]
    Missing(&'static str),
    /// A key that is there twice.
    #[error("{0}=... is there twice")]
    Twice(&'static str),
}

impl FromStr for BootQuota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let (mut count, mut memory, mut images) = (None, None, None);
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| QuotaError::Part(part.to_owned()))?;
            let wrong =
                |key, reason: String| QuotaError::Value { key, value: value.into(), reason };
            let again = match key {
                "count" => {
                    let number = value.parse::<u32>();
                    let number = number.map_err(|error| wrong("count", error.to_string()))?;
                    count.replace(number).map(|_| "count")
                }
                "memory" => {
                    let bytes = size::parse(value).map_err(|reason| wrong("memory", reason))?;
                    memory.replace(bytes).map(|_| "memory")
                }
                "images" => {
                    let patterns = value.split('|').map(Pattern::new).collect::<Result<_, _>>();
                    let patterns: Vec<_> =
                        patterns.map_err(|error| wrong("images", error.to_string()))?;
                    images.replace(patterns).map(|_| "images")
                }
                _ => return Err(QuotaError::Part(part.to_owned())),
            };
            if let Some(key) = again {
                return Err(QuotaError::Twice(key));
            }
        }
        Ok(Self {
            count: count.ok_or(QuotaError::Missing("count"))?,
            memory: memory.ok_or(QuotaError::Missing("memory"))?,
            images: images.ok_or(QuotaError::Missing("images"))?,
        })
    }
}

impl BootQuota {
    /// Whether an image of this name may be booted.
    pub fn allows(&self, image: &str) -> bool {
        self.images.iter().any(|pattern| pattern.matches(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_has_all_three_limits() {
        let quota: BootQuota = "memory=2G,count=4,images=debian:*|base".parse().unwrap();
        assert_eq!((quota.count, quota.memory), (4, 2 << 30));
        for (image, allowed) in
            [("debian:12", true), ("base", true), ("base2", false), ("a/debian:12", false)]
        {
            assert_eq!(quota.allows(image), allowed, "{image}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "''"),
            ("count=4,memory=1G", "images"),
            ("count=x,memory=1G,images=*", "count=x"),
            ("count=1,memory=1X,images=*", "memory=1X"),
            ("count=1,memory=1G,images=[", "images=["),
            ("count=1,count=2,memory=1G,images=*", "twice"),
            ("cpus=1,count=1,memory=1G,images=*", "cpus=1"),
        ] {
            let error = text.parse::<BootQuota>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
