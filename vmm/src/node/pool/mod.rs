//! The host's pool of images: each is brought once, into a file of huge pages that every VM of it maps.
//!
//! An image belongs to a tenant: tenants never share a page, whatever they boot. What no VM uses and
//! nobody has pinned is given up, the least recently used first, when there is no room for another.

pub mod backing;
mod load;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use imgcache::client::{Image, ImageClient, LoadError};
use imgcache::image::manifest::Manifest;
use imgcache::image::name::ImageName;
use imgcache::image::prepared::PreparedLayout;
use imgcache::key::ManifestId;
use serde::{Deserialize, Serialize};

use self::backing::Backing;
use self::load::{FillError, Filled};
use super::clock::now_ms;
use super::error::NodeError;
use crate::api::{PoolImage, PoolInfo};
use crate::boot::stopwatch::milliseconds;
use crate::spec::name::TenantName;

/// Makes the client through which images are read; the reason in words if there can be none.
pub type Opener = Box<dyn Fn() -> Result<ImageClient, String> + Send + Sync>;

/// An image that VMs map, for as long as anybody has it.
#[derive(Debug)]
pub struct Held {
    id: ManifestId,
    tenant: TenantName,
    file: File,
    manifest: File,
    bytes: u64,
    huge_pages: bool,
    has_disk: bool,
    load_ms: f64,
    /// When it was last asked for, in milliseconds since 1970.
    used: AtomicU64,
    pinned: AtomicBool,
    name: Mutex<ImageName>,
}

/// What is known of an image of the pool beside its bytes, for the next agent.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    image: ImageName,
    pinned: bool,
    load_ms: f64,
}

/// What there is of an image.
enum Slot {
    /// Somebody brings it.
    Loading,
    /// It is there.
    Held(Arc<Held>),
}

type Key = (TenantName, ManifestId);

/// The images of a host.
pub struct Pool {
    opener: Opener,
    client: Mutex<Option<Arc<ImageClient>>>,
    backing: Backing,
    limit: u64,
    slots: Mutex<BTreeMap<Key, Slot>>,
    /// Signalled when something has been brought, or failed to be.
    changed: Condvar,
    counters: Counters,
    /// Told of images that come and go.
    tell: Box<dyn Fn(Change) + Send + Sync>,
}

/// What happened in the pool.
#[derive(Debug)]
pub enum Change {
    /// An image was brought.
    Pulled(PoolImage),
    /// An image was given up.
    Dropped(ImageName, TenantName),
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
    bytes_loaded: AtomicU64,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("backing", &self.backing)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Held {
    /// The id of its manifest.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// The file that it is in, for reading.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its manifest, in a file with a position of its own.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn manifest(&self) -> std::io::Result<File> {
        // By its name, since a duplicate would share the position.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.manifest));
        File::open(path)
    }

    /// Whether all of it is in 2 MiB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Whether the image has a disk, which is not in the pool.
    pub fn has_disk(&self) -> bool {
        self.has_disk
    }

    fn file_name(&self) -> String {
        file_name(&self.tenant, &self.id)
    }

    fn info(self: &Arc<Self>) -> PoolImage {
        PoolImage {
            image: lock(&self.name).clone(),
            tenant: self.tenant.clone(),
            manifest: self.id.to_string(),
            bytes: self.bytes,
            // But for the pool's own.
            vms: u32::try_from(Arc::strong_count(self).saturating_sub(1)).unwrap_or(u32::MAX),
            pinned: self.pinned.load(Ordering::Relaxed),
            load_ms: self.load_ms,
            used_ms: self.used.load(Ordering::Relaxed),
        }
    }

    fn used_now(&self) {
        self.used.store(now_ms(), Ordering::Relaxed);
    }
}

