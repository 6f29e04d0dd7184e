//! A worker that is a pod: a sidecar (`worker pod`) and the container of its ranks (`worker exec`), on one network and one
//! shared folder.
//!
//! Reading order: `identity`, `settings`, `message`, `socket`, `link`, `status`, `http`, `sidecar`, `log_copy`, `exec`.

pub mod exec;
mod http;
pub mod identity;
pub(crate) mod link;
mod log_copy;
pub(crate) mod message;
pub mod settings;
pub mod sidecar;
mod socket;
pub(crate) mod status;

/// What stands for a process number where a worker is a pod: the CRC-32C of the pod's uid, never 0. Whoever made the pod
/// knows it without asking, so a launcher knows whether the worker that registers is the one that it started.
#[must_use]
pub fn process_number(pod_uid: &str) -> u32 {
    datapath::integrity::crc32c(pod_uid.as_bytes()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_number_is_the_same_for_both_sides_and_never_zero() {
        // The check value of CRC-32C (RFC 3720, section B.4 and the catalogue of parametrised CRC algorithms).
        assert_eq!(process_number("123456789"), 0xE306_9283);
        assert_eq!(process_number(""), 1, "the sum of nothing is 0");
    }
}
