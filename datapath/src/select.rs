//! Which lane carries a request next (pure).

use serde::{Deserialize, Serialize};

/// Which lanes a job allows between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportPolicy {
    /// RDMA where it works, QUIC where it does not.
    #[default]
    PreferRdma,
    /// RDMA or nothing.
    RequireRdma,
    /// QUIC only.
    Quic,
}
