//! What a VM is to be: one typed description, which the command line (`vmm boot`, `vmm fleet boot`),
//! the node agent's API and the files of its VMs have in common.
//!
//! Each part that is more than a number has a file of its own here.
#![allow(clippy::doc_markdown, reason = "documentation comments here are help texts")]

pub mod disk;
pub mod endpoint;
pub mod limits;
pub mod name;
pub mod net;
pub mod vsock;

use clap::Args;
use imgcache::client::Verify;
use imgcache::image::name::ImageName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::disk::DiskSpec;
use self::endpoint::EndpointSpec;
use self::limits::LimitsSpec;
use self::net::NetSpec;
use crate::loader::{KernelChoice, RamdiskChoice};
use crate::machine::boot::ProtocolChoice;
use crate::machine::layout::{HUGE_PAGE, MAX_CPUS, MAX_RAM, MIN_RAM};
use crate::machine::memory::{BackingChoice, MemoryError};
use crate::size;
use crate::spec::name::ImageNameSchema;
use crate::spec::vsock::VsockSpec;

/// The longest text behind a kernel command line, in characters; kernels take less.
const MAX_APPEND: usize = 65535;

/// RAM of a VM, unless said otherwise, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// A VM that is to be booted.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name of the image (see 'vmm image ls').
    #[arg(long, value_name = "NAME")]
    #[schema(value_type = ImageNameSchema)]
    pub image: ImageName,

    /// Virtual processors, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: u8,

    /// RAM, a multiple of 2 MiB from 64M up; such as 512M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    #[serde(default = "default_memory")]
    #[schema(minimum = 67_108_864, maximum = 1_099_511_627_776_u64, example = 536_870_912)]
    pub memory: u64,

    /// What guest RAM is made of.
    #[arg(long, value_enum, default_value_t = BackingChoice::Auto)]
    #[serde(default)]
    pub memory_backing: BackingChoice,

    /// How the ramdisk gets into guest memory.
    #[arg(long, value_enum, default_value_t = RamdiskChoice::Auto)]
    #[serde(default)]
    pub ramdisk: RamdiskChoice,

    /// How the kernel gets into guest memory.
    #[arg(long, value_enum, default_value_t = KernelChoice::Auto)]
    #[serde(default)]
    pub kernel: KernelChoice,

    /// How the kernel is entered.
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Auto)]
    #[serde(default)]
    pub boot_protocol: ProtocolChoice,

    /// Text to put behind the image's kernel command line.
    #[arg(long, value_name = "TEXT")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 65535)]
    pub cmdline_append: Option<String>,

    /// Its network: none; nat (a bridge of this host's own, behind its address); bridge=NAME; or fd=N, an
    /// open TAP interface. Behind it, with commas: mac=, ip=ADDRESS/N, ip6=ADDRESS/N, gateway=, dns=
    /// (up to three), mtu=, address=cmdline|dhcp (how the guest learns ip=), rate=, rate-in=, rate-out=
    /// and burst= (bytes a second, and at once, such as 10M), packets= (a second), allow-in= and
    /// allow-out= (ports that may be reached of the VM, and by it, such as tcp:22+udp:53, or none),
    /// isolated (from others that are), subnet= (of nat).
    #[arg(long, value_name = "NETWORK", default_value_t)]
    #[serde(default, deserialize_with = "net::checked")]
    pub net: NetSpec,

    /// The image's disk, which the guest sees as /dev/vda: ro, overlay[,size=SIZE][,file=PATH] (what the
    /// guest writes goes to a file of the VM's own: at most SIZE of it, and to PATH to be kept), or none.
    /// By default ro, if the image has a disk.
    #[arg(long, value_name = "HOW")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskSpec>,

    /// Sockets between programs of the guest and of the host: cid=N[,socket=PATH]. A program that connects
    /// to PATH (v.sock) and writes "CONNECT 52" reaches port 52 of the guest, once it reads "OK"; one of the
    /// guest that connects to port 52 of the host (CID 2) reaches who listens at PATH_52.
    #[arg(long, value_name = "DEVICE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,

    /// What it may do with virtual endpoints, through its control device: services=NAME+NAME, which it may
    /// announce (names, and patterns such as kv.*), addresses=IP+IP of these, in their order, move (it may ask that
    /// they be moved), split (it may split, merge and mirror them). Without this it cannot even look services up.
    #[arg(long, value_name = "RIGHTS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointSpec>,

    /// Hash every chunk in full (BLAKE3), even where the store vouches that nothing was changed
    /// since it was last hashed and a checksum would do.
    #[arg(long)]
    #[serde(default)]
    pub verify_full: bool,

    /// Limits of a jailed VM, NAME=VALUE separated by commas: cpu (processors, such as 1.5),
    /// cpu-weight, memory-overhead (beyond the guest's RAM), swap, tasks, and for each disk read,
    /// write (bytes a second), reads, writes (a second).
    #[arg(long, value_name = "LIMITS", default_value_t, hide_default_value = true)]
    #[serde(default, skip_serializing_if = "LimitsSpec::is_empty")]
    pub limits: LimitsSpec,
}

