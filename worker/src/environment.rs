//! The environment of a rank: what `torchrun` sets, what Slipway adds (pure: inputs in, a map out).
//!
//! A rank inherits the worker's environment; the map lies over it. Precedence, strongest first: the names that
//! describe the world, which nobody may set otherwise; the job's own `env`; what is inherited; our policy.
//! docs/environment.md lists all of them for users.
//!
//! torchrun's list: torch/distributed/elastic/agent/server/local_elastic_agent.py. JAX's: jax/_src/distributed.py.
//! Horovod's `HOROVOD_*` are not here: they only mean something together with its own rendezvous server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use crate::config::Framework;
use crate::rendezvous::message::Assignment;
use crate::sweep::{COOKIE_VARIABLE, cookie};
use crate::units::{Rank, WorkerId};

/// Names that must not reach a rank from outside: they would describe somebody else's world.
pub const REMOVED: [&str; 13] = [
    "SLIPWAY_DATA_SOCKET",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "NCCL_COMM_ID",
    "NCCL_HOSTID",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
];

/// Entries of torch's flight recorder per rank: the last collectives, a few hundred bytes each.
const FLIGHT_ENTRIES: &str = "2000";

/// What the environment of a rank is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The worker's own environment.
    pub inherited: &'a BTreeMap<String, String>,
    /// What the job adds.
    pub job_env: &'a BTreeMap<String, String>,
    /// The job's id.
    pub job: &'a str,
    /// The job's unique id.
    pub job_uid: &'a str,
    /// This worker.
    pub worker: WorkerId,
    /// What the ranks join with.
    pub framework: Framework,
    /// Its part of the generation.
    pub assignment: &'a Assignment,
    /// The rank's place in `assignment.ranks`.
    pub local_rank: u32,
    /// The rank.
    pub rank: Rank,
    /// Where the ranks meet: the store, or for JAX the address that rank 0 serves.
    pub master: SocketAddr,
    /// The interface that the ranks' traffic goes over, if its name is known.
    pub interface: Option<&'a str>,
    /// CPUs that the rank is bound to; empty for none.
    pub cpus: &'a [u32],
    /// Abstract unix socket of its batches, without the leading NUL; none for a job without data.
    pub data_socket: Option<&'a str>,
    /// Where the program may leave its last words (torch's error file).
    pub error_file: &'a Path,
    /// Where torch's flight recorder dumps what it knows after a time-out.
    pub flight_folder: &'a Path,
    /// Where checkpoints go.
    pub checkpoint_folder: &'a Path,
    /// The folder of the `slipway` Python package.
    pub python_folder: &'a Path,
}

/// The variables that lie over the inherited ones.
#[must_use]
pub fn of_rank(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let mut env = policy(inputs);
    env.extend(inputs.job_env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.insert("PYTHONPATH".into(), python_path(inputs, env.get("PYTHONPATH")));
    if inputs.framework == Framework::Jax {
        env.insert("no_grpc_proxy".into(), without_proxy(inputs, env.get("no_grpc_proxy")));
    }
    let mut set = |name: &str, value: String| env.insert(name.into(), value);
    world(inputs, &mut set);
    match inputs.framework {
        Framework::None | Framework::Torch => torch(inputs, &mut set),
        Framework::Jax => jax(inputs, &mut set),
    }
    set("SLIPWAY_JOB", inputs.job.into());
    set("SLIPWAY_JOB_UID", inputs.job_uid.into());
    set("SLIPWAY_WORKER", inputs.worker.to_string());
    set("SLIPWAY_GENERATION", inputs.assignment.generation.to_string());
    set("SLIPWAY_RESTARTS", inputs.assignment.restarts.to_string());
    set("SLIPWAY_START_STEP", inputs.assignment.start_step.to_string());
    set("SLIPWAY_CHECKPOINT_DIR", text(inputs.checkpoint_folder));
    set(COOKIE_VARIABLE, cookie(inputs.job_uid, inputs.assignment.generation, inputs.worker));
    if let Some(socket) = inputs.data_socket {
        set("SLIPWAY_DATA_SOCKET", socket.into());
    }
    env
}

/// What a job may set otherwise, and what the surroundings may have set already.
fn policy(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let mut policy = vec![("PYTHONUNBUFFERED", "1".to_owned())];
    // Without this every rank's OpenMP takes all of the host's CPUs. torchrun sets 1 when it starts several.
    if !inputs.cpus.is_empty() {
        policy.push(("OMP_NUM_THREADS", inputs.cpus.len().to_string()));
    } else if shares_its_host(inputs) {
        policy.push(("OMP_NUM_THREADS", "1".into()));
    }
    // gloo and NCCL would else pick an interface by the host's name, which need not lead to the one that is meant.
    if let Some(interface) = inputs.interface {
        policy.push(("GLOO_SOCKET_IFNAME", interface.to_owned()));
        // Without the `=` it is a prefix: eth1 would be eth10, too.
        policy.push(("NCCL_SOCKET_IFNAME", format!("={interface}")));
    }
    if inputs.framework == Framework::Torch {
        policy.extend(torch_policy(inputs));
    }
    let is_free = |name: &str| !inputs.inherited.contains_key(name) && !inputs.job_env.contains_key(name);
    // Two names of one setting: whoever sets either has decided.
    let keeps_flights = is_free("TORCH_FR_BUFFER_SIZE") && is_free("TORCH_NCCL_TRACE_BUFFER_SIZE");
    policy
        .into_iter()
        .filter(|(name, _)| is_free(name) && (keeps_flights || !name.ends_with("_BUFFER_SIZE")))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Failures that explain themselves: a collective that times out aborts its process, and leaves behind what every
/// rank was doing.
fn torch_policy(inputs: &Inputs<'_>) -> [(&'static str, String); 5] {
    // torch appends the rank to the file's name.
    let dump = text(&inputs.flight_folder.join("rank_"));
    [
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1".into()),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1".into()),
        ("TORCH_FR_BUFFER_SIZE", FLIGHT_ENTRIES.into()),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", FLIGHT_ENTRIES.into()),
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", dump),
    ]
}

