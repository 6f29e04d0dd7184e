//! What a story needs to run a training job in a namespace: our kind, a controller, and volumes with a folder of this tree.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::service::{Backend, Service};
use super::{Line, Namespace, PYTHON_IMAGE, Rig, Serve, WORKER_IMAGE};
use crate::program::{Finished, User, root};

/// A namespace with a controller of its own.
#[derive(Debug)]
pub struct Training<'a> {
    /// The namespace.
    pub space: Namespace<'a>,
    rig: &'a Rig,
    args: Vec<String>,
    ways: Mutex<Ways>,
    serve: Mutex<Option<Serve>>,
}

/// How controllers are started from now on.
#[derive(Debug)]
struct Ways {
    kubeconfig: PathBuf,
    identity: Option<String>,
    clock_off_seconds: i64,
}

impl Rig {
    /// A namespace in which jobs run whose children are of this kind (`job` or `jobset`).
    pub fn training(&self, story: &str, child: &str) -> Training<'_> {
        self.with_worker_image().with_python_image();
        self.controlled(story, child)
    }

    /// The same without images, for nodes that are only played.
    pub fn controlled(&self, story: &str, child: &str) -> Training<'_> {
        self.with_definition();
        if child == "jobset" {
            self.with_jobset();
        }
        let space = self.namespace(story);
        let port = free_udp_port(&self.host_address());
        let address = format!("{}:{port}", self.host_address());
        let args = [
            "--http=127.0.0.1:0",
            &format!("--rendezvous={address}"),
            &format!("--advertise={address}"),
            &format!("--sidecar-image={WORKER_IMAGE}"),
            &format!("--watch-namespace={}", space.name()),
            &format!("--leader-election-namespace={}", space.name()),
            &format!("--child={child}"),
        ];
        let args = args.map(str::to_owned).to_vec();
        let ways = Ways { kubeconfig: self.kubeconfig(), identity: None, clock_off_seconds: 0 };
        let training = Training { space, rig: self, args, ways: Mutex::new(ways), serve: Mutex::new(None) };
        training.start();
        training
    }

    /// Our kind.
    pub fn with_definition(&self) -> &Self {
        self.definition.get_or_init(|| {
            let text = std::fs::read_to_string(root().join("deploy/trainingjob.crd.yaml")).unwrap();
            self.apply(&text);
            self.established(&["trainingjobs.slipway.dev"]);
        });
        self
    }
}