fn one() -> u8 {
    1
}

fn default_memory() -> u64 {
    DEFAULT_MEMORY
}

impl VmSpec {
    /// Checks what the command line has checked already, for those that come by other ways.
    ///
    /// # Errors
    /// What is wrong, with the field that it is in.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(format!("'spec.cpus': 1 to {MAX_CPUS}, not {}", self.cpus));
        }
        let size = MIN_RAM..=MAX_RAM;
        if !size.contains(&self.memory) || !self.memory.is_multiple_of(HUGE_PAGE) {
            return Err(format!("'spec.memory': {}", MemoryError::Size(self.memory)));
        }
        if self.cmdline_append.as_ref().is_some_and(|text| text.chars().count() > MAX_APPEND) {
            return Err(format!("'spec.cmdline_append': at most {MAX_APPEND} characters"));
        }
        if let Some(DiskSpec::Overlay { file: Some(_), .. }) = &self.disk {
            // Who may boot VMs may not for that reason write to any file that the agent can.
            return Err("'spec.disk.file': an agent's VMs have no overlays that are kept".into());
        }
        if let Some(VsockSpec { socket: Some(_), .. }) = &self.vsock {
            return Err("'spec.vsock.socket': the socket of an agent's VM is in its folder, \
                        node/vms/NUMBER/vsock/socket below the agent's: leave out the path"
                .into());
        }
        if let Some(endpoint) = &self.endpoint {
            endpoint.check().map_err(|error| format!("'spec.endpoint': {error}"))?;
        }
        self.net.check().map_err(|error| format!("'spec.net': {error}"))?;
        self.limits.check().map_err(|error| format!("'spec.limits': {error}"))?;
        Ok(())
    }

    /// How thoroughly chunks are verified.
    pub fn verify(&self) -> Verify {
        if self.verify_full { Verify::Full } else { Verify::Auto }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        spec: VmSpec,
    }

    #[test]
    fn the_command_line_and_json_have_the_same_defaults() {
        let command = Command::parse_from(["boot", "--image", "debian:12"]);
        let json: VmSpec = serde_json::from_str(r#"{"image":"debian:12"}"#).unwrap();
        assert_eq!(command.spec, json);
        let written = serde_json::to_string(&json).unwrap();
        assert_eq!(serde_json::from_str::<VmSpec>(&written).unwrap(), json);
    }

    #[test]
    fn a_word_that_is_none_of_a_spec_is_refused() {
        let error = serde_json::from_str::<VmSpec>(r#"{"image":"a","cpu":2}"#).unwrap_err();
        assert!(error.to_string().contains("cpu"), "{error}");
    }

    #[test]
    fn paths_of_the_host_are_refused_to_who_calls_an_agent() {
        for (words, field) in [
            (["--disk", "overlay,file=/etc/passwd"], "spec.disk.file"),
            (["--vsock", "cid=3,socket=/run/other"], "spec.vsock.socket"),
        ] {
            let command =
                Command::parse_from(["boot", "--image", "debian:12"].into_iter().chain(words));
            let error = command.spec.check().unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }
}
