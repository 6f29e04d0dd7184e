//! Where shards lie: list them, read ranges of them into memory that the caller owns, write a manifest beside them.

use std::fmt;
use std::io;

use crate::memory::Block;

pub mod directory;

pub use directory::DirectoryStore;

/// What a dataset's address may begin with.
pub const KNOWN_SCHEMES: &[&str] = &["file://"];

/// A place that holds a dataset. Cheap to clone; clones share open files.
#[derive(Clone, Debug)]
pub enum Store {
    /// A directory of a mounted file system (CephFS, NFS, a local disk).
    Directory(DirectoryStore),
}

/// A file or object in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name, relative to the store, with `/` between parts.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// What a store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address begins with something unknown.
    #[error("open {url}: the scheme is not known; use a path or one of {}", KNOWN_SCHEMES.join(", "))]
    UnknownScheme {
        /// The address as it was given.
        url: String,
    },
    /// There is nothing at that address.
    #[error("open {url}; is the path right, and mounted on this host?")]
    Open {
        /// The address as it was given.
        url: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Listing failed.
    #[error("list {name}")]
    List {
        /// The directory.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// More objects, or deeper directories, than are listed.
    #[error("list {name}: {what}; put the shards into a directory of their own")]
    TooMuch {
        /// The directory.
        name: String,
        /// Which bound it passed.
        what: &'static str,
    },
    /// The object is not there (any more).
    #[error("read {name}: it is not in the store")]
    NotFound {
        /// The object.
        name: String,
    },
    /// The object ends before the range does.
    #[error("read {name}: it ends at byte {end}, before byte {wanted}")]
    ShortRead {
        /// The object.
        name: String,
        /// Where it ends.
        end: u64,
        /// The end of the range.
        wanted: u64,
    },
    /// Reading failed.
    #[error("read {name}")]
    Read {
        /// The object.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("write {name}")]
    Write {
        /// The object.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A name that would lead out of the store.
    #[error("use {name:?} as a name in the store")]
    BadName {
        /// The name.
        name: String,
    },
    /// The process is stopping, or a helper thread failed.
    #[error("finish the access to {name}: it was stopped")]
    Stopped {
        /// The object.
        name: String,
    },
}

impl StoreError {
    /// A stable name of the kind of error, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownScheme { .. } => "unknown_scheme",
            Self::Open { .. } => "open_failed",
            Self::List { .. } => "list_failed",
            Self::TooMuch { .. } => "too_much",
            Self::NotFound { .. } => "not_found",
            Self::ShortRead { .. } => "short_read",
            Self::Read { .. } => "read_failed",
            Self::Write { .. } => "write_failed",
            Self::BadName { .. } => "bad_name",
            Self::Stopped { .. } => "stopped",
        }
    }

    /// Whether asking again may help: the same bytes may be there in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::List { .. } | Self::Stopped { .. })
    }
}

impl Store {
    /// Opens a dataset's place: a path, or `file://` and an absolute path.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let path = match url.split_once("://") {
            None => url,
            Some(("file", path)) if path.starts_with('/') => path,
            Some(_) => return Err(StoreError::UnknownScheme { url: url.into() }),
        };
        DirectoryStore::open(path).map(Self::Directory)
    }

    /// All objects, sorted by name.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        match self {
            Self::Directory(directory) => directory.list().await,
        }
    }

    /// Fills all of `block` from that offset. The block moves in and comes back, so a read whose future was dropped still
    /// owns the memory that it writes to; after an error its content is undefined.
    pub async fn read(&self, name: &str, offset: u64, block: Block) -> (Block, Result<(), StoreError>) {
        match self {
            Self::Directory(directory) => directory.read(name, offset, block).await,
        }
    }

    /// Writes a small object, all or nothing: others see the old content or the new.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.write(name, bytes).await,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.root().display()),
        }
    }
}
