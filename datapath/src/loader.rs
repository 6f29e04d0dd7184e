//! Keeps a ring full.

pub mod plan;
