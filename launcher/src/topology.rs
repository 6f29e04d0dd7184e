//! What there is to place workers on: hosts with their CPUs, memory and distances (pure).

use std::collections::BTreeMap;

pub mod local;

/// Hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// In the order of the fabric: neighbours are close.
    pub hosts: Vec<Host>,
}

/// One host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// CPUs that jobs may use.
    pub cpus: Vec<u32>,
    /// NUMA nodes, each with its CPUs; empty when the host does not say.
    pub numa: BTreeMap<u32, Vec<u32>>,
    /// Bytes.
    pub memory_bytes: u64,
    /// GPUs that jobs may use.
    pub gpus: Vec<u32>,
    /// NICs that can do RDMA and that jobs may use.
    pub nics: u32,
}
