//! A job's folder: its files' names, its making, its lock, and finding it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use worker::units::{Rank, WorkerId};

use crate::config::StateHome;

/// Digits of the random part of an id.
const SUFFIX_HEX_DIGITS: usize = 4;
/// Ids that are tried before giving up: with a thousand jobs of one name each try fails with 1.5 %.
const IDS_TRIED_MAX: usize = 64;
/// Bytes of a lock file that are read: a process id.
const LOCK_BYTES_MAX: u64 = 32;
/// A reader may hold the lock for the moment of its look; a controller tries again this often.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// One job's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

/// The right to control a job; ends with the process, however that ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Folder {
    /// Takes a folder that exists.
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes a new job's folder, with everything under it readable for this user only.
    pub(super) fn create(home: &StateHome, name: &str) -> io::Result<Self> {
        let jobs = home.jobs();
        private().recursive(true).create(&jobs)?;
        for _ in 0..IDS_TRIED_MAX {
            let suffix = getrandom::u32().map_err(|error| io::Error::other(error.to_string()))? & 0xffff;
            let folder = Self(jobs.join(format!("{name}-{suffix:0SUFFIX_HEX_DIGITS$x}")));
            match private().create(&folder.0) {
                Ok(()) => {
                    let mut inner = [folder.logs(), folder.checkpoints()].into_iter();
                    if let Err(error) = inner.try_for_each(|inner| private().create(inner)) {
                        // Half a folder is of no use to anybody.
                        let _ = fs::remove_dir_all(&folder.0);
                        return Err(error);
                    }
                    return Ok(folder);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many jobs of this name"))
    }

    /// All jobs' folders; none when there is no state folder yet.
    pub(super) fn all(home: &StateHome) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(home.jobs()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut folders = Vec::new();
        for entry in entries {
            let folder = Self(entry?.path());
            if folder.job().is_file() {
                folders.push(folder);
            }
        }
        folders.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(folders)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn id(&self) -> String {
        self.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The job's name, which its id begins with.
    pub(super) fn name(&self) -> String {
        let id = self.id();
        id.rsplit_once('-').map_or_else(|| id.clone(), |(name, _)| name.to_owned())
    }

    pub(super) fn job(&self) -> PathBuf {
        self.0.join("job.json")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    pub(super) fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.0.join("slipway.manifest")
    }

    /// Where jobs that name no other folder keep chunks: beside all jobs, for the next ones.
    pub(super) fn tier(&self) -> PathBuf {
        let home = self.0.parent().and_then(Path::parent);
        home.unwrap_or(&self.0).join("tier")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// What goes into `PYTHONPATH`.
    pub(super) fn python(&self) -> PathBuf {
        self.0.join("python")
    }

    pub(super) fn rank_log(&self, rank: Rank) -> PathBuf {
        self.logs().join(format!("rank-{rank}.log"))
    }

    pub(super) fn worker_log(&self, worker: WorkerId) -> PathBuf {
        self.logs().join(format!("worker-{worker}.log"))
    }

    pub(super) fn launcher_log(&self) -> PathBuf {
        self.logs().join("launcher.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("controller.lock")
    }

    /// Takes the right to control the job; none if another process has it. A process that was handed the right (see
    /// [`Lock::hand_over`]) has it already.
    pub(super) async fn lock(&self) -> io::Result<Option<Lock>> {
        let mut options = private_file();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(self.lock_file())?;
        if let Some(handed) = handed_over(&file)? {
            file = handed;
        }
        for _ in 0..LOCK_TRIES {
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                return Ok(Some(Lock(file)));
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Ok(None)
    }

    /// Whether a living process controls the job.
    pub(super) fn is_controlled(&self) -> bool {
        File::open(self.lock_file())
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// The living process that controls the job; none also while it has not said who it is.
    pub(super) fn controller(&self) -> Option<u32> {
        if !self.is_controlled() {
            return None;
        }
        let mut text = String::new();
        File::open(self.lock_file()).ok()?.take(LOCK_BYTES_MAX).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

impl Lock {
    /// The lock as a new process's standard input: the right is that process's as soon as this one lets go of it, and
    /// at no time nobody's.
    pub(super) fn hand_over(self) -> Stdio {
        self.0.into()
    }
}

/// Standard input, if it is this file: then the lock came with it.
fn handed_over(file: &File) -> io::Result<Option<File>> {
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return Ok(None) };
    let (input, wanted) = (File::from(input), file.metadata()?);
    let is_it = input.metadata().is_ok_and(|it| (it.dev(), it.ino()) == (wanted.dev(), wanted.ino()));
    Ok(is_it.then_some(input))
}

fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Options for a file that only this user may read.
pub(super) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Replaces a file's content as one step: a reader sees the old or the new.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, |_| Ok(()))
}

/// The same, and it is on the disk when this returns.
pub(super) fn replace_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, File::sync_all)?;
    sync_folder(path)
}

fn put(path: &Path, bytes: &[u8], sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = private_file().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(bytes)?;
    sync(&file)?;
    drop(file);
    fs::rename(&new, path)
}

/// Makes the name of a file durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_by_one_and_seen_by_all() {
        let home = tempfile::tempdir().unwrap();
        let home = StateHome(home.path().to_owned());
        let folder = Folder::create(&home, "a-b").unwrap();
        assert_eq!(folder.name(), "a-b");
        assert_eq!(folder.controller(), None);
        let lock = folder.lock().await.unwrap().unwrap();
        assert_eq!(folder.controller(), Some(std::process::id()));
        assert!(folder.lock().await.unwrap().is_none());
        drop(lock);
        assert_eq!(folder.controller(), None);
    }

    #[test]
    fn folders_are_private_and_only_jobs_are_listed() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let home = StateHome(home.path().join("deep/er"));
        assert_eq!(Folder::all(&home).unwrap(), []);
        let folder = Folder::create(&home, "j").unwrap();
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(Folder::all(&home).unwrap(), [], "no job.json: submitting was cut short");
        replace(&folder.job(), b"{}").unwrap();
        assert_eq!(Folder::all(&home).unwrap(), [folder]);
    }
}
