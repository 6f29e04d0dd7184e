//! The control plane and the command line: from a job file to a running gang of workers.
//!
//! Reading order: `job` (what a user writes, checked), `backend` (where jobs run, and what is known of them),
//! `cli` (the words of the command line), `commands` (one function per verb), `output` (how things are shown),
//! `doctor` (what a cluster lacks), `dataset` (data sets and their faults), `serve` (the control plane of a cluster),
//! `config` (environment, read once), `error` (what a user sees when it fails, and the exit codes).

pub mod backend;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dataset;
pub mod doctor;
pub mod error;
pub mod job;
pub mod output;
pub mod placement;
mod process;
pub mod rendezvous;
pub mod serve;
pub mod topology;
