//! An image that is loaded from the cache, or through it from the origin.

use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;

use super::lease::Lease;
use super::load::Load;
use super::publish;
use super::report::CacheReport;
use super::{Cluster, ClusterError};
use crate::image::manifest::Manifest;
use crate::image::name::ImageName;
use crate::key::ManifestId;
use crate::parallel::lock;
use crate::transport::{Accept, ChunkRead, MappableExtent, Session, TransportError};

/// An image of a [`Cluster`].
pub(super) struct ClusterSession {
    pub(super) cluster: Cluster,
    pub(super) id: ManifestId,
    manifest: Manifest,
    /// Set if the image is not in the cache and shall be, under this name.
    pulled: Option<ImageName>,
    origin: OnceLock<Result<Box<dyn Session>, String>>,
    report: Mutex<Option<CacheReport>>,
    /// That of the last load, which has ended, until the nodes know it.
    lease: Mutex<Option<Lease>>,
    /// Puts the manifest into the cache, and the name last, while the guest starts.
    publisher: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for ClusterSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSession")
            .field("id", &self.id)
            .field("pulled", &self.pulled)
            .finish_non_exhaustive()
    }
}

impl ClusterSession {
    pub(super) fn open(
        cluster: Cluster,
        id: ManifestId,
        pulled: Option<ImageName>,
    ) -> Result<Self, TransportError> {
        let has_origin = cluster.0.origin.is_some();
        let manifest = match cluster.manifest(&id) {
            Ok(manifest) => manifest,
            Err(error) if has_origin => {
                log::warn!("{error}; asking the origin");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let origin = OnceLock::new();
        let manifest = if let Some(manifest) = manifest {
            manifest
        } else {
            let session = match &cluster.0.origin {
                Some(origin) => origin.open(&id)?,
                None => return Err(TransportError::UnknownManifest(id)),
            };
            let manifest = session.manifest().clone();
            origin.get_or_init(|| Ok(session));
            manifest
        };
        let (report, lease, publisher) = Default::default();
        Ok(Self { cluster, id, manifest, pulled, origin, report, lease, publisher })
    }

    pub(super) fn has_origin(&self) -> bool {
        self.cluster.0.origin.is_some()
    }

    /// The image at the origin; opened when it is first needed.
    pub(super) fn origin(&self) -> Result<&dyn Session, TransportError> {
        let opened = self.origin.get_or_init(|| match &self.cluster.0.origin {
            Some(origin) => origin.open(&self.id).map_err(|error| error.to_string()),
            None => Err("there is none".into()),
        });
        match opened {
            Ok(session) => Ok(session.as_ref()),
            Err(words) => Err(ClusterError::Origin(words.clone()).into()),
        }
    }

    /// Lets the next load of the name find all of the image in the cache.
    fn publish_behind(&self, from_origin: u64) {
        if from_origin == 0 && self.pulled.is_none() {
            return;
        }
        // A disk is read in many fetches: what its first one published is there.
        if lock(&self.publisher).is_some() {
            return;
        }
        let (cluster, manifest) = (self.cluster.clone(), self.manifest.clone());
        let name = self.pulled.clone();
        let work = move || {
            if let Err(error) = publish::publish_records(&cluster, &manifest, name.as_ref()) {
                log::warn!("the image that came from the origin is not in the cache: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("publish".into()).spawn(work);
        match thread {
            Ok(thread) => *lock(&self.publisher) = Some(thread),
            Err(error) => log::warn!("the image is not put into the cache: {error}"),
        }
    }
}

impl Drop for ClusterSession {
    fn drop(&mut self) {
        if let Some(thread) = lock(&self.publisher).take() {
            // It never panics, and if it did, it has said so.
            let _ = thread.join();
        }
    }
}

impl Session for ClusterSession {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn sealed(&self) -> bool {
        false
    }

    fn mappable(&self) -> Vec<MappableExtent> {
        Vec::new()
    }

    fn fetch(&self, reads: Vec<ChunkRead<'_>>, accept: Accept<'_>) -> Result<(), TransportError> {
        for read in &reads {
            let known = self.manifest.chunk(read.index).is_some_and(|chunk| {
                chunk.entry.key == read.key
                    && !chunk.entry.zero
                    && usize::try_from(chunk.length) == Ok(read.buffer.len())
            });
            if !known {
                let (image, key, length) = (self.id, read.key, read.buffer.len());
                return Err(TransportError::NoSuchChunk { image, chunk: read.index, length, key });
            }
        }
        let topology = self.cluster.topology();
        let load = Load::new(self, &topology, accept, self.cluster.deadline());
        let (result, report, lease) = load.run(reads);
        *lock(&self.lease) = Some(lease);
        let from_origin = report.chunks_from_origin;
        *lock(&self.report) = Some(report);
        result?;
        self.publish_behind(from_origin);
        Ok(())
    }

    fn cache_report(&self) -> Option<CacheReport> {
        lock(&self.report).clone()
    }
}
