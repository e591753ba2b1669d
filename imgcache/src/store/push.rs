//! Push: an image is cut into chunks, and what the store has not yet is written to a new pack.
//!
//! Everything is written and synced under `tmp/` first and then renamed in the order of need: pack,
//! its index, manifest, locations, name. An interruption leaves files that nothing refers to, for
//! gc to collect; the shared lock keeps gc away from them until the push ends.

mod intake;
mod writer;

use std::fs::File;
use std::io::Write;

use serde::Serialize;

use self::intake::Intake;
use self::writer::{Committed, Writer};
use super::Store;
use super::error::StoreError;
use super::layout::{TempFile, sync_folder};
use super::names;
use crate::image::import::{
    ImportOptions, ImportedKernel, KernelSegment, ReadAt, import_disk, import_initrd,
};
use crate::image::manifest::{Architecture, KernelInfo, Manifest, Placement, Segment, SegmentKind};
use crate::image::name::ImageName;
use crate::image::plan::initrd_placement;
use crate::key::ManifestId;

/// An image that is about to be pushed.
#[derive(Debug)]
pub struct NewImage<'a> {
    /// The machine that it is for.
    pub architecture: Architecture,
    /// Bytes per chunk; a power of two.
    pub chunk_size: u32,
    /// How the kernel is entered and what it asks of its loader.
    pub kernel: KernelInfo,
    /// The kernel command line.
    pub cmdline: String,
    /// What the import found worth telling.
    pub notes: Vec<String>,
    /// Its segments, in the order of the manifest.
    pub segments: Vec<NewSegment<'a>>,
}

/// Writes the content of a segment, from start to end; returns what is to be noted in the manifest.
pub type Content<'a> = Box<dyn FnOnce(&mut dyn Write) -> Result<Vec<String>, ContentError> + 'a>;

/// Why the content of a segment could not be had.
pub type ContentError = Box<dyn std::error::Error + Send + Sync>;

/// A segment that is about to be pushed.
pub struct NewSegment<'a> {
    /// What it holds.
    pub kind: SegmentKind,
    /// Where it goes.
    pub placement: Placement,
    /// Its content.
    pub content: Content<'a>,
    /// Bytes of content, if known; it must then have as many.
    pub data_length: Option<u64>,
    /// Bytes of guest memory; at least those of the content are taken.
    pub memory_length: u64,
}

impl std::fmt::Debug for NewSegment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSegment")
            .field("kind", &self.kind)
            .field("placement", &self.placement)
            .field("data_length", &self.data_length)
            .field("memory_length", &self.memory_length)
            .finish_non_exhaustive()
    }
}

/// Called with the bytes that were taken in so far, and their number if known.
pub type PushProgress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// Options of a push.
#[derive(Default)]
pub struct PushOptions<'a> {
    /// Drop the new pack from the page cache once it is on disk. The kernel then reads it back in
    /// 2 MiB folios when it is first mapped, which can be mapped into a guest as huge pages; the
    /// small folios that writing leaves behind cannot.
    pub drop_cache: bool,
    /// Whom to tell about progress.
    pub progress: Option<PushProgress<'a>>,
}

impl std::fmt::Debug for PushOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushOptions").field("drop_cache", &self.drop_cache).finish_non_exhaustive()
    }
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushReport {
    /// The image's id.
    pub id: ManifestId,
    /// Bytes of all chunks.
    pub bytes_total: u64,
    /// Bytes of chunks that were written.
    pub bytes_new: u64,
    /// Bytes of chunks that the store had already, or that the image has more than once.
    pub bytes_shared: u64,
    /// Bytes of chunks that are all zero.
    pub bytes_zero: u64,
    /// Number of all chunks.
    pub chunks_total: u64,
    /// Number of chunks that were written.
    pub chunks_new: u64,
    /// Number of chunks that the store had already, or that the image has more than once.
    pub chunks_shared: u64,
    /// Number of chunks that are all zero.
    pub chunks_zero: u64,
    /// What the import found worth telling; the manifest has it too.
    pub notes: Vec<String>,
}

/// The points at which an interruption would leave something different behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    ChunksWritten,
    FilesWritten,
    PackPlaced,
    IndexPlaced,
    ManifestPlaced,
    LocationsPlaced,
    NamePlaced,
}

/// Told of each step of a push; an error of it fails the push there.
pub(super) type Observer<'a> = &'a mut dyn FnMut(Step) -> Result<(), StoreError>;