impl Training<'_> {
    /// Starts the controller (again).
    pub fn start(&self) {
        *self.serve.lock().unwrap() = Some(self.controller());
    }

    /// Kills the controller as a node's failure would.
    pub fn kill_controller(&self) {
        self.serve.lock().unwrap().take().expect("a controller runs").kill();
    }

    /// Controllers that are started later reach the API server by this line.
    pub fn by_line(&self, line: &Line) {
        self.ways.lock().unwrap().kubeconfig = line.kubeconfig();
    }

    /// Those that are started later have one name, so that one need not wait for the lease of the one before.
    pub fn by_one_name(&self) {
        self.ways.lock().unwrap().identity = Some("one".to_owned());
    }

    /// Those that are started later go by a clock that is off by so many seconds.
    pub fn by_clock(&self, seconds: i64) {
        self.ways.lock().unwrap().clock_off_seconds = seconds;
    }

    fn controller(&self) -> Serve {
        let ways = self.ways.lock().unwrap();
        let identity = ways.identity.as_ref().map(|name| format!("--identity={name}"));
        let args: Vec<&str> = self.args.iter().chain(&identity).map(String::as_str).collect();
        match ways.clock_off_seconds {
            0 => self.rig.serve(&ways.kubeconfig, &args),
            seconds => self.rig.serve_by_clock(&ways.kubeconfig, &args, seconds),
        }
    }

    /// A controller of this namespace behind a service; the story looks after it.
    #[must_use]
    pub fn start_behind(&self, service: &Service, backend: Backend) -> Serve {
        let addresses = [
            format!("--http={}", backend.http),
            format!("--rendezvous={}", backend.rendezvous),
            format!("--advertise={}", service.address()),
        ];
        let names = addresses.iter().filter_map(|word| word.split_once('=')).map(|(name, _)| name);
        let names: Vec<&str> = names.collect();
        let others = self.args.iter().filter(|word| !names.iter().any(|name| word.starts_with(name)));
        let args: Vec<&str> = others.chain(&addresses).map(String::as_str).collect();
        self.rig.serve(&self.rig.kubeconfig(), &args)
    }

    /// Starts a controller that has ended again, as a Deployment does: it ends by itself when it loses its lease, which
    /// happens where two cores carry more than they can.
    pub fn care(&self) {
        let mut serve = self.serve.lock().unwrap();
        if serve.as_mut().is_some_and(|serve| !serve.is_running()) {
            *serve = Some(self.controller());
        }
    }

    /// A claim `name` on a folder of this host: all nodes of the rig see it.
    pub fn claim(&self, name: &str, folder: &Path, is_read_only: bool) {
        let mode = if is_read_only { "ReadOnlyMany" } else { "ReadWriteMany" };
        let volume = format!("{}-{name}", self.space.name());
        let rest = json!({"accessModes": [mode], "storageClassName": ""});
        let mut of_volume = rest.clone();
        of_volume["capacity"] = json!({"storage": "1Gi"});
        of_volume["claimRef"] = json!({"namespace": self.space.name(), "name": name});
        of_volume["hostPath"] = json!({"path": folder});
        let mut of_claim = rest;
        of_claim["volumeName"] = json!(volume);
        of_claim["resources"] = json!({"requests": {"storage": "1Gi"}});
        self.rig.apply(&object("PersistentVolume", &volume, &of_volume).to_string());
        self.space.apply(&object("PersistentVolumeClaim", name, &of_claim).to_string());
    }

    /// The digits as a job file: the example's folder on a claim, its own fields, and what `change` does to them.
    pub fn digits(&self, name: &str, change: impl FnOnce(&mut Value)) -> String {
        self.claim("digits", &root().join("examples/digits"), true);
        let mut job = json!({
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name},
            "spec": {
                "workers": {"count": 4},
                "run": {"command": ["python3", "train.py"]},
                "data": {"source": "shards", "globalBatch": 64, "epochs": 20, "seed": 7},
                "placement": {"strategy": "spread"},
                "pod": {
                    "image": PYTHON_IMAGE,
                    "folder": "/digits",
                    "volumes": [{"name": "digits", "mountPath": "/digits", "claim": "digits", "readOnly": true}],
                },
            },
        });
        change(&mut job["spec"]);
        job.to_string()
    }

    /// `launcher job VERB … --on kubernetes` in the namespace.
    pub fn launcher(&self, args: &[&str]) -> Finished {
        self.user().run(self.words(args))
    }

    /// Someone who may use the cluster.
    #[must_use]
    pub fn user(&self) -> User {
        self.rig.user()
    }

    /// The words of a `launcher job` command in the namespace.
    #[must_use]
    pub fn words(&self, args: &[&str]) -> Vec<String> {
        let place = ["--on", "kubernetes", "--namespace", self.space.name()];
        ["job"].iter().chain(args).chain(&place).map(|word| (*word).to_owned()).collect()
    }

    /// Waits until the job's status is as wanted.
    pub fn until<T>(&self, job: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        self.space.wait_for("trainingjob", job, |object| {
            self.care();
            look(&object["status"])
        })
    }

    /// Waits for the end of a job, whichever it is, and returns its status.
    #[must_use]
    pub fn end(&self, job: &str) -> Value {
        self.until(job, |status| {
            let phase = status["phase"].as_str()?;
            matches!(phase, "Succeeded" | "Failed" | "Cancelled").then(|| status.clone())
        })
    }

    /// The job's pods.
    #[must_use]
    pub fn pods(&self, job: &str) -> Vec<Value> {
        self.space.pods(&format!("slipway.dev/job={job}"))
    }

    /// Deletes the job; nothing of it may stay but the volumes' claims.
    pub fn delete_and_look(&self, job: &str) {
        self.space.kubectl(&["delete", "trainingjob", job]).code(0);
        self.space.assert_empty();
    }
}

/// What `launcher data order --digest` says of the digits at that many epochs.
#[must_use]
pub fn digits_digest(user: &User, epochs: u64) -> String {
    let shards = root().join("examples/digits/shards");
    let epochs = epochs.to_string();
    let args = ["data", "order", shards.to_str().unwrap(), "--workers", "4", "--global-batch", "64"];
    let said = user.run(args.iter().chain(&["--seed", "7", "--epochs", &epochs, "--digest"])).code(0);
    said.stdout.trim().to_owned()
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn free_udp_port(host: &str) -> u16 {
    std::net::UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap().port()
}
