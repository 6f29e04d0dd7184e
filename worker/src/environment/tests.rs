//! What a rank sees, variable by variable.

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
        roster: 0,
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
    let mut inputs = inputs(&inherited, &job_env, &assignment);
    edit(&mut inputs);
    of_rank(&inputs)
}

fn inputs<'a>(
    inherited: &'a BTreeMap<String, String>,
    job_env: &'a BTreeMap<String, String>,
    assignment: &'a Assignment,
) -> Inputs<'a> {
    Inputs {
        inherited,
        job_env,
        job: "mnist-1a2b",
        job_uid: "0123abcd",
        worker: WorkerId(1),
        framework: Framework::Torch,
        assignment,
        local_rank: 1,
        rank: Rank(3),
        master: "10.0.0.1:4711".parse().unwrap(),
        interface: Some("eth0"),
        cpus: &[],
        data_socket: Some("slipway-77"),
        error_file: Path::new("/logs/.errors/3-3.json"),
        flight_folder: Path::new("/logs/flight-g3-w1"),
        checkpoint_folder: Path::new("/state/checkpoints"),
        python_folder: Path::new("/state/python"),
    }
}

fn lines(env: &BTreeMap<String, String>) -> String {
    env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_whole_contract_for_torch() {
    let env = render(&[], &[("LR", "0.1")], |_| ());
    let expected = "\
GLOO_SOCKET_IFNAME=eth0
GROUP_RANK=1
GROUP_WORLD_SIZE=4
LOCAL_RANK=1
LOCAL_WORLD_SIZE=2
LR=0.1
MASTER_ADDR=10.0.0.1
MASTER_PORT=4711
NCCL_SOCKET_IFNAME==eth0
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
TORCH_FR_BUFFER_SIZE=2000
TORCH_NCCL_ASYNC_ERROR_HANDLING=1
TORCH_NCCL_DEBUG_INFO_TEMP_FILE=/logs/flight-g3-w1/rank_
TORCH_NCCL_DUMP_ON_TIMEOUT=1
TORCH_NCCL_TRACE_BUFFER_SIZE=2000
WORLD_SIZE=8";
    assert_eq!(lines(&env), expected);
}

#[test]
fn the_whole_contract_for_jax() {
    let env = render(&[("no_proxy", "a,b")], &[], |inputs| {
        inputs.framework = Framework::Jax;
        inputs.interface = None;
    });
    let expected = "\
GROUP_RANK=1
GROUP_WORLD_SIZE=4
JAX_COORDINATOR_ADDRESS=10.0.0.1:4711
JAX_NUM_PROCESSES=8
JAX_PROCESS_ID=3
LOCAL_RANK=1
LOCAL_WORLD_SIZE=2
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
WORLD_SIZE=8
no_grpc_proxy=a,b,10.0.0.1";
    assert_eq!(lines(&env), expected);
    let env = render(&[("no_proxy", "a")], &[("no_grpc_proxy", "c")], |inputs| {
        inputs.framework = Framework::Jax;
        inputs.master = "[fd00::1]:9".parse().unwrap();
    });
    assert_eq!(
        (env["no_grpc_proxy"].as_str(), env["JAX_COORDINATOR_ADDRESS"].as_str()),
        ("c,fd00::1", "[fd00::1]:9")
    );
}

#[test]
fn without_a_framework_there_is_a_world_and_no_policy_of_torchs() {
    let env = render(&[], &[], |inputs| inputs.framework = Framework::None);
    assert_eq!((env["RANK"].as_str(), env["MASTER_PORT"].as_str()), ("3", "4711"));
    assert_eq!(env.keys().find(|name| name.starts_with("TORCH_")), None);
}

#[test]
fn policy_yields_to_the_job_and_to_what_is_inherited_under_either_name() {
    let job = [("NCCL_SOCKET_IFNAME", "ib"), ("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")];
    let env = render(&[("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")], &job, |_| ());
    assert_eq!(env["NCCL_SOCKET_IFNAME"], "ib");
    assert_eq!(env["TORCH_NCCL_TRACE_BUFFER_SIZE"], "7");
    assert_eq!(env.get("TORCH_FR_BUFFER_SIZE"), None, "it would win over the job's other name of it");
    assert_eq!(env.get("TORCH_NCCL_DUMP_ON_TIMEOUT"), None, "inherited as it is");
}

#[test]
fn one_thread_each_where_several_ranks_share_a_host() {
    let alone = |inputs: &mut Inputs<'_>| inputs.cpus = &[];
    assert_eq!(render(&[], &[], alone)["OMP_NUM_THREADS"], "1", "two ranks of one worker");
    let one = Assignment { ranks: vec![Rank(3)], ..assignment() };
    let threads = |master: &str| {
        let (empty, master) = (BTreeMap::new(), master.parse().unwrap());
        let inputs = Inputs { assignment: &one, master, ..inputs(&empty, &empty, &one) };
        of_rank(&inputs).get("OMP_NUM_THREADS").cloned()
    };
    assert_eq!(threads("10.0.0.1:1"), None, "nobody knows who else is there");
    assert_eq!(threads("127.0.0.1:1").as_deref(), Some("1"), "eight ranks behind a loopback address");
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
fn threads_follow_the_binding_and_interfaces_are_named_exactly() {
    let env = render(&[], &[], |inputs| {
        inputs.cpus = &[4, 5, 6];
        inputs.interface = Some("lo");
        inputs.data_socket = None;
    });
    assert_eq!(env["OMP_NUM_THREADS"], "3");
    assert_eq!((env["GLOO_SOCKET_IFNAME"].as_str(), env["NCCL_SOCKET_IFNAME"].as_str()), ("lo", "=lo"));
    assert_eq!(env.get("SLIPWAY_DATA_SOCKET"), None);
    assert!(REMOVED.contains(&"SLIPWAY_DATA_SOCKET"), "an outer job's socket must not shine through");
}
