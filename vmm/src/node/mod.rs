//! The node agent: one for each host, which boots VMs out of a pool of images that they share.
//!
//! [`Node`] is a handle that any number of threads may have. A VM is a process of its own
//! ([`crate::process`]); what is known of it is in a folder, so an agent that is started again finds
//! the VMs of the one before it.
//!
//! ```text
//! RUN/node/lock       held by the agent
//! RUN/node/next       the number that the next VM gets
//! RUN/node/vms/17/    record, lock, pid, socket, console, events, report, stderr of a VM
//! RUN/node/pool/      the images, a tmpfs of the agent's own
//! ```

pub mod clock;
pub mod endpoints;
pub mod error;
pub mod events;
mod group;
pub mod http;
pub mod launch;
pub mod moment;
pub mod options;
pub mod pool;
mod recover;
pub mod registry;
mod supervisor;
pub mod turns;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgcache::image::name::ImageName;
use rustix::process::{Signal, pidfd_send_signal};

use self::endpoints::Endpoints;
use self::error::NodeError;
use self::events::{Listeners, Subscription};
use self::launch::{CONSOLE, EVENTS, Launcher, SOCKET, Wanted};
use self::options::NodeOptions;
use self::pool::{Change, Pool};
use self::registry::{Registry, Vm};
use self::supervisor::{Supervisor, Watched};
use self::turns::Turns;
use crate::api::{CreateVm, Event, NodeInfo, Phase, PoolImage, PullImage, StopVm, VmInfo, VmState};
use crate::boot::stopwatch::milliseconds;
use crate::control::vms::folder::{VmFolder, Vms};
use crate::host;
use crate::spec::name::{TenantName, VmName};

/// How long a VM's socket may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a VM that is deleted may take to end.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

/// The node agent.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    vms: Vms,
    next: AtomicU64,
    registry: Registry,
    supervisor: Supervisor,
    pool: Pool,
    launcher: Launcher,
    turns: Turns,
    listeners: Listeners,
    endpoints: Endpoints,
    draining: AtomicBool,
    max_vms: u32,
    /// The bridges that VMs may be on; any, if none is named.
    allow_bridge: Vec<String>,
    keep_pool: bool,
    _lock: File,
}

