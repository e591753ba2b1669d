//! The C interface of continuations. What each function does is said in `include/continuation.h`.
//!
//! All pointers are the caller's word: each function says in `# Safety` what it takes them for. Nothing unwinds
//! into C, and errors are told by `errno` and [`cont_error`].

mod connection;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::path::Path;
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use continuation::helper::Helper;
use continuation::privilege::{Own, Privilege};
use continuation::repair;

pub use connection::Connection;
use connection::Error;

/// What is sent to the new home.
#[repr(C)]
#[derive(Debug)]
pub struct Blob {
    bytes: *mut u8,
    length: usize,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Who has the privilege, if it is not this process.
static HELPER: Mutex<Option<Arc<dyn Privilege>>> = Mutex::new(None);

fn privilege() -> Arc<dyn Privilege> {
    let helper = HELPER.lock().unwrap_or_else(PoisonError::into_inner);
    helper.clone().unwrap_or_else(|| Arc::new(Own))
}

/// Notes an error for [`cont_error`] and in `errno`.
fn fail(error: &Error) {
    let text = CString::new(error.text.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = text);
    // SAFETY: it is this thread's own, and always there.
    unsafe { *libc::__errno_location() = error.number };
}

fn status(result: Result<(), Error>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            fail(&error);
            -1
        }
    }
}

fn length(result: Result<usize, Error>) -> isize {
    match result.map(isize::try_from) {
        Ok(Ok(length)) => length,
        Ok(Err(_)) => -1, // no slice is so long
        Err(error) => {
            fail(&error);
            -1
        }
    }
}

fn pointer(result: Result<Connection, Error>) -> *mut Connection {
    match result {
        Ok(connection) => Box::into_raw(Box::new(connection)),
        Err(error) => {
            fail(&error);
            ptr::null_mut()
        }
    }
}

/// # Safety
/// `bytes` are `length` bytes that nobody writes meanwhile, or none.
unsafe fn bytes<'a>(bytes: *const c_void, length: usize) -> &'a [u8] {
    if bytes.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: as the caller says.
    unsafe { slice::from_raw_parts(bytes.cast(), length) }
}

/// Limits the buffers of a socket.
///
/// # Safety
/// `fd` is open, or negative.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_mark_migratable(fd: c_int, bytes: u32) -> c_int {
    if fd < 0 {
        return status(Err(Error::argument("the descriptor is not open")));
    }
    // SAFETY: as the caller says.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let bytes = if bytes == 0 { repair::BUFFER } else { bytes };
    status(repair::mark_migratable(fd, bytes).map_err(Error::from))
}

/// Asks a helper from now on.
///
/// # Safety
/// `path` is a string of C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_use_helper(path: *const c_char) -> c_int {
    if path.is_null() {
        return status(Err(Error::argument("there is no path")));
    }
    // SAFETY: as the caller says.
    let path = unsafe { CStr::from_ptr(path) };
    let connect = || {
        let path = path.to_str().map_err(|_| Error::argument("the path is not UTF-8"))?;
        let helper = Helper::connect(Path::new(path)).map_err(Error::other)?;
        *HELPER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(helper));
        Ok(())
    };
    status(connect())
}

/// Of a connection that has just begun.
///
/// # Safety
/// `fd` is open, and the caller's to give, or negative.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_create(fd: c_int) -> *mut Connection {
    if fd < 0 {
        return pointer(Err(Error::argument("the descriptor is not open")));
    }
    // SAFETY: as the caller says.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    pointer(Ok(Connection::create(stream)))
}

/// Reads of the connection.
///
/// # Safety
/// `cont` is a continuation, and `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_read(
    cont: *mut Connection,
    buffer: *mut c_void,
    size: usize,
) -> isize {
    // SAFETY: as the caller says.
    let Some(cont) = (unsafe { cont.as_mut() }) else { return length(Err(Error::none())) };
    if buffer.is_null() || size == 0 {
        return 0;
    }
    // The caller's memory may never have been written, so it is not lent as bytes that have.
    let mut own = vec![0; size.min(256 << 10)];
    let result = cont.read(&mut own);
    if let Ok(read) = result {
        let read = read.min(own.len());
        // SAFETY: there is room for `size` bytes, as the caller says, and these are not more, and not there.
        unsafe { ptr::copy_nonoverlapping(own.as_ptr(), buffer.cast(), read) };
    }
    length(result)
}

/// Writes to the connection.
///
/// # Safety
/// `cont` is a continuation, and `buffer` are `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_write(
    cont: *mut Connection,
    buffer: *const c_void,
    size: usize,
) -> isize {
    // SAFETY: as the caller says.
    let Some(cont) = (unsafe { cont.as_mut() }) else { return length(Err(Error::none())) };
    // SAFETY: as the caller says.
    length(cont.write(unsafe { bytes(buffer, size) }))
}

/// The connection's descriptor.
///
/// # Safety
/// `cont` is a continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_fd(cont: *const Connection) -> c_int {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_ref() };
    match cont.ok_or(Error::none()).and_then(Connection::live) {
        Ok(live) => live.stream().as_raw_fd(),
        Err(error) => status(Err(error)),
    }
}

