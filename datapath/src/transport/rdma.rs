//! Lanes over verbs: what is needed for them, and why they are not to be had where they are not.
//!
//! What decides is here in every build; what calls a device is in `verbs`, with the feature `rdma`.

use std::io;

pub mod ask;
pub mod choose;
pub mod comeback;
pub mod endpoint;
pub mod gid;
pub mod goodput;
#[cfg(feature = "rdma")]
pub(crate) mod lane;
#[cfg(not(feature = "rdma"))]
#[path = "rdma/no_lane.rs"]
pub(crate) mod lane;
pub mod reason;
pub mod spread;
pub mod sysfs;
#[cfg(feature = "rdma")]
pub mod verbs;

use self::reason::{Operation, Reason, of_errno};

/// What a device, or its driver, refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {device}: {reason} ({})", .reason.hint())]
pub struct VerbsError {
    /// What was to be done.
    pub operation: Operation,
    /// With which device.
    pub device: String,
    /// Why it was not.
    pub reason: Reason,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl VerbsError {
    /// By the system's error number.
    #[must_use]
    pub fn of(operation: Operation, device: String, errno: i32) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        Self { operation, device, reason: of_errno(operation, errno), source }
    }

    /// Without one, but with words.
    #[must_use]
    pub fn saying(operation: Operation, device: &str, reason: Reason, what: impl Into<String>) -> Self {
        let source = io::Error::other(what.into());
        Self { operation, device: device.to_owned(), reason, source }
    }
}
