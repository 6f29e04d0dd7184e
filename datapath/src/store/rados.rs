//! Objects of a Ceph pool as a store: shards as they are, or striped over objects of 4 MiB.
//!
//! Here it is read; `connect` opens it, `write` fills it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::aio::{Errno, Extent, Head, ObjectRead, Pool, ReadFailure};
use super::address::{RadosAddress, with_slash};
use super::directory::MAX_OBJECTS;
use super::striping::{self, Striping};
use super::{Object, StoreError, is_listed};
use crate::dataset::{count, is_shard_name};
use crate::memory::Block;

mod aio;
mod connect;
mod write;

/// Objects that are written or looked at at the same time: 64 MiB under way, what `rados bench` takes for its measure.
pub(super) const DEPTH: usize = 16;
/// Objects that are read at the same time: twice the chunks that a cache reads at once, as a chunk may lie in two.
const READ_DEPTH: usize = 128;
/// A pause in reading after which freed memory goes back to the system: long against the gaps between two batches.
const TRIM_AFTER: Duration = Duration::from_secs(2);
/// Shards whose layout is remembered.
const LAYOUTS_MAX: usize = 1 << 16;

/// A pool, a namespace in it, and what the names of a dataset's objects begin with. Clones share a connection.
#[derive(Clone)]
pub struct RadosStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// Without options, as it is shown.
    url: String,
    /// The same however it is addressed.
    place: String,
    /// With its slash, or empty.
    prefix: String,
    /// As which user, for messages.
    user: String,
    pool: Arc<Pool>,
    depth: Semaphore,
    /// Counts reads that have ended, and whether somebody waits for a pause in them.
    ended: AtomicU64,
    is_watched: AtomicBool,
    layouts: Mutex<BTreeMap<String, Layout>>,
}

/// Where a shard's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Plain,
    Striped(Striping),
}

impl RadosStore {
    /// Connects to the cluster and looks the pool up; waits for `client_mount_timeout` at the most.
    ///
    /// # Errors
    /// When there is no such pool, no monitor answers, or the cluster does not know the key.
    pub async fn open(address: &RadosAddress) -> Result<Self, StoreError> {
        let address = address.clone();
        let url = connect::shown(&address);
        let opening = {
            let url = url.clone();
            tokio::task::spawn_blocking(move || {
                connect::connect(&address, &url).map(|found| (address, found))
            })
        };
        let (address, connection) =
            opening.await.map_err(|_| StoreError::Stopped { name: url.clone() })??;
        let prefix = with_slash(&address.prefix);
        let (pool, namespace) = (&address.pool, &address.namespace);
        Ok(Self {
            inner: Arc::new(Inner {
                place: format!("rados://{}/{pool}:{namespace}/{prefix}", connection.fsid),
                url,
                prefix,
                user: connection.user,
                pool: Arc::new(connection.pool),
                depth: Semaphore::new(READ_DEPTH),
                layouts: Mutex::default(),
                ended: AtomicU64::new(0),
                is_watched: AtomicBool::new(false),
            }),
        })
    }

    /// What is the same for two addresses of one place.
    pub(super) fn place(&self) -> &str {
        &self.inner.place
    }

