//! A switch of the tests, between a client and two homes of one endpoint: it holds, marks and leads on.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use continuation::mover::Route;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendFlags};

use super::network::{Lab, MAC, Namespace};

/// For local experiments (IEEE 802).
const MARK: u16 = 0x88b5;
/// Before each frame: what is to be done about checksums and large segments (`struct virtio_net_hdr`).
const HEADER: usize = 10;
const HOLD: Duration = Duration::from_secs(2);

/// A packet socket on an interface of this namespace, for all frames or those of one type.
fn packet_socket(interface: &str, kind: u16, headers: bool) -> OwnedFd {
    // SAFETY: no memory is touched.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just given it, to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |option: i32| {
        let on: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
        // SAFETY: the kernel reads `size` bytes of `on`, which is on the stack.
        let result =
            unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    };
    if headers {
        set(15); // PACKET_VNET_HDR
    }
    set(23); // PACKET_IGNORE_OUTGOING
    let index = rustix::net::netdevice::name_to_index(&socket, interface).unwrap();
    // SAFETY: a structure of numbers, of which all may be 0.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = kind.to_be();
    address.sll_ifindex = index.cast_signed();
    let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the kernel reads `size` bytes of `address`, which is on the stack.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    sockopt::set_socket_send_buffer_size_force(&socket, 64 << 20).unwrap();
    socket
}

#[derive(Default)]
struct Table {
    home: usize,
    /// Until when frames are kept.
    hold: Option<Instant>,
    held: VecDeque<Vec<u8>>,
    /// Whether a home may send.
    muted: [bool; 2],
    /// Whether a home's mark has come.
    marked: [bool; 2],
    /// Frames of muted homes.
    stale: u64,
    /// Whether frames to the endpoint are dropped now.
    drops: bool,
}

pub struct Switch {
    table: Mutex<Table>,
    marks: Condvar,
    client: OwnedFd,
    ports: [OwnedFd; 2],
    /// In the homes, for marks.
    ears: [OwnedFd; 2],
}

impl Switch {
    pub fn start(middle: &Namespace, homes: &[Namespace; 2]) -> Arc<Self> {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap();
        let [client, a, b] =
            middle.run(|| ["client", "home0", "home1"].map(|port| packet_socket(port, all, true)));
        let ears = [0, 1].map(|home: usize| homes[home].run(|| packet_socket("eth", MARK, false)));
        for ear in &ears {
            sockopt::set_socket_timeout(ear, sockopt::Timeout::Recv, Some(HOLD)).unwrap();
        }
        let table = Mutex::new(Table { muted: [false, true], ..Table::default() });
        let marks = Condvar::new();
        let this = Arc::new(Self { table, marks, client, ports: [a, b], ears });
        let weak = Arc::downgrade(&this);
        thread::spawn(move || forward(&weak));
        this
    }

    fn turn(&self) {
        let fds = [&self.client, &self.ports[0], &self.ports[1]];
        let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::IN));
        let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut polled, Some(&patience));
        let mut buffer = vec![0; 70_000];
        let mut table = self.table.lock().unwrap();
        if table.hold.is_some_and(|until| Instant::now() > until) {
            // Its owner is gone: the endpoint is where it was led to last.
            let home = table.home;
            table.muted[home] = false;
            table.muted[1 - home] = true;
            self.hand_on(&mut table);
        }
        for (from, fd) in fds.into_iter().enumerate() {
            for _ in 0..64 {
                let Ok((length, _)) = rustix::net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT)
                else {
                    break;
                };
                if length >= HEADER + 14 {
                    self.lead(&mut table, from.checked_sub(1), &buffer[..length]);
                }
            }
        }
    }

    fn lead(&self, table: &mut Table, home: Option<usize>, frame: &[u8]) {
        let to = &frame[HEADER..HEADER + 6];
        match home {
            None if to == MAC || to[0] & 1 == 1 => {
                if table.drops {
                    table.stale += 1;
                } else if table.hold.is_some() {
                    table.held.push_back(frame.to_vec());
                } else {
                    transmit(&self.ports[table.home], frame);
                }
            }
            None => {}
            Some(home) if frame[HEADER + 12..HEADER + 14] == MARK.to_be_bytes() => {
                table.marked[home] = true;
                self.marks.notify_all();
            }
            Some(home) if table.muted[home] => table.stale += 1,
            Some(_) => transmit(&self.client, frame),
        }
    }

    fn hand_on(&self, table: &mut Table) {
        table.hold = None;
        for frame in mem::take(&mut table.held) {
            transmit(&self.ports[table.home], &frame);
        }
    }

    /// Frames to the endpoint are lost from now on, or no more.
    pub fn drop_frames(&self, drops: bool) {
        self.table.lock().unwrap().drops = drops;
    }

    pub fn is_holding(&self) -> bool {
        let table = self.table.lock().unwrap();
        table.hold.is_some() || !table.held.is_empty()
    }

    pub fn home(&self) -> usize {
        self.table.lock().unwrap().home
    }
}

