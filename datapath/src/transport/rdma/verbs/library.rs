//! libibverbs, as far as lanes need it: opened when it is first asked for, and never linked.
//!
//! This file has devices and memory, `queue` the queues. The declarations are those of the crate `rdma-sys`, of which only types
//! are used: whatever function of its were called, the program would need libibverbs to start. What headers have as inline
//! functions goes through the context's table of operations.

#![expect(unsafe_code, reason = "calls libibverbs")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use rdma_sys as ffi;
use rdma_sys::ibv_access_flags as Flag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::memory::span::{Span, Stable};
use crate::transport::rdma::endpoint::PathMtu;
use crate::transport::rdma::gid::Gid;
use crate::transport::rdma::reason::{Operation, Reason, of_empty_list};
use crate::transport::rdma::{VerbsError, sysfs};

/// The library's file, of its only ABI.
const LIBRARY: &str = "libibverbs.so.1";
/// Of <errno.h>.
pub(super) const EIO: i32 = 5;
const EOPNOTSUPP: i32 = 95;
const EPROTONOSUPPORT: i32 = 93;

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The library's functions that are always there.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the type is the one of the header for that name; the library is never unloaded.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }?,)*
                })
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ffi::ibv_device;
    ibv_free_device_list: fn(*mut *mut ffi::ibv_device);
    ibv_get_device_name: fn(*mut ffi::ibv_device) -> *const c_char;
    ibv_open_device: fn(*mut ffi::ibv_device) -> *mut ffi::ibv_context;
    ibv_close_device: fn(*mut ffi::ibv_context) -> c_int;
    ibv_query_device: fn(*mut ffi::ibv_context, *mut ffi::ibv_device_attr) -> c_int;
    ibv_query_port: fn(*mut ffi::ibv_context, u8, *mut ffi::ibv_port_attr) -> c_int;
    ibv_query_gid: fn(*mut ffi::ibv_context, u8, c_int, *mut ffi::ibv_gid) -> c_int;
    ibv_get_async_event: fn(*mut ffi::ibv_context, *mut ffi::ibv_async_event) -> c_int;
    ibv_ack_async_event: fn(*mut ffi::ibv_async_event);
    ibv_alloc_pd: fn(*mut ffi::ibv_context) -> *mut ffi::ibv_pd;
    ibv_dealloc_pd: fn(*mut ffi::ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut ffi::ibv_pd, *mut c_void, usize, c_int) -> *mut ffi::ibv_mr;
    ibv_dereg_mr: fn(*mut ffi::ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ffi::ibv_context) -> *mut ffi::ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ffi::ibv_comp_channel) -> c_int;
    ibv_create_cq: fn(*mut ffi::ibv_context, c_int, *mut c_void, *mut ffi::ibv_comp_channel, c_int) -> *mut ffi::ibv_cq;
    ibv_destroy_cq: fn(*mut ffi::ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut ffi::ibv_comp_channel, *mut *mut ffi::ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ffi::ibv_cq, c_uint);
    ibv_create_qp: fn(*mut ffi::ibv_pd, *mut ffi::ibv_qp_init_attr) -> *mut ffi::ibv_qp;
    ibv_modify_qp: fn(*mut ffi::ibv_qp, *mut ffi::ibv_qp_attr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut ffi::ibv_qp) -> c_int;
}

type RegisterOrdered =
    unsafe extern "C" fn(*mut ffi::ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ffi::ibv_mr;
type RegisterDmaBuf =
    unsafe extern "C" fn(*mut ffi::ibv_pd, u64, usize, u64, c_int, c_int) -> *mut ffi::ibv_mr;

pub(super) struct Library {
    pub(super) call: Functions,
    /// Since 1.8: takes flags that a kernel may ignore, relaxed ordering among them.
    ibv_reg_mr_iova2: Option<RegisterOrdered>,
    /// Since 1.12.
    ibv_reg_dmabuf_mr: Option<RegisterDmaBuf>,
    /// Never unloaded, as it is in a static.
    _library: libloading::Library,
}

impl Library {
    fn open() -> Result<Self, libloading::Error> {
        // SAFETY: running libibverbs' initialisers is what every program does that is linked to it.
        let library = unsafe { libloading::Library::new(LIBRARY) }?;
        let call = Functions::load(&library)?;
        // SAFETY: the type is the header's for that name.
        let ordered =
            unsafe { library.get::<RegisterOrdered>(b"ibv_reg_mr_iova2") }.ok().map(|symbol| *symbol);
        // SAFETY: the type is the header's for that name.
        let dmabuf =
            unsafe { library.get::<RegisterDmaBuf>(b"ibv_reg_dmabuf_mr") }.ok().map(|symbol| *symbol);
        Ok(Self { call, ibv_reg_mr_iova2: ordered, ibv_reg_dmabuf_mr: dmabuf, _library: library })
    }

    /// Opened once; a library that is installed later is found by the next process.
    fn get() -> Result<&'static Self, VerbsError> {
        static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
        let loaded = LOADED.get_or_init(|| Self::open().map_err(|error| error.to_string()));
        loaded.as_ref().map_err(|message| {
            let source = io::Error::new(io::ErrorKind::NotFound, message.clone());
            VerbsError {
                operation: Operation::Open,
                device: LIBRARY.to_owned(),
                reason: Reason::NoLibrary,
                source,
            }
        })
    }
}

