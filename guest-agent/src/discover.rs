//! Where the control device is.
//!
//! The kernel makes a platform device of the ACPI device, and its resources show in `/proc/ioports` and
//! `/proc/iomem` under its name. Without ACPI the VMM says the same on the kernel's command line
//! ([`COMMAND_LINE_WORD`]). sysfs shows an ACPI device, but the resources only of those that are
//! PNP devices: that is looked at too, for kernels that take any identifier for one.

use std::fs;
use std::path::{Path, PathBuf};

use control_abi::register::{ACPI_ID, COMMAND_LINE_WORD, WINDOW_BYTES};
use serde::Serialize;

/// Where the registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Device {
    /// First I/O port of the window.
    pub port: Option<u16>,
    /// Guest-physical address of the page with the same registers.
    pub address: Option<u64>,
    /// What said so.
    pub source: Source,
}

/// What said where the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The kernel's tables of resources.
    Resources,
    /// The resources of a PNP device.
    Pnp,
    /// The kernel's command line.
    CommandLine,
    /// Whoever called this.
    Caller,
}

/// Why the device was not found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// Nothing says that there is one.
    #[error(
        "there is no control device: no {ACPI_ID} in '{}', '{}' or '{}', and no word \
         '{COMMAND_LINE_WORD}=PORT,ADDRESS' on the kernel's command line",
        .0.join("proc/ioports").display(),
        .0.join("proc/iomem").display(),
        .0.join("sys/bus/pnp/devices").display()
    )]
    NotFound(PathBuf),
    /// ACPI knows the device, but where it is cannot be read.
    #[error(
        "the control device {ACPI_ID} is in ACPI, but not where: only root sees the addresses in \
         '{}'",
        .0.join("proc/ioports").display()
    )]
    Hidden(PathBuf),
    /// A place that is none.
    #[error(
        "'{0}' is no place of a control device: wanted PORT,ADDRESS, both hexadecimal with 0x, as \
         0xd00,0xd0100000"
    )]
    BadPlace(String),
}

/// Looks for the device.
///
/// # Errors
/// If nothing says that there is one, or where.
pub fn discover() -> Result<Device, DiscoverError> {
    discover_below(Path::new("/"))
}

/// The same where `/proc` and `/sys` are below `root`.
///
/// # Errors
/// As [`discover`].
pub fn discover_below(root: &Path) -> Result<Device, DiscoverError> {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let port = resource(&text("proc/ioports")).and_then(|port| u16::try_from(port).ok());
    let address = resource(&text("proc/iomem"));
    if port.is_some() || address.is_some() {
        return Ok(Device { port, address, source: Source::Resources });
    }
    if let Some(device) = pnp(&root.join("sys/bus/pnp/devices")) {
        return Ok(device);
    }
    let line = text("proc/cmdline");
    let word = line.split_ascii_whitespace().find_map(|word| {
        word.strip_prefix(COMMAND_LINE_WORD).and_then(|rest| rest.strip_prefix('='))
    });
    if let Some(place) = word {
        return Ok(Device { source: Source::CommandLine, ..parse_place(place)? });
    }
    let in_acpi = root.join("sys/bus/acpi/devices").join(format!("{ACPI_ID}:00")).exists();
    Err(if in_acpi {
        DiscoverError::Hidden(root.to_owned())
    } else {
        DiscoverError::NotFound(root.to_owned())
    })
}

/// Reads `PORT,ADDRESS`, as on the kernel's command line.
///
/// # Errors
/// If it is anything else.
pub fn parse_place(text: &str) -> Result<Device, DiscoverError> {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let place = text.split_once(',').and_then(|(port, address)| {
        let port = u16::try_from(number(port)?).ok()?;
        port.checked_add(WINDOW_BYTES - 1)?;
        Some(Device { port: Some(port), address: number(address), source: Source::Caller })
    });
    place
        .filter(|device| device.address.is_some())
        .ok_or_else(|| DiscoverError::BadPlace(text.to_owned()))
}

/// The start of the device's range in a table of resources, whose lines are `START-END : NAME`.
/// To others than root the kernel shows all addresses as zero.
fn resource(table: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let (range, name) = line.trim().split_once(" : ")?;
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let large_enough = end.checked_sub(start)? >= u64::from(WINDOW_BYTES) - 1;
        (name.starts_with(ACPI_ID) && start != 0 && large_enough).then_some(start)
    })
}

