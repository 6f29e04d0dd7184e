//! Training jobs in real containers on real nodes: the digits train as they do on one machine, by either kind of child,
//! and every verb does what it says.

use std::io::Write as _;

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tests::kube::training::digits_digest;
use tests::kube::{Rig, Training};

use crate::Story;

pub(crate) const STORIES: &[Story] = &[
    ("jobs_digits_train_in_pods_of_a_job_as_on_one_machine", digits_in_a_job),
    ("jobs_digits_train_in_pods_of_a_jobset_by_kubectl_apply", digits_in_a_jobset),
    ("jobs_are_suspended_cancelled_and_resumed_at_another_size", suspended_cancelled_and_resumed),
    ("jobs_that_never_fit_are_taken_back_with_reasons", never_fit),
    ("jobs_that_make_no_sense_say_every_fault_in_their_status", no_sense),
];

/// Less than this is no training: the example reaches 0.95.
const ACCURACY_MIN: f64 = 0.92;

fn digits_in_a_job() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("digits", "job");
    let file = file(&training.digits("digits", |_| {}));
    let path = file.path().to_str().unwrap();
    let plan = training.launcher(&["plan", path]).code(0);
    for node in ["node1", "node2", "node3", "node4"] {
        assert!(plan.stdout.contains(node), "{}", plan.stdout);
    }
    let objects = training.launcher(&["submit", path, "--dry-run"]).code(0).stdout;
    assert!(objects.contains("kind: Job") && objects.contains("slipway.dev/placement"), "{objects}");
    training.space.assert_empty();

    let summary: Value = training.launcher(&["submit", path, "--output", "json"]).code(0).json();
    let end = training.end("digits");
    check_digits(&training, &end, 20);
    assert_eq!(summary["summary"]["orderDigest"], end["summary"]["orderDigest"]);
    check_pods(&training, "digits");
    let logs = training.launcher(&["logs", "digits", "--rank", "0"]).code(0).stdout;
    assert!(logs.lines().any(|line| line.starts_with("epoch 19: loss")), "{logs}");
    training.launcher(&["logs", "digits", "--rank", "4"]).code(66).says("ranks are 0 to 3");
    let system = training.launcher(&["logs", "digits", "--system", "--tail", "1"]).code(0).stdout;
    assert_eq!(system.lines().count(), 4, "{system}");
    training.launcher(&["status", "digits"]).code(0).prints("digits succeeded").prints("node3");
    training.launcher(&["list"]).code(0).prints("digits  succeeded");
    training.launcher(&["submit", path]).code(73).says("already");
    training.delete_and_look("digits");
}

fn digits_in_a_jobset() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("jobset", "jobset");
    training.space.apply(&training.digits("digits", |_| {}));
    let end = training.end("digits");
    assert_eq!(end["child"]["kind"], "JobSet");
    check_digits(&training, &end, 20);
    check_pods(&training, "digits");
    training
        .space
        .wait_for("jobset", "digits", |set| (set["status"]["terminalState"] == "Completed").then_some(()));
    training.delete_and_look("digits");
}

fn suspended_cancelled_and_resumed() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("verbs", "job");
    let checkpoints = writable();
    training.claim("checkpoints", checkpoints.path(), false);
    let job = training.digits("digits", |spec| {
        spec["data"]["epochs"] = json!(100);
        with_checkpoints(spec);
    });
    training.space.apply(&job);
    let step = committed_beyond(&training, 0);

    let suspend = r#"{"spec": {"suspend": true}}"#;
    training.space.kubectl(&["patch", "trainingjob", "digits", "--type=merge", "--patch", suspend]).code(0);
    training.until("digits", |status| (status["phase"] == "Suspended").then_some(()));
    assert_eq!(training.pods("digits"), Vec::<Value>::new(), "nothing of it holds a node");
    let go_on = r#"{"spec": {"suspend": null}}"#;
    training.space.kubectl(&["patch", "trainingjob", "digits", "--type=merge", "--patch", go_on]).code(0);
    let step = committed_beyond(&training, step);

    training.launcher(&["cancel", "digits"]).code(0).prints("cancelled");
    let status = training.end("digits");
    assert_eq!(status["phase"], "Cancelled");
    assert!(status["committed"].as_u64().unwrap() >= step);
    training.launcher(&["resume", "digits", "--workers", "2"]).code(0).prints("succeeded");
    let end = training.end("digits");
    assert_eq!(end["ranks"], 2);
    check_digits(&training, &end, 100);
    training.launcher(&["resume", "digits"]).code(2).says("it has succeeded");
    training.delete_and_look("digits");
}

