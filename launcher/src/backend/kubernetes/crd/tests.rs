//! The definition that is committed is the type's, and says what the type says.

use std::collections::BTreeMap;
use std::path::Path;

use datapath::order::OrderDigest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};
use worker::rendezvous::message::ExitStatus;
use worker::units::{Generation, Rank, WorkerId};

use super::status::{Child, EPOCHS_MAX, LOG_LINES_MAX, REASONS_MAX, Rates, Status, TEXT_CHARS_MAX};
use super::{definition, rules, status};
use crate::backend::kubernetes::resource::{self, TrainingJob};
use crate::backend::{Cause, CauseCode, Phase, ServerPhase, ServerStatus, Summary};

/// `launcher crd > deploy/trainingjob.crd.yaml` writes it.
#[test]
fn the_committed_definition_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/trainingjob.crd.yaml");
    let current = crate::output::yaml::documents(&[definition()]).unwrap();
    if std::env::var_os("SLIPWAY_BLESS").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), current, "run with SLIPWAY_BLESS=1");
}

#[test]
fn nothing_of_a_pod_changes_but_what_the_rules_leave_out() {
    let pod = &definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ["pod"]["properties"];
    let mut fields: Vec<&str> = pod.as_object().unwrap().keys().map(String::as_str).collect();
    fields.retain(|field| !["ttl", "nodeLost"].contains(field));
    let mut fixed = rules::FIXED_IN_POD.to_vec();
    fields.sort_unstable();
    fixed.sort_unstable();
    assert_eq!(fields, fixed);
}

/// What a structural schema is: one type at each place, no key of JSON Schema that the server refuses, bounds everywhere.
#[test]
fn the_schema_is_structural_and_bounded() {
    fn walk(schema: &Value, path: &str) {
        let object = schema.as_object().unwrap_or_else(|| panic!("{path} is no schema"));
        for key in ["$schema", "title", "default", "$ref", "oneOf"] {
            assert!(!object.contains_key(key), "{path} has {key}");
        }
        let typed = object.get("type").is_some_and(Value::is_string);
        assert!(
            typed != object.contains_key("x-kubernetes-int-or-string"),
            "{path} has not exactly one type"
        );
        assert!(
            !(object.contains_key("properties") && object.contains_key("additionalProperties")),
            "{path}"
        );
        if path.starts_with(".spec") && object.get("type").is_some_and(|kind| kind == "string") {
            assert!(object.contains_key("maxLength") || object.contains_key("enum"), "{path} has no bound");
        }
        for (name, child) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(child, &format!("{path}.{name}"));
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(child) = object.get(inner) {
                walk(child, &format!("{path}[]"));
            }
        }
    }
    walk(&definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
}

fn status() -> Status {
    let summary = Summary {
        steps: 40,
        seconds: 2.5,
        epoch_digests: (0..1030).map(|epoch| (epoch, OrderDigest(7))).collect(),
        order_digest: Some(OrderDigest(15)),
        // A loss that went wrong: no number, which JSON has no word for.
        reported: BTreeMap::from([("loss".to_owned(), f64::NAN), ("accuracy".to_owned(), 0.5)]),
        ..Summary::default()
    };
    let at = |seconds| Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap());
    Status {
        phase: Phase::Suspect,
        conditions: vec![Condition {
            type_: "Placed".to_owned(),
            status: "True".to_owned(),
            reason: "AllPlaced".to_owned(),
            message: "4 workers on 2 nodes".to_owned(),
            last_transition_time: at(1_700_000_000),
            observed_generation: Some(2),
        }],
        generation: 3,
        observed_generation: Some(2),
        ranks: 8,
        workers: 4,
        step: 41,
        steps_total: Some(100),
        committed: 40,
        restarts: 2,
        restarts_max: 3,
        cause: Some(Cause {
            code: CauseCode::OutOfMemory,
            rank: Some(Rank(3)),
            worker: None,
            host: Some("node-1".to_owned()),
            generation: Generation(3),
            exit: Some(ExitStatus::Signal { signal: 9 }),
            message: "the kernel killed it".to_owned(),
            hint: String::new(),
            log_tail: vec!["a".repeat(TEXT_CHARS_MAX + 1); LOG_LINES_MAX + 5],
            seen_unix_ms: 1_700_000_000_000,
        }),
        summary: Some(summary),
        rates: Some(Rates { samples_per_second: 1.5, bytes_per_second: 2.0 }),
        reasons: vec!["x".repeat(TEXT_CHARS_MAX + 1); REASONS_MAX + 1],
        placement: (0..2000)
            .map(|worker| status::Place { worker, host: "n".to_owned(), numa_node: Some(1) })
            .collect(),
        servers: vec![ServerStatus {
            server: 1,
            worker: WorkerId(5),
            host: "n".to_owned(),
            pid: None,
            phase: ServerPhase::Lost,
            message: "y".repeat(TEXT_CHARS_MAX + 1),
        }],
        child: Some(Child { kind: "JobSet".to_owned(), name: "digits".to_owned() }),
        started_at: Some(at(1_700_000_001)),
        ended_at: Some(at(1_700_000_002)),
    }
}

