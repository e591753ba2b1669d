//! Which kind of KVM this host has, and whether it can boot stock kernels.

use std::path::Path;

use serde::Serialize;

/// The device that a VMM opens.
pub const DEVICE: &str = "/dev/kvm";

/// The kinds of KVM, by the module that implements it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmKind {
    /// Intel VT-x.
    Intel,
    /// AMD SVM.
    Amd,
    /// Page-table based, without hardware virtualization: only for guests built for it.
    Pvm,
    /// The module is built into the kernel, or named otherwise.
    Unknown,
}

impl KvmKind {
    /// Looks at the loaded modules.
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/sys/module"))
    }

    fn detect_in(modules: &Path) -> Self {
        // PVM first: its host may well have the hardware modules beside it, unused.
        for (module, kind) in
            [("kvm_pvm", Self::Pvm), ("kvm_intel", Self::Intel), ("kvm_amd", Self::Amd)]
        {
            if modules.join(module).exists() {
                return kind;
            }
        }
        Self::Unknown
    }

    /// Whether guests with stock kernels run.
    pub fn boots_stock_kernels(self) -> bool {
        self != Self::Pvm
    }
}

impl std::fmt::Display for KvmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Intel => "Intel VT-x",
            Self::Amd => "AMD SVM",
            Self::Pvm => "PVM",
            Self::Unknown => "unknown",
        })
    }
}

/// Whether this host is itself a virtual machine.
pub fn nested() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
    })
}

/// Why a VM cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    #[error(
        "{DEVICE} does not exist: load the module with 'modprobe kvm-intel' or 'modprobe kvm-amd'; \
         if that fails, virtualization is off in the firmware, or this is a VM without nested \
         virtualization"
    )]
    Missing,
    /// It may not be opened.
    #[error("{DEVICE} may not be opened: add this user to the group 'kvm', or run as root")]
    Forbidden,
    /// It is there and does not work.
    #[error("{DEVICE} cannot be used: {0}")]
    Broken(std::io::Error),
    /// It runs only kernels built for it.
    #[error(
        "this host's KVM is of the PVM kind (module kvm_pvm), which runs only kernels built for \
         PVM; a stock kernel would hang in it. Use a host with VT-x or SVM, try it in the emulated \
         lab with 'scripts/lab run -- vmm boot ...', or stop short of the guest with --ready-only"
    )]
    Pvm,
}

/// Opens the KVM device.
///
/// # Errors
/// The reason with its remedy.
pub fn open() -> Result<kvm_ioctls::Kvm, HostError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|error| {
        match std::io::Error::from(error) {
            e if e.kind() == std::io::ErrorKind::NotFound => HostError::Missing,
            e if e.kind() == std::io::ErrorKind::PermissionDenied => HostError::Forbidden,
            // The module is there, the hardware is not.
            e if e.raw_os_error() == Some(libc::ENODEV)
                || e.raw_os_error() == Some(libc::ENXIO) =>
            {
                HostError::Missing
            }
            e => HostError::Broken(e),
        }
    })?;
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(HostError::Broken(std::io::Error::other(format!(
            "its API version is {version}, not 12"
        ))));
    }
    Ok(kvm)
}

/// Fails where a stock kernel would hang instead of booting.
///
/// # Errors
/// [`HostError::Pvm`].
pub fn require_stock_kernels() -> Result<(), HostError> {
    if KvmKind::detect().boots_stock_kernels() { Ok(()) } else { Err(HostError::Pvm) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvm_is_told_apart_even_beside_hardware_modules() {
        let modules = tempfile::tempdir().unwrap();
        assert_eq!(KvmKind::detect_in(modules.path()), KvmKind::Unknown);
        std::fs::create_dir(modules.path().join("kvm_intel")).unwrap();
        assert_eq!(KvmKind::detect_in(modules.path()), KvmKind::Intel);
        std::fs::create_dir(modules.path().join("kvm_pvm")).unwrap();
        assert_eq!(KvmKind::detect_in(modules.path()), KvmKind::Pvm);
        assert!(!KvmKind::Pvm.boots_stock_kernels());
    }
}
