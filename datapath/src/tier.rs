//! The node-local tier: chunks that this worker has read before, in files on a disk of its own host.
//!
//! ```text
//! <folder>/worker-<n>/lock                 held while a plane uses the folder
//! <folder>/worker-<n>/<dataset>/<chunk>    a chunk's bytes as they are in the store
//! ```
//! It is a copy and nothing else: a chunk is compared with the manifest's CRC before it is kept and each time it is read, and
//! whatever is missing, bad or late comes from the store. So the folder may be deleted at any time, a crash in the middle of
//! a write leaves nothing that is believed, and no read ever waits for a write: one that finds two others under way is left
//! out, to be made in a later epoch.

mod shelf;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock, statvfs};
use tokio::sync::Semaphore;

use crate::counters::Counting;
use crate::dataset::{ChunkId, Manifest};
use crate::fault::{TIER_CORRUPT, TIER_FAILED, TIER_FULL};
use crate::integrity::crc32c;
use crate::memory::Block;
use shelf::{Refusal, Shelf, Victim};

/// Chunks being written at once. Each is held in memory meanwhile, out of the cache's budget.
const WRITES_MAX: usize = 2;
/// Bad reads after which the tier is not used any more: by then it is the disk, not a chunk.
const FAULTS_MAX: u32 = 16;
/// Part of the file system that is left free, in percent, whatever the budget: below 10 % a kubelet evicts pods
/// (kubernetes.io, "Node-pressure Eviction", `nodefs.available`).
const FREE_MIN_PERCENT: u64 = 12;
/// Folders tried, when others are in use: by another job's worker of the same number.
const FOLDERS_MAX: u32 = 16;
/// What is being written ends so.
const PART: &str = "part";

/// Where chunks are kept, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierConfig {
    /// A folder of a local disk, which several workers and jobs may share; made if it is not there.
    pub folder: PathBuf,
    /// This plane's number among them: it looks first for what a plane of that number left.
    pub worker: u32,
    /// Bytes of chunks at the most, of this plane alone.
    pub bytes: u64,
}

/// Why there is no tier.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The folder cannot be used.
    #[error("keep chunks in {}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// All folders that it may use are used by others.
    #[error("keep chunks in {}: {FOLDERS_MAX} other workers use it", folder.display())]
    Busy {
        /// Which.
        folder: PathBuf,
    },
}

/// One plane's tier. Clones share it.
#[derive(Clone)]
pub(crate) struct Tier {
    shared: Arc<Shared>,
}

struct Shared {
    manifest: Arc<Manifest>,
    /// Of this dataset.
    folder: PathBuf,
    shelf: Mutex<Shelf>,
    writes: Arc<Semaphore>,
    counters: Arc<Counting>,
    faults: AtomicU32,
    /// That it takes no more has been said.
    said_full: AtomicBool,
    _lock: File,
}

/// Why a chunk that should be here is not.
enum Loss {
    /// Somebody has cleaned up.
    Gone,
    Corrupt,
    Failed(io::Error),
}

