//! `vmm check`: what this host can do, and what to do about what it cannot.

mod jail;
mod rdma;

use std::path::Path;

use clap::Args;
use kvm_ioctls::Kvm;
use serde::Serialize;

use super::{CliError, HOW_TO_PUSH, StoreOptions, print_json, print_text};
use crate::exit::Exit;
use crate::host::kvm::HostError;
use crate::host::{hugepages, kvm};
use crate::size;

/// Check whether this host can boot guests, and how well.
///
/// Each line says what was found, and for what is missing how to mend it. Ends with exit code 5 if
/// stock kernels cannot be booted here.
#[derive(Debug, Args)]
pub struct CheckCommand {
    /// Print the findings as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Ok,
    /// Works, but could be better.
    Improve,
    /// Guests cannot boot.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, grade: Grade::Ok, found: found.into(), fix: None }
    }

    fn improve(subject: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        let (found, fix) = (found.into(), Some(fix.into()));
        Self { subject, grade: Grade::Improve, found, fix }
    }

    fn fail(subject: &'static str, found: impl Into<String>, fix: Option<String>) -> Self {
        Self { subject, grade: Grade::Fail, found: found.into(), fix }
    }
}

impl CheckCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let mut findings = of_kvm(kvm::open());
        findings.extend([hugetlb(), transparent(), transparent_shared(), images(&store.path()?)]);
        findings.extend(jail::findings());
        findings.extend(rdma::findings());
        if self.json {
            print_json(&findings)?;
        } else {
            print_text(&findings.iter().map(show).collect::<String>())?;
        }
        let able = findings.iter().all(|finding| finding.grade != Grade::Fail);
        Ok(if able { Exit::Success } else { Exit::HostNotAble })
    }
}

fn show(finding: &Finding) -> String {
    let mark = match finding.grade {
        Grade::Ok => "ok",
        Grade::Improve => "could be better",
        Grade::Fail => "MISSING",
    };
    let fix = finding.fix.as_ref().map_or(String::new(), |fix| format!("\n{:18}  fix: {fix}", ""));
    format!("{:18}  {mark}: {}{fix}\n", finding.subject, finding.found)
}

/// Without a device that can be used, what is behind it cannot be told.
fn of_kvm(device: Result<Kvm, HostError>) -> Vec<Finding> {
    match device {
        Ok(device) => vec![
            Finding::ok("KVM device", format!("{} can be used", kvm::DEVICE)),
            kind(),
            capabilities(&kvm::missing_capabilities(&device)),
        ],
        Err(error) => {
            let fix = error.remedy().map(str::to_owned);
            vec![Finding::fail("KVM device", error.found(), fix)]
        }
    }
}

fn kind() -> Finding {
    let kind = kvm::KvmKind::detect();
    let nested = if kvm::nested() { ", on a host that is itself a virtual machine" } else { "" };
    if kind.boots_stock_kernels() {
        return Finding::ok("KVM kind", format!("{kind}{nested}"));
    }
    Finding::fail(
        "KVM kind",
        format!("{kind}{nested}: stock kernels would hang; loading can be timed (--ready-only)"),
        Some("use a host with VT-x or SVM, or boot in the lab: scripts/lab run -- vmm boot".into()),
    )
}

fn capabilities(missing: &[&str]) -> Finding {
    if missing.is_empty() {
        return Finding::ok("KVM capabilities", "all that machines are made with");
    }
    Finding::fail(
        "KVM capabilities",
        format!("machines cannot be made without: {}", missing.join(", ")),
        Some("use a newer kernel on this host; Linux has had all of them since 4.11".into()),
    )
}

fn hugetlb() -> Finding {
    let pool = hugepages::HugeTlbPool::read();
    let found = format!(
        "{} of {} pages of 2 MiB are free ({})",
        pool.available(),
        pool.total,
        size::show(pool.available() << 21)
    );
    if pool.available() > 0 {
        Finding::ok("hugetlb", found)
    } else {
        Finding::improve(
            "hugetlb",
            found,
            "reserve some for the fastest guests: sysctl vm.nr_hugepages=1024",
        )
    }
}

fn transparent() -> Finding {
    match hugepages::transparent_mode().as_deref() {
        Some(mode @ ("always" | "madvise")) => Finding::ok("THP, anonymous", mode),
        Some(mode) => Finding::improve(
            "THP, anonymous",
            format!("{mode}: guests get 4 KiB pages"),
            format!("echo madvise > {}", hugepages::transparent_switch().display()),
        ),
        None => Finding::improve(
            "THP, anonymous",
            "this kernel has none: guests get 4 KiB pages",
            "reserve hugetlb pages instead: sysctl vm.nr_hugepages=1024",
        ),
    }
}

fn transparent_shared() -> Finding {
    match hugepages::transparent_shared_mode().as_deref() {
        Some(mode @ ("always" | "within_size" | "advise" | "force")) => {
            Finding::ok("THP, shared", mode)
        }
        Some(mode) => Finding::improve(
            "THP, shared",
            format!("{mode}: a store in shared memory is not mapped in 2 MiB pages"),
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
        None => Finding::ok("THP, shared", "not known to this kernel; not needed"),
    }
}

fn images(store: &Path) -> Finding {
    if store.is_dir() {
        Finding::ok("image store", store.display().to_string())
    } else {
        Finding::improve(
            "image store",
            format!("{} does not exist yet", store.display()),
            format!("push an image: {HOW_TO_PUSH}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_used_is_all_that_is_told_of_kvm_and_how_to_mend_it() {
        for error in [HostError::Missing, HostError::Forbidden] {
            let (found, remedy) = (error.found(), error.remedy().unwrap());
            let findings = of_kvm(Err(error));
            let [finding] = &findings[..] else { panic!("{findings:?}") };
            assert_eq!((finding.subject, finding.grade), ("KVM device", Grade::Fail));
            assert_eq!((&finding.found, finding.fix.as_deref()), (&found, Some(remedy)));
            assert!(
                show(finding).ends_with(&format!("MISSING: {found}\n{:20}fix: {remedy}\n", ""))
            );
        }
    }

    #[test]
    fn a_capability_that_is_missing_fails_and_is_named() {
        assert_eq!(capabilities(&[]).grade, Grade::Ok);
        let finding = capabilities(&["one", "other"]);
        assert_eq!(finding.grade, Grade::Fail);
        assert!(finding.found.ends_with(": one, other"), "{finding:?}");
        assert!(finding.fix.is_some());
    }
}
