//! A real Kubernetes for stories: control plane and nodes of `tests/rig/kubernetes`, started once for a test binary,
//! namespaces that must be empty in the end, and `launcher serve` as a process under watch.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::Value;

use crate::leftovers::now;
use crate::program::{Finished, User, root, wait_within};

mod line;
mod namespace;
pub mod played;
mod serve;
mod service;
pub mod training;

pub use line::Line;
pub use namespace::Namespace;
pub use serve::Serve;
pub use service::{Backend, Service};
pub use training::Training;

/// Whatever a story waits for in the cluster is there within this, or the story fails. Two cores under a control plane,
/// four nodes and an emulated machine are slow: most things take 2 s alone, 20 s beside compilers, and ten times that in
/// the machine.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// One run of the rig's script, or of kubectl, takes no longer than this: an emulated machine boots in one minute alone,
/// and in ten beside compilers.
const SCRIPT_LIMIT: Duration = Duration::from_secs(1200);
/// Between two looks at the API server.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Label of a node that names its rack, in the rig.
pub const RACK_LABEL: &str = "slipway.test/rack";
/// Label of a node in an emulated machine. Such nodes carry the taint of the same name, so that pods are there only
/// where they say so.
pub const VM_LABEL: &str = "slipway.test/vm";
/// The image with Slipway's worker.
pub const WORKER_IMAGE: &str = "slipway.test/worker:dev";
/// The image with Debian's Python, in which the ranks of stories run.
pub const PYTHON_IMAGE: &str = "slipway.test/python:dev";

static SHARED: OnceLock<Rig> = OnceLock::new();

/// A cluster of one's own. Stories share one ([`Rig::shared`]).
#[derive(Debug)]
pub struct Rig {
    folder: PathBuf,
    /// Numbers of the nodes that run; held while one is started, so that two stories do not start the same.
    nodes: Mutex<Vec<u32>>,
    /// Likewise of the emulated ones, whose start must not hold up who only wants the others.
    machines: Mutex<Vec<u32>>,
    worker_image: OnceLock<()>,
    python_image: OnceLock<()>,
    jobset: OnceLock<()>,
    kwok: OnceLock<()>,
    definition: OnceLock<()>,
}

/// Takes the shared cluster down when `main` ends, in whatever way.
#[derive(Debug)]
pub struct TearDown;

impl Drop for TearDown {
    fn drop(&mut self) {
        if let Some(rig) = SHARED.get() {
            rig.down();
        }
    }
}

/// For a cluster of a story's own; the shared one is never dropped.
impl Drop for Rig {
    fn drop(&mut self) {
        // Whatever it says: the story may be failing already.
        finish(self.command("down"));
    }
}

