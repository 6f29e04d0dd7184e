//! The node-local tier: chunks that this worker has read before, in files on a disk of its own host.
//!
//! ```text
//! <folder>/worker-<n>/lock                 held while a plane uses the folder
//! <folder>/worker-<n>/<dataset>/<chunk>    a chunk's bytes as they are in the store
//! ```
//! It is a copy and nothing else: a chunk is compared with the manifest's CRC before it is kept and each time it is read, and
//! whatever is missing, bad or late comes from the store. So the folder may be deleted at any time (and is then left alone), and
//! a crash in the middle of a write leaves nothing that is believed. A write that finds two others under way is left out, to be
//! made in a later epoch.

mod shelf;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock, statvfs};
use tokio::sync::Semaphore;

use crate::counters::Counting;
use crate::dataset::{ChunkId, Manifest};
use crate::fault::{TIER_CORRUPT, TIER_FAILED, TIER_FULL};
use crate::integrity::crc32c;
use crate::memory::Block;
use crate::store::directory::Temporary;
use shelf::{Refusal, Shelf, Victim};

/// Chunks being written at once. Each is held in memory meanwhile, out of the cache's budget.
pub(crate) const WRITES_MAX: usize = 2;
/// A read that takes longer is given up: disks that are worth being asked answer in milliseconds.
const READ_MAX: Duration = Duration::from_secs(5);
/// Bad reads after which the tier is not used any more: by then it is the disk, not a chunk.
const FAULTS_MAX: u32 = 16;
/// Folders tried, when others are in use: by another job's worker of the same number.
const FOLDERS_MAX: u32 = 16;
/// The file that says by a lock that a folder is used.
const LOCK: &str = "lock";

/// Where chunks are kept, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierConfig {
    /// A folder of a local disk, which several workers and jobs may share; made if it is not there.
    pub folder: PathBuf,
    /// This plane's number among them: it looks first for what a plane of that number left.
    pub worker: u32,
    /// Bytes of chunks at the most, of this plane alone.
    pub bytes: u64,
    /// How much of the file system is left free, whatever the budget, in percent.
    pub free_percent: u64,
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
    /// This plane's.
    own: PathBuf,
    /// Of this dataset, in it.
    folder: PathBuf,
    shelf: Mutex<Shelf>,
    free_percent: u64,
    writes: Arc<Semaphore>,
    counters: Arc<Counting>,
    faults: AtomicU32,
    /// That it takes no more has been said.
    said_full: AtomicBool,
    lock: File,
}

/// Why a chunk that should be here is not.
enum Loss {
    /// Somebody has cleaned up.
    Gone,
    Corrupt,
    Failed(io::Error),
    Late,
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
        let digest = manifest.digest().to_string();
        let (own, lock) = lock_one(config, &digest)?;
        let folder = own.join(digest);
        let mut shelf = Shelf::new(config.bytes, u64::try_from(manifest.chunks().len()).unwrap_or(u64::MAX));
        find_own(&folder, &manifest, &mut shelf);
        find_old(&own, &folder, &mut shelf);
        for victim in shelf.trim() {
            remove(&folder, &victim);
        }
        tracing::info!(folder = %folder.display(), chunks = shelf.chunks(), "chunks are kept on this host");
        let shared = Shared {
            manifest,
            own,
            folder,
            shelf: Mutex::new(shelf),
            free_percent: config.free_percent,
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            counters,
            faults: AtomicU32::new(0),
            said_full: AtomicBool::new(false),
            lock,
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
        match tokio::time::timeout(READ_MAX, done).await {
            Ok(Ok((block, Ok(())))) => Ok(block),
            Ok(Ok((block, Err(loss)))) => {
                self.shared.lost(chunk, &loss);
                Err(block)
            }
            // The runtime is at its end.
            Ok(Err(_)) => Err(Block::with_len(len)),
            // The block is the late read's; so few are late that another may be made.
            Err(_) => {
                self.shared.lost(chunk, &Loss::Late);
                Err(Block::with_len(len))
            }
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
            // Whoever waits for the permit finds nothing of this left: neither the bytes nor the folder's lock.
            drop((bytes, shared));
            drop(permit);
        });
    }
}

