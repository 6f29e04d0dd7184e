//! Data in a store that asks who one is: the sidecars have the Secret that the job names, and nobody else has.

use serde_json::{Value, json};
use tests::ceph::Ceph;
use tests::kube::Rig;
use tests::program::root;

use crate::Story;
use crate::jobs::{check_digits, committed_beyond};

pub(crate) const STORIES: &[Story] =
    &[("stores_digits_train_from_a_bucket_by_a_secret_that_only_sidecars_see", from_a_bucket)];

/// Long enough to look into a pod meanwhile.
const EPOCHS: u64 = 60;

fn from_a_bucket() {
    let rig = Rig::shared().nodes(4);
    let training = rig.training("stores", "job");
    let ceph = Ceph::start("bucket", &[("RGW", "1"), ("RGW_HOST", &rig.host_address())]);
    ceph.make_bucket("datasets", Some((&root().join("examples/digits/shards"), "digits")));
    let secret = |name: &str, more: &[String]| {
        let files = format!("--from-file={}", ceph.secret("s3").display());
        let words: Vec<&str> = more.iter().map(String::as_str).collect();
        let from = if words.is_empty() { vec![files.as_str()] } else { words };
        training.space.kubectl(&[&["create", "secret", "generic", name][..], &from].concat()).code(0);
    };
    let read = |file: &str| std::fs::read_to_string(ceph.secret("s3").join(file)).unwrap();
    secret("reader", &[]);
    let literal = |name: &str, value: &str| format!("--from-literal={name}={value}");
    let stranger = [
        literal("AWS_ACCESS_KEY_ID", &read("AWS_ACCESS_KEY_ID")),
        literal("AWS_SECRET_ACCESS_KEY", "nobody's"),
        literal("endpoint", &read("endpoint")),
    ];
    secret("stranger", &stranger);
    let job = |name: &str, secret: &str| {
        training.digits(name, |spec| {
            spec["data"]["source"] = json!("s3://datasets/digits");
            spec["data"]["secret"] = json!(secret);
            spec["data"]["epochs"] = json!(EPOCHS);
        })
    };

    training.space.apply(&job("stranger", "stranger"));
    let end = training.end("stranger");
    assert_eq!(end["phase"], "Failed", "{end}");
    let said = end["cause"].to_string();
    assert!(said.contains("does not know this key"), "{end}");
    training.space.kubectl(&["delete", "trainingjob", "stranger"]).code(0);

    training.space.apply(&job("digits", "reader"));
    committed_beyond(&training, 0);
    for pod in training.pods("digits") {
        check_pod(&training, &pod, &read("AWS_SECRET_ACCESS_KEY"));
    }
    let end = training.end("digits");
    check_digits(&training, &end, EPOCHS);
    training.space.kubectl(&["delete", "secret", "reader", "stranger"]).code(0);
    training.delete_and_look("digits");
}

/// The ranks' container neither sees the folder of the Secret, nor is the key in anything that the pod says of itself.
fn check_pod(training: &tests::kube::Training<'_>, pod: &Value, key: &str) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    let look = "import os; print(os.path.exists('/slipway-data'))";
    let words = ["exec", name, "--container", "ranks", "--", "python3", "-c", look];
    training.space.kubectl(&words).code(0).prints("False");
    assert!(!pod.to_string().contains(key), "the key is in the pod's own description");
}
