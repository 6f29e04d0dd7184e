//! Data servers on a cluster: pods of their own that the scheduler places, that no gang waits for and no gang ends with.

use serde_json::{Value, json};
use tests::kube::{Rig, Training};

use crate::Story;
use crate::jobs::{check_digits, committed_beyond, with_checkpoints, writable};

pub(crate) const STORIES: &[Story] = &[
    ("servers_read_for_all_and_one_whose_pod_goes_ends_nothing", one_goes),
    ("servers_go_on_serving_under_a_new_controller", new_controller),
    ("servers_go_with_a_suspended_job_and_come_again", suspended),
    ("servers_stand_beside_a_jobset_and_end_with_it", beside_a_jobset),
];

/// Long enough for a pod to be made anew meanwhile, also where 120 epochs are 15 s: a Job waits for 10 s and more.
const EPOCHS: u64 = 480;
const GANG: u32 = 2;
const SERVERS: usize = 2;

fn job(training: &Training<'_>, epochs: u64) -> String {
    training.digits("digits", |spec| {
        spec["workers"]["count"] = json!(GANG);
        spec["data"]["epochs"] = json!(epochs);
        spec["data"]["servers"] = json!({"count": SERVERS, "memory": "256Mi"});
    })
}

fn one_goes() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("served", "job");
    let job = job(&training, EPOCHS);
    let file = crate::jobs::file(&job);
    let objects = training.launcher(&["submit", file.path().to_str().unwrap(), "--dry-run"]).code(0).stdout;
    assert!(
        objects.contains("digits-servers") && objects.contains("go where the scheduler puts them"),
        "{objects}"
    );
    training.space.assert_empty();
    training.space.apply(&job);
    let step = committed_beyond(&training, 0);
    let generation = all_serve(&training)["generation"].clone();
    let pods = servers(&training);
    assert_eq!(pods.len(), SERVERS);
    for pod in &pods {
        assert_eq!(
            pod["spec"]["containers"].as_array().unwrap().len(),
            1,
            "there is nothing of the user's: {pod}"
        );
        assert_eq!(pod["spec"]["containers"][0]["command"], json!(["/usr/bin/worker", "serve"]));
        assert_eq!(pod["spec"]["schedulingGates"], Value::Null);
    }
    let name = pods[0]["metadata"]["name"].as_str().unwrap();
    training.space.kubectl(&["delete", "pod", name, "--wait=false"]).code(0);
    training.until("digits", |status| (status["servers"][0]["phase"] != "serving").then_some(()));
    committed_beyond(&training, step);
    let back = all_serve(&training);
    assert_eq!((&back["generation"], &back["restarts"]), (&generation, &json!(0)), "{back}");
    let end = training.end("digits");
    check_served(&training, &end, EPOCHS);
    assert_eq!((&end["generation"], &end["restarts"]), (&generation, &json!(0)), "{end}");
    let logs = training.launcher(&["logs", "digits", "--system"]).code(0).stdout;
    assert!(logs.contains("serves"), "{logs}");
    training.launcher(&["logs", "digits"]).code(0).prints(&format!("epoch {}: loss", EPOCHS - 1));
    training.delete_and_look("digits");
}

fn new_controller() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("servedon", "job");
    training.space.apply(&job(&training, EPOCHS));
    let step = committed_beyond(&training, 0);
    let before = all_serve(&training)["generation"].clone();
    let uids =
        |pods: Vec<Value>| pods.into_iter().map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let pods = uids(servers(&training));
    training.kill_controller();
    training.start();
    committed_beyond(&training, step);
    let after = all_serve(&training);
    assert_eq!((&after["generation"], &after["restarts"]), (&before, &json!(0)), "{after}");
    let end = training.end("digits");
    check_served(&training, &end, EPOCHS);
    assert_eq!(end["generation"], before, "{end}");
    assert_eq!(uids(servers(&training)), pods, "they outlived their controller");
    training.delete_and_look("digits");
}

fn suspended() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("servedhalt", "job");
    let checkpoints = writable();
    training.claim("checkpoints", checkpoints.path(), false);
    training.space.apply(&training.digits("digits", |spec| {
        spec["workers"]["count"] = json!(GANG);
        spec["data"]["epochs"] = json!(EPOCHS);
        spec["data"]["servers"] = json!({"count": SERVERS, "memory": "256Mi"});
        with_checkpoints(spec);
    }));
    let step = committed_beyond(&training, 0);
    all_serve(&training);
    let suspend = |word: Value| {
        let patch = json!({"spec": {"suspend": word}}).to_string();
        training
            .space
            .kubectl(&["patch", "trainingjob", "digits", "--type=merge", "--patch", &patch])
            .code(0);
    };
    suspend(json!(true));
    training.until("digits", |status| (status["phase"] == "Suspended").then_some(()));
    assert_eq!(training.pods("digits"), Vec::<Value>::new(), "nothing of it holds a node");
    assert_eq!(training.space.get(&["job", "digits-servers"]), None);
    suspend(Value::Null);
    committed_beyond(&training, step);
    all_serve(&training);
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    training.delete_and_look("digits");
}

fn beside_a_jobset() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("servedset", "jobset");
    training.space.apply(&job(&training, 40));
    let end = training.end("digits");
    assert_eq!(end["child"]["kind"], "JobSet");
    check_served(&training, &end, 40);
    training
        .space
        .wait_for("jobset", "digits", |set| (set["status"]["terminalState"] == "Completed").then_some(()));
    training.space.wait_for("job", "digits-servers", |job| {
        (job["status"]["succeeded"].as_u64() == u64::try_from(SERVERS).ok()).then_some(())
    });
    training.delete_and_look("digits");
}

/// Waits until all data servers serve; the status then.
fn all_serve(training: &Training<'_>) -> Value {
    training.until("digits", |status| {
        let servers = status["servers"].as_array()?;
        let serving = servers.iter().filter(|server| server["phase"] == "serving").count();
        (serving == SERVERS).then(|| status.clone())
    })
}

fn servers(training: &Training<'_>) -> Vec<Value> {
    training.space.pods("slipway.dev/job=digits,slipway.dev/role=server")
}

/// The same samples in the same order, and every byte of them was read by data servers.
fn check_served(training: &Training<'_>, end: &Value, epochs: u64) {
    check_digits(training, end, epochs);
    let summary = &end["summary"];
    assert!(summary["bytesReadByServers"].as_u64().unwrap() > 0, "{end}");
    assert_eq!(summary["bytesReadByServers"], summary["bytesRead"], "{end}");
}
