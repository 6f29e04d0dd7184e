//! What a worker's two containers ask for, and the sum of it that placement plans with (pure).
//!
//! Whole CPUs are only a container's own in a pod of the Guaranteed class: every container asks for exactly its limits,
//! and for whole CPUs (kubernetes.io, "Control CPU Management Policies on the Node"). So where ranks have whole CPUs, the
//! sidecar has some, too; otherwise it asks for little and may use what is idle.

use serde_json::{Map, Value, json};

use crate::job::Job;
use crate::job::units::{Bytes, Quantity};
use crate::placement::{Need, Request};

/// Thousandths of a CPU that a sidecar asks for beside ranks without CPUs of their own: what it uses between steps.
const SIDECAR_CPU_MILLIS: u64 = 100;
/// Memory that it asks for then: the program, its buffers, and a small cache.
const SIDECAR_MEMORY_BYTES: u64 = 256 << 20;
/// CPUs of a sidecar beside ranks that have whole ones: one moves about 1 GB/s.
const SIDECAR_CPUS: u32 = 1;
/// Memory of such a sidecar: the cache, and rings of four batches.
const SIDECAR_GUARANTEED_MEMORY_BYTES: u64 = 2 << 30;

/// Thousandths of a CPU that a data server asks for where the job does not say: one moves about 1 GB/s.
const SERVER_CPU_MILLIS: u64 = 1000;
/// Memory of a data server where the job does not say: two windows of 64 chunks for each of two servers, with room.
const SERVER_MEMORY_BYTES: u64 = 4 << 30;

/// What one container asks for. Devices are not in it: they depend on the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Whether that is its limit, too.
    pub cpu_limited: bool,
    /// Memory in bytes; 0 for no request.
    pub memory_bytes: u64,
    /// Whether that is its limit, too.
    pub memory_limited: bool,
    /// Huge pages of 2 MiB, in bytes; always a limit, too.
    pub hugepage_bytes: u64,
}

/// What the containers of a worker ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// The user's container.
    pub ranks: Share,
    /// The sidecar.
    pub sidecar: Share,
    /// Whether the pod is of the Guaranteed class.
    pub guaranteed: bool,
}

/// What the containers of one of the job's workers ask for.
#[must_use]
pub fn shares(job: &Job) -> Shares {
    let resources = &job.resources;
    let sidecar = job.pod.sidecar.clone().unwrap_or_default();
    let guaranteed = resources.cpus.is_some() && resources.memory.is_some();
    let millis = |cpus: u32| u64::from(cpus).saturating_mul(1000);
    let memory = sidecar.memory.as_ref().and_then(bytes);
    let default = if guaranteed { SIDECAR_GUARANTEED_MEMORY_BYTES } else { SIDECAR_MEMORY_BYTES };
    Shares {
        ranks: Share {
            cpu_millis: resources.cpus.map_or(0, |cpus| millis(cpus.get())),
            cpu_limited: resources.cpus.is_some(),
            memory_bytes: resources.memory.map_or(0, |memory| memory.0),
            memory_limited: resources.memory.is_some(),
            hugepage_bytes: 0,
        },
        sidecar: Share {
            cpu_millis: match (sidecar.cpus, guaranteed) {
                (Some(cpus), _) => millis(cpus),
                (None, true) => millis(SIDECAR_CPUS),
                (None, false) => SIDECAR_CPU_MILLIS,
            },
            cpu_limited: guaranteed,
            memory_bytes: memory.unwrap_or(default),
            memory_limited: guaranteed || memory.is_some(),
            // The sidecar makes the rings and touches their pages first, so they are counted against its limit.
            hugepage_bytes: resources.hugepages.map_or(0, |bytes| bytes.0),
        },
        guaranteed,
    }
}

/// What a data server asks for. Its memory is always limited: what it may hold follows from it.
#[must_use]
pub(super) fn server_share(job: &Job) -> Share {
    let servers = job.data.as_ref().and_then(|data| data.servers.as_ref());
    let cpus = servers.and_then(|servers| servers.cpus);
    Share {
        cpu_millis: cpus.map_or(SERVER_CPU_MILLIS, |cpus| u64::from(cpus.get()).saturating_mul(1000)),
        cpu_limited: cpus.is_some(),
        memory_bytes: servers.and_then(|servers| servers.memory).map_or(SERVER_MEMORY_BYTES, |bytes| bytes.0),
        memory_limited: true,
        hugepage_bytes: 0,
    }
}

/// What one pod of the job needs in total.
#[must_use]
pub fn need(job: &Job) -> Need {
    let Shares { ranks, sidecar, guaranteed } = shares(job);
    let cpu_millis = ranks.cpu_millis.saturating_add(sidecar.cpu_millis);
    let whole = guaranteed.then(|| u32::try_from(cpu_millis / 1000).unwrap_or(u32::MAX));
    let own_nics = job.pod.sidecar.as_ref().map_or(0, |sidecar| sidecar.nics);
    let devices = job.pod.devices.clone().unwrap_or_default();
    Need {
        cpus: whole,
        cpu_millis: if guaranteed { 0 } else { cpu_millis },
        memory_bytes: ranks.memory_bytes.saturating_add(sidecar.memory_bytes),
        hugepage_bytes: ranks.hugepage_bytes.saturating_add(sidecar.hugepage_bytes),
        gpus: job.resources.gpus,
        gpu_mode: job.resources.gpu_mode.clone(),
        gpu_model: devices.gpu_model,
        nics: job.resources.nics.saturating_add(own_nics),
        gpu_name: devices.gpu,
        nic_name: devices.nic,
        devices_by: devices.by,
    }
}

/// What all pods of the job ask of a cluster.
#[must_use]
pub fn request(job: &Job) -> Request {
    Request { need: need(job), ..Request::of(job) }
}

impl Share {
    /// `requests` and `limits` of a container, with extended resources beside it: those are always both.
    pub(super) fn render(&self, extended: &[(&str, u32)]) -> Value {
        let (mut requests, mut limits) = (Map::new(), Map::new());
        if self.cpu_millis > 0 {
            let cpu = cpu(self.cpu_millis);
            requests.insert("cpu".to_owned(), json!(cpu));
            if self.cpu_limited {
                limits.insert("cpu".to_owned(), json!(cpu));
            }
        }
        if self.memory_bytes > 0 {
            let memory = Bytes(self.memory_bytes).to_string();
            requests.insert("memory".to_owned(), json!(memory));
            if self.memory_limited {
                limits.insert("memory".to_owned(), json!(memory));
            }
        }
        if self.hugepage_bytes > 0 {
            let pages = Bytes(self.hugepage_bytes).to_string();
            requests.insert("hugepages-2Mi".to_owned(), json!(pages));
            limits.insert("hugepages-2Mi".to_owned(), json!(pages));
        }
        for (name, count) in extended.iter().filter(|(_, count)| *count > 0) {
            requests.insert((*name).to_owned(), json!(count.to_string()));
            limits.insert((*name).to_owned(), json!(count.to_string()));
        }
        let mut resources = Map::new();
        if !requests.is_empty() {
            resources.insert("requests".to_owned(), requests.into());
        }
        if !limits.is_empty() {
            resources.insert("limits".to_owned(), limits.into());
        }
        resources.into()
    }
}

fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// Bytes of a quantity that was checked when the job was.
pub(super) fn bytes(quantity: &Quantity) -> Option<u64> {
    quantity.0.parse::<Bytes>().ok().map(|bytes| bytes.0)
}
