//! The environment of a rank: what `torchrun` sets, what Slipway adds (pure: inputs in, a map out).
//!
//! A rank inherits the worker's environment; the map lies over it. Precedence, weakest first: inherited, our
//! defaults, the job's own `env`, then the names that describe the world, which nobody may set otherwise.
//! torchrun's list: torch/distributed/elastic/agent/server/local_elastic_agent.py.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use crate::rendezvous::message::Assignment;
use crate::sweep::{COOKIE_VARIABLE, cookie};
use crate::units::{Rank, WorkerId};

/// Names that must not reach a rank from outside: they would describe somebody else's world.
pub const REMOVED: [&str; 4] =
    ["SLIPWAY_DATA_SOCKET", "TORCHELASTIC_ERROR_FILE", "NCCL_COMM_ID", "NCCL_HOSTID"];

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
    /// Its part of the generation.
    pub assignment: &'a Assignment,
    /// The rank's place in `assignment.ranks`.
    pub local_rank: u32,
    /// The rank.
    pub rank: Rank,
    /// Where the store is.
    pub master: SocketAddr,
    /// CPUs that the rank is bound to; empty for none.
    pub cpus: &'a [u32],
    /// Abstract unix socket of its batches, without the leading NUL; none for a job without data.
    pub data_socket: Option<&'a str>,
    /// Where the program may leave its last words (torch's error file).
    pub error_file: &'a Path,
    /// Where checkpoints go.
    pub checkpoint_folder: &'a Path,
    /// The folder of the `slipway` Python package.
    pub python_folder: &'a Path,
}

