//! A directory as a store. Blocking calls run on tokio's blocking threads, and own the memory they write to.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Object, Store, StoreError};
use crate::dataset::{MAX_SHARDS, count, index_of, is_shard_name};
use crate::memory::Block;

/// Directories below the root that are listed: shards lie flat or in a few levels of splits and dates.
pub const MAX_DEPTH: usize = 8;

/// Most objects that are listed: shards, and as many other files beside them.
pub const MAX_OBJECTS: usize = 2 * MAX_SHARDS;

/// Files that stay open. On a network file system an open is a round trip; on all, descriptors are few.
const MAX_OPEN_FILES: usize = 64;

/// Bytes of a shard that are copied at a time.
const COPY_BYTES: u64 = 4 << 20;

/// A directory and its subdirectories.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    root: Arc<Path>,
    open: Arc<OpenFiles>,
}

impl DirectoryStore {
    /// The directory must exist.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let failed = |source| StoreError::Open { url: path.display().to_string(), source };
        let root = fs::canonicalize(path).map_err(failed)?;
        if !fs::metadata(&root).map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root: root.into(), open: Arc::default() })
    }

    /// The directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All files, sorted by name. Hidden files and directories are left out; links to files count as files, links to
    /// directories are not followed.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        let root = Arc::clone(&self.root);
        let name = root.display().to_string();
        run_blocking(&name, move || {
            let mut objects = Vec::new();
            walk(&root, "", 0, &mut objects)?;
            objects.sort();
            Ok(objects)
        })
        .await
        .unwrap_or_else(Err)
    }

    /// Fills all of `block` from that offset.
    pub async fn read(&self, name: &str, offset: u64, mut block: Block) -> (Block, Result<(), StoreError>) {
        let store = self.clone();
        let object = name.to_owned();
        let done = run_blocking(name, move || {
            let result = store.read_now(&object, offset, &mut block);
            (block, result)
        });
        done.await.unwrap_or_else(|stopped| (Block::with_len(0), Err(stopped)))
    }

    /// Writes a file beside its final name, syncs it, and renames it.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let root = Arc::clone(&self.root);
        let object = name.to_owned();
        let done = run_blocking(name, move || {
            if !is_shard_name(&object) {
                return Err(StoreError::BadName { name: object });
            }
            write_now(&root.join(&object), &bytes)
                .map_err(|source| StoreError::Write { name: object, source })
        });
        let written = done.await.unwrap_or_else(Err);
        self.open.forget(name);
        written
    }

    /// Copies a shard beside its final name, syncs it, and renames it.
    pub async fn copy_from(&self, name: &str, bytes: u64, from: &Store) -> Result<(), StoreError> {
        if !is_shard_name(name) {
            return Err(StoreError::BadName { name: name.into() });
        }
        let path = self.root.join(name);
        let opening = run_blocking(name, {
            let path = path.clone();
            move || Temporary::create(&path)
        });
        let failed = |source| StoreError::Write { name: name.into(), source };
        let mut temporary = opening.await?.map_err(failed)?;
        let mut block = Block::with_len(index_of(bytes.min(COPY_BYTES)));
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(COPY_BYTES);
            if count(block.len()) != len {
                block = Block::with_len(index_of(len));
            }
            let (filled, read) = from.read(name, done, block).await;
            read?;
            let written = run_blocking(name, move || {
                let result = temporary.file.write_all(&filled);
                (temporary, filled, result)
            });
            let result;
            (temporary, block, result) = written.await?;
            result.map_err(failed)?;
            done += len;
        }
        let done = run_blocking(name, move || temporary.persist(&path)).await?.map_err(failed);
        // Whoever reads next opens the new file.
        self.open.forget(name);
        done
    }

    fn read_now(&self, name: &str, offset: u64, block: &mut [u8]) -> Result<(), StoreError> {
        let file = self.open.get(&self.root, name)?;
        let mut done = 0;
        while done < block.len() {
            let at = offset.saturating_add(count(done));
            match file.read_at(&mut block[done..], at) {
                Ok(0) => {
                    // The next try opens the name afresh: it may have been replaced by a whole file.
                    self.open.forget(name);
                    let wanted = offset.saturating_add(count(block.len()));
                    return Err(StoreError::ShortRead { name: name.into(), end: at, wanted });
                }
                Ok(read) => done += read,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    self.open.forget(name);
                    return Err(StoreError::Read { name: name.into(), source });
                }
            }
        }
        Ok(())
    }
}

