//! Lanes: ways for bytes between two workers.

pub mod quic;
