//! What a sound job may ask for and no backend has, or none of this build (pure).

use datapath::select::TransportPolicy;

use crate::job::Job;
use crate::job::spec::{DataMemory, Framework};

/// What this build lacks where its own program runs the workers, besides [`lacks`]. On a cluster the sidecars' image decides.
#[must_use]
pub fn lacks_here(job: &Job) -> Option<(&'static str, &'static str)> {
    let transport = job.data.as_ref()?.transport;
    let is_lacking = transport == TransportPolicy::RequireRdma && !cfg!(feature = "rdma");
    is_lacking.then_some(("spec.data.transport: require-rdma", "prefer-rdma or quic"))
}

/// What no backend has: the field with its value, and what to use instead.
#[must_use]
pub fn lacks(job: &Job) -> Vec<(&'static str, &'static str)> {
    let mut lacks = Vec::new();
    if let Some(data) = &job.data {
        match data.memory {
            DataMemory::Gpu => lacks.push(("spec.data.memory: gpu", "auto or host")),
            DataMemory::Pinned => lacks.push(("spec.data.memory: pinned", "auto or host")),
            DataMemory::Auto | DataMemory::Host => {}
        }
    }
    match job.run.framework {
        Framework::Mpi => lacks.push((
            "spec.run.framework: mpi",
            "torch, jax or none (MPI's own launcher starts its ranks and would need an agent on each host)",
        )),
        Framework::None | Framework::Torch | Framework::Jax => {}
    }
    lacks
}