/// The server has this state at these offsets.
///
/// # Safety
/// `cont` is a continuation, and `state` are `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_export(
    cont: *mut Connection,
    state: *const c_void,
    size: usize,
    read: u64,
    sent: u64,
) -> c_int {
    // SAFETY: as the caller says.
    let Some(cont) = (unsafe { cont.as_mut() }) else { return status(Err(Error::none())) };
    // SAFETY: as the caller says.
    let state = unsafe { bytes(state, size) };
    status(cont.export(state, read, sent))
}

/// The last export.
///
/// # Safety
/// `cont` is a continuation, and the others are places for what they are named, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_exported(
    cont: *const Connection,
    state: *mut *const c_void,
    size: *mut usize,
    read: *mut u64,
    sent: *mut u64,
) -> c_int {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_ref() };
    let live = match cont.ok_or(Error::none()).and_then(Connection::live) {
        Ok(live) => live,
        Err(error) => return status(Err(error)),
    };
    let export = live.exported();
    // SAFETY: as the caller says; none is written where there is none.
    unsafe {
        if let Some(state) = state.as_mut() {
            *state = export.state.as_ptr().cast();
        }
        if let Some(size) = size.as_mut() {
            *size = export.state.len();
        }
        if let Some(read) = read.as_mut() {
            *read = export.read;
        }
        if let Some(sent) = sent.as_mut() {
            *sent = export.sent;
        }
    }
    0
}

/// Bytes that were read since the connection began.
///
/// # Safety
/// `cont` is a continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_bytes_read(cont: *const Connection) -> u64 {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_ref() };
    cont.and_then(|cont| cont.live().ok())
        .map_or(0, continuation::service::Continuation::bytes_read)
}

/// Bytes that were sent since the connection began.
///
/// # Safety
/// `cont` is a continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_bytes_sent(cont: *const Connection) -> u64 {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_ref() };
    cont.and_then(|cont| cont.live().ok())
        .map_or(0, continuation::service::Continuation::bytes_sent)
}

/// The connection falls silent.
///
/// # Safety
/// `cont` is a continuation, and `blob` a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_freeze(cont: *mut Connection, blob: *mut Blob) -> c_int {
    // SAFETY: as the caller says.
    let Some(cont) = (unsafe { cont.as_mut() }) else { return status(Err(Error::none())) };
    if blob.is_null() {
        return status(Err(Error::argument("there is no place for the blob")));
    }
    match cont.freeze(&privilege()) {
        Ok(bytes) => {
            let bytes = Box::leak(bytes.into_boxed_slice());
            // SAFETY: as the caller says; what was there is not read.
            unsafe { blob.write(Blob { bytes: bytes.as_mut_ptr(), length: bytes.len() }) };
            0
        }
        Err(error) => status(Err(error)),
    }
}

/// It goes on here.
///
/// # Safety
/// `cont` is a continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_thaw(cont: *mut Connection) -> c_int {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_mut() };
    status(cont.ok_or(Error::none()).and_then(Connection::thaw))
}

/// It goes on elsewhere.
///
/// # Safety
/// `cont` is a continuation, or null; it is none any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_leave(cont: *mut Connection) {
    if !cont.is_null() {
        // SAFETY: as the caller says: it is one that `pointer` has given, and is given back once.
        unsafe { Box::from_raw(cont) }.leave();
    }
}

/// Makes a connection of a blob.
///
/// # Safety
/// `blob` are `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_import(blob: *const c_void, size: usize) -> *mut Connection {
    // SAFETY: as the caller says.
    let blob = unsafe { bytes(blob, size) };
    pointer(Connection::import(blob, &privilege()))
}

/// It goes on here.
///
/// # Safety
/// `cont` is a continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_start(cont: *mut Connection) -> c_int {
    // SAFETY: as the caller says.
    let cont = unsafe { cont.as_mut() };
    status(cont.ok_or(Error::none()).and_then(Connection::start))
}

/// Closes and frees it.
///
/// # Safety
/// `cont` is a continuation, or null; it is none any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_free(cont: *mut Connection) {
    if !cont.is_null() {
        // SAFETY: as the caller says: it is one that `pointer` has given, and is given back once.
        drop(unsafe { Box::from_raw(cont) });
    }
}

/// Frees a blob.
///
/// # Safety
/// `blob` is one of [`cont_freeze`], or empty, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cont_blob_free(blob: *mut Blob) {
    // SAFETY: as the caller says.
    let Some(blob) = (unsafe { blob.as_mut() }) else { return };
    if !blob.bytes.is_null() {
        let bytes = ptr::slice_from_raw_parts_mut(blob.bytes, blob.length);
        // SAFETY: as the caller says, it is what was leaked; the pointer is gone after this.
        drop(unsafe { Box::from_raw(bytes) });
    }
    (blob.bytes, blob.length) = (ptr::null_mut(), 0);
}

/// Why the last call of this thread failed.
#[unsafe(no_mangle)]
pub extern "C" fn cont_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}
