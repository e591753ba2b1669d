//! A reliable connection (RC) as the device has it: a queue pair, the completion queue of both its
//! halves, and the channel that tells of completions.
//!
//! Invariants: the four objects are there from `new` until [`Pair::destroy`], which is called when nobody
//! uses the pair any more. All requests are signalled and there are never more of them than `depth`, so
//! the completion queue, which has that many entries, cannot overrun.
#![expect(unsafe_code, reason = "calls of libibverbs")]

use std::ffi::c_int;
use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use rdma_mummy_sys::{
    ibv_comp_channel, ibv_cq, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_cap,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_send_wr, ibv_wc,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::context::mtu_number;
use super::device::LinkLayer;
use super::endpoint::Endpoint;
use super::error::VerbsError;
use super::fabric::Domain;
use super::library::{done, object};

/// How many completions are taken at a time.
pub(super) const TAKEN: usize = 32;

pub(super) struct Pair {
    domain: Domain,
    raw: Raw,
    number: u32,
    life: Mutex<Life>,
}

#[derive(Clone, Copy)]
struct Raw {
    qp: NonNull<ibv_qp>,
    cq: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
    fd: RawFd,
}

/// Whether it is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    There,
    Gone,
}

// SAFETY: may be used from any thread, as the context.
unsafe impl Send for Pair {}
// SAFETY: as above; libibverbs locks what its functions share.
unsafe impl Sync for Pair {}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("number", &self.number).finish_non_exhaustive()
    }
}

/// What a connection is made with, after the checks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) timeout: u8,
    pub(super) retry: u8,
    pub(super) reads_outstanding: u8,
    pub(super) reads_answered: u8,
    pub(super) psn: u32,
}