    /// All shards below the prefix, sorted by name. Goes through the names of the whole namespace, which Ceph keeps in no
    /// order: a dataset is listed soonest in a namespace of its own.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let listing = tokio::task::spawn_blocking(move || inner.names());
        let names = listing.await.map_err(|_| StoreError::Stopped { name: self.inner.url.clone() })??;
        let mut objects = Vec::with_capacity(names.len());
        let mut running = JoinSet::new();
        let mut waiting = names.into_iter();
        loop {
            while running.len() < DEPTH {
                let Some((name, is_striped)) = waiting.next() else { break };
                let store = self.clone();
                running.spawn(async move {
                    store.inner.look(&name, Some(is_striped)).await.map(|found| (name, found))
                });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(Ok((name, (bytes, _))))) => objects.push(Object { name, bytes }),
                // Removed since it was listed, or a striped shard that is not complete.
                Some(Ok(Err(StoreError::NotFound { .. }))) => {}
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(_)) => return Err(StoreError::Stopped { name: self.inner.url.clone() }),
            }
        }
        objects.sort();
        Ok(objects)
    }

    /// Fills all of `block` from that offset, from as many objects at once as it spans.
    pub async fn read(&self, name: &str, offset: u64, block: Block) -> (Block, Result<(), StoreError>) {
        let layout = match self.inner.layout(name).await {
            Ok(layout) => layout,
            Err(error) => return (block, Err(error)),
        };
        let reads = match self.inner.reads(name, layout, offset, block.len()) {
            Ok(reads) => reads,
            Err(error) => return (block, Err(error)),
        };
        if reads.is_empty() {
            return (block, Ok(()));
        }
        let permits = u32::try_from(reads.len().min(READ_DEPTH)).unwrap_or(1);
        // Never closed.
        let _permit = self.inner.depth.acquire_many(permits).await;
        let objects: Vec<_> = reads.iter().map(|read| read.object.clone()).collect();
        let (block, result) = self.inner.pool.read(reads, block).await;
        let wanted = offset.saturating_add(count(block.len()));
        let result = result.map_err(|failure| {
            // It may be another shard by now, laid out otherwise.
            self.inner.layouts().remove(name);
            self.inner.read_error(name, &objects, &failure, wanted)
        });
        self.note_end();
        (block, result)
    }

    /// After the last read of a run, gives back what librados needed for it.
    fn note_end(&self) {
        let inner = &self.inner;
        inner.ended.fetch_add(1, Ordering::Relaxed);
        if inner.is_watched.swap(true, Ordering::Relaxed) {
            return;
        }
        // Holds no store open that nobody uses.
        let inner = Arc::downgrade(inner);
        tokio::spawn(async move {
            let mut seen = 0;
            loop {
                tokio::time::sleep(TRIM_AFTER).await;
                let Some(inner) = inner.upgrade() else { return };
                let ended = inner.ended.load(Ordering::Relaxed);
                if ended == seen && inner.depth.available_permits() == READ_DEPTH {
                    inner.is_watched.store(false, Ordering::Relaxed);
                    break;
                }
                seen = ended;
            }
            // It walks all arenas. Whether it could is of no consequence.
            tokio::task::spawn_blocking(aio::trim_memory).await.ok();
        });
    }
}

