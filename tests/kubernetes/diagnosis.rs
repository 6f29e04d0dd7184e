//! `launcher doctor` on a real API server: a whole installation has nothing to be said about, and each of many planted
//! faults is named by its code, alone, with the exit code that tells whether jobs can run.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tests::kube::played::definition;
use tests::kube::{Namespace, Rig, Serve};
use tests::leftovers::{now, pause};
use tests::program::{Finished, User, root};

use crate::Story;
use crate::planted;

mod faults;

use faults::{FAULTS, Fault};

pub(crate) const STORIES: &[Story] = &[("diagnosis_names_each_of_many_planted_faults", names_each)];

/// Exit codes: jobs can run; none can.
const RUNS: i32 = 0;
const UNAVAILABLE: i32 = 69;

/// The API server serves a new definition, or none any more, after a moment; a controller's lease is taken within seconds.
const SETTLED_MAX: Duration = Duration::from_secs(60);

fn names_each() {
    let rig = Rig::start(root().join("tests/.cache/kubernetes/diagnosis"));
    planted::plant(&rig);
    let space = rig.namespace("team");
    let cluster = Doctored { rig: &rig, space: &space, files: tempfile::tempdir().unwrap() };
    cluster.install();
    let mut serve = serve(&rig, &space);
    cluster.is_found(&[], RUNS);
    let wrong: Vec<String> = FAULTS.iter().filter_map(|fault| cluster.differs(fault)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let codes: BTreeSet<&str> = FAULTS.iter().flat_map(|(codes, ..)| *codes).copied().collect();
    assert!(codes.len() >= 20, "{codes:?}");
    cluster.is_found(&[], RUNS);
    assert!(serve.is_running(), "whatever was taken from it, the controller lives");
    without_rights(&rig, &space);
    serve.kill();
    without_a_controller(&cluster);
}

/// The installation, and what is asked of it.
struct Doctored<'a> {
    rig: &'a Rig,
    space: &'a Namespace<'a>,
    /// What `kubectl` is given as files.
    files: tempfile::TempDir,
}

impl Doctored<'_> {
    /// Everything that `deploy/kustomize/base` has, and a host on which its controllers seem to run.
    fn install(&self) {
        let base = root().join("deploy/kustomize/base");
        let text = self.rig.kubectl(["kustomize", base.to_str().unwrap()]).code(0).stdout;
        std::fs::write(self.file("BASE"), text).unwrap();
        let state = json!({
            "apiVersion": "sriovnetwork.openshift.io/v1",
            "kind": "SriovNetworkNodeState",
            "metadata": {"name": "p1", "namespace": "default"},
            "status": {"syncStatus": "Failed", "lastSyncError": "no such device"},
        });
        std::fs::write(self.file("SRIOV"), state.to_string()).unwrap();
        self.again();
    }

    /// The same again, whatever became of it.
    fn again(&self) {
        self.kubectl("apply --server-side --force-conflicts -f BASE");
        planted::replant(self.rig);
        self.rig.define(&[definition("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets", "Namespaced")]);
        self.rig.established(&["trainingjobs.slipway.dev"]);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// One line of words for `kubectl`.
    fn kubectl(&self, line: &str) {
        if line == "AGAIN" {
            return self.again();
        }
        let words = line.split_whitespace().map(|word| match word {
            "SPACE" => self.space.name().to_owned(),
            "BASE" | "SRIOV" => self.file(word).display().to_string(),
            _ => word.to_owned(),
        });
        self.rig.kubectl(words).code(0);
    }

    /// Plants a fault, looks, and undoes it: what was said instead, if it was not what was planted.
    fn differs(&self, (codes, exit, plant, undo): &Fault) -> Option<String> {
        plant.iter().for_each(|line| self.kubectl(line));
        let found = self.settled(codes, *exit).err();
        undo.iter().for_each(|line| self.kubectl(line));
        if undo.is_empty() {
            self.again();
        }
        found.map(|found| format!("planted {codes:?}, exit code {exit}; {found}"))
    }

    /// What the doctor says is this, and nothing else.
    fn is_found(&self, codes: &[&str], exit: i32) {
        self.settled(codes, exit)
            .unwrap_or_else(|found| panic!("expected {codes:?}, exit code {exit}; {found}"));
    }

    /// Waits until it is: the API server itself serves a new definition only after a moment.
    fn settled(&self, codes: &[&str], exit: i32) -> Result<(), String> {
        let deadline = now() + SETTLED_MAX;
        let user = self.rig.user();
        loop {
            let said = doctor(&user, self.space);
            if said.code == exit && named(&said) == *codes {
                return Ok(());
            }
            if now() > deadline {
                return Err(format!("exit code {}, found {}", said.code, said.json()["findings"]));
            }
            pause();
        }
    }
}

fn doctor(user: &User, space: &Namespace<'_>) -> Finished {
    user.run(["doctor", "--namespace", space.name(), "--output", "json"])
}

/// The codes of the findings.
fn named(said: &Finished) -> Vec<String> {
    let json = said.json();
    let findings = json["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
}

/// A controller that renews the lease of the installation.
fn serve(rig: &Rig, space: &Namespace<'_>) -> Serve {
    let watch = format!("--watch-namespace={}", space.name());
    let args = [
        "--http=127.0.0.1:0",
        "--rendezvous=127.0.0.1:0",
        "--advertise=127.0.0.1:7443",
        "--sidecar-image=none:1",
    ];
    rig.serve(&rig.kubeconfig(), &[&args[..], &[&watch]].concat())
}

/// Who lacks the right to submit is told so, and what is asked for in the fix is what it takes.
fn without_rights(rig: &Rig, space: &Namespace<'_>) {
    let kubeconfig = rig.service_account(space.name(), "default");
    let user = User::new().with_env("KUBECONFIG", kubeconfig.to_str().unwrap());
    let said = doctor(&user, space).code(UNAVAILABLE);
    assert_eq!(named(&said), ["access-denied", "nodes-unreadable"], "{}", said.stdout);
    let account = format!("--serviceaccount={}:default", space.name());
    let bind = ["create", "rolebinding", "submit", "--clusterrole=slipway-submitter", &account];
    space.kubectl(&bind).code(0);
    let said = doctor(&user, space).code(RUNS);
    assert_eq!(named(&said), ["nodes-unreadable"], "{}", said.stdout);
    space.kubectl(&["delete", "rolebinding", "submit"]).code(0);
}

/// The controller has just been killed.
fn without_a_controller(cluster: &Doctored<'_>) {
    let deployment = "deployment slipway-controller -n slipway-system";
    cluster.rig.wait_for("controllers that seem to be ready", || {
        let found = cluster.rig.get(&["deployment", "slipway-controller", "--namespace=slipway-system"]);
        (found["status"]["readyReplicas"].as_u64() >= Some(1)).then_some(())
    });
    cluster.is_found(&["lease-stale"], UNAVAILABLE);
    let user = cluster.rig.user();
    let text = user.run(["doctor", "--namespace", cluster.space.name()]).code(UNAVAILABLE);
    text.prints("locality none (devices anywhere on a host): does not work: lease-stale").prints("fix: ");
    cluster.kubectl("delete lease slipway-controller -n slipway-system");
    cluster.is_found(&["lease-missing"], UNAVAILABLE);
    cluster.kubectl(&format!("scale {deployment} --replicas=0"));
    cluster.is_found(&["controller-not-ready"], UNAVAILABLE);
    cluster.kubectl(&format!("delete {deployment}"));
    cluster.is_found(&["controller-missing"], UNAVAILABLE);
}
