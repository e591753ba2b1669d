//! `vmm image push`: from kernel and ramdisk files to an image in the store.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use imgcache::client::ImageClient;
use imgcache::image::import::{
    ImportError, ImportOptions, ReadAt, added_archive, disk_length, import_kernel,
};
use imgcache::image::manifest::{
    DEFAULT_CHUNK_SIZE, MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, ManifestError, SegmentKind,
};
use imgcache::image::name::ImageName;
use imgcache::key::ManifestId;
use imgcache::store::{NewImage, PushOptions, PushReport, Store, StoreError};
use imgcache::transport::cluster::publish::PublishReport;
use serde::Serialize;

use super::agent::{self, AgentFile};
use super::publish;
use crate::cli::cache::{CacheOptions, WriteOptions, open_for_writing};
use crate::cli::progress::Progress;
use crate::cli::{CliError, StoreOptions, print_json, print_text};
use crate::exit::Exit;
use crate::loader::warm;
use crate::machine::boot::MACHINE_COMMAND_LINE;
use crate::machine::layout::COMMAND_LINE_MAX;
use crate::size;

/// What an image's kernel is told if nothing else is asked for.
const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet";

/// Put an image into the store, in place of what its name stood for.
///
/// The kernel is decompressed and reduced to what is loaded, a compressed ramdisk is unpacked:
/// once here, instead of at each boot. Chunks that the store has already are not stored again. A
/// push that is interrupted leaves the old image as it was. With --cache the image is then put into
/// the cache too, as by 'vmm image publish'.
#[derive(Debug, Args)]
pub struct PushCommand {
    /// Name of the image: letters, digits and . _ - / : @ +, such as debian:12.
    name: ImageName,

    /// Kernel: a bzImage (vmlinuz) or an ELF file (vmlinux), which may be compressed.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// Initial ramdisk: cpio archives, compressed or not, several in a row as distributions have.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Disk: a raw file, a multiple of 512 bytes, up to 64 GiB; its format is never guessed. Guests see
    /// it as /dev/vda and read its chunks when they need them (see 'vmm boot --disk').
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,

    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_CMDLINE)]
    cmdline: String,

    /// Keep kernel and ramdisk as they are; the guest decompresses them at each boot. A bzImage
    /// then places itself at a random address (KASLR).
    #[arg(long)]
    as_is: bool,

    /// Add the guest agent to the ramdisk, as /sbin/guest-agent; without --initrd it is the ramdisk, and
    /// its init. FILE is what scripts/guest-agent built; by default guest-agent beside this program.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "", value_parser = AgentFile::parse)]
    with_agent: Option<AgentFile>,

    /// Bytes per chunk, a power of two from 4K to 1M.
    #[arg(long, value_name = "SIZE", default_value = "256K", value_parser = chunk_size)]
    chunk_size: u32,

    /// Print a report as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    cache: CacheOptions,

    #[command(flatten)]
    write: WriteOptions,
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|size| size.is_power_of_two())
        .filter(|size| (MIN_CHUNK_SIZE..=MAX_CHUNK_SIZE).contains(size))
        .ok_or_else(|| {
            format!("chunks are a power of two from 4K to 1M; the default is {DEFAULT_CHUNK_SIZE}")
        })
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a ImageName,
    #[serde(flatten)]
    push: PushReport,
    /// Bytes of the ramdisk that the host now has in 2 MiB pages, ready to be mapped.
    bytes_in_huge_pages: u64,
    /// What the cache was sent, if one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<PublishReport>,
}

