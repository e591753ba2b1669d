//! Which kind of KVM this host has, and whether it can boot stock kernels.

use std::path::Path;

use kvm_ioctls::{Cap, Kvm};
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

/// Why a VM cannot be run here; shown with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such device.
    Missing,
    /// It may not be opened.
    Forbidden,
    /// It is there and does not work.
    Broken(std::io::Error),
    /// It runs only kernels built for it.
    Pvm,
}

impl HostError {
    /// What was found, without the remedy.
    pub fn found(&self) -> String {
        match self {
            Self::Missing => format!("{DEVICE} does not exist"),
            Self::Forbidden => format!("{DEVICE} may not be opened"),
            Self::Broken(error) => format!("{DEVICE} cannot be used: {error}"),
            Self::Pvm => "this host's KVM is of the PVM kind (module kvm_pvm), which runs only \
                          kernels built for PVM; a stock kernel would hang in it"
                .into(),
        }
    }

    /// What to do about it, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some(
                "load the module with 'modprobe kvm-intel' or 'modprobe kvm-amd'; if that fails, \
                 virtualization is off in the firmware, or this is a VM without nested \
                 virtualization",
            ),
            Self::Forbidden => Some("add this user to the group 'kvm', or run as root"),
            Self::Broken(_) => None,
            Self::Pvm => Some(
                "use a host with VT-x or SVM, try it in the emulated lab with 'scripts/lab run -- \
                 vmm boot ...', or stop short of the guest with --ready-only",
            ),
        }
    }
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.found())?;
        self.remedy().map_or(Ok(()), |remedy| write!(f, ": {remedy}"))
    }
}

/// What every machine is made with, by name.
const CAPABILITIES: [(Cap, &str); 3] = [
    (Cap::SplitIrqchip, "split interrupt controller"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::Ioeventfd, "notifications by eventfd"),
];

/// Which of the capabilities that every machine is made with this KVM lacks, by name.
pub fn missing_capabilities(kvm: &Kvm) -> Vec<&'static str> {
    missing_of(|cap| kvm.check_extension(cap))
}

fn missing_of(has: impl Fn(Cap) -> bool) -> Vec<&'static str> {
    CAPABILITIES.into_iter().filter(|(cap, _)| !has(*cap)).map(|(_, name)| name).collect()
}

/// Opens the KVM device.
///
/// # Errors
/// The reason with its remedy.
pub fn open() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|error| {
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

    #[test]
    fn errors_are_shown_with_what_was_found_and_the_remedy() {
        for error in [HostError::Missing, HostError::Forbidden, HostError::Pvm] {
            let (found, remedy) = (error.found(), error.remedy().unwrap());
            assert!(!found.contains(remedy), "{found}");
            assert_eq!(error.to_string(), format!("{found}: {remedy}"));
        }
        let error = HostError::Broken(std::io::Error::other("no"));
        assert_eq!(error.to_string(), "/dev/kvm cannot be used: no");
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_of(|_| true), [""; 0]);
        let missing = missing_of(|cap| !matches!(cap, Cap::Irqfd | Cap::Ioeventfd));
        assert_eq!(missing, ["interrupts by eventfd", "notifications by eventfd"]);
    }
}