impl Tier {
    /// Finds what an earlier plane left, and drops what is too much. Blocks.
    pub(crate) fn open(
        config: &TierConfig,
        manifest: Arc<Manifest>,
        counters: Arc<Counting>,
    ) -> Result<Self, TierError> {
        let failed = |source| TierError::Folder { folder: config.folder.clone(), source };
        make_folder(&config.folder).map_err(failed)?;
        let (own, lock) = lock_one(config)?;
        let folder = own.join(manifest.digest().to_string());
        let mut shelf = Shelf::new(config.bytes, u64::try_from(manifest.chunks().len()).unwrap_or(u64::MAX));
        find_own(&folder, &manifest, &mut shelf).map_err(failed)?;
        find_old(&own, &folder, &mut shelf).map_err(failed)?;
        for victim in shelf.trim() {
            remove(&folder, &victim);
        }
        tracing::info!(folder = %folder.display(), chunks = shelf.chunks(), "chunks are kept on this host");
        let shared = Shared {
            manifest,
            folder,
            shelf: Mutex::new(shelf),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            counters,
            faults: AtomicU32::new(0),
            said_full: AtomicBool::new(false),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Fills the block with that chunk, if it is here and what was indexed; otherwise the block comes back as an error.
    pub(crate) async fn read(&self, chunk: ChunkId, mut block: Block) -> Result<Block, Block> {
        if !self.shared.shelf().look(chunk) {
            return Err(block);
        }
        let (shared, len) = (Arc::clone(&self.shared), block.len());
        let done = tokio::task::spawn_blocking(move || {
            let result = shared.read_now(chunk, &mut block);
            (block, result)
        });
        match done.await {
            Ok((block, Ok(()))) => Ok(block),
            Ok((block, Err(loss))) => {
                self.shared.lost(chunk, &loss);
                Err(block)
            }
            // The runtime is at its end.
            Err(_) => Err(Block::with_len(len)),
        }
    }

    /// Keeps a chunk that came from the store, if there is room and the disk is not busy. Does not wait.
    pub(crate) fn keep(&self, chunk: ChunkId, bytes: impl Deref<Target = [u8]> + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.shared.writes).try_acquire_owned() else { return };
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let admitted = self.shared.shelf().admit(chunk, len);
        let victims = match admitted {
            Ok(victims) => victims,
            Err(Refusal::Here) => return,
            Err(Refusal::Full) => return self.shared.say_full(),
        };
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            shared.write_now(chunk, &victims, &bytes);
            drop(bytes);
            drop(permit);
        });
    }
}

impl Shared {
    fn read_now(&self, chunk: ChunkId, block: &mut [u8]) -> Result<(), Loss> {
        let file = File::open(chunk_file(&self.folder, chunk)).map_err(Loss::from)?;
        file.read_exact_at(block, 0).map_err(Loss::from)?;
        if crc32c(block) == self.manifest.chunk(chunk).crc32c { Ok(()) } else { Err(Loss::Corrupt) }
    }

    /// Forgets a chunk that cannot be read; it may be kept again.
    fn lost(&self, chunk: ChunkId, loss: &Loss) {
        self.shelf().forget(chunk);
        let file = chunk_file(&self.folder, chunk);
        let (reason, what) = match loss {
            Loss::Gone => return tracing::debug!(chunk = chunk.0, "a chunk was deleted from the tier"),
            Loss::Corrupt => (TIER_CORRUPT, "its bytes are not those that were indexed".to_owned()),
            Loss::Failed(error) => (TIER_FAILED, error.to_string()),
        };
        // What stays there all the same is found again, and compared again.
        let _ = fs::remove_file(&file);
        self.counters.tier_faults.add(1_u64);
        tracing::warn!(reason, file = %file.display(), what, "a chunk of the tier is read from the store instead");
        if self.faults.fetch_add(1, Ordering::Relaxed) + 1 == FAULTS_MAX {
            self.shelf().close();
            tracing::warn!(
                reason,
                "the tier is not used any more: too many of its chunks cannot be read; check the disk"
            );
        }
    }

    fn write_now(&self, chunk: ChunkId, victims: &[Victim], bytes: &[u8]) {
        for victim in victims {
            remove(&self.folder, victim);
        }
        // The trainer's side finds out about this one, and says whose fault it is.
        if crc32c(bytes) != self.manifest.chunk(chunk).crc32c {
            return self.shelf().forget(chunk);
        }
        match write_file(&self.folder, chunk, bytes) {
            Ok(()) => {
                self.shelf().written(chunk);
                self.counters.tier_kept_bytes.add(bytes.len());
            }
            Err(error) => {
                let mut shelf = self.shelf();
                shelf.forget(chunk);
                shelf.freeze();
                let is_full = error.kind() == io::ErrorKind::StorageFull;
                let reason = if is_full { TIER_FULL } else { TIER_FAILED };
                self.said_full.store(true, Ordering::Relaxed);
                tracing::warn!(
                    reason,
                    folder = %self.folder.display(),
                    chunks = shelf.chunks(),
                    %error,
                    "no more chunks are kept on this host; the others come from the store"
                );
            }
        }
    }

