//! A namespace of one story: made for it, looked through at its end, and deleted.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::Rig;
use crate::program::Finished;

/// What may be left behind by a job, in the order in which it is listed. Kinds that a cluster does not know are left out.
const KINDS: &[&str] = &[
    "trainingjobs.slipway.dev",
    "jobsets.jobset.x-k8s.io",
    "jobs",
    "pods",
    "secrets",
    "configmaps",
    "services",
    "networkpolicies",
    "resourceclaimtemplates",
    "resourceclaims",
];
/// What Kubernetes itself puts into every namespace.
const GIVEN: &[&str] = &["configmap/kube-root-ca.crt"];

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A story's own namespace; deleted when dropped.
#[derive(Debug)]
pub struct Namespace<'a> {
    rig: &'a Rig,
    name: String,
}

impl Rig {
    /// A new namespace, whose name begins so.
    pub fn namespace(&self, story: &str) -> Namespace<'_> {
        let name = format!("{story}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(["create", "namespace", &name]).code(0);
        // Pods are refused until the namespace has its service account.
        self.wait_for("default service account", || {
            let found = self.kubectl(["get", "serviceaccount", "default", "--namespace", &name]);
            (found.code == 0).then_some(())
        });
        Namespace { rig: self, name }
    }
}

impl Namespace<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Applies manifests in it.
    pub fn apply(&self, manifests: &str) {
        let args = ["--server-side", "--force-conflicts", "--namespace", &self.name];
        self.rig.try_apply(&args, manifests).code(0);
    }

    /// `kubectl` in it.
    pub fn kubectl(&self, args: &[&str]) -> Finished {
        self.rig.kubectl(["--namespace", &self.name].iter().chain(args))
    }

    /// `kubectl get … --output json` in it; nothing if there is no such object.
    #[must_use]
    pub fn get(&self, args: &[&str]) -> Option<Value> {
        let finished = self.kubectl(&[&["get", "--output", "json"], args].concat());
        (finished.code == 0).then(|| finished.json())
    }

    /// The pods that a label selector names, by name.
    #[must_use]
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        let list = self.get(&["pods", "--selector", selector, "--sort-by", ".metadata.name"]);
        list.and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
    }

    /// Waits until `look` finds what it wants in the object, and returns that.
    pub fn wait_for<T>(&self, kind: &str, name: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        self.rig.wait_for(&format!("{kind}/{name} as wanted in {}", self.name), || {
            self.get(&[kind, name]).as_ref().and_then(&look)
        })
    }

    /// What is in it, one `kind/name` each; nothing that Kubernetes put there.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        let mut found = Vec::new();
        for kind in KINDS {
            let listed = self.kubectl(&["get", kind, "--output", "name"]);
            // A kind whose definition is not installed has no objects.
            if listed.code != 0 {
                assert!(listed.stderr.contains("doesn't have a resource type"), "{}", listed.stderr);
            }
            found.extend(listed.stdout.lines().filter(|line| !GIVEN.contains(line)).map(ToOwned::to_owned));
        }
        found
    }

    /// Fails the story unless the namespace is as empty as a new one, soon.
    pub fn assert_empty(&self) {
        let mut left = Vec::new();
        self.rig.wait_for(&format!("empty namespace {}", self.name), || {
            let found = self.objects();
            let is_empty = found.is_empty();
            if found != left {
                left = found;
                show(&self.name, &left);
            }
            is_empty.then_some(())
        });
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // A failed story may leave a job behind whose finalizer nobody serves; the cluster is taken down anyway.
        self.rig.kubectl(["delete", "namespace", &self.name, "--wait=false"]);
    }
}

#[expect(clippy::print_stderr, reason = "what is waited for to go, should it not go")]
fn show(namespace: &str, left: &[String]) {
    if !left.is_empty() {
        eprintln!("left in {namespace}: {}", left.join(" "));
    }
}