impl Shared {
    /// Blocks. What is bad is removed.
    fn read_now(&self, chunk: ChunkId, block: &mut [u8]) -> Result<(), Loss> {
        let path = chunk_file(&self.folder, chunk);
        let read = File::open(&path).and_then(|file| file.read_exact_at(block, 0)).map_err(Loss::from);
        let is_right = || crc32c(block) == self.manifest.chunk(chunk).crc32c;
        let result = read.and_then(|()| if is_right() { Ok(()) } else { Err(Loss::Corrupt) });
        if matches!(result, Err(Loss::Corrupt | Loss::Failed(_))) {
            // What stays there all the same is found again, and compared again.
            let _ = fs::remove_file(&path);
        }
        result
    }

    /// Forgets a chunk that cannot be read; it may be kept again.
    fn lost(&self, chunk: ChunkId, loss: &Loss) {
        self.shelf().forget(chunk);
        let file = chunk_file(&self.folder, chunk);
        let (reason, what) = match loss {
            Loss::Gone => return tracing::debug!(chunk = chunk.0, "a chunk was deleted from the tier"),
            Loss::Corrupt => (TIER_CORRUPT, "its bytes are not those that were indexed".to_owned()),
            Loss::Failed(error) => (TIER_FAILED, error.to_string()),
            Loss::Late => (TIER_FAILED, format!("the disk did not answer within {} s", READ_MAX.as_secs())),
        };
        self.counters.tier_faults.add(1_u64);
        tracing::warn!(reason, file = %file.display(), what, "a chunk of the tier is read from the store instead");
        if self.faults.fetch_add(1, Ordering::Relaxed) + 1 == FAULTS_MAX {
            self.close("too many of its chunks cannot be read; check the disk");
        }
    }

    fn close(&self, why: &str) {
        self.shelf().close();
        self.said_full.store(true, Ordering::Relaxed);
        tracing::warn!(reason = TIER_FAILED, folder = %self.own.display(), why, "the tier is not used any more");
    }

    /// Somebody deleted or moved the folder: whoever comes next locks another file, and the folder is his.
    fn is_taken_away(&self) -> bool {
        let there = fs::metadata(self.own.join(LOCK)).map(|file| (file.dev(), file.ino()));
        let held = self.lock.metadata().map(|file| (file.dev(), file.ino()));
        !matches!((there, held), (Ok(there), Ok(held)) if there == held)
    }