/// Whether another rank of the job certainly runs on this host: a loopback address leads nowhere else.
fn shares_its_host(inputs: &Inputs<'_>) -> bool {
    let is_local = inputs.master.ip().is_loopback() && inputs.assignment.world_size > 1;
    is_local || inputs.assignment.ranks.len() > 1
}

/// gRPC would send what goes to the coordinator through a proxy, and hang. The job's other traffic may need its
/// proxies, so they are left alone but for this host.
fn without_proxy(inputs: &Inputs<'_>, by_job: Option<&String>) -> String {
    let inherited = |name: &str| inputs.inherited.get(name);
    // gRPC looks at the first of these that is set.
    let theirs = by_job.or_else(|| inherited("no_grpc_proxy"));
    let theirs = theirs.or_else(|| inputs.job_env.get("no_proxy")).or_else(|| inherited("no_proxy"));
    let ours = inputs.master.ip().to_string();
    match theirs {
        Some(theirs) if !theirs.is_empty() => format!("{theirs},{ours}"),
        _ => ours,
    }
}

fn python_path(inputs: &Inputs<'_>, by_job: Option<&String>) -> String {
    let ours = text(inputs.python_folder);
    match by_job.or_else(|| inputs.inherited.get("PYTHONPATH")) {
        Some(theirs) if !theirs.is_empty() => format!("{ours}:{theirs}"),
        _ => ours,
    }
}

fn world(inputs: &Inputs<'_>, set: &mut impl FnMut(&str, String) -> Option<String>) {
    let assignment = inputs.assignment;
    let rank = inputs.rank.to_string();
    let world = assignment.world_size.to_string();
    set("RANK", rank.clone());
    set("LOCAL_RANK", inputs.local_rank.to_string());
    set("GROUP_RANK", assignment.group_rank.to_string());
    set("ROLE_RANK", rank);
    set("ROLE_NAME", "default".into());
    set("WORLD_SIZE", world.clone());
    set("LOCAL_WORLD_SIZE", assignment.ranks.len().to_string());
    set("GROUP_WORLD_SIZE", assignment.group_world_size.to_string());
    set("ROLE_WORLD_SIZE", world);
}

fn torch(inputs: &Inputs<'_>, set: &mut impl FnMut(&str, String) -> Option<String>) {
    set("MASTER_ADDR", inputs.master.ip().to_string());
    set("MASTER_PORT", inputs.master.port().to_string());
    set("TORCHELASTIC_RUN_ID", inputs.job_uid.into());
    set("TORCHELASTIC_RESTART_COUNT", inputs.assignment.restarts.to_string());
    set("TORCHELASTIC_MAX_RESTARTS", inputs.assignment.max_restarts.to_string());
    // The store is ours: torch must connect to it on every rank instead of opening one on rank 0.
    set("TORCHELASTIC_USE_AGENT_STORE", "True".into());
    set("TORCHELASTIC_ERROR_FILE", text(inputs.error_file));
}

fn jax(inputs: &Inputs<'_>, set: &mut impl FnMut(&str, String) -> Option<String>) {
    set("JAX_COORDINATOR_ADDRESS", inputs.master.to_string());
    set("JAX_NUM_PROCESSES", inputs.assignment.world_size.to_string());
    set("JAX_PROCESS_ID", inputs.rank.to_string());
}

/// Paths come from the configuration, which is JSON and so UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