fn file_name(tenant: &TenantName, id: &ManifestId) -> String {
    format!("{tenant}/{id}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of at most `limit` bytes, at `folder` if it can be mounted there; with what an agent that was
    /// killed left in it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(
        folder: &Path,
        limit: u64,
        opener: Opener,
        tell: Box<dyn Fn(Change) + Send + Sync>,
    ) -> Result<Self, NodeError> {
        let what = || format!("make the pool at {}", folder.display());
        let backing = Backing::open(folder, limit).map_err(NodeError::system(what()))?;
        let pool = Self {
            opener,
            client: Mutex::new(None),
            backing,
            limit,
            slots: Mutex::default(),
            changed: Condvar::new(),
            counters: Counters::default(),
            tell,
        };
        pool.adopt();
        Ok(pool)
    }

    /// The image `name`, brought if it is not there.
    ///
    /// # Errors
    /// There is no such image, it cannot be read, or there is no room.
    pub fn get(&self, name: &ImageName, tenant: &TenantName) -> Result<Arc<Held>, NodeError> {
        let client = self.client()?;
        let id = match client.resolve(name) {
            Ok(id) => id,
            // What the name stood for is better than no VM.
            Err(LoadError::Io { image, source }) => {
                let Some(held) = self.find(name, tenant) else {
                    return Err(LoadError::Io { image, source }.into());
                };
                log::warn!("image '{name}' is what it was when it came to the pool: {source}");
                held.id
            }
            Err(error) => return Err(error.into()),
        };
        let key = (tenant.clone(), id);
        let mut slots = lock(&self.slots);
        loop {
            match slots.get(&key) {
                Some(Slot::Held(held)) => {
                    self.counters.hits.fetch_add(1, Ordering::Relaxed);
                    held.used_now();
                    name.clone_into(&mut lock(&held.name));
                    return Ok(held.clone());
                }
                Some(Slot::Loading) => {
                    slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        slots.insert(key.clone(), Slot::Loading);
        drop(slots);
        let brought = self.bring(&client, name, tenant, id);
        let mut slots = lock(&self.slots);
        match &brought {
            Ok(held) => slots.insert(key, Slot::Held(held.clone())),
            Err(_) => slots.remove(&key),
        };
        self.changed.notify_all();
        drop(slots);
        if let Ok(held) = &brought {
            (self.tell)(Change::Pulled(self.describe(held)));
        }
        brought
    }

    fn client(&self) -> Result<Arc<ImageClient>, NodeError> {
        let mut client = lock(&self.client);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let new = Arc::new((self.opener)().map_err(NodeError::Images)?);
        *client = Some(new.clone());
        Ok(new)
    }

    fn bring(
        &self,
        client: &ImageClient,
        name: &ImageName,
        tenant: &TenantName,
        id: ManifestId,
    ) -> Result<Arc<Held>, NodeError> {
        let begun = Instant::now();
        let image = client.open_exactly(name, id)?;
        let layout = PreparedLayout::of(image.manifest());
        self.make_room(name, layout.length())?;
        let file_name = file_name(tenant, &id);
        let failed = |what: &str| NodeError::system(format!("{what} '{name}'"));
        let new = self.backing.create(&file_name).map_err(failed("make a file for image"))?;
        let Filled { report, huge_pages } =
            load::fill(new.file(), &layout, &image).map_err(|error| of_fill(name, error))?;
        if !huge_pages {
            log::warn!("image '{name}' is not all in 2 MiB pages: its VMs copy it");
        }
        self.counters.bytes_loaded.fetch_add(report.bytes_fetched, Ordering::Relaxed);
        let manifest = self.write_manifest(&file_name, &image).map_err(failed("keep image"))?;
        let held = Held {
            id,
            tenant: tenant.clone(),
            file: new.finish().map_err(failed("keep image"))?,
            manifest,
            bytes: layout.length(),
            huge_pages,
            has_disk: image.manifest().disk().is_some(),
            load_ms: milliseconds(begun.elapsed()),
            used: AtomicU64::new(now_ms()),
            pinned: AtomicBool::new(false),
            name: Mutex::new(name.clone()),
        };
        self.write_note(&held);
        Ok(Arc::new(held))
    }

    fn write_manifest(&self, file_name: &str, image: &Image) -> std::io::Result<File> {
        let encoded = image.manifest().encode().map_err(std::io::Error::other)?;
        let new = self.backing.create(&format!("{file_name}.manifest"))?;
        let mut file = new.file();
        file.write_all(&encoded)?;
        file.rewind()?;
        new.finish()
    }

    /// Writes what the next agent shall know, if there is a place for it.
    fn write_note(&self, held: &Held) {
        let note = Note {
            image: lock(&held.name).clone(),
            pinned: held.pinned.load(Ordering::Relaxed),
            load_ms: held.load_ms,
        };
        let Some(folder) = self.backing.folder() else { return };
        let path = folder.join(format!("{}.note", held.file_name()));
        let text = serde_json::to_vec(&note).map_err(std::io::Error::from);
        if let Err(error) = text.and_then(|text| fs::write(&path, text)) {
            log::warn!("{}: {error}", path.display());
        }
    }

    /// Gives images up until there are `needed` bytes.
    fn make_room(&self, name: &ImageName, needed: u64) -> Result<(), NodeError> {
        let mut slots = lock(&self.slots);
        loop {
            let used: u64 = slots.values().filter_map(held).map(|held| held.bytes).sum();
            if used.saturating_add(needed) <= self.limit {
                return Ok(());
            }
            let unused = slots.values().filter_map(held).filter(|held| {
                Arc::strong_count(held) == 1 && !held.pinned.load(Ordering::Relaxed)
            });
            let oldest = unused.min_by_key(|held| held.used.load(Ordering::Relaxed)).cloned();
            let Some(oldest) = oldest else {
                let (image, limit) = (name.clone(), self.limit);
                return Err(NodeError::PoolFull { image, needed, limit, used });
            };
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
            self.forget(&mut slots, &oldest);
        }
    }

    fn forget(&self, slots: &mut BTreeMap<Key, Slot>, held: &Arc<Held>) {
        slots.remove(&(held.tenant.clone(), held.id));
        for end in ["", ".manifest", ".note"] {
            self.backing.remove(&format!("{}{end}", held.file_name()));
        }
        (self.tell)(Change::Dropped(lock(&held.name).clone(), held.tenant.clone()));
    }

    /// The image that was last asked for by this name.
    fn find(&self, name: &ImageName, tenant: &TenantName) -> Option<Arc<Held>> {
        let slots = lock(&self.slots);
        let of_name = |held: &&Arc<Held>| held.tenant == *tenant && *lock(&held.name) == *name;
        let all = slots.values().filter_map(held).filter(of_name);
        all.max_by_key(|held| held.used.load(Ordering::Relaxed)).cloned()
    }

    fn find_or_error(&self, name: &ImageName, tenant: &TenantName) -> Result<Arc<Held>, NodeError> {
        let missing = || NodeError::NotInPool { image: name.clone(), tenant: tenant.clone() };
        self.find(name, tenant).ok_or_else(missing)
    }

    /// Keeps an image whether or not anybody uses it, or no longer.
    ///
    /// # Errors
    /// It is not there.
    pub fn pin(
        &self,
        name: &ImageName,
        tenant: &TenantName,
        pinned: bool,
    ) -> Result<PoolImage, NodeError> {
        let held = self.find_or_error(name, tenant)?;
        held.pinned.store(pinned, Ordering::Relaxed);
        self.write_note(&held);
        Ok(self.describe(&held))
    }

    /// Gives an image up.
    ///
    /// # Errors
    /// It is not there, or in use.
    pub fn drop_image(&self, name: &ImageName, tenant: &TenantName) -> Result<(), NodeError> {
        let held = self.find_or_error(name, tenant)?;
        let mut slots = lock(&self.slots);
        // The pool's own and this one's.
        let vms = Arc::strong_count(&held).saturating_sub(2);
        if vms > 0 {
            return Err(NodeError::InUse { image: name.clone(), vms });
        }
        self.forget(&mut slots, &held);
        Ok(())
    }

    /// What is known of an image that the caller has.
    pub fn describe(&self, held: &Arc<Held>) -> PoolImage {
        let mut info = held.info();
        info.vms = info.vms.saturating_sub(1);
        info
    }

    /// This image, if it is there.
    pub fn held(&self, tenant: &TenantName, id: ManifestId) -> Option<Arc<Held>> {
        lock(&self.slots).get(&(tenant.clone(), id)).and_then(held).cloned()
    }

    /// All images.
    pub fn images(&self) -> Vec<PoolImage> {
        lock(&self.slots).values().filter_map(held).map(Held::info).collect()
    }

    /// What the pool is and has.
    pub fn info(&self) -> PoolInfo {
        let slots = lock(&self.slots);
        let all: Vec<_> = slots.values().filter_map(held).collect();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolInfo {
            bytes: all.iter().map(|held| held.bytes).sum(),
            limit_bytes: self.limit,
            backing: self.backing.name().to_owned(),
            huge_pages: all.iter().all(|held| held.huge_pages),
            images: u32::try_from(all.len()).unwrap_or(u32::MAX),
            hits: count(&self.counters.hits),
            misses: count(&self.counters.misses),
            evictions: count(&self.counters.evictions),
            bytes_loaded: count(&self.counters.bytes_loaded),
        }
    }

    /// Gives the memory back, but for what VMs have mapped.
    pub fn end(&self) {
        self.backing.end();
    }

    /// Takes over what an agent that was killed has left, as far as it is whole.
    fn adopt(&self) {
        let Some(folder) = self.backing.folder() else { return };
        let Ok(tenants) = fs::read_dir(folder) else { return };
        let mut slots = lock(&self.slots);
        for tenant in tenants.filter_map(Result::ok) {
            let Ok(files) = fs::read_dir(tenant.path()) else { continue };
            let parsed = tenant.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(tenant) = parsed else { continue };
            for file in files.filter_map(Result::ok) {
                let name = file.file_name();
                let Some(name) = name.to_str() else { continue };
                if file.path().extension().is_some_and(|end| end == "new") {
                    let _ = fs::remove_file(file.path());
                }
                let Ok(id) = name.parse::<ManifestId>() else { continue };
                match adopt_one(&file.path(), &tenant, id) {
                    Ok(held) => {
                        log::info!("image '{}' is still in the pool", lock(&held.name));
                        slots.insert((tenant.clone(), id), Slot::Held(Arc::new(held)));
                    }
                    Err(error) => {
                        log::warn!("the pool's {}: {error}", file.path().display());
                        for end in ["", ".manifest", ".note"] {
                            self.backing.remove(&format!("{}{end}", file_name(&tenant, &id)));
                        }
                    }
                }
            }
        }
    }
}

fn held(slot: &Slot) -> Option<&Arc<Held>> {
    match slot {
        Slot::Held(held) => Some(held),
        Slot::Loading => None,
    }
}

fn of_fill(name: &ImageName, error: FillError) -> NodeError {
    match error {
        FillError::NotMappable => NodeError::NotMappable(name.clone()),
        FillError::Image(error) => error.into(),
        FillError::File { what, source } => NodeError::system(what)(source),
    }
}

/// One file of a former agent.
fn adopt_one(path: &Path, tenant: &TenantName, id: ManifestId) -> Result<Held, String> {
    let words = |error: std::io::Error| error.to_string();
    let beside = |end| backing::beside(path, end);
    let encoded = fs::read(beside("manifest")).map_err(words)?;
    let manifest = Manifest::decode_as(&id, &encoded).map_err(|error| error.to_string())?;
    let note = fs::read(beside("note")).map_err(words)?;
    let note: Note = serde_json::from_slice(&note).map_err(|error| error.to_string())?;
    let file = File::open(path).map_err(words)?;
    let layout = PreparedLayout::of(&manifest);
    let (good, huge_pages) =
        load::check(&file, &layout, &manifest).map_err(|error| error.to_string())?;
    if !good {
        return Err("it is not what its manifest says".into());
    }
    Ok(Held {
        id,
        tenant: tenant.clone(),
        file,
        manifest: File::open(beside("manifest")).map_err(words)?,
        bytes: layout.length(),
        huge_pages,
        has_disk: manifest.disk().is_some(),
        load_ms: note.load_ms,
        used: AtomicU64::new(now_ms()),
        pinned: AtomicBool::new(note.pinned),
        name: Mutex::new(note.image),
    })
}
