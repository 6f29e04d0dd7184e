//! librados, as far as a store needs it: every call that may wait is asynchronous, and owns the memory it touches.
//!
//! The declarations are those of the `ceph` crate. Its safe layer is not used: it reads into vectors of its own, waits in the
//! calling thread, and cannot set a timeout before it connects.
//!
//! What keeps this sound: librados calls a completion's callback exactly once, after its last access to the operation's
//! memory, also when the operation was cancelled. So everything that an operation touches (buffers, results, the handle of
//! its pool) is owned by its callback, and dropped by nobody else. A future that is dropped cancels its operations, which
//! shortens the wait and never ends it early.

#![expect(unsafe_code, reason = "calls librados")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::Arc;

use ceph::rados;
use tokio::sync::oneshot;

use self::operation::{Operation, Started};
use self::transfer::{ExtentResult, Results, Transfer, failure};
use crate::memory::Block;
use crate::store::address::Replicas;

mod operation;
mod transfer;

/// Bytes of a configuration value at the most.
const VALUE_BYTES: usize = 64 << 10;

/// A UUID as text, with its end.
const FSID_BYTES: usize = 37;

/// LIBRADOS_OPERATION_FULL_TRY of librados.h: a full pool refuses a write at once. Without it the write waits for room.
const FULL_TRY: c_int = 64;

/// A negative result of librados: an error number of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl Errno {
    pub(super) const PERMISSION: Self = Self(1);
    pub(super) const NOT_FOUND: Self = Self(2);
    pub(super) const IO: Self = Self(5);
    pub(super) const ACCESS: Self = Self(13);
    pub(super) const INVALID: Self = Self(22);
    pub(super) const NO_SPACE: Self = Self(28);
    pub(super) const TIMED_OUT: Self = Self(110);
    pub(super) const CANCELLED: Self = Self(125);
    pub(super) const QUOTA: Self = Self(122);
}

impl From<Errno> for io::Error {
    fn from(Errno(number): Errno) -> Self {
        Self::from_raw_os_error(number)
    }
}

fn check(result: c_int) -> Result<(), Errno> {
    if result < 0 { Err(Errno(-result)) } else { Ok(()) }
}

/// Gives memory that librados has freed back to the system. glibc keeps what was freed in each thread's arena, and librados
/// receives megabytes in several threads: a hundred of them would stay with a process that reads no more.
pub(super) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no memory that is in use (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A cluster's handle, before and after it is connected.
#[derive(Debug)]
pub(super) struct Cluster(rados::rados_t);

// SAFETY: librados' handles may be used from any thread, several at a time (librados.h: "thread-safe").
unsafe impl Send for Cluster {}
// SAFETY: as for Send.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// A handle that is not connected yet; `user` with its type, as `client.reader`.
    pub(super) fn new(user: &CStr) -> Result<Self, Errno> {
        let mut handle = ptr::null_mut();
        // SAFETY: two C strings, which are copied; the handle is written on success.
        check(unsafe { rados::rados_create2(&raw mut handle, c"ceph".as_ptr(), user.as_ptr(), 0) })?;
        Ok(Self(handle))
    }

    /// Reads a file of configuration; none: the ones that Ceph's own tools read.
    pub(super) fn read_conf(&self, path: Option<&CStr>) -> Result<(), Errno> {
        let path = path.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: a live handle, and a C string or null.
        check(unsafe { rados::rados_conf_read_file(self.0, path) })
    }

    /// Takes over what the environment says (`CEPH_ARGS`).
    pub(super) fn read_env(&self) -> Result<(), Errno> {
        // SAFETY: a live handle; null means CEPH_ARGS.
        check(unsafe { rados::rados_conf_parse_env(self.0, ptr::null()) })
    }

    pub(super) fn set(&self, option: &CStr, value: &CStr) -> Result<(), Errno> {
        // SAFETY: a live handle and two C strings, which librados copies.
        check(unsafe { rados::rados_conf_set(self.0, option.as_ptr(), value.as_ptr()) })
    }

    pub(super) fn get(&self, option: &CStr) -> Result<String, Errno> {
        let mut value = vec![0_u8; VALUE_BYTES];
        // SAFETY: a live handle, a C string, and a buffer of that length, which ends as a C string.
        check(unsafe {
            rados::rados_conf_get(self.0, option.as_ptr(), value.as_mut_ptr().cast(), VALUE_BYTES)
        })?;
        let value = CStr::from_bytes_until_nul(&value).map_err(|_| Errno::INVALID)?;
        Ok(value.to_string_lossy().into_owned())
    }

    /// Waits for a monitor (`client_mount_timeout`).
    pub(super) fn connect(&self) -> Result<(), Errno> {
        // SAFETY: a live handle.
        check(unsafe { rados::rados_connect(self.0) })
    }

    /// The name that a connected cluster has of itself.
    pub(super) fn fsid(&self) -> Result<String, Errno> {
        let mut value = [0_u8; FSID_BYTES];
        // SAFETY: a live handle, and a buffer of that length, which ends as a C string on success.
        check(unsafe { rados::rados_cluster_fsid(self.0, value.as_mut_ptr().cast(), value.len()) })?;
        let value = CStr::from_bytes_until_nul(&value).map_err(|_| Errno::INVALID)?;
        Ok(value.to_string_lossy().into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It joins librados' threads, so one of them cannot do it. That happens when a store was given up while it was read;
        // then the handle stays until the process ends. Another thread could end it, but a process that ends meanwhile
        // would be aborted by librados.
        if operation::in_callback() {
            tracing::debug!("a cluster's handle is left to the end of the process");
            return;
        }
        // SAFETY: the last use of the handle: pools own their cluster, and operations own their pool.
        unsafe { rados::rados_shutdown(self.0) };
    }
}

/// A pool and a namespace in it.
#[derive(Debug)]
pub(super) struct Pool {
    io: rados::rados_ioctx_t,
    flags: c_int,
    // After `io`: a pool's handle ends before its cluster's.
    _cluster: Cluster,
}

// SAFETY: an I/O context may be used from several threads as long as none of them changes it (namespace, locator); that is
// done once, before it is shared.
unsafe impl Send for Pool {}
// SAFETY: as for Send.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: operations own their pool, so none is under way; librados counts references besides.
        unsafe { rados::rados_ioctx_destroy(self.io) };
    }
}

