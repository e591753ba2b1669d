//! The functions of libibverbs, found when the first device is asked for.
//!
//! `rdma-mummy-sys` would load the library before `main`: half a millisecond and a megabyte of
//! resident code for every VM, whether it has to do with RDMA or not. So only its types are used, which
//! are made from libibverbs' headers, and none of its functions, so that they are not linked.
#![expect(unsafe_code, reason = "functions of a library that is loaded at run time")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rdma_mummy_sys::{
    ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid_entry, ibv_mr,
    ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr,
};

use super::error::VerbsError;

/// The name by which every release since 2006 is found.
const FILE: &str = "libibverbs.so.1";

macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, by their C names without `ibv_`.
        #[derive(Debug)]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            fn load() -> Result<Self, libloading::Error> {
                // SAFETY: the initialisation of libibverbs has no conditions.
                let library = unsafe { libloading::Library::new(FILE) }?;
                let functions = Self {
                    $(
                        // SAFETY: the signature is that of the header, which has been part of the
                        // library's binary interface since the symbol is there.
                        $name: *unsafe { library.get($symbol) }?,
                    )*
                };
                // Never unloaded: the functions are kept.
                std::mem::forget(library);
                Ok(functions)
            }
        }
    };
}

functions! {
    get_device_list = b"ibv_get_device_list\0": fn(*mut c_int) -> *mut *mut ibv_device;
    free_device_list = b"ibv_free_device_list\0": fn(*mut *mut ibv_device);
    get_device_name = b"ibv_get_device_name\0": fn(*mut ibv_device) -> *const c_char;
    open_device = b"ibv_open_device\0": fn(*mut ibv_device) -> *mut ibv_context;
    close_device = b"ibv_close_device\0": fn(*mut ibv_context) -> c_int;
    query_device = b"ibv_query_device\0": fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    // As a symbol it fills what `ibv_port_attr` begins with; the header's macro asks for the rest.
    query_port = b"ibv_query_port\0": fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    query_gid_table = b"_ibv_query_gid_table\0":
        fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    alloc_pd = b"ibv_alloc_pd\0": fn(*mut ibv_context) -> *mut ibv_pd;
    dealloc_pd = b"ibv_dealloc_pd\0": fn(*mut ibv_pd) -> c_int;
    reg_mr = b"ibv_reg_mr\0": fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    dereg_mr = b"ibv_dereg_mr\0": fn(*mut ibv_mr) -> c_int;
    create_comp_channel = b"ibv_create_comp_channel\0":
        fn(*mut ibv_context) -> *mut ibv_comp_channel;
    destroy_comp_channel = b"ibv_destroy_comp_channel\0": fn(*mut ibv_comp_channel) -> c_int;
    create_cq = b"ibv_create_cq\0":
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    destroy_cq = b"ibv_destroy_cq\0": fn(*mut ibv_cq) -> c_int;
    get_cq_event = b"ibv_get_cq_event\0":
        fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events = b"ibv_ack_cq_events\0": fn(*mut ibv_cq, c_uint);
    create_qp = b"ibv_create_qp\0": fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    modify_qp = b"ibv_modify_qp\0": fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    query_qp = b"ibv_query_qp\0":
        fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
    destroy_qp = b"ibv_destroy_qp\0": fn(*mut ibv_qp) -> c_int;
}

impl Library {
    /// The library, loaded once.
    ///
    /// # Errors
    /// [`VerbsError::Library`], the same each time.
    pub(super) fn get() -> Result<&'static Self, VerbsError> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY
            .get_or_init(|| Self::load().map_err(|error| error.to_string()))
            .as_ref()
            .map_err(|reason| VerbsError::Library { reason: reason.clone() })
    }
}

/// What a function returned that returns an object, or nothing and `errno`.
pub(super) fn object<T>(
    call: &'static str,
    device: &str,
    pointer: *mut T,
) -> Result<NonNull<T>, VerbsError> {
    NonNull::new(pointer).ok_or_else(|| {
        let source = io::Error::last_os_error();
        VerbsError::Call { call, device: device.to_owned(), source }
    })
}

/// What a function returned that returns 0, or an error number, or less than 0 and `errno`.
pub(super) fn done(call: &'static str, device: &str, code: c_int) -> Result<(), VerbsError> {
    let source = match code {
        0 => return Ok(()),
        1.. => io::Error::from_raw_os_error(code),
        _ => io::Error::last_os_error(),
    };
    Err(VerbsError::Call { call, device: device.to_owned(), source })
}
