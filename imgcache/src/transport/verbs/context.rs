//! An opened device, and what it tells of itself.
//!
//! Invariants: `raw` is open from `open` to `drop`, and every object that is made in it holds an [`Arc`]
//! of it. The functions of libibverbs may be called from any thread (its manual page).
#![expect(unsafe_code, reason = "calls of libibverbs")]

use std::ffi::{CStr, c_int};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_mummy_sys::{
    IBV_GID_TYPE_ROCE_V1, IBV_GID_TYPE_ROCE_V2, ibv_context, ibv_device, ibv_device_attr,
    ibv_device_cap_flags, ibv_gid, ibv_gid_entry, ibv_mtu, ibv_pd, ibv_port_attr, ibv_port_state,
    ibv_transport_type,
};

use super::device::{Gid, GidKind, Limits, LinkLayer, Port, PortState};
use super::error::VerbsError;
use super::library::{Library, done, object};

/// The numbers of `ibv_port_attr::link_layer` (`IBV_LINK_LAYER_*`).
const LINK_UNSPECIFIED: u8 = 0;
const LINK_INFINIBAND: u8 = 1;
const LINK_ETHERNET: u8 = 2;
/// As many addresses as the kernel returns at once: an answer of the uverbs interface has less than 64 KiB.
const MAX_GIDS: usize = 65_535 / size_of::<ibv_gid_entry>();

/// An opened device.
#[derive(Debug)]
pub(super) struct Context {
    raw: NonNull<ibv_context>,
    functions: &'static Library,
    name: String,
}

// SAFETY: may be used from any thread (invariants).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A device that was opened to be looked at, or used.
pub(super) type Opened = Arc<Context>;

