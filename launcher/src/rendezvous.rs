//! Bringing a job's workers together, and keeping exactly one membership of them alive.
//!
//! Reading order: `group` (who belongs to it and what happens next, pure), `authority` (the job's certificates),
//! `server` (connections).

pub mod authority;
pub mod group;
pub mod server;
