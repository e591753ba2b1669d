//! How a VM has the disk of its image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::size;

/// How a VM has the disk of its image (`vmm image push --disk`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
pub enum DiskSpec {
    /// Not at all.
    None {},
    /// Read-only.
    Ro {},
    /// Writable: what the guest writes is the VM's own, in a file beside the image, which stays as it is.
    Overlay {
        /// Most bytes that the file may hold of what the guest writes; then it gets I/O errors. By
        /// default as much as the host's disk has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(minimum = 512, example = 1_073_741_824)]
        size: Option<u64>,
        /// The file, which is kept for the next VM that boots this image with it. By default one
        /// that is gone with the VM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        file: Option<PathBuf>,
    },
}

/// Why a text does not say how a VM has a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskSpecError {
    /// Another word.
    #[error("'{0}' is no disk: it is none, ro, or overlay[,size=SIZE][,file=PATH]")]
    Mode(String),
    /// An option that is none.
    #[error("'{0}' is no option of a disk: overlays have size=SIZE and file=PATH, each once")]
    Option(String),
    /// A size that is none.
    #[error("size of an overlay: {0}")]
    Size(String),
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<Self, DiskSpecError> {
        let (mode, options) = text.split_once(',').unwrap_or((text, ""));
        match mode {
            "none" if options.is_empty() => return Ok(Self::None {}),
            "ro" if options.is_empty() => return Ok(Self::Ro {}),
            "none" | "ro" => return Err(DiskSpecError::Option(options.into())),
            "overlay" => {}
            _ => return Err(DiskSpecError::Mode(mode.into())),
        }
        let (mut size, mut file) = (None, None);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", text)) if size.is_none() => {
                    size = Some(size::parse(text).map_err(DiskSpecError::Size)?);
                }
                Some(("file", path)) if file.is_none() && !path.is_empty() => {
                    file = Some(PathBuf::from(path));
                }
                _ => return Err(DiskSpecError::Option(option.into())),
            }
        }
        Ok(Self::Overlay { size, file })
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None {} => f.write_str("none"),
            Self::Ro {} => f.write_str("ro"),
            Self::Overlay { size, file } => {
                f.write_str("overlay")?;
                if let Some(size) = size {
                    // The largest unit that says it exactly; 512 bytes have none.
                    let kib = size.div_ceil(1 << 10);
                    match (kib % (1 << 20), kib % (1 << 10)) {
                        (0, _) => write!(f, ",size={}G", kib >> 20)?,
                        (_, 0) => write!(f, ",size={}M", kib >> 10)?,
                        _ => write!(f, ",size={kib}K")?,
                    }
                }
                match file {
                    Some(file) => write!(f, ",file={}", file.display()),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json) in [
            ("none", r#"{"mode":"none"}"#),
            ("ro", r#"{"mode":"ro"}"#),
            ("overlay", r#"{"mode":"overlay"}"#),
            ("overlay,size=3G", r#"{"mode":"overlay","size":3221225472}"#),
            ("overlay,size=5M,file=/a/b", r#"{"mode":"overlay","size":5242880,"file":"/a/b"}"#),
            ("overlay,size=7K", r#"{"mode":"overlay","size":7168}"#),
        ] {
            let spec: DiskSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            assert_eq!(serde_json::from_str::<DiskSpec>(json).unwrap(), spec);
            assert_eq!(serde_json::to_string(&spec).unwrap(), json);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, named) in [
            ("", "none, ro, or overlay"),
            ("rw", "'rw'"),
            ("ro,size=1G", "size=1G"),
            ("overlay,size=1", "unit"),
            ("overlay,size=1G,size=1G", "each once"),
            ("overlay,file=", "file="),
            ("overlay,path=/x", "path=/x"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for json in [r#"{"mode":"ro","size":1}"#, r#"{"mode":"x"}"#, r#"{"mode":"overlay","a":1}"#]
        {
            serde_json::from_str::<DiskSpec>(json).unwrap_err();
        }
    }
}
