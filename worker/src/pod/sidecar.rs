//! `worker pod`: the sidecar. Reads what its pod says, lays out the folder that the containers share, and lives as a worker
//! whose ranks another container executes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use datapath::plane::Role;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::http::Http;
use super::link::Link;
use super::process_number;
use super::settings::{self, Fault, Files, Folders, ROOT_VARIABLE, Settings};
use super::status::Status;
use crate::agent::{Outcome, Pod, live_as_server, live_in_pod};
use crate::config::CONFIG_BYTES_MAX;
use crate::host::pci;

/// Threads of the sidecar's runtime at the most: the rest of the host belongs to the ranks.
const THREADS_MAX: usize = 4;
/// How long tasks that are cut off at the end may still hold the runtime.
const RUNTIME_END_MAX: Duration = Duration::from_secs(1);
/// How long a sidecar stays after the job is over, for a ranks' container that is yet to start (its image may be on its
/// way) and must learn that it has nothing to do. The kubelet stops sidecars as soon as that one has ended.
const FAREWELL_MAX: Duration = Duration::from_secs(3_600);
/// `EX_CONFIG`, as sysexits.h has it.
const EXIT_CONFIG: u8 = 78;

/// The whole of `worker pod`.
#[must_use]
pub fn main() -> ExitCode {
    begin(Role::Worker)
}

/// The whole of `worker serve`: a data server, which has no ranks' container beside it.
#[must_use]
pub fn serve() -> ExitCode {
    begin(Role::Server)
}

fn begin(role: Role) -> ExitCode {
    let variable = |name: &str| std::env::var_os(name)?.into_string().ok();
    crate::telemetry::init(variable);
    let root = PathBuf::from(variable(ROOT_VARIABLE).unwrap_or_else(|| "/".to_owned()));
    let folders = Folders::below(&root);
    let files = Files {
        job: read_file(&folders.job),
        ca: read_file(&folders.ca),
        worker: read_file(&folders.worker),
    };
    let settings = settings::read(role, variable, &folders, files);
    let settings = settings.and_then(|settings| {
        let laid_out = if role == Role::Server { Ok(()) } else { lay_out(&folders.shared) };
        laid_out.map(|()| settings).map_err(|fault| vec![fault])
    });
    let settings = match settings {
        Ok(settings) => settings,
        Err(faults) => {
            for fault in faults {
                tracing::error!("cannot start: {fault}");
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = match role {
                Role::Worker => runtime.block_on(live(settings)),
                Role::Server => runtime.block_on(live_serving(settings)),
            };
            runtime.shutdown_timeout(RUNTIME_END_MAX);
            outcome
        }
        Err(error) => Outcome::Failed { reason: format!("cannot start a runtime: {error}") },
    };
    tracing::info!(?outcome, "ended");
    ExitCode::from(outcome.code())
}

async fn live(settings: Settings) -> Outcome {
    let Settings { config, pod_uid, node, http } = settings;
    let status = Arc::new(Status::default());
    let failed = |what: &str, error: io::Error| Outcome::Failed { reason: format!("cannot {what}: {error}") };
    // Before the agent listens for it: one that comes while the agent ends is not missed.
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => return failed("handle signals", error),
    };
    let http = match Http::start(http, Arc::clone(&status)).await {
        Ok(http) => http,
        Err(error) => return failed(&format!("answer probes at {http}"), error),
    };
    let (link, events) = match Link::open(&pod_uid, Arc::clone(&status)) {
        Ok(opened) => opened,
        Err(error) => return failed("listen for the ranks' container", error),
    };
    let data_bind = data_address(config.bind);
    tracing::info!(worker = %config.worker, job = %config.job, %pod_uid, probes = %http.address(), "starts");
    let pod = Pod {
        orders: link.orders(),
        events,
        status: Arc::clone(&status),
        number: process_number(&pod_uid),
        node,
        data_bind,
    };
    let outcome = live_in_pod(config, pod).await;
    if outcome == Outcome::Finished {
        link.over();
        status.doing("the job is over");
        if timeout(FAREWELL_MAX, terminate.recv()).await.is_err() {
            tracing::warn!("the job is over, and nobody has stopped this sidecar");
        }
    }
    outcome
}

/// Nobody is left to say goodbye to when the job is over: the pod ends then, with its log.
async fn live_serving(settings: Settings) -> Outcome {
    let Settings { config, pod_uid, node, http } = settings;
    let status = Arc::new(Status::default());
    let http = match Http::start(http, Arc::clone(&status)).await {
        Ok(http) => http,
        Err(error) => {
            return Outcome::Failed { reason: format!("cannot answer probes at {http}: {error}") };
        }
    };
    let data_bind = data_address(config.bind);
    tracing::info!(worker = %config.worker, job = %config.job, %pod_uid, probes = %http.address(), "serves");
    live_as_server(config, status, process_number(&pod_uid), node, data_bind).await
}

/// Where the data plane listens: at the network function that the pod was given, where it has an address, else at the pod's
/// own address. A device plugin names its grant only to the container that asks for it; where that is the ranks', the
/// function is found in the network that both share.
fn data_address(pod_ip: IpAddr) -> IpAddr {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let root = Path::new("/");
    let given = pci::granted_address(root, &env).or_else(|| pci::own_address(root, pod_ip));
    if let Some(address) = given {
        tracing::info!(%address, "the data plane uses the network function that this pod was given");
    }
    given.unwrap_or(pod_ip)
}

/// A file of the pod's volumes; a longer one than any of them can be is refused by whoever reads it.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes the shared folders, puts this executable where the ranks' container looks for it, and unpacks the Python package.
fn lay_out(shared: &Path) -> Result<(), Fault> {
    let hint = "the pod's volume for it must be writable for the user of all its containers (fsGroup)";
    let fault = |place: &Path, error: io::Error| Fault {
        place: place.display().to_string(),
        what: error.to_string(),
        hint,
    };
    for name in ["bin", "logs", "python", "checkpoints"] {
        let folder = shared.join(name);
        fs::create_dir_all(&folder).map_err(|error| fault(&folder, error))?;
    }
    let executable = shared.join("bin/worker");
    install(&executable).map_err(|error| fault(&executable, error))?;
    let python = shared.join("python");
    crate::python::unpack(&python).map_err(|error| fault(&python, error))
}

/// Copies the executable for other images: `worker-exec` beside this one where this one needs libraries (`librados`), else
/// this one itself. Whoever executes the copy sees all of it or none.
fn install(target: &Path) -> io::Result<()> {
    let partial = target.with_extension("partial");
    let own = Path::new("/proc/self/exe");
    let beside = fs::read_link(own)?.with_file_name("worker-exec");
    fs::copy(if beside.exists() { &beside } else { own }, &partial)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_folder_holds_an_executable_and_the_package_also_the_second_time() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            lay_out(folder.path()).unwrap();
        }
        let executable = folder.path().join("bin/worker");
        assert_eq!(fs::metadata(&executable).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(&executable).unwrap().len(), fs::metadata("/proc/self/exe").unwrap().len());
        assert!(folder.path().join("python/slipway/__init__.py").is_file());
        assert!(!folder.path().join("bin/worker.partial").exists());
        let fault = lay_out(&folder.path().join("bin/worker")).unwrap_err();
        assert!(fault.to_string().contains("fsGroup"), "{fault}");
    }
}