/// What is read of one object: offset in it, where to in the block, and how much.
#[derive(Debug)]
pub(super) struct ObjectRead {
    pub(super) object: CString,
    pub(super) extents: Vec<Extent>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) at: usize,
    pub(super) len: usize,
}

/// Why a read of several objects failed: the first that did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadFailure {
    /// That object, by its place in the list.
    Object(usize, Errno),
    /// That object ends at this byte, inside an extent.
    Short(usize, u64),
}

/// What an object is beside its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) bytes: u64,
    pub(super) attributes: Vec<(String, Vec<u8>)>,
}

impl Pool {
    pub(super) fn open(
        cluster: Cluster,
        pool: &CStr,
        namespace: &CStr,
        replicas: Replicas,
    ) -> Result<Self, Errno> {
        let mut io = ptr::null_mut();
        // SAFETY: a connected handle and a C string; the context is written on success.
        check(unsafe { rados::rados_ioctx_create(cluster.0, pool.as_ptr(), &raw mut io) })?;
        // SAFETY: a live context that nobody else has yet, and a C string, which librados copies.
        unsafe { rados::rados_ioctx_set_namespace(io, namespace.as_ptr()) };
        let flags = match replicas {
            Replicas::Primary => 0,
            // LIBRADOS_OPERATION_BALANCE_READS and LIBRADOS_OPERATION_LOCALIZE_READS of librados.h.
            Replicas::Balance => 1,
            Replicas::Localize => 2,
        };
        Ok(Self { io, flags, _cluster: cluster })
    }

    /// Fills the extents of `block` from several objects at once. The block comes back when nothing writes to it any more.
    pub(super) async fn read(
        self: &Arc<Self>,
        reads: Vec<ObjectRead>,
        block: Block,
    ) -> (Block, Result<(), ReadFailure>) {
        let (transfer, done) = Transfer::new(block, reads.len());
        let operations = reads.into_iter().enumerate().map(|(index, read)| {
            let (transfer, flags) = (Arc::clone(&transfer), self.flags);
            self.read_one(transfer, index, &read, flags)
        });
        let operations: Vec<_> = operations.collect();
        // Every operation has been handed over or has failed: from here on only callbacks hold the transfer.
        transfer.part_done(None);
        drop(transfer);
        // Told by the last callback, which nothing prevents.
        let answer = done.await;
        for operation in operations {
            operation.finish();
        }
        answer.unwrap_or_else(|_| (Block::with_len(0), Err(ReadFailure::Object(0, Errno::CANCELLED))))
    }