impl PushCommand {
    pub fn run(&self, store: &StoreOptions) -> Result<Exit, CliError> {
        let cluster = open_for_writing(&self.cache, &self.write)?;
        let mut options = ImportOptions { as_is: self.as_is, ..ImportOptions::default() };
        let kernel_file = open(&self.kernel)?;
        let kernel =
            import_kernel(&kernel_file, &options).map_err(|error| input(&self.kernel, error))?;
        self.check_command_line(kernel.cmdline_max)?;
        let initrd_file = self.initrd.as_deref().map(open).transpose()?;
        let added = match &self.with_agent {
            Some(file) => agent::files(file, initrd_file.is_none())?,
            None => Vec::new(),
        };
        let mut agent_alone = None;
        if initrd_file.is_some() {
            options.added = added;
        } else if !added.is_empty() {
            agent_alone = added_archive(&added, &BTreeSet::new());
        }
        let alone = agent_alone.as_ref().map(|archive| archive as &dyn ReadAt);
        let initrd = initrd_file.as_ref().map(|file| file as &dyn ReadAt).or(alone);
        let initrd = initrd.map(|source| (source, &options));
        let disk = match &self.disk {
            Some(path) => {
                let file = open(path)?;
                let length =
                    disk_length(&file, self.chunk_size).map_err(|error| input(path, error))?;
                Some((file, length))
            }
            None => None,
        };

        // Nothing is touched before the kernel is known to be good; the ramdisk is checked while
        // it is pushed, and the name changes last.
        let store = Store::create(&store.path()?)?;
        let mut image =
            NewImage::from_import(kernel, initrd, self.cmdline.clone(), self.chunk_size);
        if let Some((file, length)) = &disk {
            image = image.with_disk(file, *length);
        }
        let disk_segment = image.segments.iter().position(|s| s.kind == SegmentKind::Block);
        let progress = Progress::new("pushing", 0);
        let mut show = |done, total| progress.set(done, total);
        let options = PushOptions { drop_cache: true, progress: Some(&mut show) };
        let push = store
            .push(&self.name, image, options)
            .map_err(|error| self.blame(error, disk_segment))?;
        drop(progress);

        let cache = match &cluster {
            Some(cluster) => Some(publish::from_store(cluster, &store, &self.name)?),
            None => None,
        };
        let bytes_in_huge_pages = warmed(store, &self.name, push.id);
        let in_cache = match (&cluster, &cache) {
            (Some(cluster), Some(report)) => publish::describe(&self.name, cluster, report),
            _ => String::new(),
        };
        self.report(push, bytes_in_huge_pages, cache)?;
        if !self.json {
            print_text(&in_cache)?;
        }
        Ok(Exit::Success)
    }

    /// What is pushed can be booted: the machine's own words go in front of the image's.
    fn check_command_line(&self, kernel_max: u32) -> Result<(), CliError> {
        let (length, own) = (self.cmdline.len(), MACHINE_COMMAND_LINE.len() + 1);
        let limit = u64::from(kernel_max).min(COMMAND_LINE_MAX - 1);
        if u64::try_from(own + length).map_or(true, |total| total > limit) {
            return Err(CliError::CommandLine { length, own, limit });
        }
        Ok(())
    }

    /// What only a push finds out about a file is the file's fault, not the store's.
    fn blame(&self, error: StoreError, disk_segment: Option<usize>) -> CliError {
        match error {
            StoreError::Source { segment, source, .. } if source.is::<ImportError>() => {
                let is_disk = disk_segment == Some(segment);
                let file = if is_disk { self.disk.as_ref() } else { self.initrd.as_ref() };
                let file = file.unwrap_or(&self.kernel);
                CliError::Input { file: file.clone(), source }
            }
            // Of what is checked there, the command line alone does not come from the kernel.
            StoreError::InvalidImage { source: ManifestError::Cmdline(_), .. } => error.into(),
            StoreError::InvalidImage { source, .. } => {
                CliError::Input { file: self.kernel.clone(), source: source.into() }
            }
            error => error.into(),
        }
    }

    fn report(
        &self,
        push: PushReport,
        bytes_in_huge_pages: u64,
        cache: Option<PublishReport>,
    ) -> Result<(), CliError> {
        if self.json {
            return print_json(&Report { name: &self.name, push, bytes_in_huge_pages, cache });
        }
        let notes: String = push.notes.iter().map(|note| format!("  {note}\n")).collect();
        print_text(&format!(
            "{notes}{}: {} ({} new, {} shared, {} zero), manifest {}\n",
            self.name,
            size::show(push.bytes_total),
            size::show(push.bytes_new),
            size::show(push.bytes_shared),
            size::show(push.bytes_zero),
            push.id
        ))
    }
}

