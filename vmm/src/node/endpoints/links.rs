//! The thread that hears what VMs' processes say.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::endpoint::link::{FromVm, Incoming};

/// Marks the eventfd.
const WAKE: u64 = u64::MAX;
/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// What is heard.
pub trait Heard: Send {
    /// A VM says something. It is not waited for.
    fn message(&mut self, vm: u64, message: FromVm);
    /// The connection to it has broken.
    fn broken(&mut self, vm: u64, link: &Arc<UnixStream>);
}

/// The thread, for who has more connections for it. It ends with this.
#[derive(Debug)]
pub struct Links {
    added: Sender<(u64, Arc<UnixStream>)>,
    wake: Arc<OwnedFd>,
}

impl Links {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread, or no descriptors.
    pub fn start(heard: Box<dyn Heard>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let (added, received) = channel();
        let ear = Ear { epoll, wake: wake.clone(), received, heard, links: HashMap::new() };
        thread::Builder::new().name("endpoint-links".into()).spawn(move || ear.run())?;
        Ok(Self { added, wake })
    }

    /// Listens to a VM.
    pub fn add(&self, vm: u64, link: Arc<UnixStream>) {
        let _ = self.added.send((vm, link));
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

struct Ear {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    received: Receiver<(u64, Arc<UnixStream>)>,
    heard: Box<dyn Heard>,
    links: HashMap<u64, (Arc<UnixStream>, Incoming)>,
}

impl Ear {
    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        let mut buffer = vec![0; PIECE];
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return log::error!("waiting for what guests ask: {error}"),
            }
            let ready: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            for vm in ready {
                if vm == WAKE {
                    if !self.take_new() {
                        return;
                    }
                } else if let Err(error) = self.hear(vm, &mut buffer) {
                    log::debug!("VM {vm} says no more: {error}");
                    self.forget(vm);
                }
            }
        }
    }

    /// Takes what was added; whether anybody is left who could add more.
    fn take_new(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        loop {
            match self.received.try_recv() {
                Ok((vm, link)) => {
                    self.forget(vm);
                    let data = EventData::new_u64(vm);
                    if let Err(error) = epoll::add(&self.epoll, &*link, data, EventFlags::IN) {
                        log::error!("VM {vm} cannot be heard: {error}");
                        self.heard.broken(vm, &link);
                    } else {
                        self.links.insert(vm, (link, Incoming::default()));
                    }
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn forget(&mut self, vm: u64) {
        if let Some((link, _)) = self.links.remove(&vm) {
            let _ = epoll::delete(&self.epoll, &*link);
            self.heard.broken(vm, &link);
        }
    }

    /// Reads once: there is something.
    fn hear(&mut self, vm: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some((link, incoming)) = self.links.get_mut(&vm) else { return Ok(()) };
        match (&**link).read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => incoming.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(message) = incoming.message::<FromVm>().map_err(io::Error::other)? {
            self.heard.message(vm, message);
        }
        Ok(())
    }
}
