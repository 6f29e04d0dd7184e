//! Things that go wrong on a cluster: whatever is killed, deleted or lost, the job ends as if nothing had been, with the
//! same samples in the same order, and nothing is left.

use std::time::Duration;

use serde_json::{Value, json};
use tests::kube::{Rig, Training};
use tests::leftovers::{now, pause};

use crate::Story;
use crate::jobs::{check_digits, committed_beyond, with_checkpoints, writable};

pub(crate) const STORIES: &[Story] = &[
    ("faults_controller_killed_twice_and_ranks_go_on_in_their_pods", controller_killed),
    ("faults_pod_deleted_is_made_and_placed_again", pod_deleted),
    ("faults_pod_evicted_is_made_and_placed_again", pod_evicted),
    ("faults_child_that_somebody_deletes_is_made_anew", child_deleted),
    ("faults_rank_killed_is_restarted_in_place", rank_killed),
    ("faults_quota_and_refused_pods_say_why_and_start_later", quota_exceeded),
    ("faults_node_that_is_lost_is_replaced", node_lost),
    ("faults_job_deleted_while_it_runs_leaves_nothing", job_deleted),
];

const EPOCHS: u64 = 60;
/// Fourteen gangs of two on four nodes would need 28 places; a gang alone needs two.
const GANG: u32 = 2;

/// A job of two workers that commits after every epoch; sixty take half a minute.
pub(crate) fn long(training: &Training<'_>, checkpoints: &std::path::Path, epochs: u64) -> String {
    training.claim("checkpoints", checkpoints, false);
    training.digits("digits", |spec| {
        spec["workers"]["count"] = json!(GANG);
        spec["data"]["epochs"] = json!(epochs);
        with_checkpoints(spec);
    })
}

fn controller_killed() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("killed", "job");
    let checkpoints = writable();
    // At once: whatever step of making the job it is at, the next controller goes on from there.
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    training.space.wait_for("trainingjob", "digits", |_| Some(()));
    training.kill_controller();
    training.start();
    let step = committed_beyond(&training, 0);
    let before = uids(&training);
    // The second, where the first controller died between taking a number and giving out seats.
    let generation = training.space.get(&["trainingjob", "digits"]).unwrap()["status"]["generation"].clone();
    training.kill_controller();
    training.start();
    committed_beyond(&training, step);
    assert_eq!(uids(&training), before, "the pods outlived their controller");
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    // The next controller adopts the group as it stands: nobody started anew.
    assert_eq!((&end["generation"], &end["restarts"]), (&generation, &json!(0)), "{end}");
    training.delete_and_look("digits");
}

fn pod_deleted() {
    one_pod_goes("deleted", |training, pod| {
        training.space.kubectl(&["delete", "pod", pod, "--wait=false"]).code(0);
    });
}

/// Its pods go with it.
fn child_deleted() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("childless", "job");
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    committed_beyond(&training, 0);
    training.space.kubectl(&["delete", "job", "digits"]).code(0);
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    training.delete_and_look("digits");
}

/// As `kubectl drain` and the cluster's autoscaler do it.
fn pod_evicted() {
    one_pod_goes("evicted", |training, pod| {
        let space = training.space.name();
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": space},
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), eviction.to_string()).unwrap();
        let address = format!("/api/v1/namespaces/{space}/pods/{pod}/eviction");
        training.space.kubectl(&["create", "--raw", &address, "-f", file.path().to_str().unwrap()]).code(0);
    });
}

fn one_pod_goes(story: &str, go: impl Fn(&Training<'_>, &str)) {
    let rig = Rig::shared().nodes(4);
    let training = rig.training(story, "job");
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    committed_beyond(&training, 0);
    let before = uids(&training);
    let pod = training.pods("digits")[1]["metadata"]["name"].as_str().unwrap().to_owned();
    go(&training, &pod);
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    let after = uids(&training);
    assert_eq!(before.iter().filter(|uid| after.contains(uid)).count(), 1, "one of two was replaced");
    assert_eq!(end["restarts"], 1);
    training.delete_and_look("digits");
}

fn rank_killed() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("rank", "job");
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    committed_beyond(&training, 0);
    let before = uids(&training);
    let pod = training.pods("digits")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let kill = "import os, signal\nfor p in filter(str.isdigit, os.listdir('/proc')):\n    \
                words = open(f'/proc/{p}/cmdline').read().split('\\0')\n    \
                if 'train.py' in words and p != str(os.getpid()): os.kill(int(p), signal.SIGKILL)";
    training.space.kubectl(&["exec", &pod, "-c", "ranks", "--", "python3", "-c", kill]).code(0);
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    assert_eq!(uids(&training), before, "no pod was made anew");
    assert_eq!(end["restarts"], 1, "{end}");
    assert_eq!(end["cause"]["code"], "signal", "{end}");
    training.delete_and_look("digits");
}

fn quota_exceeded() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("quota", "job");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}},
    });
    training.space.apply(&quota.to_string());
    training.space.apply(&training.digits("digits", |spec| spec["workers"]["count"] = json!(GANG)));
    // Half of a gang is never started: its places go back, and the job says who refused its pods.
    let reason = training.until("digits", |status| {
        let reasons = status["reasons"].as_array()?.iter().filter_map(Value::as_str);
        reasons.map(str::to_owned).find(|reason| reason.contains("quota"))
    });
    assert!(reason.contains("exceeded quota: few"), "{reason}");
    let ran = training.pods("digits").iter().any(|pod| pod["spec"]["nodeName"].is_string());
    assert!(!ran, "no pod of it has a node");
    training.space.kubectl(&["delete", "resourcequota", "few"]).code(0);
    let end = training.end("digits");
    check_digits(&training, &end, 20);
    training.delete_and_look("digits");
}

/// The last of the nodes loses power: whoever runs there is lost with it, and another node takes the worker.
fn node_lost() {
    let rig = Rig::shared().nodes(5);
    let training = rig.training("lost", "job");
    let checkpoints = writable();
    training.claim("checkpoints", checkpoints.path(), false);
    training.space.apply(&training.digits("digits", |spec| {
        spec["workers"]["count"] = json!(5);
        spec["data"]["epochs"] = json!(EPOCHS);
        with_checkpoints(spec);
    }));
    let step = committed_beyond(&training, 0);
    rig.kill_node(5);
    let deadline = now() + Duration::from_secs(400);
    loop {
        let status = training.until("digits", |status| Some(status.clone()));
        if status["generation"].as_u64() >= Some(2) && status["committed"].as_u64() > Some(step) {
            break;
        }
        assert!(now() < deadline, "no node took the lost one's worker: {status}");
        pause();
    }
    let end = training.end("digits");
    assert_eq!(end["phase"], "Succeeded", "{end}");
    let hosts: Vec<&str> =
        end["placement"].as_array().unwrap().iter().filter_map(|place| place["host"].as_str()).collect();
    assert!(!hosts.contains(&"node5"), "{hosts:?}");
    training.delete_and_look("digits");
    rig.kubectl(["delete", "node", "node5"]).code(0);
}

fn job_deleted() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("gone", "job");
    let checkpoints = writable();
    training.space.apply(&long(&training, checkpoints.path(), EPOCHS));
    committed_beyond(&training, 0);
    training.delete_and_look("digits");
}

pub(crate) fn uids(training: &Training<'_>) -> Vec<String> {
    let pods = training.pods("digits");
    pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}