/// The files that were used last, newest at the end.
#[derive(Debug, Default)]
struct OpenFiles(Mutex<Vec<(String, Arc<File>)>>);

impl OpenFiles {
    fn get(&self, root: &Path, name: &str) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.touch(name) {
            return Ok(file);
        }
        if !is_shard_name(name) {
            return Err(StoreError::BadName { name: name.into() });
        }
        // Opened outside the lock: a slow file system must not hold up reads of other files.
        let file = File::open(root.join(name)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::NotFound { name: name.into() },
            _ => StoreError::Read { name: name.into(), source },
        })?;
        let file = Arc::new(file);
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MAX_OPEN_FILES {
            files.remove(0);
        }
        files.push((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }

    fn touch(&self, name: &str) -> Option<Arc<File>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = files.iter().rposition(|(known, _)| known == name)?;
        let entry = files.remove(at);
        let file = Arc::clone(&entry.1);
        files.push(entry);
        Some(file)
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| known != name);
    }
}

async fn run_blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopped { name: name.into() })
}

fn walk(directory: &Path, prefix: &str, depth: usize, objects: &mut Vec<Object>) -> Result<(), StoreError> {
    let failed = |source| StoreError::List { name: directory.display().to_string(), source };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str() else {
            return Err(StoreError::BadName { name: file_name.to_string_lossy().into_owned() });
        };
        if file_name.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{file_name}");
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            if depth == MAX_DEPTH {
                let name = directory.display().to_string();
                return Err(StoreError::TooMuch { name, what: "directories are nested too deep" });
            }
            walk(&entry.path(), &format!("{name}/"), depth + 1, objects)?;
            continue;
        }
        // Follows links. One that leads nowhere, or to a directory, is no file.
        let Some(metadata) = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file) else { continue };
        if objects.len() == MAX_OBJECTS {
            return Err(StoreError::TooMuch {
                name: directory.display().to_string(),
                what: "there are too many files",
            });
        }
        objects.push(Object { name, bytes: metadata.len() });
    }
    Ok(())
}

fn write_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = Temporary::create(path)?;
    temporary.file.write_all(bytes)?;
    temporary.persist(path)
}

/// A file that is written beside its final name; dropped before it has that name, it is removed.
pub(crate) struct Temporary {
    pub(crate) file: File,
    // None once it was renamed.
    path: Option<PathBuf>,
}

