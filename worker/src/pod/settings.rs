//! From a pod's environment and volumes to a worker's configuration, or everything that is missing (pure but for the
//! files, which the caller reads).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use datapath::plane::Role;

use super::identity;
use crate::config::{DataConfig, PodJob, WorkerConfig};
use crate::units::WorkerId;

/// The worker's number: the Job's completion index.
pub const WORKER_VARIABLE: &str = "SLIPWAY_WORKER";
/// A data server's number: the completion index of the data servers' Job.
pub const SERVER_VARIABLE: &str = "SLIPWAY_SERVER";
/// The number that data server 0 has among all workers.
pub const FIRST_WORKER_VARIABLE: &str = "SLIPWAY_FIRST_WORKER";
/// The pod's address (`status.podIP`).
pub const POD_IP_VARIABLE: &str = "SLIPWAY_POD_IP";
/// The pod's uid (`metadata.uid`).
pub const POD_UID_VARIABLE: &str = "SLIPWAY_POD_UID";
/// The node's name (`spec.nodeName`).
pub const NODE_VARIABLE: &str = "SLIPWAY_NODE";
/// Where probes are answered; [`HTTP_DEFAULT`] without it.
pub const HTTP_VARIABLE: &str = "SLIPWAY_HTTP";
/// A folder in front of all absolute paths, for tests.
pub const ROOT_VARIABLE: &str = "SLIPWAY_ROOT";
/// Where probes are answered: the port that the pod's start-up probe names.
pub const HTTP_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7070);

/// The longest uid: Kubernetes' are 36 characters; the name of a socket has room for 107 (unix(7)).
const UID_CHARS_MAX: usize = 64;

/// The folders of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folders {
    /// What all containers of the pod share.
    pub(crate) shared: PathBuf,
    /// `job.json`.
    pub(crate) job: PathBuf,
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
    /// The worker's own seed and certificate.
    pub(crate) worker: PathBuf,
}

impl Folders {
    pub(crate) fn below(root: &Path) -> Self {
        Self {
            shared: root.join("slipway"),
            job: root.join("slipway-config/job.json"),
            ca: root.join("slipway-identity/ca"),
            worker: root.join("slipway-identity/worker"),
        }
    }
}

/// What a sidecar needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) config: WorkerConfig,
    pub(crate) pod_uid: String,
    pub(crate) node: String,
    pub(crate) http: SocketAddr,
}

/// One thing that keeps the sidecar from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The variable or file.
    pub(crate) place: String,
    /// What is wrong with it.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; hint: {}", self.place, self.what, self.hint)
    }
}

/// What was read from the pod's volumes.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) job: io::Result<Vec<u8>>,
    pub(crate) ca: io::Result<Vec<u8>>,
    pub(crate) worker: io::Result<Vec<u8>>,
}

/// What to do about a variable.
pub(crate) const DOWNWARD: &str =
    "the pod's template sets it through the downward API: was the pod made by the launcher?";
const VOLUMES: &str =
    "the launcher mounts it: do the job's ConfigMap and Secrets exist, and may this user read them?";
const RELEASE: &str = "launcher and worker image must be of one release";

/// The settings, or every fault.
pub(crate) fn read(
    role: Role,
    variable: impl Fn(&str) -> Option<String>,
    folders: &Folders,
    files: Files,
) -> Result<Settings, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut wanted = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        if value.is_none() {
            faults.push(Fault { place: name.to_owned(), what: "it is not set".into(), hint: DOWNWARD });
        }
        value
    };
    let number = if role == Role::Server { SERVER_VARIABLE } else { WORKER_VARIABLE };
    let worker = wanted(number);
    let first = if role == Role::Server { wanted(FIRST_WORKER_VARIABLE) } else { Some("0".to_owned()) };
    let pod_ip = wanted(POD_IP_VARIABLE);
    let pod_uid = wanted(POD_UID_VARIABLE);
    let node = wanted(NODE_VARIABLE);
    let http = variable(HTTP_VARIABLE).filter(|value| !value.is_empty());
    let worker: Option<u32> = parsed(number, "a number", worker.as_deref(), &mut faults);
    let first: Option<u32> = parsed(FIRST_WORKER_VARIABLE, "a number", first.as_deref(), &mut faults);
    let pod_ip: Option<IpAddr> = parsed(POD_IP_VARIABLE, "an IP address", pod_ip.as_deref(), &mut faults);
    let http: Option<SocketAddr> =
        parsed(HTTP_VARIABLE, "an address with a port", http.as_deref(), &mut faults);
    if let Some(uid) = pod_uid.as_ref().filter(|uid| uid.len() > UID_CHARS_MAX) {
        let what = format!("it has {} characters, more than {UID_CHARS_MAX}", uid.len());
        faults.push(Fault { place: POD_UID_VARIABLE.into(), what, hint: DOWNWARD });
    }
    let job =
        bytes(&folders.job, files.job, &mut faults).and_then(|text| job(&folders.job, &text, &mut faults));
    let ca = bytes(&folders.ca, files.ca, &mut faults);
    let own = bytes(&folders.worker, files.worker, &mut faults);
    let identity = ca.zip(own).and_then(|(ca, own)| {
        let identity = identity::decode(&own, ca);
        if identity.is_none() {
            let what = format!("it has {} bytes, too few for a key and a certificate", own.len());
            faults.push(Fault { place: folders.worker.display().to_string(), what, hint: RELEASE });
        }
        identity
    });
    if let Some(job) = job.as_ref().filter(|job| role == Role::Server && job.data.is_none()) {
        let what = format!("the job {} has no data that could be served", job.job);
        faults.push(Fault { place: folders.job.display().to_string(), what, hint: RELEASE });
    }
    let (Some(worker), Some(first), Some(bind), Some(pod_uid), Some(node), Some(job), Some(identity), true) =
        (worker, first, pod_ip, pod_uid, node, job, identity, faults.is_empty())
    else {
        return Err(faults);
    };
    let config = WorkerConfig {
        job: job.job,
        job_uid: job.job_uid,
        worker: WorkerId(first.saturating_add(worker)),
        role,
        launcher: job.launcher,
        launcher_name: job.launcher_name,
        bind,
        identity,
        run: job.run,
        cpus: Vec::new(),
        data: job.data.map(|data| of_role(data, role, job.server_cache_bytes)),
        log_folder: folders.shared.join("logs"),
        checkpoint_folder: job.checkpoint_folder,
        python_folder: folders.shared.join("python"),
        hang_ms: job.hang_ms,
    };
    Ok(Settings { config, pod_uid, node, http: http.unwrap_or(HTTP_DEFAULT) })
}