/// The device among the PNP devices, whose resources are lines as `io 0xd00-0xd3f`.
fn pnp(devices: &Path) -> Option<Device> {
    let folders = fs::read_dir(devices).ok()?;
    folders.filter_map(Result::ok).find_map(|folder| {
        let text = |name| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        text("id").lines().any(|id| id == ACPI_ID).then_some(())?;
        let resources = text("resources");
        let first = |kind: &str| {
            resources.lines().find_map(|line| {
                let (start, _) = line.strip_prefix(kind)?.trim().split_once('-')?;
                u64::from_str_radix(start.strip_prefix("0x")?, 16).ok()
            })
        };
        let port = first("io ").and_then(|port| u16::try_from(port).ok());
        let address = first("mem ");
        (port.is_some() || address.is_some()).then_some(Device {
            port,
            address,
            source: Source::Pnp,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const PORTS: &str = "0000-0cf7 : PCI Bus 0000:00\n  0d00-0d3f : VMMD0001:00\n";

    #[test]
    fn the_kernels_tables_come_first() {
        let memory = "00001000-0009ffff : System RAM\nd0100000-d0100fff : VMMD0001:00\n";
        let cmdline = "quiet vmm.control=0xe00,0xd0200000\n";
        let files = [("proc/ioports", PORTS), ("proc/iomem", memory), ("proc/cmdline", cmdline)];
        let device = discover_below(root(&files).path()).unwrap();
        let expected =
            Device { port: Some(0xd00), address: Some(0xd010_0000), source: Source::Resources };
        assert_eq!(device, expected);
        let device = discover_below(root(&files[..1]).path()).unwrap();
        assert_eq!((device.port, device.address), (Some(0xd00), None));
        let device = discover_below(root(&files[2..]).path()).unwrap();
        assert_eq!((device.port, device.source), (Some(0xe00), Source::CommandLine));
    }

    #[test]
    fn a_pnp_device_says_where_it_is() {
        let resources = "state = active\nio 0xd00-0xd3f\nmem 0xd0100000-0xd0100fff\n";
        let files = [
            ("sys/bus/pnp/devices/00:01/id", "PNP0501\n"),
            ("sys/bus/pnp/devices/00:01/resources", "state = active\nio 0x3f8-0x3ff\n"),
            ("sys/bus/pnp/devices/00:02/id", "VMMD0001\n"),
            ("sys/bus/pnp/devices/00:02/resources", resources),
        ];
        let device = discover_below(root(&files).path()).unwrap();
        let expected =
            Device { port: Some(0xd00), address: Some(0xd010_0000), source: Source::Pnp };
        assert_eq!(device, expected);
        assert!(discover_below(root(&files[..2]).path()).is_err());
    }

    #[test]
    fn what_is_not_there_or_hidden_is_said() {
        let error = discover_below(root(&[]).path()).unwrap_err();
        assert!(matches!(error, DiscoverError::NotFound(_)), "{error}");
        assert!(error.to_string().contains("VMMD0001"), "{error}");
        let hidden = "  0000-0000 : VMMD0001:00\n";
        let files = [("proc/ioports", hidden), ("sys/bus/acpi/devices/VMMD0001:00/status", "15\n")];
        let error = discover_below(root(&files).path()).unwrap_err();
        assert!(matches!(error, DiscoverError::Hidden(_)), "{error}");
        // A range too small for the registers is not taken for them.
        let small = "0d00-0d0f : VMMD0001:00\n";
        assert!(discover_below(root(&[("proc/ioports", small)]).path()).is_err());
    }

    #[test]
    fn places_are_two_hexadecimal_numbers() {
        let device = parse_place("0xd00,0xd0100000").unwrap();
        assert_eq!((device.port, device.address), (Some(0xd00), Some(0xd010_0000)));
        for bad in ["", "0xd00", "d00,0x1", "0xd00,", "0x10000,0x1", "0xffe0,0x1", "0xd00,0x1,"] {
            assert!(parse_place(bad).is_err(), "{bad}");
        }
    }
}