    fn write_now(&self, chunk: ChunkId, victims: &[Victim], bytes: &[u8]) {
        if self.is_taken_away() {
            return self.close("it was deleted while it was used");
        }
        for victim in victims {
            remove(&self.folder, victim);
        }
        // The trainer's side finds out about this one, and says whose fault it is.
        if crc32c(bytes) != self.manifest.chunk(chunk).crc32c {
            return self.shelf().forget(chunk);
        }
        match write_file(&self.folder, chunk, bytes, self.free_percent) {
            Ok(()) => {
                self.shelf().written(chunk);
                self.counters.tier_kept_bytes.add(bytes.len());
            }
            // It is being deleted; the next write sees that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.shelf().forget(chunk),
            Err(error) => {
                let mut shelf = self.shelf();
                shelf.forget(chunk);
                shelf.freeze();
                if self.said_full.swap(true, Ordering::Relaxed) {
                    return;
                }
                let is_full = error.kind() == io::ErrorKind::StorageFull;
                let reason = if is_full { TIER_FULL } else { TIER_FAILED };
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

/// A folder that nobody else uses now, and its lock; one that has chunks of this dataset, if there is one.
fn lock_one(config: &TierConfig, digest: &str) -> Result<(PathBuf, File), TierError> {
    let name = |turn: u32| match turn {
        1 => format!("worker-{}", config.worker),
        _ => format!("worker-{}-{turn}", config.worker),
    };
    let folders: Vec<PathBuf> = (1..=FOLDERS_MAX).map(|turn| config.folder.join(name(turn))).collect();
    let known = folders.iter().filter(|folder| folder.join(digest).is_dir());
    for folder in known.chain(&folders) {
        match make_folder(folder).and_then(|()| File::create(folder.join(LOCK))) {
            Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() => {
                return Ok((folder.clone(), lock));
            }
            // Another's: a worker's that runs, or another user's.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && folder.exists() => {}
            Err(source) => return Err(TierError::Folder { folder: folder.clone(), source }),
        }
    }
    Err(TierError::Busy { folder: config.folder.clone() })
}

/// For this user alone: samples may be confidential.
fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Chunks that are whole by their length; what else is there was being written and is deleted.
fn find_own(folder: &Path, manifest: &Manifest, shelf: &mut Shelf) {
    for (path, bytes, _) in files(folder) {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.parse::<u32>().ok());
        let chunk = number.filter(|&number| {
            let chunk = usize::try_from(number).ok().and_then(|at| manifest.chunks().get(at));
            chunk.is_some_and(|chunk| u64::from(chunk.len) == bytes)
        });
        match chunk {
            Some(chunk) => shelf.found(ChunkId(chunk), bytes),
            None => discard(&path),
        }
    }
}

/// What other datasets left in `own`, the oldest first.
fn find_old(own: &Path, folder: &Path, shelf: &mut Shelf) {
    let mut old = Vec::new();
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let path = entry.path();
        // Where it is empty it goes; otherwise this fails and says so.
        if path != folder && path.is_dir() && fs::remove_dir(&path).is_err() {
            old.extend(files(&path));
        }
    }
    old.sort_by_key(|(_, _, modified)| *modified);
    for (path, bytes, _) in old {
        shelf.found_old(path, bytes);
    }
}

/// Files of a folder with their sizes and times, as far as they can be looked at: a copy is worth no failure.
fn files(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let found = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((entry.path(), found.len(), found.modified().ok()?))
    });
    files.collect()
}

fn chunk_file(folder: &Path, chunk: ChunkId) -> PathBuf {
    folder.join(chunk.0.to_string())
}

fn remove(folder: &Path, victim: &Victim) {
    let path = match victim {
        Victim::Chunk(chunk) => chunk_file(folder, *chunk),
        Victim::Old(path) => path.clone(),
    };
    discard(&path);
}

fn discard(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(reason = TIER_FAILED, file = %path.display(), %error, "a file stays in the tier")
        }
    }
}

/// Writes beside the final name and renames: a chunk of the right length is whole, unless the host itself fails, which its
/// CRC tells.
fn write_file(folder: &Path, chunk: ChunkId, bytes: &[u8], free_percent: u64) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let space = statvfs(folder)?;
    let needed = u64::try_from(bytes.len()).unwrap_or(u64::MAX).div_ceil(space.f_frsize.max(1));
    if !is_roomy(space.f_bavail, space.f_blocks, needed, free_percent) {
        let what = format!("less than {free_percent} % of the file system would be free");
        return Err(io::Error::new(io::ErrorKind::StorageFull, what));
    }
    let path = chunk_file(folder, chunk);
    let mut temporary = Temporary::create(&path)?;
    temporary.file.write_all(bytes)?;
    temporary.rename(&path)
}

/// Whether so many blocks may be taken of a file system (pure).
fn is_roomy(available: u64, blocks: u64, needed: u64, free_percent: u64) -> bool {
    available.saturating_sub(needed) >= blocks / 100 * free_percent
}

#[cfg(test)]
mod tests;