impl Node {
    /// Starts an agent, and finds the VMs again that the one before it has left. Images are read through
    /// what `opener` makes.
    ///
    /// # Errors
    /// Another agent has the folder, there is no KVM, or the system's refusal.
    pub fn start(options: &NodeOptions, opener: pool::Opener) -> Result<Self, NodeError> {
        let folder = options.folder().join("node");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("vms"));
        made.map_err(NodeError::system(format!("make the folder {}", folder.display())))?;
        let lock = lock(&folder)?;
        // Who gets this file has KVM: nothing of a VM opens it again.
        host::kvm::open()?;
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.map_err(NodeError::system("open /dev/kvm"))?;
        let launcher =
            Launcher::new(kvm, !options.no_jail).map_err(NodeError::system("start VMs"))?;
        let vms = Vms::create(folder.join("vms"));
        let vms = vms.map_err(NodeError::system("make the folder of VMs"))?;
        let listeners = Listeners::default();
        let registry = Registry::new(listeners.clone());
        let supervisor = Supervisor::start(registry.clone(), options.keep_ended)
            .map_err(NodeError::system("watch VMs"))?;
        let told = listeners.clone();
        let tell = Box::new(move |change| told.tell(of_pool(change)));
        let pool = Pool::open(&folder.join("pool"), options.pool, opener, tell)?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(1);
        let next = recover::next_number(&folder, &vms);
        let endpoints = Endpoints::open(&options.endpoints, &folder)?;
        let node = Self(Arc::new(Inner {
            folder,
            vms,
            next: AtomicU64::new(next),
            registry,
            supervisor,
            pool,
            launcher,
            turns: Turns::new(options.parallel.unwrap_or(2 * cpus)),
            listeners,
            endpoints,
            draining: AtomicBool::new(false),
            max_vms: options.max_vms,
            allow_bridge: options.allow_bridge.clone(),
            keep_pool: options.keep_pool,
            _lock: lock,
        }));
        recover::find_vms(&node.0);
        node.lead_endpoints().map_err(NodeError::system("follow VMs"))?;
        Ok(node)
    }

    /// Tells the endpoints of VMs that live, those that there are and those that come, and of those that end.
    fn lead_endpoints(&self) -> io::Result<()> {
        let subscription = self.subscribe();
        for info in self.list() {
            self.tell_endpoints(&info);
        }
        self.0.endpoints.begin();
        let node = Arc::downgrade(&self.0);
        std::thread::Builder::new().name("endpoint-vms".into()).spawn(move || {
            while let Ok(event) = subscription.receiver().recv() {
                let Some(node) = node.upgrade().map(Self) else { return };
                match event.event {
                    Event::Vm { name, .. } => {
                        if let Ok(info) = node.inspect(&name) {
                            node.tell_endpoints(&info);
                        }
                    }
                    Event::Deleted { number, .. } => node.0.endpoints.vm_ended(number),
                    // Some were missed: what there is now is looked at.
                    Event::Lost { .. } => {
                        node.list().iter().for_each(|info| node.tell_endpoints(info));
                    }
                    _ => {}
                }
            }
        })?;
        Ok(())
    }

    fn tell_endpoints(&self, info: &VmInfo) {
        match info.state {
            VmState::Starting => {}
            VmState::Ready | VmState::Running => {
                if let Ok(socket) = self.file(&info.name, SOCKET) {
                    self.0.endpoints.vm_lives(info, &socket);
                }
            }
            VmState::Ended => self.0.endpoints.vm_ended(info.number),
        }
    }

    /// The virtual endpoints of the node's VMs.
    pub fn endpoints(&self) -> &Endpoints {
        &self.0.endpoints
    }

    /// Says by which words this program serves the chunks of images' disks, from where the agent's
    /// images come from ([`chunk_server::words`](crate::cli::chunk_server::words)): once, before any VM
    /// with a disk is booted. Without it they come from this user's store.
    pub fn serve_chunks_by(&self, words: Vec<std::ffi::OsString>) {
        self.0.launcher.serve_chunks_by(words);
    }

    /// Boots a VM: returns when its process has been started and given what it needs; its image is
    /// brought first, and VMs that came before it are let go first.
    ///
    /// # Errors
    /// The name is taken, the node takes no more, its VMs may not be on the bridge, the image cannot be had, or
    /// the system's refusal.
    pub fn create(&self, create: &CreateVm) -> Result<VmInfo, NodeError> {
        let node = &self.0;
        if node.draining.load(Ordering::Relaxed) {
            return Err(NodeError::Draining);
        }
        node.allows(create.spec.net.bridge.as_deref())?;
        if !create.hold {
            host::kvm::require_stock_kernels()?;
        }
        let created = Instant::now();
        let number = node.number();
        let name = match &create.name {
            Some(name) => name.clone(),
            // Letters and digits: it is a name.
            None => format!("vm-{number}").parse().map_err(|_| no_number(number))?,
        };
        let folder = node.vms.folder(number);
        let record = registry::new_record(create.clone(), number, name.clone());
        let vm = Vm {
            record,
            folder: folder.clone(),
            created,
            process: None,
            image: None,
            turn: None,
            remove: create.remove,
        };
        node.registry.add(vm, node.max_vms)?;
        let launched = node.launch(create, number, &name, &folder, created);
        if let Err(error) = launched {
            node.registry.discard(number);
            return Err(error);
        }
        node.registry.info(&name)
    }

    /// All VMs that have not been deleted.
    pub fn list(&self) -> Vec<VmInfo> {
        self.0.registry.list()
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn inspect(&self, name: &VmName) -> Result<VmInfo, NodeError> {
        self.0.registry.info(name)
    }

    /// Has a VM that is held begin.
    ///
    /// # Errors
    /// There is none of this name, it is not held, guests cannot run here, or it does not answer.
    pub fn start_vm(&self, name: &VmName) -> Result<VmInfo, NodeError> {
        host::kvm::require_stock_kernels()?;
        let (number, state, folder) = self.0.registry.with(name, |vm| {
            let info = &vm.record.info;
            (info.number, info.state, vm.folder.clone())
        })?;
        if state != VmState::Ready {
            return Err(NodeError::State { name: name.clone(), what: "started", state });
        }
        let silent = |source| NodeError::Silent { name: name.clone(), source };
        say_start(&folder.file(SOCKET)).map_err(silent)?;
        self.0.registry.change(number, |vm| {
            if vm.record.info.state == VmState::Ready {
                vm.record.info.state = VmState::Running;
            }
        });
        self.0.registry.info(name)
    }

    /// Tells a VM to end; one that does not is killed after five seconds. Returns at once.
    ///
    /// # Errors
    /// There is none of this name, or it has ended.
    pub fn stop(&self, name: &VmName, how: StopVm) -> Result<VmInfo, NodeError> {
        let (number, state, process) = self
            .0
            .registry
            .with(name, |vm| (vm.record.info.number, vm.record.info.state, vm.process.clone()))?;
        let Some(process) = process else {
            return Err(NodeError::State { name: name.clone(), what: "stopped", state });
        };
        // One that is not ready yet does not listen yet.
        let kill = how.kill || state == VmState::Starting;
        let signal = if kill { Signal::KILL } else { Signal::TERM };
        match pidfd_send_signal(&process, signal) {
            // It has ended just now.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(NodeError::system(format!("stop VM '{name}'"))(error.into())),
        }
        if !kill {
            self.0.supervisor.impatience(number);
        }
        self.0.registry.info(name)
    }

    /// Kills a VM, if it lives, and forgets it; returns when it is gone.
    ///
    /// # Errors
    /// There is none of this name, or it does not go.
    pub fn delete(&self, name: &VmName) -> Result<(), NodeError> {
        let process = self.0.registry.with(name, |vm| {
            // It is forgotten by whoever sees its end.
            vm.remove = vm.process.is_some();
            (vm.record.info.number, vm.record.info.state, vm.process.clone())
        })?;
        match process {
            (_, VmState::Starting, None) => {
                let (name, state) = (name.clone(), VmState::Starting);
                Err(NodeError::State { name, what: "deleted yet", state })
            }
            (number, _, None) => {
                self.0.registry.discard(number);
                Ok(())
            }
            (_, _, Some(process)) => {
                let _ = pidfd_send_signal(&process, Signal::KILL);
                match self.0.registry.wait(name, VmState::Ended, DELETE_PATIENCE) {
                    Ok(info) => {
                        self.0.registry.discard(info.number);
                        Ok(())
                    }
                    Err(NodeError::NoVm(_)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Waits until a VM is at least in this state.
    ///
    /// # Errors
    /// There is none of this name, or it takes longer than `patience`.
    pub fn wait(
        &self,
        name: &VmName,
        state: VmState,
        patience: Duration,
    ) -> Result<VmInfo, NodeError> {
        self.0.registry.wait(name, state, patience)
    }

    /// The file that a VM's console is written to: the first MiB of it.
    ///
    /// # Errors
    /// There is no VM of this name.
    pub fn console_file(&self, name: &VmName) -> Result<PathBuf, NodeError> {
        self.file(name, CONSOLE)
    }

    /// The socket at which a VM shows its console, and takes what is typed
    /// ([`machine::attach`](crate::machine::attach)).
    ///
    /// # Errors
    /// There is no VM of this name.
    pub fn console_socket(&self, name: &VmName) -> Result<PathBuf, NodeError> {
        self.file(name, SOCKET)
    }

    /// The file with what the guest says of itself, a line of JSON each.
    ///
    /// # Errors
    /// There is no VM of this name.
    pub fn guest_events(&self, name: &VmName) -> Result<PathBuf, NodeError> {
        self.file(name, EVENTS)
    }

    fn file(&self, name: &VmName, file: &str) -> Result<PathBuf, NodeError> {
        self.0.registry.with(name, |vm| vm.folder.file(file))
    }

    /// A VM's report so far, as of `vmm boot --json`; null before it is ready.
    ///
    /// # Errors
    /// There is no VM of this name.
    pub fn report(&self, name: &VmName) -> Result<serde_json::Value, NodeError> {
        let (folder, report) =
            self.0.registry.with(name, |vm| (vm.folder.clone(), vm.record.report.clone()))?;
        // That of its end has all that the other has.
        let last = folder.read(launch::REPORT, 4 << 20);
        let last = last.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(last.or(report).unwrap_or_default())
    }

    /// Listens to what happens from now on.
    pub fn subscribe(&self) -> Subscription {
        self.0.listeners.subscribe()
    }

    /// Has an image in the pool, and pins it if so wished.
    ///
    /// # Errors
    /// It cannot be had, or there is no room.
    pub fn pull(&self, wish: &PullImage) -> Result<PoolImage, NodeError> {
        let PullImage { image, tenant, pin } = wish;
        let held = self.0.pool.get(image, tenant)?;
        if *pin {
            self.0.pool.pin(image, tenant, true)?;
        }
        Ok(self.0.pool.describe(&held))
    }

    /// The images in the pool.
    pub fn images(&self) -> Vec<PoolImage> {
        self.0.pool.images()
    }

    /// Keeps an image in the pool whether or not anybody uses it, or no longer.
    ///
    /// # Errors
    /// It is not there.
    pub fn pin(
        &self,
        image: &ImageName,
        tenant: &TenantName,
        pinned: bool,
    ) -> Result<PoolImage, NodeError> {
        self.0.pool.pin(image, tenant, pinned)
    }

    /// Gives an image up.
    ///
    /// # Errors
    /// It is not there, or in use.
    pub fn drop_image(&self, image: &ImageName, tenant: &TenantName) -> Result<(), NodeError> {
        self.0.pool.drop_image(image, tenant)
    }

    /// What the node is and has.
    pub fn info(&self) -> NodeInfo {
        let node = &self.0;
        let (vms, vm_memory_bytes) = node.registry.count();
        let memory = host::memory::read();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let guests = host::kvm::require_stock_kernels();
        let pool = node.pool.info();
        let mut problems = Vec::new();
        if !pool.huge_pages {
            problems.push("the pool is not all in 2 MiB pages: VMs copy their images".to_owned());
        }
        NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runs_guests: guests.is_ok(),
            draining: node.draining.load(Ordering::Relaxed),
            problems,
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_bytes: memory.total,
            memory_available_bytes: memory.available,
            max_vms: node.max_vms,
            vms,
            vm_memory_bytes,
            pool,
        }
    }

    /// Takes no new VMs, or takes them again.
    pub fn drain(&self, on: bool) {
        if self.0.draining.swap(on, Ordering::Relaxed) != on {
            self.0.listeners.tell(if on { Event::Draining } else { Event::Undrained });
        }
    }

    /// The folder of what is known of this agent's VMs.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// The agent ends; VMs live on. The pool's memory is given back but for what they have mapped, unless
    /// the next agent is to find it.
    pub fn end(&self) {
        if !self.0.keep_pool {
            self.0.pool.end();
        }
    }
}

impl Inner {
    /// Whether VMs may be on this bridge, if they are to be on one.
    fn allows(&self, bridge: Option<&str>) -> Result<(), NodeError> {
        let allowed = &self.allow_bridge;
        match bridge {
            Some(bridge) if !allowed.is_empty() && !allowed.iter().any(|it| it == bridge) => {
                Err(NodeError::Bridge { bridge: bridge.to_owned(), allowed: allowed.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A number that no VM had before.
    fn number(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = fs::write(self.folder.join("next"), (number + 1).to_string()) {
            // The folders still tell.
            log::debug!("the number of the next VM: {error}");
        }
        number
    }

    /// Brings the image and starts the process.
    fn launch(
        &self,
        create: &CreateVm,
        number: u64,
        name: &VmName,
        folder: &VmFolder,
        created: Instant,
    ) -> Result<(), NodeError> {
        let mut last = created;
        let mut phases = Vec::with_capacity(8);
        let mut phase = |name: &str| {
            let now = Instant::now();
            phases.push(Phase { name: name.into(), ms: milliseconds(now - last) });
            last = now;
        };
        let image = self.pool.get(&create.spec.image, &create.tenant)?;
        phase("image");
        let turn = self.turns.take();
        phase("turn");
        let failed = |what: &str| NodeError::system(format!("{what} VM '{name}'"));
        let lock = folder.create().map_err(failed("make the folder of"))?;
        let wanted = Wanted {
            number,
            name,
            spec: &create.spec,
            hold: create.hold,
            image: &image,
            folder,
            lock,
        };
        let manifest = image.id().to_string();
        let known = |pid, network| {
            let mut written = Ok(());
            self.registry.change_quietly(number, |vm| {
                let info = &mut vm.record.info;
                info.pid = Some(pid);
                info.manifest = Some(manifest);
                info.network = network;
                written = vm.write();
            });
            written
        };
        let launched =
            self.launcher.start(wanted, known).map_err(failed("start the process of"))?;
        phase("spawn");
        let process = Arc::new(launched.process);
        let watched = process.clone();
        self.registry.change_quietly(number, |vm| {
            vm.process = Some(watched);
            vm.image = Some(image);
            vm.turn = Some(turn);
            vm.record.info.phases = phases;
        });
        // From here on its end is seen.
        self.supervisor.watch(Watched {
            number,
            process,
            link: Some(launched.link),
            folder: folder.clone(),
            hold: create.hold,
        });
        Ok(())
    }
}

/// Has a VM that is held begin, by its socket.
fn say_start(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.write_all(b"start\n")?;
    let mut answer = [0; 3];
    stream.read_exact(&mut answer)?;
    if &answer == b"ok\n" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// The lock that one agent has.
fn lock(folder: &Path) -> Result<File, NodeError> {
    let file = File::create(folder.join("lock"));
    let file = file.map_err(NodeError::system(format!("make a lock in {}", folder.display())))?;
    file.try_lock().map_err(|_| NodeError::Running(folder.to_owned()))?;
    Ok(file)
}

fn no_number(number: u64) -> NodeError {
    NodeError::system(format!("name VM {number}"))(io::ErrorKind::InvalidInput.into())
}

fn of_pool(change: Change) -> Event {
    match change {
        Change::Pulled(image) => {
            let PoolImage { image, tenant, bytes, load_ms, .. } = image;
            Event::Pulled { image, tenant, bytes, ms: load_ms }
        }
        Change::Dropped(image, tenant) => Event::Dropped { image, tenant },
    }
}