impl<'a> NewImage<'a> {
    /// The image of an imported kernel and of a ramdisk that is imported while it is pushed.
    pub fn from_import(
        kernel: ImportedKernel,
        initrd: Option<(&'a dyn ReadAt, &'a ImportOptions)>,
        cmdline: String,
        chunk_size: u32,
    ) -> Self {
        let info = KernelInfo {
            format: kernel.format,
            compression: kernel.compression,
            entries: kernel.entries,
            setup_header: kernel.setup_header,
            initrd_addr_max: kernel.initrd_addr_max,
            initrd_above_4g: kernel.can_load_initrd_above_4g,
            cmdline_max: kernel.cmdline_max,
            version: kernel.version,
        };
        let mut segments = Vec::with_capacity(kernel.segments.len() + 1);
        for KernelSegment { address, data, memory_length } in kernel.segments {
            segments.push(NewSegment {
                kind: SegmentKind::Kernel,
                placement: Placement::Fixed { address },
                data_length: u64::try_from(data.len()).ok(),
                memory_length,
                content: Box::new(move |sink| Ok(sink.write_all(&data).map(|()| Vec::new())?)),
            });
        }
        if let Some((source, options)) = initrd {
            segments.push(NewSegment {
                kind: SegmentKind::Initrd,
                placement: initrd_placement(info.initrd_addr_max, info.initrd_above_4g),
                data_length: (options.as_is && options.added.is_empty())
                    .then(|| source.len().ok())
                    .flatten(),
                memory_length: 0,
                content: Box::new(|sink| Ok(import_initrd(source, options, sink)?.notes)),
            });
        }
        Self {
            architecture: Architecture::X86_64,
            chunk_size,
            kernel: info,
            cmdline,
            notes: kernel.notes,
            segments,
        }
    }

    /// The image with this file as its disk, whose length `disk_length` has checked.
    #[must_use]
    pub fn with_disk(mut self, file: &'a File, length: u64) -> Self {
        self.segments.push(NewSegment {
            kind: SegmentKind::Block,
            placement: Placement::Device,
            data_length: Some(length),
            memory_length: 0,
            content: Box::new(move |sink| {
                import_disk(file, length, sink)?;
                Ok(Vec::new())
            }),
        });
        self
    }
}

impl Store {
    /// Stores `image` under `name`, in place of what the name stood for.
    ///
    /// # Errors
    /// If the image breaks a rule, cannot be read, or cannot be written; the name then stands for
    /// what it did before.
    pub fn push(
        &self,
        name: &ImageName,
        image: NewImage<'_>,
        options: PushOptions<'_>,
    ) -> Result<PushReport, StoreError> {
        self.push_observed(name, image, options, &mut |_| Ok(()))
    }

    pub(super) fn push_observed(
        &self,
        name: &ImageName,
        image: NewImage<'_>,
        options: PushOptions<'_>,
        observer: Observer<'_>,
    ) -> Result<PushReport, StoreError> {
        let _lock = self.layout.lock_shared(self.patience)?;
        let invalid = |source| StoreError::InvalidImage { image: name.clone(), source };
        let size = image.chunk_size;
        let mut manifest = Manifest {
            architecture: image.architecture,
            chunk_size: size,
            kernel: image.kernel,
            cmdline: image.cmdline,
            segments: Vec::with_capacity(image.segments.len()),
            notes: image.notes,
            chunks: Vec::new(),
        };
        manifest.check_chunk_size().map_err(invalid)?;
        let total = image.segments.iter().map(|segment| segment.data_length).sum();
        let mut intake = Intake {
            writer: Writer::new(&self.layout)?,
            chunk_size: usize::try_from(size).unwrap_or(0),
            chunks: Vec::new(),
            segment_done: 0,
            partial: Vec::new(),
            done: 0,
            total,
            progress: options.progress,
            failure: None,
        };
        for (index, segment) in image.segments.into_iter().enumerate() {
            let first = intake.chunks.len();
            let (kind, placement) = (segment.kind, segment.placement);
            let memory_length = segment.memory_length;
            manifest.notes.extend(intake.take(name, index, segment)?);
            manifest.segments.push(Segment {
                kind,
                placement,
                data_length: intake.segment_done,
                memory_length: memory_length.max(intake.segment_done),
                first_chunk: u32::try_from(first).unwrap_or(u32::MAX),
                chunk_count: u32::try_from(intake.chunks.len() - first).unwrap_or(u32::MAX),
            });
        }
        manifest.chunks = intake.chunks;
        let encoded = manifest.encode().map_err(invalid)?;
        let id = ManifestId::of(&encoded);
        let chunks = intake.writer.finish(options.drop_cache)?;
        observer(Step::ChunksWritten)?;
        let report = chunks.report(id, manifest.notes);
        self.publish(name, &id, &encoded, chunks, observer)?;
        Ok(report)
    }

    /// Makes a complete image visible, last of all under its name.
    fn publish(
        &self,
        name: &ImageName,
        id: &ManifestId,
        encoded: &[u8],
        chunks: Committed<'_>,
        observer: Observer<'_>,
    ) -> Result<(), StoreError> {
        let written = |bytes: &[u8]| -> Result<TempFile, StoreError> {
            let mut file = self.layout.temp_file()?;
            file.write_all(bytes)?;
            file.sync()?;
            Ok(file)
        };
        let manifest = written(encoded)?;
        let locations = written(&chunks.locations().encode(id))?;
        let name_file = written(names::encode(id).as_bytes())?;
        observer(Step::FilesWritten)?;
        chunks.place(observer)?;
        manifest.rename(&self.layout.manifest(id))?;
        observer(Step::ManifestPlaced)?;
        locations.rename(&self.layout.locations(id))?;
        sync_folder(&self.layout.manifests())?;
        observer(Step::LocationsPlaced)?;
        name_file.rename(&self.layout.name(name))?;
        sync_folder(&self.layout.names())?;
        observer(Step::NamePlaced)
    }
}