impl Inner {
    fn layouts(&self) -> MutexGuard<'_, BTreeMap<String, Layout>> {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, name: &str) -> Result<CString, StoreError> {
        let bad = || StoreError::BadName { name: name.into() };
        if !is_shard_name(name) {
            return Err(bad());
        }
        CString::new(format!("{}{name}", self.prefix)).map_err(|_| bad())
    }

    /// The names of shards below the prefix, and whether they are striped.
    fn names(&self) -> Result<BTreeMap<String, bool>, StoreError> {
        let mut names = BTreeMap::new();
        let listed = self.pool.list(|object| {
            let Some(name) = object.strip_prefix(&self.prefix) else { return ControlFlow::Continue(()) };
            let (name, is_striped) = match striping::parse_object_name(name) {
                Some((_, 1..)) => return ControlFlow::Continue(()),
                Some((shard, 0)) => (shard, true),
                None => (name, false),
            };
            if is_listed(name) {
                // Where both are, the plain one is read.
                let entry = names.entry(name.to_owned()).or_insert(is_striped);
                *entry &= is_striped;
            }
            if names.len() > MAX_OBJECTS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        listed.map_err(|error| StoreError::List { name: self.url.clone(), source: self.cause(error) })?;
        if names.len() > MAX_OBJECTS {
            return Err(StoreError::TooMuch { name: self.url.clone(), what: "there are too many objects" });
        }
        Ok(names)
    }

    async fn layout(&self, name: &str) -> Result<Layout, StoreError> {
        let known = self.layouts().get(name).copied();
        match known {
            Some(layout) => Ok(layout),
            None => self.look(name, None).await.map(|(_, layout)| layout),
        }
    }

    /// The size of a shard and how it is laid out, from its objects.
    async fn look(&self, name: &str, is_striped: Option<bool>) -> Result<(u64, Layout), StoreError> {
        let failed = |error| match error {
            Errno::NOT_FOUND => StoreError::NotFound { name: name.into() },
            error => StoreError::Read { name: name.into(), source: self.cause(error) },
        };
        let found = match is_striped {
            Some(true) => None,
            _ => match self.pool.head(&self.object(name)?).await {
                Ok(head) => Some((head.bytes, Layout::Plain)),
                Err(Errno::NOT_FOUND) if is_striped.is_none() => None,
                Err(error) => return Err(failed(error)),
            },
        };
        let found = match found {
            Some(found) => found,
            None => {
                let first = self.object(&striping::object_name(name, 0))?;
                let head = self.pool.head(&first).await.map_err(failed)?;
                let (bytes, striping) = striped(&head).ok_or_else(|| failed(Errno::NOT_FOUND))?;
                (bytes, Layout::Striped(striping))
            }
        };
        let mut layouts = self.layouts();
        if layouts.len() >= LAYOUTS_MAX {
            layouts.clear();
        }
        layouts.insert(name.to_owned(), found.1);
        Ok(found)
    }

    /// What is read of which objects.
    fn reads(
        &self,
        name: &str,
        layout: Layout,
        offset: u64,
        len: usize,
    ) -> Result<Vec<ObjectRead>, StoreError> {
        let striping = match layout {
            Layout::Plain if len == 0 => return Ok(Vec::new()),
            Layout::Plain => {
                let extents = vec![Extent { offset, at: 0, len }];
                return Ok(vec![ObjectRead { object: self.object(name)?, extents }]);
            }
            Layout::Striped(striping) => striping,
        };
        let pieces = striping.pieces(offset, len).ok_or_else(|| {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is striped too finely for reads of this size",
            );
            StoreError::Read { name: name.into(), source }
        })?;
        let mut objects = BTreeMap::<u64, Vec<Extent>>::new();
        for piece in pieces {
            let extent = Extent { offset: piece.offset, at: piece.at, len: piece.len };
            objects.entry(piece.object).or_default().push(extent);
        }
        let read = |(number, extents)| {
            Ok(ObjectRead { object: self.object(&striping::object_name(name, number))?, extents })
        };
        objects.into_iter().map(read).collect()
    }

    fn read_error(&self, name: &str, objects: &[CString], failure: &ReadFailure, wanted: u64) -> StoreError {
        let object =
            |index: usize| objects.get(index).map_or_else(|| name.into(), |name| name.to_string_lossy());
        match *failure {
            ReadFailure::Object(index, Errno::NOT_FOUND) => {
                StoreError::NotFound { name: object(index).into_owned() }
            }
            ReadFailure::Object(index, error) => {
                StoreError::Read { name: object(index).into_owned(), source: self.cause(error) }
            }
            // Of a plain shard the end of the object is the end of the shard; of a striped one it is said of the object.
            ReadFailure::Short(index, end) => {
                StoreError::ShortRead { name: object(index).into_owned(), end, wanted: wanted.max(end + 1) }
            }
        }
    }

    fn write_error(&self, name: &str, error: Errno) -> StoreError {
        StoreError::Write { name: format!("{}{name}", self.prefix), source: self.cause(error) }
    }

    /// What an operation's error number means here.
    fn cause(&self, error: Errno) -> io::Error {
        let cause = io::Error::from(error);
        let text = match error {
            Errno::PERMISSION | Errno::ACCESS => {
                format!("the cluster does not allow it to {} (see `ceph auth get {}`)", self.user, self.user)
            }
            Errno::TIMED_OUT => {
                "no answer in time (rados_osd_op_timeout): is an OSD down, is the pool full, or is the only copy damaged? \
                 see `ceph health detail`"
                    .to_owned()
            }
            Errno::NO_SPACE | Errno::QUOTA => "the pool or the cluster is full (see `ceph df`)".to_owned(),
            _ => return cause,
        };
        io::Error::new(cause.kind(), text)
    }
}

/// The size and the layout that a striped shard's first object tells.
fn striped(head: &Head) -> Option<(u64, Striping)> {
    let number = |name: &str| {
        let (_, value) = head.attributes.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()?.trim_end_matches('\0').parse::<u64>().ok()
    };
    let bytes = number(striping::SIZE)?;
    let (unit, stripes, size) =
        (number(striping::STRIPE_UNIT)?, number(striping::STRIPE_COUNT)?, number(striping::OBJECT_SIZE)?);
    Some((bytes, Striping::checked(unit, stripes, size)?))
}

fn c_string(text: impl Into<Vec<u8>>) -> CString {
    // A NUL ends a C string early; what is left of such a name is not found, and said so.
    CString::new(text).unwrap_or_default()
}

impl fmt::Display for RadosStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.url)
    }
}

impl fmt::Debug for RadosStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadosStore").field("url", &self.inner.url).finish_non_exhaustive()
    }
}
