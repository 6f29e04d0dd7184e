//! Which worker goes where (pure): `Cluster + Request → Placement`, or a reason for every host that was refused.
//!
//! ```text
//! names: how devices can be asked for ─► admit: which hosts may be used ─► room: how many workers each has room for
//!   ─► choose: which hosts take how many ─► seat: NUMA nodes and CPUs of each worker, ranks in the fabric's order
//! ```
//! All workers of a job need the same, so a host is a number: how many it has room for. Filling up by numbers finds a
//! placement whenever there is one, and takes no longer than sorting the hosts. What is asked for as *preferred* is
//! weighed in this order: taints that ask to be avoided, blocks, racks, hosts, whole NUMA nodes.

use std::collections::BTreeMap;

use worker::units::WorkerId;

use crate::job::Job;
use crate::job::spec::pod::{DevicesBy, TolerationSpec};
use crate::job::spec::{Locality, Rack, Strategy};
use crate::job::units::GpuMode;
use crate::topology::Cluster;

mod account;
mod admit;
mod choose;
mod explain;
mod names;
mod notes;
mod order;
mod room;
mod seat;
mod solve;
#[cfg(test)]
mod tests;

pub use account::verify;

/// What a job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The workers to place, spares last: their number is their place in the order of ranks.
    pub workers: Vec<WorkerId>,
    /// How many of them have ranks (the others are spares).
    pub seated: u32,
    /// What each of them needs.
    pub need: Need,
    /// How close a worker's devices, CPUs and memory must lie.
    pub locality: Locality,
    /// On few hosts, or on many.
    pub strategy: Strategy,
    /// Whether all lie in one rack.
    pub rack: Rack,
    /// Whether all lie in one block.
    pub block: Rack,
    /// Hosts that are not used, each with the reason that a refusal says.
    pub exclude: BTreeMap<String, String>,
    /// Hosts that are not used for a while, and why.
    pub shunned: BTreeMap<String, String>,
    /// Only hosts with these labels.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are borne.
    pub tolerations: Vec<TolerationSpec>,
    /// Workers of the job that have their places already, each with its host: their amounts are taken from the cluster,
    /// and those that are placed now belong near them.
    pub placed: BTreeMap<WorkerId, String>,
}

/// What one worker needs, its sidecar included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Whole CPUs, bound; none: `cpu_millis` of shared ones.
    pub cpus: Option<u32>,
    /// Thousandths of shared CPUs; only where `cpus` is none.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Huge pages, in bytes.
    pub hugepage_bytes: u64,
    /// GPUs, or what `gpu_mode` says instead.
    pub gpus: u32,
    /// How a GPU is had.
    pub gpu_mode: GpuMode,
    /// The GPUs' model, `*` for anything in it; none: any.
    pub gpu_model: Option<String>,
    /// NICs.
    pub nics: u32,
    /// The name that GPUs are asked for by; none: any that the cluster has.
    pub gpu_name: Option<String>,
    /// The name that NICs are asked for by; none: any that the cluster has.
    pub nic_name: Option<String>,
    /// Which mechanism hands out devices that are not named.
    pub devices_by: DevicesBy,
}

impl Request {
    /// What all workers of `job` ask for.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        let total = job.workers.total();
        let exclude = job.placement.exclude.iter();
        let devices = job.pod.devices.clone().unwrap_or_default();
        Self {
            workers: (0..total).map(WorkerId).collect(),
            seated: job.workers.count.get(),
            need: Need {
                cpus: job.resources.cpus.map(std::num::NonZeroU32::get),
                cpu_millis: 0,
                memory_bytes: job.resources.memory.map_or(0, |memory| memory.0),
                hugepage_bytes: job.resources.hugepages.map_or(0, |bytes| bytes.0),
                gpus: job.resources.gpus,
                gpu_mode: job.resources.gpu_mode.clone(),
                gpu_model: devices.gpu_model,
                nics: job.resources.nics,
                gpu_name: devices.gpu,
                nic_name: devices.nic,
                devices_by: devices.by,
            },
            locality: job.resources.locality,
            strategy: job.placement.strategy,
            rack: job.placement.rack,
            block: job.placement.block,
            shunned: BTreeMap::new(),
            exclude: exclude
                .map(|host| (host.clone(), "excluded by spec.placement.exclude".to_owned()))
                .collect(),
            node_selector: job.pod.node_selector.clone(),
            tolerations: job.pod.tolerations.clone(),
            placed: BTreeMap::new(),
        }
    }
}

/// Who goes where; leaves nothing to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// In the order of [`Request::workers`].
    pub workers: Vec<PlacedWorker>,
    /// The name that GPUs are asked for by, the same for all workers; none where none are.
    pub gpu_name: Option<String>,
    /// The name that NICs are asked for by.
    pub nic_name: Option<String>,
    /// What was decided and why, one line each.
    pub notes: Vec<String>,
}

/// One worker's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedWorker {
    /// Which.
    pub worker: WorkerId,
    /// Its host.
    pub host: String,
    /// CPUs to bind to; empty: unbound, or left to the kubelet.
    pub cpus: Vec<u32>,
    /// The node that they (and its devices) lie on, if it is one and known.
    pub numa_node: Option<u32>,
}

/// Why a job cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("place {wanted} workers: there is room for {placed}")]
pub struct Unplaceable {
    /// Workers that were asked for.
    pub wanted: u32,
    /// Workers that there is room for.
    pub placed: u32,
    /// Why hosts could not take (all of) them: hosts with one reason share a line, the most frequent first.
    pub reasons: Vec<String>,
    /// The job would not fit if nothing else ran: no wait helps, only another cluster or another job.
    pub never: bool,
}

impl Unplaceable {
    /// All of it for people: what cannot be done, then the reasons, one line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        std::iter::once(format!("cannot {self}")).chain(self.reasons.iter().cloned())
    }
}

/// Places all of them or none. The same cluster and request give the same answer, in whatever order the hosts are listed.
///
/// # Errors
/// When there is no room for all.
pub fn place(cluster: &Cluster, request: &Request) -> Result<Placement, Unplaceable> {
    solve::place(cluster, request)
}