    fn read_one(
        self: &Arc<Self>,
        transfer: Arc<Transfer>,
        index: usize,
        read: &ObjectRead,
        flags: c_int,
    ) -> Operation {
        let mut results: Box<[ExtentResult]> =
            read.extents.iter().map(|extent| ExtentResult { extent: *extent, read: 0, value: 0 }).collect();
        // SAFETY: creates an empty operation.
        let op = unsafe { rados::rados_create_read_op() };
        for result in &mut results {
            let extent = result.extent;
            let buffer = transfer.place(extent.at, extent.len);
            // SAFETY: the buffer is `len` bytes of the transfer's block, which no other operation touches; it and the two
            // results are owned by the callback below, so they live until librados is done with them.
            unsafe {
                rados::rados_read_op_read(
                    op,
                    extent.offset,
                    extent.len,
                    buffer,
                    &raw mut result.read,
                    &raw mut result.value,
                );
            }
        }
        let results = Results(results);
        let object = read.object.as_ptr();
        let operation = self.submit(
            move |value| {
                let results = { results };
                transfer.part_done(failure(index, value, &results.0));
            },
            // SAFETY: a live context, operation and completion; the name is copied.
            |completion| unsafe { rados::rados_aio_read_op_operate(op, self.io, completion, object, flags) },
        );
        // SAFETY: librados holds what it needs of an operation that was started (librados.h, rados_release_read_op).
        unsafe { rados::rados_release_read_op(op) };
        operation
    }

    /// The size and the attributes of an object.
    pub(super) async fn head(self: &Arc<Self>, object: &CStr) -> Result<Head, Errno> {
        self.start_head(object).wait().await.unwrap_or(Err(Errno::CANCELLED))
    }

    fn start_head(self: &Arc<Self>, object: &CStr) -> Started<Result<Head, Errno>> {
        let (sender, answer) = oneshot::channel();
        let mut found =
            Box::new(Found { bytes: 0, changed: 0, stat: 0, attributes: ptr::null_mut(), listed: 0 });
        // SAFETY: creates an empty operation.
        let op = unsafe { rados::rados_create_read_op() };
        // SAFETY: the results are owned by the callback below (a box does not move what is in it).
        unsafe {
            rados::rados_read_op_stat(op, &raw mut found.bytes, &raw mut found.changed, &raw mut found.stat);
        }
        // SAFETY: as above.
        unsafe { rados::rados_read_op_getxattrs(op, &raw mut found.attributes, &raw mut found.listed) };
        let operation = self.submit(
            move |value| {
                // The future may be gone; then nobody wants to know.
                drop(sender.send(found.take(value)));
            },
            // SAFETY: a live context, operation and completion; the name is copied.
            |completion| unsafe {
                rados::rados_aio_read_op_operate(op, self.io, completion, object.as_ptr(), self.flags)
            },
        );
        // SAFETY: as in `read_one`.
        unsafe { rados::rados_release_read_op(op) };
        Started { operation, answer }
    }

    /// Replaces an object by these bytes, all or nothing.
    pub(super) async fn write(self: &Arc<Self>, object: &CStr, block: Block) -> Result<(), Errno> {
        self.start_write(object, block).wait().await.unwrap_or(Err(Errno::CANCELLED))
    }

    fn start_write(self: &Arc<Self>, object: &CStr, block: Block) -> Started<Result<(), Errno>> {
        let (sender, answer) = oneshot::channel();
        // SAFETY: creates an empty operation.
        let op = unsafe { rados::rados_create_write_op() };
        // SAFETY: that many bytes, which are owned by the callback below, and which nobody changes.
        unsafe { rados::rados_write_op_write_full(op, block.as_ptr().cast(), block.len()) };
        let operation = self.submit(
            move |value| {
                drop(block);
                sender.send(check(value)).ok();
            },
            // SAFETY: a live context, operation and completion; the name is copied; null means now.
            |completion| unsafe {
                let (object, now) = (object.as_ptr(), ptr::null_mut());
                rados::rados_aio_write_op_operate(op, self.io, completion, object, now, FULL_TRY)
            },
        );
        // SAFETY: as in `read_one`.
        unsafe { rados::rados_release_write_op(op) };
        Started { operation, answer }
    }

    /// Sets attributes of an object, all or none; one without a value is removed.
    pub(super) async fn set_attributes(
        self: &Arc<Self>,
        object: &CStr,
        attributes: &[(&CStr, Option<&[u8]>)],
    ) -> Result<(), Errno> {
        self.start_set_attributes(object, attributes).wait().await.unwrap_or(Err(Errno::CANCELLED))
    }

    fn start_set_attributes(
        self: &Arc<Self>,
        object: &CStr,
        attributes: &[(&CStr, Option<&[u8]>)],
    ) -> Started<Result<(), Errno>> {
        // SAFETY: creates an empty operation.
        let op = unsafe { rados::rados_create_write_op() };
        for (name, value) in attributes {
            match value {
                // SAFETY: a C string and that many bytes, which are copied (librados.h, rados_write_op_setxattr).
                Some(value) => unsafe {
                    rados::rados_write_op_setxattr(op, name.as_ptr(), value.as_ptr().cast(), value.len());
                },
                // SAFETY: a C string, which is copied.
                None => unsafe { rados::rados_write_op_rmxattr(op, name.as_ptr()) },
            }
        }
        self.change(op, object)
    }