/// The variables that lie over the inherited ones.
#[must_use]
pub fn of_rank(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let mut env = defaults(inputs);
    env.extend(inputs.job_env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.insert("PYTHONPATH".into(), python_path(inputs, env.get("PYTHONPATH")));
    let mut set = |name: &str, value: String| env.insert(name.into(), value);
    torch(inputs, &mut set);
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
fn defaults(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let mut defaults =
        vec![("PYTHONUNBUFFERED", "1".to_owned()), ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1".into())];
    // Without this every rank's OpenMP takes all of the host's CPUs; torchrun's own default is 1.
    if !inputs.cpus.is_empty() {
        defaults.push(("OMP_NUM_THREADS", inputs.cpus.len().to_string()));
    } else if inputs.assignment.ranks.len() > 1 {
        defaults.push(("OMP_NUM_THREADS", "1".into()));
    }
    // gloo and NCCL would else pick an interface by the host's name, which need not lead to this one.
    if inputs.master.ip().is_loopback() {
        defaults.push(("GLOO_SOCKET_IFNAME", "lo".into()));
        defaults.push(("NCCL_SOCKET_IFNAME", "lo".into()));
    }
    defaults
        .into_iter()
        .filter(|(name, _)| !inputs.inherited.contains_key(*name))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn python_path(inputs: &Inputs<'_>, by_job: Option<&String>) -> String {
    let ours = text(inputs.python_folder);
    match by_job.or_else(|| inputs.inherited.get("PYTHONPATH")) {
        Some(theirs) if !theirs.is_empty() => format!("{ours}:{theirs}"),
        _ => ours,
    }
}

fn torch(inputs: &Inputs<'_>, set: &mut impl FnMut(&str, String) -> Option<String>) {
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
    set("MASTER_ADDR", inputs.master.ip().to_string());
    set("MASTER_PORT", inputs.master.port().to_string());
    set("TORCHELASTIC_RUN_ID", inputs.job_uid.into());
    set("TORCHELASTIC_RESTART_COUNT", assignment.restarts.to_string());
    set("TORCHELASTIC_MAX_RESTARTS", assignment.max_restarts.to_string());
    // The store is ours: torch must connect to it on every rank instead of opening one on rank 0.
    set("TORCHELASTIC_USE_AGENT_STORE", "True".into());
    set("TORCHELASTIC_ERROR_FILE", text(inputs.error_file));
}

/// Paths come from the configuration, which is JSON and so UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Generation, Step};

    fn assignment() -> Assignment {
        Assignment {
            generation: Generation(3),
            world_size: 8,
            group_world_size: 4,
            group_rank: 1,
            ranks: vec![Rank(2), Rank(3)],
            restarts: 2,
            max_restarts: 5,
            serves_store: false,
            start_step: Step(700),
            peers: Vec::new(),
        }
    }

    fn render(
        inherited: &[(&str, &str)],
        job_env: &[(&str, &str)],
        edit: impl FnOnce(&mut Inputs<'_>),
    ) -> BTreeMap<String, String> {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let (inherited, job_env, assignment) = (map(inherited), map(job_env), assignment());
        let mut inputs = Inputs {
            inherited: &inherited,
            job_env: &job_env,
            job: "mnist-1a2b",
            job_uid: "0123abcd",
            worker: WorkerId(1),
            assignment: &assignment,
            local_rank: 1,
            rank: Rank(3),
            master: "10.0.0.1:4711".parse().unwrap(),
            cpus: &[],
            data_socket: Some("slipway-77"),
            error_file: Path::new("/logs/.errors/3-3.json"),
            checkpoint_folder: Path::new("/state/checkpoints"),
            python_folder: Path::new("/state/python"),
        };
        edit(&mut inputs);
        of_rank(&inputs)
    }

    #[test]
    fn the_whole_contract() {
        let env = render(&[], &[("LR", "0.1")], |_| ());
        let lines: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = "\
GROUP_RANK=1
GROUP_WORLD_SIZE=4
LOCAL_RANK=1
LOCAL_WORLD_SIZE=2
LR=0.1
MASTER_ADDR=10.0.0.1
MASTER_PORT=4711
OMP_NUM_THREADS=1
PYTHONPATH=/state/python
PYTHONUNBUFFERED=1
RANK=3
ROLE_NAME=default
ROLE_RANK=3
ROLE_WORLD_SIZE=8
SLIPWAY_CHECKPOINT_DIR=/state/checkpoints
SLIPWAY_DATA_SOCKET=slipway-77
SLIPWAY_GENERATION=3
SLIPWAY_JOB=mnist-1a2b
SLIPWAY_JOB_UID=0123abcd
SLIPWAY_RANK_COOKIE=0123abcd.3.1
SLIPWAY_RESTARTS=2
SLIPWAY_START_STEP=700
SLIPWAY_WORKER=1
TORCHELASTIC_ERROR_FILE=/logs/.errors/3-3.json
TORCHELASTIC_MAX_RESTARTS=5
TORCHELASTIC_RESTART_COUNT=2
TORCHELASTIC_RUN_ID=0123abcd
TORCHELASTIC_USE_AGENT_STORE=True
TORCH_NCCL_ASYNC_ERROR_HANDLING=1
WORLD_SIZE=8";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn a_job_overrides_defaults_but_not_the_world() {
        let job = [("RANK", "0"), ("OMP_NUM_THREADS", "7"), ("PYTHONPATH", "/mine"), ("MASTER_PORT", "1")];
        let env = render(&[("PYTHONPATH", "/outer")], &job, |_| ());
        assert_eq!(env["RANK"], "3");
        assert_eq!(env["MASTER_PORT"], "4711");
        assert_eq!(env["OMP_NUM_THREADS"], "7");
        assert_eq!(env["PYTHONPATH"], "/state/python:/mine");
    }

    #[test]
    fn what_is_inherited_is_kept_where_it_is_a_choice() {
        let env = render(&[("PYTHONPATH", "/outer"), ("OMP_NUM_THREADS", "2"), ("RANK", "9")], &[], |_| ());
        assert_eq!(env["PYTHONPATH"], "/state/python:/outer");
        assert_eq!(env.get("OMP_NUM_THREADS"), None, "inherited as it is");
        assert_eq!(env["RANK"], "3");
    }

    #[test]
    fn threads_follow_the_binding_and_loopback_names_its_interface() {
        let env = render(&[], &[], |inputs| {
            inputs.cpus = &[4, 5, 6];
            inputs.master = "127.0.0.1:9".parse().unwrap();
            inputs.data_socket = None;
        });
        assert_eq!(env["OMP_NUM_THREADS"], "3");
        assert_eq!(env["GLOO_SOCKET_IFNAME"], "lo");
        assert_eq!(env.get("SLIPWAY_DATA_SOCKET"), None);
        assert!(REMOVED.contains(&"SLIPWAY_DATA_SOCKET"), "an outer job's socket must not shine through");
    }
}