/// The API server drops what its schema does not know, so the schema must know all of it; and it refuses null.
#[test]
fn a_status_is_what_its_schema_says_and_comes_back() {
    fn walk(value: &Value, schema: &Value, path: &str) {
        match value {
            Value::Null => panic!("{path} is null"),
            Value::Object(fields) => {
                for (name, field) in fields {
                    let child = match &schema["properties"] {
                        Value::Null => &schema["additionalProperties"],
                        properties => &properties[name],
                    };
                    assert!(child.is_object(), "{path}.{name} is not in the schema");
                    walk(field, child, &format!("{path}.{name}"));
                }
            }
            Value::Array(items) => {
                assert!(items.len() as u64 <= schema["maxItems"].as_u64().unwrap(), "{path} is too long");
                items.iter().for_each(|item| walk(item, &schema["items"], path));
            }
            Value::String(text) => {
                assert!(
                    text.chars().count() as u64 <= schema["maxLength"].as_u64().unwrap_or(u64::MAX),
                    "{path}"
                );
                if let Some(words) = schema["enum"].as_array() {
                    assert!(words.contains(value), "{path} is {value}");
                }
                assert_eq!(schema["type"], "string", "{path}");
            }
            Value::Number(number) => {
                assert!(
                    schema["type"] == "number" || number.is_u64() && schema["type"] == "integer",
                    "{path}"
                );
            }
            Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{path}"),
        }
    }
    let status = status().bounded();
    let said = serde_json::to_value(&status).unwrap();
    let schema = &definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    walk(&said, schema, "status");
    let fields = schema["properties"].as_object().unwrap();
    assert!(fields.keys().all(|name| said.get(name).is_some()), "every field is tried here");
    let back: Status = serde_json::from_value(said.clone()).unwrap();
    assert_eq!(serde_json::to_value(&back).unwrap(), said);
    let digests = back.summary.unwrap().epoch_digests;
    assert_eq!(digests, status.summary.unwrap().epoch_digests);
    assert_eq!((digests.len(), digests.last_key_value()), (EPOCHS_MAX, Some((&1029, &OrderDigest(7)))));
    // An object of the API is kept up to 1.5 MiB, the specification included.
    let largest = said.to_string().len();
    assert!(largest < 1 << 19, "{largest}");
}

#[test]
fn the_phases_are_those_of_the_schema() {
    let words = [
        Phase::Pending,
        Phase::Suspended,
        Phase::Gathering,
        Phase::Preflight,
        Phase::Assigned,
        Phase::Joining,
        Phase::Running,
        Phase::Suspect,
        Phase::Fencing,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Cancelled,
    ]
    .map(|phase| serde_json::to_value(Status { phase, ..Status::default() }).unwrap()["phase"].clone());
    assert_eq!(words.to_vec(), status::PHASES.map(Value::from).to_vec());
}

#[test]
fn an_object_that_is_not_sound_is_read_and_what_is_wrong_is_told() {
    let object = json!({
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {
            "name": "x",
            "namespace": "research",
            "uid": "u",
            "labels": { "team": "a", "app.kubernetes.io/name": "x", "kueue.x-k8s.io/queue-name": "q", "slipway.dev/job": "y" },
            "managedFields": [],
        },
        "spec": { "workers": { "count": 0 }, "run": { "command": [] }, "pod": {} },
        "status": { "phase": "Unheard", "generation": "three" },
    });
    let read: TrainingJob = serde_json::from_value(object).unwrap();
    assert_eq!(read.status, None, "a status of another version is written anew");
    let faults = resource::job(&read).unwrap_err().to_string();
    assert_eq!(
        faults,
        "research/x: spec.pod.image: is missing, and on a cluster it is needed \
         (the image that the ranks run in, with the program in it)\n\
         research/x: spec.run.command: must not be empty\n\
         research/x: spec.workers.count: must be at least 1, not 0\n"
    );
    let mut sound = read;
    sound.spec = json!({ "workers": { "count": 1 }, "run": { "command": ["a"] }, "pod": { "image": "a:1" } });
    let job = resource::job(&sound).unwrap();
    assert_eq!(job.labels, BTreeMap::from([("team".to_owned(), "a".to_owned())]));
    let applied = serde_json::to_value(&sound).unwrap();
    assert_eq!((&applied["kind"], &applied["spec"]["workers"]["count"]), (&json!("TrainingJob"), &json!(1)));
    assert!(applied.get("status").is_none());
    use kube::Resource as _;
    assert_eq!(
        TrainingJob::url_path(&(), Some("research")),
        "/apis/slipway.dev/v1alpha1/namespaces/research/trainingjobs"
    );
}