fn never_fit() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("never", "job");
    let file = file(&training.digits("greedy", |spec| spec["resources"] = json!({"gpus": 3})));
    let path = file.path().to_str().unwrap();
    training.launcher(&["plan", path]).code(69).says("would not fit if nothing else ran");
    training.launcher(&["submit", path]).code(69).says("would not fit if nothing else ran").says("GPU");
    training.space.assert_empty();
    // One that may come is waited for, and nothing is made for it meanwhile.
    training.launcher(&["submit", path, "--wait", "--detach"]).code(0);
    let reasons = training.until("greedy", |status| {
        status["reasons"].as_array().filter(|reasons| !reasons.is_empty()).cloned()
    });
    assert!(reasons.iter().any(|reason| reason.as_str().unwrap().contains("GPU")), "{reasons:?}");
    assert_eq!(training.space.objects(), ["trainingjob.slipway.dev/greedy"]);
    training.launcher(&["cancel", "greedy"]).code(0);
    training.delete_and_look("greedy");
}

fn no_sense() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("sense", "job");
    // What the API server's own rules cannot see is found by the controller.
    training.space.apply(&training.digits("odd", |spec| {
        spec["restarts"] = json!({"window": "1m", "backoff": "2m"});
        spec["data"]["transport"] = json!("require-rdma");
    }));
    let end = training.end("odd");
    let said = end["cause"]["message"].as_str().unwrap();
    assert!(said.contains("spec.restarts.backoff"), "{said}");
    assert_eq!(end["phase"], "Failed");
    assert_eq!(training.space.objects(), ["trainingjob.slipway.dev/odd"]);
    training.delete_and_look("odd");
}

/// Waits until more than `step` steps are committed, and returns how many are.
pub(crate) fn committed_beyond(training: &Training<'_>, step: u64) -> u64 {
    training.until("digits", |status| {
        let is_over = matches!(status["phase"].as_str(), Some("Failed" | "Succeeded" | "Cancelled"));
        assert!(!is_over, "{status}");
        status["committed"].as_u64().filter(|committed| *committed > step && status["phase"] == "Running")
    })
}

/// The job did what it does on one machine: the same samples in the same order, and the same accuracy.
pub(crate) fn check_digits(training: &Training<'_>, end: &Value, epochs: u64) {
    assert_eq!(end["phase"], "Succeeded", "{end}");
    let accuracy = end["summary"]["reported"]["accuracy"].as_f64().unwrap();
    assert!(accuracy >= ACCURACY_MIN, "{accuracy}");
    assert_eq!(end["summary"]["orderDigest"], digits_digest(&training.user(), epochs), "{end}");
}

/// Checkpoints on the claim of that name, since all ranks read what one wrote.
pub(crate) fn with_checkpoints(spec: &mut Value) {
    spec["pod"]["checkpoints"] = json!("/checkpoints");
    let volume = json!({"name": "checkpoints", "mountPath": "/checkpoints", "claim": "checkpoints"});
    spec["pod"]["volumes"].as_array_mut().unwrap().push(volume);
}

/// A folder of this host that the pods' user may write to.
pub(crate) fn writable() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = TempDir::new().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Each worker was a pod on a node of its own, with a native sidecar whose start-up probe let the ranks begin.
fn check_pods(training: &Training<'_>, job: &str) {
    let pods = training.pods(job);
    assert_eq!(pods.len(), 4);
    assert!(pods.iter().all(|pod| pod["status"]["phase"] == "Succeeded"), "nothing of it runs any more");
    let mut nodes: Vec<&str> = pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!(nodes.len(), 4, "{nodes:?}");
    for pod in &pods {
        let sidecar = &pod["spec"]["initContainers"][0];
        assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!("sidecar"), &json!("Always")));
        assert_eq!(sidecar["startupProbe"]["httpGet"]["path"], "/ready");
        assert_eq!(pod["spec"]["schedulingGates"], Value::Null);
        let status = &pod["status"];
        let began = |status: &Value| status["state"]["terminated"]["startedAt"].as_str().unwrap().to_owned();
        assert!(began(&status["initContainerStatuses"][0]) <= began(&status["containerStatuses"][0]));
    }
}

pub(crate) fn file(text: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
