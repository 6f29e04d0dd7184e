//! What devices say themselves, beyond what the kernel tells of them. Builds without the feature `rdma` cannot ask, and say so.

use super::choose::Found;
use super::reason::Reason;

/// What an open device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of data in a packet at the most; none while no port of it can be used.
    pub packet_bytes: Option<u16>,
    /// Its driver registers memory of other devices, such as GPUs, by their dma-buf.
    pub takes_dmabuf: bool,
}

/// All devices of this host, with what keeps them from being used.
///
/// # Errors
/// Why none of them can be used by this program here.
#[cfg(feature = "rdma")]
pub fn found() -> Result<Vec<Found>, super::VerbsError> {
    use std::path::Path;

    use super::{sysfs, verbs};

    let listed = verbs::Device::list()?;
    let mut found = sysfs::found(Path::new(sysfs::SYSFS));
    for device in found.iter_mut().filter(|device| !listed.contains(&device.name)) {
        device.way = Err((Reason::NoUverbsNode, "libibverbs does not list it".to_owned()));
    }
    Ok(found)
}

/// All devices of this host, with what keeps them from being used; the error in a word and in many.
///
/// # Errors
/// Why none of them can be used by this program here.
pub fn devices() -> Result<Vec<Found>, (Reason, String)> {
    #[cfg(feature = "rdma")]
    return found().map_err(told);
    #[cfg(not(feature = "rdma"))]
    Err((Reason::NotBuilt, NOT_BUILT.to_owned()))
}

/// Opens a device and asks it.
///
/// # Errors
/// When it cannot be opened.
#[cfg(feature = "rdma")]
pub fn ask(device: &str) -> Result<Answer, (Reason, String)> {
    let answer = || {
        let device = super::verbs::Device::open(device)?;
        let takes_dmabuf = device.protection_domain()?.takes_dmabuf();
        let packet_bytes = device.path().ok().map(|path| path.mtu.bytes());
        Ok(Answer { packet_bytes, takes_dmabuf })
    };
    answer().map_err(told)
}

/// Does not ask it.
///
/// # Errors
/// Always: this build cannot.
#[cfg(not(feature = "rdma"))]
pub fn ask(_device: &str) -> Result<Answer, (Reason, String)> {
    Err((Reason::NotBuilt, NOT_BUILT.to_owned()))
}

#[cfg(not(feature = "rdma"))]
const NOT_BUILT: &str = "this build has no RDMA";

#[cfg(feature = "rdma")]
#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn told(error: super::VerbsError) -> (Reason, String) {
    // The word is said beside it.
    (error.reason, format!("{}; {}", error.source, error.reason.hint()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_says_nothing() {
        assert!(ask("no such device").is_err());
        if let Err((reason, words)) = devices() {
            assert!(!words.is_empty(), "{reason}");
        }
    }
}
