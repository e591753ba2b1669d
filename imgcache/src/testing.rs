//! Images for tests, and their way into memory.

use std::collections::HashMap;
use std::path::Path;

use crate::client::{ImageClient, LoadError, LoadOptions, LoadReport, Target};
use crate::image::import::{BootEntries, KernelFormat};
use crate::image::manifest::{
    Architecture, ChunkEntry, KernelInfo, Manifest, Placement, Segment, SegmentKind,
};
use crate::image::name::ImageName;
use crate::image::plan::INITRD_ALIGN;
use crate::store::{NewImage, NewSegment, PushOptions, PushReport, Store, StoreError};
use crate::transport::ChunkRead;

pub(crate) const KERNEL_ADDRESS: u64 = 16 << 20;

pub(crate) fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// `length` bytes that differ for every `seed` and look random.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn kernel_info() -> KernelInfo {
    KernelInfo {
        format: KernelFormat::Elf,
        compression: None,
        entries: BootEntries { linux64: Some(KERNEL_ADDRESS), pvh32: None },
        setup_header: Some(vec![1, 2, 3]),
        initrd_addr_max: 0x7fff_ffff,
        initrd_above_4g: true,
        cmdline_max: 2047,
        version: Some("6.1".to_owned()),
    }
}

fn segment<'a>(kind: SegmentKind, placement: Placement, data: Vec<u8>) -> NewSegment<'a> {
    NewSegment {
        kind,
        placement,
        data_length: u64::try_from(data.len()).ok(),
        memory_length: 0,
        content: Box::new(move |sink| Ok(sink.write_all(&data).map(|()| Vec::new())?)),
    }
}

/// An image of one kernel segment and a ramdisk.
pub(crate) fn image(kernel: &[u8], initrd: &[u8], chunk_size: u32) -> NewImage<'static> {
    let floating = Placement::TopOfRam { limit: 4 << 30, align: INITRD_ALIGN };
    let fixed = Placement::Fixed { address: KERNEL_ADDRESS };
    NewImage {
        architecture: Architecture::X86_64,
        chunk_size,
        kernel: kernel_info(),
        cmdline: "console=ttyS0".to_owned(),
        notes: vec!["made for a test".to_owned()],
        segments: vec![
            segment(SegmentKind::Kernel, fixed, kernel.to_vec()),
            segment(SegmentKind::Initrd, floating, initrd.to_vec()),
        ],
    }
}

/// The manifest that an image with this content has.
pub(crate) fn manifest(kernel: &[u8], initrd: &[u8], chunk_size: u32) -> Manifest {
    let image = image(kernel, initrd, chunk_size);
    let mut manifest = Manifest {
        architecture: image.architecture,
        chunk_size,
        kernel: image.kernel,
        cmdline: image.cmdline,
        notes: image.notes,
        segments: Vec::new(),
        chunks: Vec::new(),
    };
    for (segment, data) in image.segments.into_iter().zip([kernel, initrd]) {
        let chunks: Vec<_> =
            data.chunks(usize::try_from(chunk_size).unwrap()).map(ChunkEntry::of).collect();
        manifest.segments.push(Segment {
            kind: segment.kind,
            placement: segment.placement,
            data_length: u64::try_from(data.len()).unwrap(),
            memory_length: u64::try_from(data.len()).unwrap(),
            first_chunk: u32::try_from(manifest.chunks.len()).unwrap(),
            chunk_count: u32::try_from(chunks.len()).unwrap(),
        });
        manifest.chunks.extend(chunks);
    }
    manifest
}

pub(crate) fn push(
    store: &Store,
    as_name: &str,
    image: NewImage<'_>,
) -> Result<PushReport, StoreError> {
    store.push(&name(as_name), image, PushOptions::default())
}

/// Loads an image into fresh memory; returns what each segment holds.
pub(crate) fn load(
    store: &Store,
    of_name: &str,
    options: &LoadOptions<'_>,
) -> Result<(Vec<Vec<u8>>, LoadReport), LoadError> {
    let image = ImageClient::new(Box::new(store.clone())).open(&name(of_name))?;
    let manifest = image.manifest();
    let mut segments: Vec<Vec<u8>> = manifest
        .segments
        .iter()
        .map(|segment| vec![0; usize::try_from(segment.data_length).unwrap()])
        .collect();
    let mut targets = Vec::new();
    for (index, memory) in segments.iter_mut().enumerate() {
        let buffers = memory.chunks_mut(usize::try_from(manifest.chunk_size).unwrap());
        for (chunk, buffer) in manifest.chunks_of(index).zip(buffers) {
            if !chunk.entry.zero {
                let (index, key) = (chunk.index, chunk.entry.key);
                targets.push(Target::Fetch(ChunkRead { index, key, buffer }));
            }
        }
    }
    let report = image.load(targets, options)?;
    Ok((segments, report))
}

/// Every file below `folder` and its content.
pub(crate) fn files(folder: &Path) -> HashMap<std::path::PathBuf, Vec<u8>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = std::fs::read(&path).unwrap();
            found.insert(path, content);
        }
    }
    found
}

/// Copies the folder `from` to `to`, as a crash at this moment would leave it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
