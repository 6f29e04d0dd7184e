//! One host's agent: joins the rendezvous, runs ranks, serves PyTorch's store, feeds the trainers.
//!
//! Knows no Kubernetes API. Reading order: `units`, `config`, `rendezvous`, `host`, `affinity`, `torch_store`,
//! `supervisor`, `ranks`, `evidence`, `files`, `telemetry`, `agent`, `pod`.

pub mod affinity;
pub mod agent;
pub mod config;
pub mod environment;
pub mod evidence;
pub mod files;
pub mod host;
pub mod pod;
mod process;
pub mod python;
mod ranks;
pub mod rendezvous;
pub mod supervisor;
pub mod sweep;
pub mod telemetry;
pub mod torch_store;
pub mod units;

pub use agent::run;