/// The C library's `errno`, of the call before.
pub(super) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// What a call that returns an error number (and not -1) says.
pub(super) fn check(result: c_int) -> Result<(), i32> {
    match result {
        0 => Ok(()),
        -1 => Err(errno()),
        number => Err(number.abs()),
    }
}

/// Has a descriptor of the library's watched by tokio, which takes one of its own for that.
pub(super) fn watch(owner: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = owner.as_fd().try_clone_to_owned()?;
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    // Of the open file, so the library's own descriptor does not block either.
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    // SAFETY: an open descriptor, which its owner neither closes nor replaces as long as it is in there.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The names of all devices that libibverbs can drive.
pub(super) fn device_names() -> Result<Vec<String>, VerbsError> {
    with_devices(|devices| Ok(devices.iter().map(|(name, _)| name.clone()).collect()))
}

fn with_devices<T>(
    take: impl FnOnce(&[(String, *mut ffi::ibv_device)]) -> Result<T, VerbsError>,
) -> Result<T, VerbsError> {
    let library = Library::get()?;
    let mut count = 0;
    // SAFETY: the count is written on success.
    let list = unsafe { (library.call.ibv_get_device_list)(&raw mut count) };
    let none = |source| {
        let reason = of_empty_list(sysfs::emptiness(Path::new(sysfs::SYSFS), Path::new(sysfs::NODES)));
        VerbsError { operation: Operation::Open, device: "devices".to_owned(), reason, source }
    };
    let mut devices = Vec::new();
    if list.is_null() {
        // Where the kernel has no RDMA at all, there is not even an empty list.
        return Err(none(io::Error::last_os_error()));
    }
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has that many devices.
        let device = unsafe { *list.wrapping_add(at) };
        // SAFETY: a device of the list.
        let text = unsafe { (library.call.ibv_get_device_name)(device) };
        // SAFETY: a C string that lives as long as the device.
        devices.push((unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(), device));
    }
    let result = if devices.is_empty() {
        Err(none(io::Error::new(io::ErrorKind::NotFound, "libibverbs lists none")))
    } else {
        take(&devices)
    };
    // SAFETY: the list that was made above; an open context keeps its device.
    unsafe { (library.call.ibv_free_device_list)(list) };
    result
}

/// An open device.
pub(super) struct Context {
    pub(super) raw: NonNull<ffi::ibv_context>,
    pub(super) library: &'static Library,
    pub(super) name: String,
}

// SAFETY: libibverbs' objects may be used from any thread, several at a time (its documentation: "fully thread-safe").
unsafe impl Send for Context {}
// SAFETY: as for Send.
unsafe impl Sync for Context {}

/// What of a port does not change while it is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortFacts {
    pub(super) is_up: bool,
    pub(super) mtu: PathMtu,
    pub(super) lid: u16,
    pub(super) message_bytes_max: u32,
}

/// `ibv_async_event`, whose declaration has an enumeration for its kind: a newer library may know more of them.
#[repr(C, align(8))]
struct RawEvent {
    /// A union: of a pointer to the object that it is about, or of a port's number.
    element: [c_int; 2],
    kind: u32,
}

const _: () = {
    assert!(size_of::<RawEvent>() == size_of::<ffi::ibv_async_event>());
    assert!(align_of::<RawEvent>() == align_of::<ffi::ibv_async_event>());
};

impl Context {
    pub(super) fn open(wanted: &str) -> Result<Arc<Self>, VerbsError> {
        let library = Library::get()?;
        with_devices(|devices| {
            let fault = |errno| VerbsError::of(Operation::Open, wanted.to_owned(), errno);
            let Some((name, device)) = devices.iter().find(|(name, _)| name == wanted) else {
                let source = io::Error::new(io::ErrorKind::NotFound, "there is no device of that name");
                let device = wanted.to_owned();
                return Err(VerbsError {
                    operation: Operation::Open,
                    device,
                    reason: Reason::NoDevice,
                    source,
                });
            };
            // SAFETY: a device of a list that is not freed yet.
            let raw = unsafe { (library.call.ibv_open_device)(*device) };
            let raw = NonNull::new(raw).ok_or_else(|| fault(errno()))?;
            Ok(Arc::new(Self { raw, library, name: name.clone() }))
        })
    }

