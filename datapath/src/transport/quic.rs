//! The QUIC lane.

pub mod tls;
