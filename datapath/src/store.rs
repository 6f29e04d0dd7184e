//! Where shards lie: list them, read ranges of them into memory that the caller owns, write a manifest beside them.

use std::fmt;
use std::io;

#[cfg(any(feature = "ceph", feature = "s3"))]
use crate::dataset::is_shard_name;
use crate::memory::Block;

pub mod address;
#[cfg(any(feature = "ceph", feature = "s3"))]
mod credentials;
pub mod directory;
#[cfg(feature = "ceph")]
pub mod rados;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "ceph")]
mod striping;

use address::{Address, KNOWN_SCHEMES};
pub use directory::DirectoryStore;
#[cfg(feature = "ceph")]
pub use rados::RadosStore;
#[cfg(feature = "s3")]
pub use s3::S3Store;

/// A place that holds a dataset. Cheap to clone; clones share open files.
#[derive(Clone, Debug)]
pub enum Store {
    /// A directory of a mounted file system (CephFS, NFS, a local disk).
    Directory(DirectoryStore),
    /// Objects of a Ceph pool.
    #[cfg(feature = "ceph")]
    Rados(RadosStore),
    /// Objects of an S3 bucket.
    #[cfg(feature = "s3")]
    S3(S3Store),
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
    /// The address is not well formed.
    #[error("use {url} as an address: {what}")]
    BadAddress {
        /// The address as it was given.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The address is of a kind that this program was built without.
    #[error("open {url}: this program was built without it; build it with `--features {feature}`")]
    NotBuilt {
        /// The address as it was given.
        url: String,
        /// The Cargo feature.
        feature: &'static str,
    },
    /// The service that holds it does not let us in, or does not answer.
    #[error("open {url}: {what}")]
    Connect {
        /// The address, without options.
        url: String,
        /// Why, and what to look at.
        what: String,
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
            Self::BadAddress { .. } => "bad_address",
            Self::NotBuilt { .. } => "not_built",
            Self::Connect { .. } => "connect_failed",
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
}

/// Whether an object of that name is a shard's or a manifest's, and not hidden.
#[cfg(any(feature = "ceph", feature = "s3"))]
fn is_listed(name: &str) -> bool {
    is_shard_name(name) && !name.split('/').any(|part| part.starts_with('.'))
}

impl Store {
    /// Opens a dataset's place: a path, or an [`address`].
    ///
    /// # Errors
    /// When the address is none, or what it names cannot be reached.
    #[cfg_attr(not(feature = "ceph"), expect(clippy::unused_async, reason = "a cluster is waited for"))]
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        match Address::parse(url)? {
            Address::Directory(path) => DirectoryStore::open(path).map(Self::Directory),
            #[cfg(feature = "ceph")]
            Address::Rados(address) => RadosStore::open(&address).await.map(Self::Rados),
            #[cfg(not(feature = "ceph"))]
            Address::Rados(_) => Err(StoreError::NotBuilt { url: url.into(), feature: "ceph" }),
            #[cfg(feature = "s3")]
            Address::S3(address) => S3Store::open(&address).map(Self::S3),
            #[cfg(not(feature = "s3"))]
            Address::S3(_) => Err(StoreError::NotBuilt { url: url.into(), feature: "s3" }),
        }
    }

    /// Whether both are one place, however each is addressed: what is written to one is read from the other.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory(one), Self::Directory(other)) => one.root() == other.root(),
            #[cfg(feature = "ceph")]
            (Self::Rados(one), Self::Rados(other)) => one.place() == other.place(),
            #[cfg(feature = "s3")]
            (Self::S3(one), Self::S3(other)) => one.place() == other.place(),
            #[cfg(any(feature = "ceph", feature = "s3"))]
            _ => false,
        }
    }

    /// All objects, sorted by name.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        match self {
            Self::Directory(directory) => directory.list().await,
            #[cfg(feature = "ceph")]
            Self::Rados(rados) => rados.list().await,
            #[cfg(feature = "s3")]
            Self::S3(s3) => s3.list().await,
        }
    }

    /// Fills all of `block` from that offset. The block moves in and comes back, so a read whose future was dropped still
    /// owns the memory that it writes to; after an error its content is undefined.
    pub async fn read(&self, name: &str, offset: u64, block: Block) -> (Block, Result<(), StoreError>) {
        match self {
            Self::Directory(directory) => directory.read(name, offset, block).await,
            #[cfg(feature = "ceph")]
            Self::Rados(rados) => rados.read(name, offset, block).await,
            #[cfg(feature = "s3")]
            Self::S3(s3) => s3.read(name, offset, block).await,
        }
    }

    /// Writes a small object, all or nothing: others see the old content or the new.
    pub async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.write(name, bytes).await,
            #[cfg(feature = "ceph")]
            Self::Rados(rados) => rados.write(name, bytes).await,
            #[cfg(feature = "s3")]
            Self::S3(s3) => s3.write(name, bytes).await,
        }
    }

    /// Copies a shard of that size from another store, in place of one of that name. Readers never see a part of it: until
    /// it is whole, and when this fails, they find none.
    pub async fn copy_from(&self, name: &str, bytes: u64, from: &Self) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.copy_from(name, bytes, from).await,
            #[cfg(feature = "ceph")]
            Self::Rados(rados) => rados.copy_from(name, bytes, from).await,
            #[cfg(feature = "s3")]
            Self::S3(s3) => s3.copy_from(name, bytes, from).await,
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.root().display()),
            #[cfg(feature = "ceph")]
            Self::Rados(rados) => rados.fmt(f),
            #[cfg(feature = "s3")]
            Self::S3(s3) => s3.fmt(f),
        }
    }
}