    fn say_full(&self) {
        if !self.said_full.swap(true, Ordering::Relaxed) {
            let chunks = self.shelf().chunks();
            tracing::info!(
                reason = TIER_FULL,
                chunks,
                "the tier holds its budget; other chunks come from the store"
            );
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            io::ErrorKind::UnexpectedEof => Self::Corrupt,
            _ => Self::Failed(error),
        }
    }
}

/// A folder that nobody else uses now, and its lock.
fn lock_one(config: &TierConfig) -> Result<(PathBuf, File), TierError> {
    for turn in 1..=FOLDERS_MAX {
        let name = match turn {
            1 => format!("worker-{}", config.worker),
            _ => format!("worker-{}-{turn}", config.worker),
        };
        let folder = config.folder.join(name);
        match make_folder(&folder).and_then(|()| File::create(folder.join("lock"))) {
            Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => {
                return Ok((folder, lock));
            }
            // Another's: a worker's that runs, or another user's.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && folder.exists() => {}
            Err(source) => return Err(TierError::Folder { folder, source }),
        }
    }
    Err(TierError::Busy { folder: config.folder.clone() })
}

/// For this user alone: samples may be confidential.
fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Chunks that are whole by their length; what else is there was being written and is deleted.
fn find_own(folder: &Path, manifest: &Manifest, shelf: &mut Shelf) -> io::Result<()> {
    for (path, bytes, _) in files(folder)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.parse::<u32>().ok());
        let chunk = number.filter(|&number| {
            let chunk = usize::try_from(number).ok().and_then(|at| manifest.chunks().get(at));
            chunk.is_some_and(|chunk| u64::from(chunk.len) == bytes)
        });
        match chunk {
            Some(chunk) => shelf.found(ChunkId(chunk), bytes),
            None => fs::remove_file(path)?,
        }
    }
    Ok(())
}

/// What other datasets left in `own`, the oldest first.
fn find_old(own: &Path, folder: &Path, shelf: &mut Shelf) -> io::Result<()> {
    let mut old = Vec::new();
    for entry in fs::read_dir(own)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.path() != folder {
            // Where it is empty it goes; otherwise this fails and says so.
            if fs::remove_dir(entry.path()).is_err() {
                old.extend(files(&entry.path())?);
            }
        }
    }
    old.sort_by_key(|(_, _, modified)| *modified);
    for (path, bytes, _) in old {
        shelf.found_old(path, bytes);
    }
    Ok(())
}

/// Files of a folder with their sizes and times; none where there is no such folder.
fn files(folder: &Path) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_file() {
            files.push((entry.path(), found.len(), found.modified()?));
        }
    }
    Ok(files)
}

fn chunk_file(folder: &Path, chunk: ChunkId) -> PathBuf {
    folder.join(chunk.0.to_string())
}

fn remove(folder: &Path, victim: &Victim) {
    let path = match victim {
        Victim::Chunk(chunk) => chunk_file(folder, *chunk),
        Victim::Old(path) => path.clone(),
    };
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(reason = TIER_FAILED, file = %path.display(), %error, "a file stays in the tier")
        }
    }
}

/// Writes beside the final name and renames: a chunk of the right length is whole, unless the host itself fails, which its
/// CRC tells.
fn write_file(folder: &Path, chunk: ChunkId, bytes: &[u8]) -> io::Result<()> {
    make_folder(folder)?;
    let space = statvfs(folder)?;
    let needed = u64::try_from(bytes.len()).unwrap_or(u64::MAX).div_ceil(space.f_frsize.max(1));
    if !is_roomy(space.f_bavail, space.f_blocks, needed) {
        let what = format!("less than {FREE_MIN_PERCENT} % of the file system would be free");
        return Err(io::Error::new(io::ErrorKind::StorageFull, what));
    }
    let path = chunk_file(folder, chunk);
    let part = path.with_extension(PART);
    let written = File::create(&part).and_then(|mut file| file.write_all(bytes));
    let written = written.and_then(|()| fs::rename(&part, &path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Whether so many blocks may be taken of a file system (pure).
fn is_roomy(available: u64, blocks: u64, needed: u64) -> bool {
    available.saturating_sub(needed) >= blocks / 100 * FREE_MIN_PERCENT
}

#[cfg(test)]
mod tests;
