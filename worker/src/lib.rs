//! One host's agent: joins the rendezvous, runs ranks, serves PyTorch's store, feeds the trainers.
//!
//! Knows no Kubernetes API. Reading order: `units`, `config`, `rendezvous`, `host`, `affinity`, `torch_store`,
//! `supervisor`, `evidence`, `files`, `telemetry`, `agent`.

pub mod affinity;
pub mod agent;
pub mod config;
pub mod environment;
pub mod evidence;
pub mod files;
pub mod host;
mod process;
pub mod python;
pub mod rendezvous;
pub mod supervisor;
pub mod sweep;
pub mod telemetry;
pub mod torch_store;
pub mod units;

pub use agent::run;