    pub(super) async fn remove(self: &Arc<Self>, object: &CStr) -> Result<(), Errno> {
        self.start_remove(object).wait().await.unwrap_or(Err(Errno::CANCELLED))
    }

    fn start_remove(self: &Arc<Self>, object: &CStr) -> Started<Result<(), Errno>> {
        // SAFETY: creates an empty operation.
        let op = unsafe { rados::rados_create_write_op() };
        // SAFETY: a live operation.
        unsafe { rados::rados_write_op_remove(op) };
        self.change(op, object)
    }

    /// Goes through the names of all objects of the namespace, in no order. Waits in the calling thread.
    pub(super) fn list(&self, mut take: impl FnMut(&str) -> ControlFlow<()>) -> Result<(), Errno> {
        let mut list = List(ptr::null_mut());
        // SAFETY: a live context; the list is written on success.
        check(unsafe { rados::rados_nobjects_list_open(self.io, &raw mut list.0) })?;
        loop {
            let mut entry: *const c_char = ptr::null();
            // SAFETY: an open list; the entry is a C string until the next call. The crate declares it with one pointer too
            // many (librados.h: `const char **entry`); key and namespace are not asked for.
            let result = unsafe {
                rados::rados_nobjects_list_next(
                    list.0,
                    (&raw mut entry).cast(),
                    ptr::null_mut(),
                    ptr::null_mut(),
                )
            };
            match check(result) {
                Err(Errno::NOT_FOUND) => return Ok(()),
                other => other?,
            }
            // SAFETY: the entry that was just written.
            let name = unsafe { CStr::from_ptr(entry) };
            // Names that are no text are no shards.
            if let Ok(name) = name.to_str()
                && take(name).is_break()
            {
                return Ok(());
            }
        }
    }

    /// Starts a write operation that owns no memory of ours, and releases it.
    fn change(self: &Arc<Self>, op: rados::rados_write_op_t, object: &CStr) -> Started<Result<(), Errno>> {
        let (sender, answer) = oneshot::channel();
        let operation = self.submit(
            move |value| _ = sender.send(check(value)).ok(),
            // SAFETY: a live context, operation and completion; the name is copied; null means now.
            |completion| unsafe {
                let (object, now) = (object.as_ptr(), ptr::null_mut());
                rados::rados_aio_write_op_operate(op, self.io, completion, object, now, FULL_TRY)
            },
        );
        // SAFETY: as in `read_one`.
        unsafe { rados::rados_release_write_op(op) };
        Started { operation, answer }
    }
}

/// Where librados puts an object's size and attributes.
struct Found {
    bytes: u64,
    changed: libc_time,
    stat: c_int,
    attributes: rados::rados_xattrs_iter_t,
    listed: c_int,
}

/// `time_t`, as the crate declares it.
#[expect(non_camel_case_types, reason = "C's name")]
type libc_time = i64;

// SAFETY: the iterator belongs to whoever has this, and has no thread of its own.
unsafe impl Send for Found {}

impl Found {
    fn take(&mut self, value: c_int) -> Result<Head, Errno> {
        check(value).and_then(|()| check(self.stat)).and_then(|()| check(self.listed))?;
        let mut attributes = Vec::new();
        loop {
            let (mut name, mut bytes, mut len) = (ptr::null(), ptr::null(), 0);
            // SAFETY: an iterator that librados made; it writes a C string and that many bytes, which live as long as it.
            check(unsafe {
                rados::rados_getxattrs_next(self.attributes, &raw mut name, &raw mut bytes, &raw mut len)
            })?;
            if name.is_null() {
                break;
            }
            // SAFETY: as said above.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            let value = if bytes.is_null() || len == 0 {
                Vec::new()
            } else {
                // SAFETY: as said above.
                unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) }.to_vec()
            };
            attributes.push((name, value));
        }
        Ok(Head { bytes: self.bytes, attributes })
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        if !self.attributes.is_null() {
            // SAFETY: an iterator that librados made, ended once.
            unsafe { rados::rados_getxattrs_end(self.attributes) };
        }
    }
}

/// An open listing.
struct List(rados::rados_list_ctx_t);

impl Drop for List {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: a listing that librados opened, closed once.
            unsafe { rados::rados_nobjects_list_close(self.0) };
        }
    }
}