/// Warms the image that was just pushed; returns how many bytes are in 2 MiB pages.
///
/// The push has succeeded, whatever becomes of this: others may have removed or replaced the image
/// since, and then there is nothing of it to warm.
fn warmed(store: Store, name: &ImageName, id: ManifestId) -> u64 {
    match ImageClient::new(Box::new(store)).open(name) {
        Ok(image) if image.id() == id => warm::warm(&image).1,
        Ok(_) => 0,
        Err(error) => {
            log::info!("not read into memory: {error}");
            0
        }
    }
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path)
        .map_err(|error| CliError::Input { file: path.to_owned(), source: error.into() })
}

fn input(path: &Path, error: ImportError) -> CliError {
    CliError::Input { file: path.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(initrd: Option<&str>) -> PushCommand {
        PushCommand {
            name: "a".parse().unwrap(),
            kernel: "kernel".into(),
            initrd: initrd.map(PathBuf::from),
            disk: None,
            cmdline: String::new(),
            as_is: false,
            with_agent: None,
            chunk_size: DEFAULT_CHUNK_SIZE,
            json: false,
            cache: CacheOptions::default(),
            write: WriteOptions::default(),
        }
    }

    #[test]
    fn a_bad_ramdisk_is_blamed_and_no_other_failure_to_read_it() {
        let failure = |source| StoreError::Source {
            image: "a".parse().unwrap(),
            segment: 1,
            offset: 0,
            source,
        };
        let bad = failure(ImportError::EmptyRamdisk { length: 0 }.into());
        let error = push(Some("ramdisk")).blame(bad, None);
        assert_eq!(error.exit(), Exit::BadInput);
        assert!(error.to_string().starts_with("ramdisk: the ramdisk is empty"), "{error}");
        let other = push(Some("ramdisk")).blame(failure("no".into()), None);
        assert_eq!(other.exit(), Exit::Failure);
    }

    #[test]
    fn a_kernel_that_makes_no_image_is_blamed_and_for_a_command_line_the_user() {
        let failure = |source| StoreError::InvalidImage { image: "a".parse().unwrap(), source };
        let error = push(None).blame(failure(ManifestError::SegmentCount(65)), None);
        assert_eq!(error.exit(), Exit::BadInput);
        assert!(error.to_string().starts_with("kernel: "), "{error}");
        let error = push(None).blame(failure(ManifestError::Cmdline("is too long".into())), None);
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn a_command_line_has_room_for_the_machines_own_words() {
        let own = MACHINE_COMMAND_LINE.len() + 1;
        let check = |length: usize, kernel_max| {
            PushCommand { cmdline: "x".repeat(length), ..push(None) }.check_command_line(kernel_max)
        };
        assert!(check(2047 - own, 2047).is_ok());
        let error = check(2048 - own, 2047).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        for number in [2048 - own, own, 2047] {
            assert!(error.to_string().contains(&format!(" {number} ")), "{error}");
        }
        // A kernel that takes more than the machine has room for.
        let most = usize::try_from(COMMAND_LINE_MAX).unwrap() - 1;
        assert!(check(most - own, u32::MAX).is_ok());
        assert!(check(most + 1 - own, u32::MAX).is_err());
    }

    #[test]
    fn an_image_that_is_gone_again_is_not_warmed_and_that_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        assert_eq!(warmed(store, &"a".parse().unwrap(), ManifestId([0; 32])), 0);
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_in_bounds() {
        assert_eq!(chunk_size("32K"), Ok(32 << 10));
        for text in ["3K", "2K", "2M", "48K"] {
            assert!(chunk_size(text).is_err(), "{text}");
        }
    }
}