/// What a data server may hold is another amount than a sidecar's.
fn of_role(data: DataConfig, role: Role, server_cache_bytes: Option<u64>) -> DataConfig {
    let cache_bytes = server_cache_bytes.filter(|_| role == Role::Server).unwrap_or(data.cache_bytes);
    DataConfig { cache_bytes, ..data }
}

fn parsed<T: std::str::FromStr>(
    name: &str,
    kind: &str,
    value: Option<&str>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let value = value?;
    let parsed = value.parse().ok();
    if parsed.is_none() {
        let what = format!("{value:?} is not {kind}");
        faults.push(Fault { place: name.to_owned(), what, hint: DOWNWARD });
    }
    parsed
}

fn bytes(path: &Path, read: io::Result<Vec<u8>>, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    let place = || path.display().to_string();
    match read {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            faults.push(Fault { place: place(), what: error.to_string(), hint: VOLUMES });
            None
        }
    }
}

fn job(path: &Path, text: &[u8], faults: &mut Vec<Fault>) -> Option<PodJob> {
    let mut fault = |what: String| {
        faults.push(Fault { place: path.display().to_string(), what, hint: RELEASE });
        None
    };
    match serde_json::from_slice::<PodJob>(text) {
        Err(error) => fault(error.to_string()),
        Ok(job) if job.run.command.is_empty() => fault("it names no command".into()),
        Ok(job) if job.run.workdir.is_relative() && !job.run.workdir.as_os_str().is_empty() => {
            fault(format!("its working directory {} is not absolute", job.run.workdir.display()))
        }
        Ok(job) => Some(job),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Framework, RunConfig};

    /// A job that runs `script` and has no data.
    pub(crate) fn pod_job(launcher: SocketAddr, script: &str, checkpoints: &Path) -> PodJob {
        PodJob {
            job: "digits-7".into(),
            job_uid: "u-1".into(),
            launcher,
            launcher_name: "launcher".into(),
            run: RunConfig {
                command: vec!["sh".into(), "-c".into(), script.to_owned()],
                env: BTreeMap::new(),
                workdir: PathBuf::new(),
                ranks_per_worker: 2,
                framework: Framework::Torch,
            },
            data: None,
            checkpoint_folder: checkpoints.to_owned(),
            hang_ms: None,
            server_cache_bytes: None,
        }
    }

    fn variables(changed: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| {
            let value = changed.iter().find(|(changed, _)| *changed == name).map(|(_, value)| *value);
            value
                .or(match name {
                    WORKER_VARIABLE => Some("3"),
                    POD_IP_VARIABLE => Some("10.0.0.7"),
                    POD_UID_VARIABLE => Some("5f2b"),
                    NODE_VARIABLE => Some("gpu-7"),
                    _ => None,
                })
                .map(str::to_owned)
        }
    }

    fn files() -> Files {
        let job = pod_job("10.0.0.1:7443".parse().unwrap(), "true", Path::new("/ckpt"));
        let own = identity::encode(&[7; identity::SEED_BYTES], b"certificate");
        Files { job: Ok(serde_json::to_vec(&job).unwrap()), ca: Ok(b"authority".to_vec()), worker: Ok(own) }
    }

    fn texts(faults: &[Fault]) -> Vec<String> {
        faults.iter().map(|fault| format!("{}: {}", fault.place, fault.what)).collect()
    }

    #[test]
    fn a_pod_says_all_that_a_worker_needs() {
        let settings = read(Role::Worker, variables(&[]), &Folders::below(Path::new("/")), files()).unwrap();
        let config = &settings.config;
        assert_eq!((config.worker, config.bind), (WorkerId(3), "10.0.0.7".parse().unwrap()));
        assert_eq!(config.log_folder, Path::new("/slipway/logs"));
        assert_eq!(config.checkpoint_folder, Path::new("/ckpt"));
        assert_eq!(config.identity.cert_der, b"certificate");
        assert_eq!((settings.pod_uid.as_str(), settings.node.as_str()), ("5f2b", "gpu-7"));
        assert_eq!(settings.http, HTTP_DEFAULT);
    }

    #[test]
    fn a_data_server_is_numbered_after_the_workers_and_holds_more() {
        let data = DataConfig {
            source: "/data".into(),
            manifest: None,
            order: datapath::order::OrderSpec {
                seed: 0,
                global_batch: std::num::NonZeroU32::MIN,
                shuffle: datapath::order::Shuffle::None,
                remainder: datapath::order::Remainder::Drop,
            },
            epochs: 1,
            transport: datapath::select::TransportPolicy::Quic,
            congestion: Default::default(),
            far_devices: Default::default(),
            slots: 4,
            cache_bytes: 1,
            tier: None,
            record: None,
        };
        let job = pod_job("10.0.0.1:7443".parse().unwrap(), "true", Path::new("/ckpt"));
        let with_data = PodJob { data: Some(data), server_cache_bytes: Some(3), ..job };
        let of = |job: &PodJob| Files { job: Ok(serde_json::to_vec(job).unwrap()), ..files() };
        let server =
            || variables(&[(WORKER_VARIABLE, ""), (SERVER_VARIABLE, "1"), (FIRST_WORKER_VARIABLE, "4")]);
        let folders = Folders::below(Path::new("/"));
        let config = read(Role::Server, server(), &folders, of(&with_data)).unwrap().config;
        assert_eq!((config.worker, config.role), (WorkerId(5), Role::Server));
        assert_eq!(config.data.unwrap().cache_bytes, 3);
        let config = read(Role::Worker, variables(&[]), &folders, of(&with_data)).unwrap().config;
        assert_eq!((config.role, config.data.unwrap().cache_bytes), (Role::Worker, 1));
        let faults = read(Role::Server, variables(&[]), &folders, files()).unwrap_err();
        assert_eq!(
            texts(&faults),
            [
                "SLIPWAY_SERVER: it is not set",
                "SLIPWAY_FIRST_WORKER: it is not set",
                "/slipway-config/job.json: the job digits-7 has no data that could be served",
            ]
        );
    }

    #[test]
    fn everything_that_is_missing_is_said_at_once() {
        let missing = || Err(io::ErrorKind::NotFound.into());
        let none = Files { job: missing(), ca: missing(), worker: missing() };
        let faults = read(Role::Worker, |_| None, &Folders::below(Path::new("/")), none).unwrap_err();
        assert_eq!(
            texts(&faults),
            [
                "SLIPWAY_WORKER: it is not set",
                "SLIPWAY_POD_IP: it is not set",
                "SLIPWAY_POD_UID: it is not set",
                "SLIPWAY_NODE: it is not set",
                "/slipway-config/job.json: entity not found",
                "/slipway-identity/ca: entity not found",
                "/slipway-identity/worker: entity not found",
            ]
        );
    }

    #[test]
    fn what_is_there_and_wrong_is_said_too() {
        let wrong = variables(&[
            (WORKER_VARIABLE, "-1"),
            (POD_IP_VARIABLE, "pod"),
            (HTTP_VARIABLE, "7070"),
            (POD_UID_VARIABLE, "0123456789012345678901234567890123456789012345678901234567890123456789"),
        ]);
        let short = Files { job: Ok(b"{}".to_vec()), worker: Ok(vec![1; 32]), ..files() };
        let faults = read(Role::Worker, wrong, &Folders::below(Path::new("/")), short).unwrap_err();
        assert_eq!(
            texts(&faults),
            [
                "SLIPWAY_WORKER: \"-1\" is not a number",
                "SLIPWAY_POD_IP: \"pod\" is not an IP address",
                "SLIPWAY_HTTP: \"7070\" is not an address with a port",
                "SLIPWAY_POD_UID: it has 70 characters, more than 64",
                "/slipway-config/job.json: missing field `job` at line 1 column 2",
                "/slipway-identity/worker: it has 32 bytes, too few for a key and a certificate",
            ]
        );
        assert!(faults[0].to_string().contains("; hint: the pod's template"));
    }

    #[test]
    fn a_relative_working_directory_means_nothing_in_a_pod() {
        let mut job = pod_job("10.0.0.1:7443".parse().unwrap(), "true", Path::new("/ckpt"));
        job.run.workdir = "here".into();
        let files = Files { job: Ok(serde_json::to_vec(&job).unwrap()), ..files() };
        let faults = read(Role::Worker, variables(&[]), &Folders::below(Path::new("/")), files).unwrap_err();
        assert_eq!(texts(&faults), ["/slipway-config/job.json: its working directory here is not absolute"]);
    }
}