impl Temporary {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{file_name}.{}", std::process::id()));
        Ok(Self { file: File::create(&temporary)?, path: Some(temporary) })
    }

    fn persist(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename(path)?;
        // The rename is durable once its directory is.
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }

    /// Gives it its name, which a host that fails may forget.
    pub(crate) fn rename(&mut self, path: &Path) -> io::Result<()> {
        if let Some(temporary) = &self.path {
            fs::rename(temporary, path)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone; the first error is the one to report.
            drop(fs::remove_file(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::Directory(DirectoryStore::open(directory.path()).unwrap());
        (directory, store)
    }

    #[tokio::test]
    async fn lists_files_sorted_and_leaves_out_what_is_hidden() {
        let (directory, store) = store();
        fs::create_dir_all(directory.path().join("train/a")).unwrap();
        fs::create_dir_all(directory.path().join(".git")).unwrap();
        for (name, bytes) in
            [("z.tar", 3), ("train/b.tar", 2), ("train/a/c.tar", 1), (".hidden", 9), (".git/x", 9)]
        {
            fs::write(directory.path().join(name), vec![0; bytes]).unwrap();
        }
        std::os::unix::fs::symlink("z.tar", directory.path().join("link.tar")).unwrap();
        std::os::unix::fs::symlink(".", directory.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("gone", directory.path().join("dangling")).unwrap();
        let found = store.list().await.unwrap();
        let names: Vec<_> = found.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
        assert_eq!(names, [("link.tar", 3), ("train/a/c.tar", 1), ("train/b.tar", 2), ("z.tar", 3)]);
    }

    #[tokio::test]
    async fn refuses_what_is_nested_too_deep() {
        let (directory, store) = store();
        fs::create_dir_all(directory.path().join("a/b/c/d/e/f/g/h/i")).unwrap();
        assert_eq!(store.list().await.unwrap_err().code(), "too_much");
    }

    #[tokio::test]
    async fn reads_exactly_or_says_where_the_file_ends() {
        let (directory, store) = store();
        fs::write(directory.path().join("x"), b"0123456789").unwrap();
        let (block, done) = store.read("x", 3, Block::with_len(4)).await;
        done.unwrap();
        assert_eq!(&block[..], b"3456");
        let (_, short) = store.read("x", 8, Block::with_len(4)).await;
        let short = short.unwrap_err();
        assert_eq!(short.code(), "short_read");
        assert_eq!(short.to_string(), "read x: it ends at byte 10, before byte 12");
        let (_, gone) = store.read("y", 0, Block::with_len(1)).await;
        assert_eq!(gone.unwrap_err().code(), "not_found");
        for name in ["../x", "/etc/passwd", "a//b", "", "."] {
            let (_, refused) = store.read(name, 0, Block::with_len(1)).await;
            assert_eq!(refused.unwrap_err().code(), "bad_name", "{name}");
        }
    }

    #[tokio::test]
    async fn more_files_than_stay_open() {
        let (directory, store) = store();
        for round in 0..2u8 {
            for file in 0..u8::try_from(MAX_OPEN_FILES + 5).unwrap() {
                let name = format!("f{file}");
                if round == 0 {
                    fs::write(directory.path().join(&name), [file]).unwrap();
                }
                let (block, done) = store.read(&name, 0, Block::with_len(1)).await;
                done.unwrap();
                assert_eq!(block[0], file);
            }
        }
        #[cfg_attr(
            not(any(feature = "ceph", feature = "s3")),
            expect(irrefutable_let_patterns, reason = "it has features")
        )]
        let Store::Directory(inner) = &store else { panic!("{store:?}") };
        assert_eq!(inner.open.0.lock().unwrap().len(), MAX_OPEN_FILES);
    }

    #[tokio::test]
    async fn writes_all_or_nothing_and_leaves_nothing_else() {
        let (directory, store) = store();
        store.write("slipway.manifest", b"one".to_vec()).await.unwrap();
        store.write("slipway.manifest", b"two".to_vec()).await.unwrap();
        assert_eq!(fs::read(directory.path().join("slipway.manifest")).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(store.write("nowhere/x", Vec::new()).await.unwrap_err().code(), "write_failed");
    }

    #[tokio::test]
    async fn copies_a_shard_whole_or_not_at_all() {
        let ((here, source), (there, target)) = (store(), store());
        let bytes: Vec<u8> = (0..COPY_BYTES + 5).map(|number| number.to_le_bytes()[0]).collect();
        fs::write(here.path().join("a.bin"), &bytes).unwrap();
        target.copy_from("a.bin", count(bytes.len()), &source).await.unwrap();
        assert!(fs::read(there.path().join("a.bin")).unwrap() == bytes);
        let short = target.copy_from("a.bin", count(bytes.len()) + 1, &source).await.unwrap_err();
        assert_eq!(short.code(), "short_read");
        assert_eq!(target.copy_from("../a.bin", 1, &source).await.unwrap_err().code(), "bad_name");
        assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1, "the temporary file is gone");
        assert!(fs::read(there.path().join("a.bin")).unwrap() == bytes);
    }

    #[tokio::test]
    async fn addresses() {
        let (directory, _) = store();
        let path = directory.path().to_str().unwrap();
        Store::open(&format!("file://{path}")).await.unwrap();
        let unknown = Store::open("gs://bucket/train").await.unwrap_err();
        assert_eq!(unknown.code(), "unknown_scheme");
        assert!(unknown.to_string().contains("file://"), "{unknown}");
        assert_eq!(Store::open(&format!("{path}/gone")).await.unwrap_err().code(), "open_failed");
        fs::write(directory.path().join("file"), b"").unwrap();
        assert_eq!(Store::open(&format!("{path}/file")).await.unwrap_err().code(), "open_failed");
        #[cfg(not(feature = "ceph"))]
        {
            let error = Store::open("rados://pool/train").await.unwrap_err();
            assert!(error.code() == "not_built" && error.to_string().contains("--features ceph"), "{error}");
        }
    }
}
