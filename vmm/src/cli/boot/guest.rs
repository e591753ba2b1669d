//! The options that say who a guest is, and what it may ask for.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use control_abi::register::feature;
use control_abi::rights;
use devices::control::Identity;
use glob::Pattern;
use imgcache::client::Image;

use crate::cli::CliError;
use crate::control::images::{Images, Opener};
use crate::control::vms::Manager;
use crate::control::vms::folder::Vms;
use crate::control::vms::launch::Launcher;
use crate::control::vms::quota::BootQuota;
use crate::control::{BOOT_RATE, MANAGER_RATE, Setup, TENANT_RATE};
use crate::spec::name::VmName;

/// What the guest is, and may do through its control device.
#[derive(Debug, Args)]
#[command(next_help_heading = "Control device")]
pub struct GuestOptions {
    /// Name of the VM; by default vm-PID. A manager that is started again under its name finds the
    /// VMs that it booted.
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// What the guest is: a tenant asks about itself only, a manager may see to other VMs as well.
    #[arg(long, value_enum, default_value_t = Role::Tenant)]
    role: Role,

    /// What else the guest may do, separated by commas: boot (a manager boots VMs, within its
    /// quota), cache (a manager names the cache that they come from: it is trusted with what
    /// images are, and to have this host connect to any address), fetch=PATTERN (read the images
    /// whose names match; its own it always may).
    #[arg(long, value_name = "RIGHT,...", value_delimiter = ',')]
    may: Vec<May>,

    /// How much the manager may boot: count=N,memory=SIZE,images=PATTERN|PATTERN..., all three. VMs
    /// that run at a time, their RAM in all, and names of images, with * and ?.
    #[arg(long, value_name = "LIMITS")]
    boot_quota: Option<BootQuota>,

    /// Folder of what is known of VMs that a manager boots; by default $XDG_RUNTIME_DIR/vmm, or
    /// /run/vmm.
    #[arg(long, value_name = "DIR", env = "VMM_RUN_DIR")]
    run_dir: Option<PathBuf>,

    /// Write what the guest says of itself (marks, ready, heartbeats, metrics, messages) to this
    /// file, a line of JSON each, as it says it.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
}

/// What a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// It asks about itself.
    Tenant,
    /// It sees to other VMs.
    Manager,
}

/// What a guest may do beyond its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum May {
    /// Boot VMs.
    Boot,
    /// Name a cache.
    Cache,
    /// Read images of these names.
    Fetch(Pattern),
}

impl FromStr for May {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "boot" => Ok(Self::Boot),
            None if text == "cache" => Ok(Self::Cache),
            Some(("fetch", pattern)) => {
                Pattern::new(pattern).map(Self::Fetch).map_err(|error| error.to_string())
            }
            _ => Err("rights are boot, cache and fetch=PATTERN".into()),
        }
    }
}

/// What the control device needs of the machine and of this command.
#[derive(Debug)]
pub struct Around<'a> {
    /// The image that the guest is booted from.
    pub image: &'a Image,
    /// Virtual processors.
    pub cpus: u8,
    /// Bytes of RAM.
    pub memory: u64,
    /// Words that say where images are, before `boot`.
    pub global: Vec<OsString>,
    /// Words of `boot` that say how they come from a cache.
    pub load: Vec<OsString>,
}

impl GuestOptions {
    /// The name that it is to have.
    pub fn name(&self) -> Option<&VmName> {
        self.name.as_ref()
    }

    /// Checks that the options go together, for a VM that is in a jail or not.
    ///
    /// # Errors
    /// [`CliError::Rights`].
    pub fn check(&self, jailed: bool) -> Result<(), CliError> {
        let manager = self.role == Role::Manager;
        let needs = |what: &str| Err(CliError::Rights(what.into()));
        if jailed && manager {
            return needs(
                "--role manager is not for a jail: it starts programs, which a jail has none of",
            );
        }
        if jailed && self.may.iter().any(|may| matches!(may, May::Fetch(_))) {
            return needs("--may fetch is not for a jail, in which there are no images");
        }
        if !manager && (self.may.contains(&May::Boot) || self.may.contains(&May::Cache)) {
            return needs("--may boot and --may cache are for managers: add --role manager");
        }
        if self.may.contains(&May::Boot) && self.name.is_none() {
            return needs("--may boot needs --name: VMs are those of a manager's name");
        }
        if self.may.contains(&May::Boot) && self.boot_quota.is_none() {
            return needs("--may boot needs --boot-quota count=N,memory=SIZE,images=PATTERN");
        }
        if self.boot_quota.is_some() && !self.may.contains(&May::Boot) {
            return needs("--boot-quota is for managers that may boot: add --may boot");
        }
        Ok(())
    }