impl Rig {
    /// The cluster of this test binary: the control plane is started by the first story that asks. `main` holds
    /// [`TearDown`].
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(|| Self::start(root().join("tests/.cache/kubernetes/stories")))
    }

    /// Starts a control plane below this folder, after taking down what a killed run may have left there.
    #[must_use]
    pub fn start(folder: PathBuf) -> Self {
        let (nodes, machines) = Default::default();
        let (worker_image, python_image, jobset, kwok, definition) = Default::default();
        let rig = Self { folder, nodes, machines, worker_image, python_image, jobset, kwok, definition };
        rig.down();
        rig.script(["up"]);
        rig
    }

    /// Stops and removes all of it.
    pub fn down(&self) {
        self.script(["down"]);
    }

    /// Real nodes `node1` to `node<count>`, two in a rack ([`RACK_LABEL`]: `rack1`, `rack2`, …).
    pub fn nodes(&self, count: u32) -> &Self {
        let mut running = self.nodes.lock().unwrap();
        let missing: Vec<u32> = (1..=count).filter(|number| !running.contains(number)).collect();
        std::thread::scope(|scope| {
            for number in &missing {
                scope.spawn(move || self.start_node(*number));
            }
        });
        running.extend(missing);
        self
    }

    /// Node `node<number>` in an emulated machine, with two NUMA nodes, virtual functions (`slipway.test/vf`), stand-ins
    /// for GPUs (`slipway.test/gpu`), and a Topology Manager that aligns them. Labelled with [`VM_LABEL`].
    pub fn with_vm(&self, number: u32) -> &Self {
        let mut running = self.machines.lock().unwrap();
        if !running.contains(&number) {
            self.script(["vm", &number.to_string(), &format!("{VM_LABEL}=true")]);
            running.push(number);
        }
        self
    }

    /// Cuts a node's power. Its `Node` object stays, and pods on it are lost.
    pub fn kill_node(&self, number: u32) {
        let mut running = self.nodes.lock().unwrap();
        self.script(["kill-node", &number.to_string()]);
        running.retain(|other| *other != number);
    }

    /// Kills the API server.
    pub fn stop_api_server(&self) {
        self.script(["stop-apiserver"]);
    }

    /// Starts it again, as it was.
    pub fn start_api_server(&self) {
        self.script(["start-apiserver"]);
    }

    fn start_node(&self, number: u32) {
        self.script(["node", &number.to_string(), &format!("{RACK_LABEL}=rack{}", number.div_ceil(2))]);
    }

    /// [`WORKER_IMAGE`], on all nodes: built from this tree, or from the static program that `SLIPWAY_STATIC_WORKER`
    /// names.
    pub fn with_worker_image(&self) -> &Self {
        self.worker_image.get_or_init(|| {
            self.script([OsStr::new("worker-image"), static_worker().as_os_str()]);
        });
        self
    }

    /// [`PYTHON_IMAGE`], on all nodes.
    pub fn with_python_image(&self) -> &Self {
        self.python_image.get_or_init(|| drop(self.script(["python-image"])));
        self
    }

    /// JobSet's own controller.
    pub fn with_jobset(&self) -> &Self {
        self.jobset.get_or_init(|| drop(self.script(["jobset"])));
        self
    }

    /// The rig's script with these arguments; fails the story if it fails.
    pub fn script<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        let mut args = args.into_iter();
        let mut command = self.command(args.next().expect("a word for the script"));
        command.args(args);
        finish(command).code(0)
    }

    fn command(&self, word: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(root().join("tests/rig/kubernetes/kube-rig"));
        command.arg(word).env("KUBE_DIR", &self.folder);
        command
    }

    /// An administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A kubeconfig that speaks as a service account, for an hour.
    #[must_use]
    pub fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        self.script(["token", namespace, name]).stdout.trim().into()
    }

    /// The host's address, as pods and nodes reach it.
    #[must_use]
    pub fn host_address(&self) -> String {
        self.script(["host"]).stdout.trim().to_owned()
    }

    /// A user of the `launcher` command whose KUBECONFIG is the administrator's.
    #[must_use]
    pub fn user(&self) -> User {
        User::new().with_env("KUBECONFIG", self.kubeconfig().to_str().unwrap())
    }

    /// `kubectl` as the administrator, run to its end whatever that is.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        self.kubectl_as(&self.kubeconfig(), args)
    }

    /// `kubectl` as whoever the kubeconfig says.
    pub fn kubectl_as<A: AsRef<OsStr>>(
        &self,
        kubeconfig: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Finished {
        let mut command = self.command("kubectl");
        command.args(args).env("KUBECONFIG", kubeconfig);
        finish(command)
    }

    /// Applies manifests (YAML or JSON, one or several documents); fails the story if the API server refuses.
    pub fn apply(&self, manifests: &str) {
        self.try_apply(&["--server-side", "--force-conflicts"], manifests).code(0);
    }

    /// `kubectl apply` with further arguments, whatever comes of it.
    pub fn try_apply(&self, args: &[&str], manifests: &str) -> Finished {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifests).unwrap();
        let args = ["apply"].iter().chain(args).map(OsStr::new);
        self.kubectl(args.chain([OsStr::new("-f"), file.path().as_os_str()]))
    }

    /// `kubectl get … --output json`.
    #[must_use]
    pub fn get(&self, args: &[&str]) -> Value {
        self.kubectl(["get"].iter().chain(args).chain(&["--output", "json"])).code(0).json()
    }

    /// Looks again and again until `look` gives something, and returns that.
    ///
    /// # Panics
    /// After [`PATIENCE`], showing what there is in all namespaces.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if now() > deadline {
                panic!("no {what} after {PATIENCE:?}\n{}", self.overview());
            }
            rest();
        }
    }

    /// Waits until kinds are served, by their definitions' names. `kubectl wait` alone ends with an error where a definition is
    /// so new that it has no conditions.
    pub fn established(&self, names: &[&str]) {
        let wait = ["wait", "--for=condition=Established", "--timeout=20s", "crd"];
        self.wait_for(&format!("{names:?} established"), || {
            (self.kubectl(wait.iter().chain(names)).code == 0).then_some(())
        });
    }

    /// What a person would look at first when a story fails.
    #[must_use]
    pub fn overview(&self) -> String {
        let pods = self.kubectl(["get", "pods,jobs,nodes", "--all-namespaces", "--output", "wide"]);
        let events = self.kubectl(["get", "events", "--all-namespaces", "--sort-by", ".lastTimestamp"]);
        let last: Vec<_> = events.stdout.lines().rev().take(30).collect();
        format!("{}\n{}", pods.stdout, last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

/// Path of a worker that is linked to nothing, for images without a distribution.
fn static_worker() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "as SLIPWAY_LAUNCHER: a build made before")]
    if let Ok(path) = std::env::var("SLIPWAY_STATIC_WORKER") {
        return PathBuf::from(path);
    }
    PathBuf::from(finish(Command::new(root().join("tests/rig/static_worker.sh"))).code(0).stdout.trim())
}

fn finish(mut command: Command) -> Finished {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Finished::new(shown, &wait_within(command.spawn().unwrap(), SCRIPT_LIMIT))
}

#[expect(clippy::disallowed_methods, reason = "the API server is polled: a story looks from outside")]
fn rest() {
    std::thread::sleep(LOOK_INTERVAL);
}