    pub(super) fn fault(&self, operation: Operation, errno: i32) -> VerbsError {
        VerbsError::of(operation, self.name.clone(), errno)
    }

    /// Reads that one queue pair may have under way, asked or answered.
    pub(super) fn reads_max(&self) -> Result<u8, VerbsError> {
        let mut facts = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: an open context; the facts are written on success.
        check(unsafe { (self.library.call.ibv_query_device)(self.raw.as_ptr(), facts.as_mut_ptr()) })
            .map_err(|errno| self.fault(Operation::Query, errno))?;
        // SAFETY: plain numbers, zeroed and then written.
        let facts = unsafe { facts.assume_init() };
        let both = facts.max_qp_rd_atom.min(facts.max_qp_init_rd_atom);
        Ok(u8::try_from(both).unwrap_or(u8::MAX).max(1))
    }

    pub(super) fn port(&self, number: u8) -> Result<PortFacts, VerbsError> {
        // Zeroed, and larger than what the library's function writes: newer fields are for another way to ask.
        let mut facts = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
        // SAFETY: an open context; the facts are written on success.
        check(unsafe { (self.library.call.ibv_query_port)(self.raw.as_ptr(), number, facts.as_mut_ptr()) })
            .map_err(|errno| self.fault(Operation::Query, errno))?;
        // SAFETY: plain numbers, zeroed and then written.
        let facts = unsafe { facts.assume_init() };
        Ok(PortFacts {
            is_up: facts.state == ffi::ibv_port_state::IBV_PORT_ACTIVE,
            // A port that is down may say none.
            mtu: PathMtu::of_number(facts.active_mtu).unwrap_or(PathMtu::Bytes256),
            lid: facts.lid,
            message_bytes_max: facts.max_msg_sz,
        })
    }

    pub(super) fn gid(&self, port: u8, index: u8) -> Result<Gid, VerbsError> {
        let mut gid = ffi::ibv_gid { raw: [0; 16] };
        // SAFETY: an open context; the address is written on success.
        check(unsafe {
            (self.library.call.ibv_query_gid)(self.raw.as_ptr(), port, index.into(), &raw mut gid)
        })
        .map_err(|errno| self.fault(Operation::Query, errno))?;
        // SAFETY: all bytes of the union were written above, and any bytes are an address.
        Ok(Gid(unsafe { gid.raw }))
    }

    /// What has happened since, if anything; for a descriptor that does not block. Acknowledged at once.
    pub(super) fn event(&self) -> io::Result<(u32, u8)> {
        let mut event = RawEvent { element: [0; 2], kind: 0 };
        let raw = (&raw mut event).cast::<ffi::ibv_async_event>();
        // SAFETY: an open context; the event, which is laid out as the library's, is written on success.
        if unsafe { (self.library.call.ibv_get_async_event)(self.raw.as_ptr(), raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the event that was just taken, acknowledged once.
        unsafe { (self.library.call.ibv_ack_async_event)(raw) };
        let (kind, port) = (event.kind, event.element[0]);
        // Only events of ports have one there.
        Ok((kind, u8::try_from(port).unwrap_or(0)))
    }
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: a live context.
        let number = unsafe { self.raw.as_ref() }.async_fd;
        // SAFETY: the context's own descriptor, open as long as it is.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the last use: all that was made of it has owned it.
        let result = unsafe { (self.library.call.ibv_close_device)(self.raw.as_ptr()) };
        debug_assert!(matches!(result, 0 | EIO), "a device closes when nothing of it is open");
    }
}

/// A protection domain.
pub(super) struct Domain {
    pub(super) raw: NonNull<ffi::ibv_pd>,
    pub(super) context: Arc<Context>,
}

// SAFETY: as for Context.
unsafe impl Send for Domain {}
// SAFETY: as for Context.
unsafe impl Sync for Domain {}

impl Domain {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, VerbsError> {
        // SAFETY: an open context.
        let raw = unsafe { (context.library.call.ibv_alloc_pd)(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| context.fault(Operation::Create, errno()))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// Whether devices of this driver can be let at memory of other devices. Asked by trying with no memory at all: whoever
    /// looks at the descriptor before anything else can do it.
    pub(super) fn takes_dmabuf(&self) -> bool {
        let Some(register) = self.context.library.ibv_reg_dmabuf_mr else { return false };
        // SAFETY: a live domain; no descriptor has that number, so nothing can come to be registered.
        let raw = unsafe { register(self.raw.as_ptr(), 0, 0, 0, -1, 0) };
        raw.is_null() && !matches!(errno(), EOPNOTSUPP | EPROTONOSUPPORT)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: the last use: registrations and queue pairs own their domain.
        let result = unsafe { (self.context.library.call.ibv_dealloc_pd)(self.raw.as_ptr()) };
        debug_assert!(matches!(result, 0 | EIO), "a domain goes when nothing of it is left");
    }
}

/// What a registration keeps.
pub(super) enum Backing {
    Host(Arc<dyn Stable>),
    // Kept open; the kernel has its own reference besides.
    DmaBuf { _file: OwnedFd, len: usize },
}

/// Memory that a device knows.
pub(super) struct Registration {
    raw: NonNull<ffi::ibv_mr>,
    // None only inside `drop`.
    backing: Option<Backing>,
    /// Devices may write to it.
    is_written: bool,
    pub(super) domain: Arc<Domain>,
}

// SAFETY: as for Context; the memory is Send and Sync itself.
unsafe impl Send for Registration {}
// SAFETY: as for Send.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers all of it. What the flags let devices write to, nobody has references to: that is for the caller to see to, by
    /// the promises that it asks of the memory ([`Exclusive`](crate::memory::span::Exclusive) and so on).
    ///
    ///  With relaxed ordering where the device has it: what was written is only looked at after its
    /// completion, which no device lets overtake the data.
    pub(super) fn host(
        domain: &Arc<Domain>,
        memory: Arc<dyn Stable>,
        flags: Flag,
    ) -> Result<Self, VerbsError> {
        let (context, span) = (&domain.context, memory.span());
        let written = (flags & (Flag::IBV_ACCESS_LOCAL_WRITE | Flag::IBV_ACCESS_REMOTE_WRITE)).0 != 0;
        let address = ptr::with_exposed_provenance_mut::<c_void>(span.address);
        let raw = if let Some(register) = context.library.ibv_reg_mr_iova2 {
            let flags = flags.0 | Flag::IBV_ACCESS_RELAXED_ORDERING.0;
            // SAFETY: a live domain, and memory that is mapped as long as `memory` exists (Stable), which the registration
            // keeps. What the flags let a device write to, nobody has references to: see `memory`.
            unsafe { register(domain.raw.as_ptr(), address, span.len, span.address as u64, flags) }
        } else {
            let flags = c_int::try_from(flags.0).unwrap_or(0);
            // SAFETY: as above.
            unsafe { (context.library.call.ibv_reg_mr)(domain.raw.as_ptr(), address, span.len, flags) }
        };
        Self::finish(domain, raw, Backing::Host(memory), written)
    }

