//! The pool of images of a node.

use std::fmt::Write;

use clap::Args;
use imgcache::image::name::ImageName;

use super::super::reach::Reach;
use super::super::{CliError, print_json, print_text};
use crate::api::client::part;
use crate::api::{PoolImage, PullImage};
use crate::exit::Exit;
use crate::size;
use crate::spec::name::TenantName;

/// List the images in a node's pool.
#[derive(Debug, Args)]
pub struct ImagesCommand {
    /// Print one line of JSON, a list.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

/// An image of a tenant.
#[derive(Debug, Args)]
struct Which {
    /// Name of the image.
    #[arg(value_name = "IMAGE")]
    image: ImageName,

    /// Whose VMs use it. Tenants never share a page of an image.
    #[arg(long, value_name = "NAME", default_value_t)]
    tenant: TenantName,

    #[command(flatten)]
    reach: Reach,
}

/// Bring an image into a node's pool, so that VMs find it there.
#[derive(Debug, Args)]
pub struct PullCommand {
    #[command(flatten)]
    which: Which,

    /// Keep it there whether or not any VM uses it.
    #[arg(long)]
    pin: bool,
}

/// Keep an image in a node's pool whether or not any VM uses it.
#[derive(Debug, Args)]
pub struct PinCommand {
    #[command(flatten)]
    which: Which,
}

/// Let an image be given up when no VM uses it and there is no room.
#[derive(Debug, Args)]
pub struct UnpinCommand {
    #[command(flatten)]
    which: Which,
}

/// Give an image up that no VM uses.
#[derive(Debug, Args)]
pub struct DropCommand {
    #[command(flatten)]
    which: Which,
}

impl Which {
    fn path(&self, more: &str) -> String {
        let image = part(self.image.as_str());
        format!("/v1/images/{image}{more}?tenant={}", self.tenant)
    }
}

fn tell(image: &PoolImage) -> Result<Exit, CliError> {
    print_text(&table(std::slice::from_ref(image)))?;
    Ok(Exit::Success)
}

fn table(images: &[PoolImage]) -> String {
    let mut text = format!(
        "{:<28} {:<12} {:>10} {:>5} {:>9}  {:<6}  {}\n",
        "IMAGE", "TENANT", "SIZE", "VMS", "LOAD ms", "PINNED", "MANIFEST"
    );
    for image in images {
        let pinned = if image.pinned { "yes" } else { "no" };
        let manifest: String = image.manifest.chars().take(12).collect();
        let _ = writeln!(
            text,
            "{:<28} {:<12} {:>10} {:>5} {:>9.1}  {pinned:<6}  {manifest}",
            image.image.to_string(),
            image.tenant.to_string(),
            size::show(image.bytes),
            image.vms,
            image.load_ms,
        );
    }
    text
}

impl ImagesCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let mut all = Vec::new();
        for client in self.reach.all()? {
            all.extend(client.get::<Vec<PoolImage>>("/v1/images")?);
        }
        if self.json {
            print_json(&all)?;
        } else {
            print_text(&table(&all))?;
        }
        Ok(Exit::Success)
    }
}

impl PullCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        let Which { image, tenant, reach } = &self.which;
        let wish = PullImage { image: image.clone(), tenant: tenant.clone(), pin: self.pin };
        tell(&reach.one()?.post("/v1/images", &wish)?)
    }
}

impl PinCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        tell(&self.which.reach.one()?.put(&self.which.path("/pin"))?)
    }
}

impl UnpinCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        tell(&self.which.reach.one()?.delete_and_get(&self.which.path("/pin"))?)
    }
}

impl DropCommand {
    pub fn run(&self) -> Result<Exit, CliError> {
        self.which.reach.one()?.delete(&self.which.path(""))?;
        print_text(&format!("{}\n", self.which.image))?;
        Ok(Exit::Success)
    }
}