impl Pair {
    /// Makes one that takes `depth` requests, with the rights `access` for the other side.
    pub(super) fn new(domain: &Domain, depth: u32, access: u32) -> Result<Self, VerbsError> {
        let context = domain.handle.context();
        let (library, device) = (context.functions(), context.name());
        let entries = c_int::try_from(depth).unwrap_or(c_int::MAX);
        // SAFETY: the device is open.
        let channel = unsafe { (library.create_comp_channel)(context.raw()) };
        let channel = object("ibv_create_comp_channel", device, channel)?;
        // SAFETY: made just now.
        let fd = unsafe { channel.as_ref().fd };
        let end_channel = || {
            // SAFETY: made here, and nothing uses it yet.
            let code = unsafe { (library.destroy_comp_channel)(channel.as_ptr()) };
            debug_assert_eq!(code, 0);
        };
        // SAFETY: the descriptor is the channel's, which lives as long as the borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(fd) };
        let nonblocking = rustix::fs::fcntl_getfl(descriptor)
            .and_then(|flags| rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK));
        // SAFETY: device and channel are there; the first completion vector always is.
        let cq = unsafe {
            let none = std::ptr::null_mut();
            (library.create_cq)(context.raw(), entries, none, channel.as_ptr(), 0)
        };
        let cq = match (object("ibv_create_cq", device, cq), nonblocking) {
            (Ok(cq), Ok(())) => cq,
            (Ok(cq), Err(error)) => {
                // SAFETY: made here, and nothing uses it yet.
                unsafe { (library.destroy_cq)(cq.as_ptr()) };
                end_channel();
                let device = device.to_owned();
                return Err(VerbsError::Call { call: "fcntl", device, source: error.into() });
            }
            (Err(error), _) => {
                end_channel();
                return Err(error);
            }
        };
        let mut attributes = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: cq.as_ptr(),
            recv_cq: cq.as_ptr(),
            srq: std::ptr::null_mut(),
            cap: ibv_qp_cap {
                max_send_wr: depth,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 1,
        };
        // SAFETY: domain and completion queue are there; `attributes` may be written.
        let qp = unsafe { (library.create_qp)(domain.handle.raw(), &raw mut attributes) };
        let qp = match object("ibv_create_qp", device, qp) {
            Ok(qp) => qp,
            Err(error) => {
                // SAFETY: made here, and nothing uses it yet.
                unsafe { (library.destroy_cq)(cq.as_ptr()) };
                end_channel();
                return Err(error);
            }
        };
        // SAFETY: made just now.
        let number = unsafe { qp.as_ref().qp_num };
        let raw = Raw { qp, cq, channel, fd };
        let pair = Self { domain: domain.clone(), raw, number, life: Mutex::new(Life::There) };
        pair.initialise(access)?;
        Ok(pair)
    }

    fn initialise(&self, access: u32) -> Result<(), VerbsError> {
        let mut attributes = no_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = self.domain.fabric().port().number;
        attributes.qp_access_flags = access;
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PORT
            | mask::IBV_QP_ACCESS_FLAGS;
        self.modify("ibv_modify_qp to INIT", attributes, fields)
    }

    /// Connects it: ready to receive, then ready to send.
    pub(super) fn connect(&self, remote: &Endpoint, path: Path) -> Result<(), VerbsError> {
        let fabric = self.domain.fabric();
        let mut attributes = no_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = mtu_number(fabric.port().active_mtu.min(remote.mtu));
        attributes.dest_qp_num = remote.qpn;
        attributes.rq_psn = remote.psn;
        attributes.max_dest_rd_atomic = path.reads_answered;
        attributes.min_rnr_timer = 12;
        let address = &mut attributes.ah_attr;
        address.port_num = fabric.port().number;
        address.dlid = remote.lid;
        address.is_global = u8::from(fabric.port().link == LinkLayer::Ethernet);
        address.grh.dgid.raw = remote.gid;
        address.grh.sgid_index = u8::try_from(fabric.gid().index).map_err(|_| {
            let device = fabric.device().name.clone();
            VerbsError::Unusable { device, reason: "its address is past the 255th" }
        })?;
        address.grh.hop_limit = 64;
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify("ibv_modify_qp to RTR", attributes, fields)?;

        let mut attributes = no_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = path.psn;
        attributes.timeout = path.timeout;
        attributes.retry_cnt = path.retry;
        // No one sends what would need a receive, so there is nothing to be not ready for.
        attributes.rnr_retry = 0;
        attributes.max_rd_atomic = path.reads_outstanding;
        let fields = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("ibv_modify_qp to RTS", attributes, fields)
    }

    fn modify(
        &self,
        call: &'static str,
        mut attributes: ibv_qp_attr,
        fields: mask,
    ) -> Result<(), VerbsError> {
        let context = self.domain.handle.context();
        let fields = c_int::try_from(fields.0).unwrap_or(0);
        // SAFETY: the pair is there; `attributes` may be written.
        let code = unsafe {
            (context.functions().modify_qp)(self.raw.qp.as_ptr(), &raw mut attributes, fields)
        };
        done(call, context.name(), code)
    }

    /// Its state, as the device has it.
    pub(super) fn state(&self) -> Result<ibv_qp_state::Type, VerbsError> {
        let context = self.domain.handle.context();
        let mut attributes = no_attributes();
        // SAFETY: numbers and pointers, of which 0 is one.
        let mut first: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        let fields = c_int::try_from(mask::IBV_QP_STATE.0).unwrap_or(0);
        // SAFETY: the pair is there; both structures may be written.
        let code = unsafe {
            let qp = self.raw.qp.as_ptr();
            (context.functions().query_qp)(qp, &raw mut attributes, fields, &raw mut first)
        };
        done("ibv_query_qp", context.name(), code)?;
        Ok(attributes.qp_state)
    }

    pub(super) fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Posts a list of requests. On an error, how many of them were taken all the same.
    ///
    /// # Safety
    /// `first` begins a list of whole requests; the memory that they name may be used by the device until
    /// they complete or the pair is destroyed; they are no more than the queue has room for.
    pub(super) unsafe fn post(&self, list: &mut [ibv_send_wr]) -> Result<(), (usize, VerbsError)> {
        let Some(first) = list.first_mut() else { return Ok(()) };
        let first = std::ptr::from_mut(first);
        let mut bad = std::ptr::null_mut();
        // SAFETY: the pair is there; the rest was promised.
        let code =
            unsafe { rdma_mummy_sys::ibv_post_send(self.raw.qp.as_ptr(), first, &raw mut bad) };
        let context = self.domain.handle.context();
        done("ibv_post_send", context.name(), code).map_err(|error| {
            // All of them, if the driver does not say: what may be in use is not given back.
            (list.iter().take_while(|request| !std::ptr::eq(*request, bad)).count(), error)
        })
    }

    /// Takes completions, up to [`TAKEN`]; returns how many.
    pub(super) fn completions(&self, taken: &mut [ibv_wc; TAKEN]) -> Result<usize, VerbsError> {
        let room = i32::try_from(TAKEN).unwrap_or(0);
        // SAFETY: the queue is there; `taken` has so many entries.
        let count =
            unsafe { rdma_mummy_sys::ibv_poll_cq(self.raw.cq.as_ptr(), room, taken.as_mut_ptr()) };
        usize::try_from(count).map_err(|_| VerbsError::Call {
            call: "ibv_poll_cq",
            device: self.domain.handle.context().name().to_owned(),
            source: std::io::Error::from_raw_os_error(Errno::IO.raw_os_error()),
        })
    }

    /// Has the next completion make the channel readable.
    pub(super) fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the queue is there.
        let code = unsafe { rdma_mummy_sys::ibv_req_notify_cq(self.raw.cq.as_ptr(), 0) };
        done("ibv_req_notify_cq", self.domain.handle.context().name(), code)
    }

    /// Takes what there is in the channel, so that it is no longer readable.
    pub(super) fn acknowledge(&self) -> Result<(), VerbsError> {
        let context = self.domain.handle.context();
        let library = context.functions();
        let (mut cq, mut own) = (std::ptr::null_mut(), std::ptr::null_mut());
        // The channel is this queue's alone, which tells once for each time it was armed.
        loop {
            // SAFETY: the channel is there, and does not block; both pointers may be written.
            let code = unsafe {
                (library.get_cq_event)(self.raw.channel.as_ptr(), &raw mut cq, &raw mut own)
            };
            if code != 0 {
                let source = std::io::Error::last_os_error();
                let would_block = source.kind() == std::io::ErrorKind::WouldBlock;
                let device = context.name().to_owned();
                let call = "ibv_get_cq_event";
                return if would_block {
                    Ok(())
                } else {
                    Err(VerbsError::Call { call, device, source })
                };
            }
            // SAFETY: one event was taken of this queue; destroying it waits for that.
            unsafe { (library.ack_cq_events)(self.raw.cq.as_ptr(), 1) };
        }
    }

    /// The channel, readable when it tells of a completion.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's, which is there for as long as `self` is.
        unsafe { BorrowedFd::borrow_raw(self.raw.fd) }
    }

    /// Waits until the channel is readable; false when the time is up.
    pub(super) fn readable(&self, timeout: Duration) -> Result<bool, VerbsError> {
        let timeout = Timespec::try_from(timeout).ok();
        let descriptor = self.descriptor();
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(VerbsError::Call {
                call: "poll",
                device: self.domain.handle.context().name().to_owned(),
                source: error.into(),
            }),
        }
    }

    /// Destroys it all, once; afterwards the device uses none of the memory that requests named, and takes
    /// no request of the other side.
    ///
    /// # Errors
    /// The queue pair is not destroyed, and the device may go on.
    ///
    /// # Safety
    /// Of the other functions none is called any more, but for `domain` and `number`, and nobody has the
    /// descriptor.
    pub(super) unsafe fn destroy(&self) -> Result<(), VerbsError> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if *life == Life::Gone {
            return Ok(());
        }
        let context = self.domain.handle.context();
        let library = context.functions();
        // SAFETY: it is there.
        let code = unsafe { (library.destroy_qp)(self.raw.qp.as_ptr()) };
        done("ibv_destroy_qp", context.name(), code)?;
        *life = Life::Gone;
        // SAFETY: made in `new`, used by the queue pair only, and all events are acknowledged.
        let codes = unsafe {
            let cq = (library.destroy_cq)(self.raw.cq.as_ptr());
            [cq, (library.destroy_comp_channel)(self.raw.channel.as_ptr())]
        };
        if codes != [0, 0] {
            log::error!("a completion queue of {} could not be destroyed", context.name());
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        if let Err(error) = unsafe { self.destroy() } {
            // Then the domain cannot go either.
            log::error!("{error}");
            std::mem::forget(self.domain.clone());
        }
    }
}

fn no_attributes() -> ibv_qp_attr {
    // SAFETY: numbers only, of which 0 is one.
    unsafe { std::mem::zeroed() }
}