fn forward(switch: &Weak<Switch>) {
    while let Some(switch) = switch.upgrade() {
        switch.turn();
    }
}

fn transmit(port: &OwnedFd, frame: &[u8]) {
    for _ in 0..200 {
        if rustix::net::send(port, frame, SendFlags::DONTWAIT).is_ok() {
            return;
        }
        let patience = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = poll(&mut [PollFd::new(port, PollFlags::OUT)], Some(&patience));
    }
}

fn mark(header: usize) -> Vec<u8> {
    let mut frame = vec![0; header];
    frame.extend(MAC);
    frame.extend([0x0e, 0x53, 0, 0, 0, 0xfe]);
    frame.extend(MARK.to_be_bytes());
    frame.resize(header + 60, 0);
    frame
}

/// A move of the endpoint between two homes.
pub struct TestRoute {
    switch: Arc<Switch>,
    from: usize,
    to: usize,
    patience: Duration,
}

impl TestRoute {
    pub fn new(lab: &Lab, from: usize, to: usize) -> Self {
        Self { switch: Arc::clone(&lab.switch), from, to, patience: HOLD }
    }

    /// The hold ends by itself after this.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

impl Route for TestRoute {
    fn hold(&mut self) -> io::Result<()> {
        self.switch.table.lock().unwrap().hold = Some(Instant::now() + self.patience);
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        let ear = self.switch.ears[self.from].as_fd();
        let mut buffer = [0; 128];
        // Of an earlier move.
        while rustix::net::recv(ear, &mut buffer, RecvFlags::DONTWAIT).is_ok() {}
        transmit(&self.switch.ports[self.from], &mark(HEADER));
        rustix::net::recv(ear, &mut buffer, RecvFlags::empty())?;
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        let mut table = self.switch.table.lock().unwrap();
        table.marked[self.from] = false;
        rustix::net::send(&self.switch.ears[self.from], &mark(0), SendFlags::empty())?;
        let wait = |table: &mut Table| !table.marked[self.from];
        let (mut table, late) = self.switch.marks.wait_timeout_while(table, HOLD, wait).unwrap();
        if late.timed_out() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        table.muted[self.from] = true;
        Ok(())
    }

    fn point(&mut self) -> io::Result<()> {
        let mut table = self.switch.table.lock().unwrap();
        table.home = self.to;
        table.muted[self.to] = false;
        Ok(())
    }

    fn release(&mut self) -> io::Result<()> {
        let mut table = self.switch.table.lock().unwrap();
        self.switch.hand_on(&mut table);
        Ok(())
    }

    fn revert(&mut self) -> io::Result<()> {
        let mut table = self.switch.table.lock().unwrap();
        table.home = self.from;
        table.muted[self.to] = true;
        table.muted[self.from] = false;
        self.switch.hand_on(&mut table);
        Ok(())
    }
}