    fn rights(&self) -> u32 {
        let manager = if self.role == Role::Manager { rights::MANAGER } else { 0 };
        self.may.iter().fold(manager, |all, may| {
            all | match may {
                May::Boot => rights::BOOT,
                May::Cache => rights::CACHE,
                May::Fetch(_) => rights::FETCH,
            }
        })
    }

    /// The VM's name.
    pub fn vm_name(&self) -> String {
        let given = self.name.as_ref().map(ToString::to_string);
        given.unwrap_or_else(|| format!("vm-{}", std::process::id()))
    }

    /// What the control device is made of.
    ///
    /// # Errors
    /// A file or folder that cannot be made.
    pub fn setup(&self, around: Around<'_>, opener: Option<Opener>) -> Result<Setup, CliError> {
        let manager = self.role == Role::Manager;
        let name = self.vm_name();
        let booting = if manager { feature::BOOT } else { 0 };
        let images = if opener.is_some() { feature::IMAGES } else { 0 };
        let identity = Identity {
            name: name.clone(),
            image: around.image.name().to_string(),
            manifest: around.image.id().0,
            cpus: around.cpus.into(),
            memory_bytes: around.memory,
            rights: self.rights(),
            features: images | feature::EVENTS | feature::EVENT_LINE | booting,
            commands: if manager { MANAGER_RATE } else { TENANT_RATE },
            boots: BOOT_RATE,
        };
        let patterns = self.may.iter().filter_map(|may| match may {
            May::Fetch(pattern) => Some(pattern.clone()),
            May::Boot | May::Cache => None,
        });
        let own = (around.image.name().clone(), around.image.id());
        let images = Images::new(opener, own, patterns.collect());
        let events = self.events.as_ref().map(|file| {
            let source = |source| CliError::Output { what: file.display().to_string(), source };
            File::create(file).map_err(source)
        });
        let manager = if manager { Some(self.manager(name, around)?) } else { None };
        Ok(Setup { identity, images, manager, events: events.transpose()? })
    }

    fn manager(&self, name: String, around: Around<'_>) -> Result<Manager, CliError> {
        // One that may not boot may still see and stop what it booted when it might.
        let nothing = BootQuota { count: 0, memory: 0, images: Vec::new() };
        let quota = self.boot_quota.clone().unwrap_or(nothing);
        let folder = self.run_folder().join("vms");
        let source = |source| CliError::Output { what: folder.display().to_string(), source };
        let vms = Vms::create(folder.clone()).map_err(source)?;
        let lock = vms.manage(&name).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => {
                CliError::Rights(format!("another manager runs that is called {name}"))
            }
            _ => source(error),
        })?;
        let program = std::env::current_exe().map_err(source)?;
        let launcher = Launcher { program, global: around.global, load: around.load };
        Ok(Manager::new(name, quota, vms, launcher).holding(lock))
    }

    fn run_folder(&self) -> PathBuf {
        let runtime = || Some(PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?).join("vmm"));
        self.run_dir.clone().or_else(runtime).unwrap_or_else(|| PathBuf::from("/run/vmm"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        guest: GuestOptions,
    }

    fn parse(words: &str) -> Result<GuestOptions, String> {
        let words = std::iter::once("boot").chain(words.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        command.guest.check(false).map_err(|error| error.to_string())?;
        Ok(command.guest)
    }

    #[test]
    fn rights_are_what_the_operator_says() {
        assert_eq!(parse("").unwrap().rights(), 0);
        let guest = parse("--may fetch=debian:*,fetch=base").unwrap();
        assert_eq!(guest.rights(), rights::FETCH);
        let quota = "--name boss --boot-quota count=1,memory=1G,images=*";
        let guest = parse(&format!("--role manager --may boot,cache {quota}")).unwrap();
        assert_eq!(guest.rights(), rights::MANAGER | rights::BOOT | rights::CACHE);
    }

    #[test]
    fn rights_that_make_no_sense_are_refused_with_what_is_missing() {
        for (words, named) in [
            ("--may boot", "--role manager"),
            ("--may cache", "--role manager"),
            ("--role manager --may boot", "--name"),
            ("--role manager --may boot --name boss", "--boot-quota"),
            ("--role manager --boot-quota count=1,memory=1G,images=*", "--may boot"),
            ("--may fly", "boot, cache"),
            ("--may fetch=[", "attern"),
            ("--name ../x", "letters"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(named), "{words}: {error}");
        }
    }

    #[test]
    fn what_needs_more_than_a_jail_has_is_refused() {
        assert!(parse("--name one").unwrap().check(true).is_ok());
        for words in ["--role manager", "--may fetch=*"] {
            let error = parse(words).unwrap().check(true).unwrap_err().to_string();
            assert!(error.contains("jail"), "{words}: {error}");
        }
    }
}