impl Context {
    /// Opens all devices.
    ///
    /// # Errors
    /// There is no library, or no support in the kernel; for each device, why it cannot be opened.
    pub(super) fn open_all() -> Result<Vec<Result<Opened, VerbsError>>, VerbsError> {
        let library = Library::get()?;
        let mut count: c_int = 0;
        // SAFETY: `count` may be written.
        let list = unsafe { (library.get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(VerbsError::Kernel { source: io::Error::last_os_error() });
        }
        let opened = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: the list has `count` devices, which are there until it is freed.
            .map(|place| unsafe { Self::open(library, *list.add(place)) })
            .collect();
        // SAFETY: freed once; opened devices do not need it.
        unsafe { (library.free_device_list)(list) };
        Ok(opened)
    }

    /// # Safety
    /// `device` is in a list that is not freed yet.
    unsafe fn open(
        library: &'static Library,
        device: *mut ibv_device,
    ) -> Result<Opened, VerbsError> {
        // SAFETY: as promised; the name is terminated and part of the device.
        let name = unsafe { CStr::from_ptr((library.get_device_name)(device)) };
        let name = name.to_string_lossy().into_owned();
        // SAFETY: as promised.
        let transport = unsafe { (*device).transport_type };
        if transport != ibv_transport_type::IBV_TRANSPORT_IB {
            let reason = "it is neither InfiniBand nor RoCE";
            return Err(VerbsError::Unusable { device: name, reason });
        }
        // SAFETY: as promised.
        let raw = unsafe { (library.open_device)(device) };
        match object("ibv_open_device", &name, raw) {
            Ok(raw) => Ok(Arc::new(Self { raw, functions: library, name })),
            Err(VerbsError::Call { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Err(VerbsError::Permission { device: name, source })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn functions(&self) -> &'static Library {
        self.functions
    }

    pub(super) fn raw(&self) -> *mut ibv_context {
        self.raw.as_ptr()
    }

    /// Its bounds, and its GUID.
    pub(super) fn limits(&self) -> Result<(Limits, u64), VerbsError> {
        let attributes = self.attributes()?;
        let windows = ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
            | ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0;
        let has_windows = attributes.device_cap_flags & windows != 0;
        let number = |value: c_int| u32::try_from(value).unwrap_or(0);
        let small = |value: c_int| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
        let limits = Limits {
            queues: number(attributes.max_qp),
            queue_depth: number(attributes.max_qp_wr),
            completions: number(attributes.max_cqe),
            regions: number(attributes.max_mr),
            region_bytes: attributes.max_mr_size,
            reads_answered: small(attributes.max_qp_rd_atom),
            reads_outstanding: small(attributes.max_qp_init_rd_atom),
            windows: if has_windows { number(attributes.max_mw) } else { 0 },
        };
        Ok((limits, u64::from_be(attributes.node_guid)))
    }

    fn attributes(&self) -> Result<ibv_device_attr, VerbsError> {
        // SAFETY: numbers only, of which 0 is one.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the device is open; `attributes` may be written.
        let code = unsafe { (self.functions.query_device)(self.raw(), &raw mut attributes) };
        done("ibv_query_device", &self.name, code)?;
        Ok(attributes)
    }

    /// Its ports.
    pub(super) fn ports(&self) -> Result<Vec<Port>, VerbsError> {
        let gids = self.gids()?;
        let mut ports = Vec::new();
        for number in 1..=self.attributes()?.phys_port_cnt {
            // SAFETY: numbers only, of which 0 is one.
            let mut port: ibv_port_attr = unsafe { std::mem::zeroed() };
            // SAFETY: the device is open; the function writes what `port` begins with.
            let code = unsafe { (self.functions.query_port)(self.raw(), number, &raw mut port) };
            done("ibv_query_port", &self.name, code)?;
            ports.push(Port {
                number,
                state: match port.state {
                    ibv_port_state::IBV_PORT_ACTIVE => PortState::Active,
                    ibv_port_state::IBV_PORT_INIT | ibv_port_state::IBV_PORT_ARMED => {
                        PortState::Starting
                    }
                    _ => PortState::Down,
                },
                link: match port.link_layer {
                    LINK_UNSPECIFIED | LINK_INFINIBAND => LinkLayer::InfiniBand,
                    LINK_ETHERNET => LinkLayer::Ethernet,
                    _ => {
                        let reason = "it is neither InfiniBand nor Ethernet";
                        let device = self.name.clone();
                        return Err(VerbsError::Port { device, port: number, reason });
                    }
                },
                active_mtu: mtu_bytes(port.active_mtu),
                max_transfer: port.max_msg_sz,
                lid: port.lid,
                gids: gids
                    .iter()
                    .filter(|(port, _)| *port == u32::from(number))
                    .map(|g| g.1)
                    .collect(),
            });
        }
        Ok(ports)
    }

    /// The addresses of all ports, each with its port.
    fn gids(&self) -> Result<Vec<(u32, Gid)>, VerbsError> {
        let empty = ibv_gid_entry {
            gid: ibv_gid { raw: [0; 16] },
            gid_index: 0,
            port_num: 0,
            gid_type: 0,
            ndev_ifindex: 0,
        };
        let mut entries = vec![empty; MAX_GIDS];
        // SAFETY: the device is open; `entries` has so many entries of this size.
        let count = unsafe {
            (self.functions.query_gid_table)(
                self.raw(),
                entries.as_mut_ptr(),
                entries.len(),
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        let count = usize::try_from(count).map_err(|_| VerbsError::Call {
            call: "ibv_query_gid_table",
            device: self.name.clone(),
            source: io::Error::from_raw_os_error(c_int::try_from(-count).unwrap_or(0)),
        })?;
        entries.truncate(count);
        let gid = |entry: &ibv_gid_entry| Gid {
            index: entry.gid_index,
            // SAFETY: both members of the union are 16 bytes of plain numbers.
            address: unsafe { entry.gid.raw },
            kind: match entry.gid_type {
                IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
                IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
                _ => GidKind::InfiniBand,
            },
            interface: entry.ndev_ifindex,
        };
        Ok(entries.iter().map(|entry| (entry.port_num, gid(entry))).collect())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once; nothing that was made in it is left (invariants).
        if unsafe { (self.functions.close_device)(self.raw()) } != 0 {
            log::warn!("RDMA device {} could not be closed", self.name);
        }
    }
}

/// A protection domain. Invariant: it is there from `new` to `drop`, and every object in it holds an
/// [`Arc`] of it.
#[derive(Debug)]
pub(super) struct DomainHandle {
    raw: NonNull<ibv_pd>,
    context: Opened,
}

// SAFETY: may be used from any thread, as the context.
unsafe impl Send for DomainHandle {}
// SAFETY: as above.
unsafe impl Sync for DomainHandle {}

impl DomainHandle {
    pub(super) fn new(context: &Opened) -> Result<Self, VerbsError> {
        // SAFETY: the device is open.
        let raw = unsafe { (context.functions.alloc_pd)(context.raw()) };
        let raw = object("ibv_alloc_pd", &context.name, raw)?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    pub(super) fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }

    pub(super) fn context(&self) -> &Opened {
        &self.context
    }
}

impl Drop for DomainHandle {
    fn drop(&mut self) {
        // SAFETY: made once; nothing in it is left (invariant).
        if unsafe { (self.context.functions.dealloc_pd)(self.raw()) } != 0 {
            log::warn!("a protection domain of {} could not be given back", self.context.name);
        }
    }
}

/// Bytes of an MTU by its number.
fn mtu_bytes(number: ibv_mtu::Type) -> u16 {
    match number {
        ibv_mtu::IBV_MTU_512 => 512,
        ibv_mtu::IBV_MTU_1024 => 1024,
        ibv_mtu::IBV_MTU_2048 => 2048,
        ibv_mtu::IBV_MTU_4096 => 4096,
        _ => 256,
    }
}

/// Number of an MTU of `bytes`, or of the next smaller one.
pub(super) fn mtu_number(bytes: u16) -> ibv_mtu::Type {
    match bytes {
        0..512 => ibv_mtu::IBV_MTU_256,
        512..1024 => ibv_mtu::IBV_MTU_512,
        1024..2048 => ibv_mtu::IBV_MTU_1024,
        2048..4096 => ibv_mtu::IBV_MTU_2048,
        4096.. => ibv_mtu::IBV_MTU_4096,
    }
}