    /// Registers another device's memory; addresses in it count from 0.
    pub(super) fn dmabuf(
        domain: &Arc<Domain>,
        file: OwnedFd,
        offset: u64,
        len: usize,
        flags: Flag,
    ) -> Result<Self, VerbsError> {
        let fault = |errno| domain.context.fault(Operation::Register, errno);
        let register = domain.context.library.ibv_reg_dmabuf_mr.ok_or_else(|| fault(EOPNOTSUPP))?;
        let flags = c_int::try_from(flags.0 | Flag::IBV_ACCESS_RELAXED_ORDERING.0).unwrap_or(0);
        // SAFETY: a live domain and an open file. The kernel holds the buffer, and it is no memory of this process.
        let raw = unsafe { register(domain.raw.as_ptr(), offset, len, 0, file.as_raw_fd(), flags) };
        Self::finish(domain, raw, Backing::DmaBuf { _file: file, len }, true)
    }

    fn finish(
        domain: &Arc<Domain>,
        raw: *mut ffi::ibv_mr,
        backing: Backing,
        is_written: bool,
    ) -> Result<Self, VerbsError> {
        let raw = NonNull::new(raw).ok_or_else(|| domain.context.fault(Operation::Register, errno()))?;
        Ok(Self { raw, backing: Some(backing), is_written, domain: Arc::clone(domain) })
    }

    /// Its keys: the one that this device asks for, and the one that others' requests must have.
    pub(super) fn keys(&self) -> (u32, u32) {
        // SAFETY: a live registration, whose fields are never changed.
        let raw = unsafe { self.raw.as_ref() };
        (raw.lkey, raw.rkey)
    }

    pub(super) fn span(&self) -> Span {
        match &self.backing {
            Some(Backing::Host(memory)) => memory.span(),
            Some(Backing::DmaBuf { len, .. }) => Span { address: 0, len: *len },
            None => Span { address: 0, len: 0 },
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: the last use: work requests own the registrations that they name.
        let result = unsafe { (self.domain.context.library.call.ibv_dereg_mr)(self.raw.as_ptr()) };
        // The kernel says EIO of a device that is gone. What none may write to is then as good as let go of: its pages are the kernel's
        // as long as anything reads them.
        let is_gone = result == EIO && !self.is_written;
        if result != 0
            && !is_gone
            && let Some(backing) = self.backing.take()
        {
            tracing::error!(device = self.domain.context.name, "memory stays registered, and is never freed");
            // A device may still write to it.
            Box::leak(Box::new(backing));
        }
    }
}
