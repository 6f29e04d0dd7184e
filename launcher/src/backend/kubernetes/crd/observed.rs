//! The schema of `status` (pure): [`super::status::Status`] in the words of the API server.

use serde_json::{Value, json};

use super::status::{
    CONDITIONS_MAX, EPOCHS_MAX, LOG_LINES_MAX, METRICS_MAX, PHASES, PLACES_MAX, REASONS_MAX, SERVERS_MAX,
    TEXT_CHARS_MAX,
};

/// Characters of an order digest: 128 bits in hex.
const DIGEST_CHARS: usize = 32;

/// The schema of `status`.
pub(super) fn schema() -> Value {
    json!({
        "type": "object",
        "description": "What the controller tells; everything else here is the user's.",
        "properties": {
            "phase": described("How far the job is.", json!({ "type": "string", "enum": PHASES })),
            "conditions": conditions(),
            "generation": count("The membership's number; 0 for none yet."),
            "observedGeneration": count("The metadata.generation that all of this is about."),
            "ranks": count("Ranks of all workers together."),
            "workers": count("Workers that have ranks."),
            "step": count("Steps done by every rank."),
            "stepsTotal": count("Steps of the whole job."),
            "committed": count("Steps done and durably saved by every rank: where a restart resumes."),
            "restarts": count("Restarts so far."),
            "restartsMax": count("Restarts that the job allows."),
            "cause": cause(),
            "summary": summary(),
            "rates": described("What is consumed in a second, over the last few.", json!({
                "type": "object",
                "properties": {
                    "samplesPerSecond": rate("Samples a second."),
                    "bytesPerSecond": rate("Sample bytes a second."),
                },
            })),
            "reasons": texts("Why it waits.", REASONS_MAX),
            "placement": placement(),
            "servers": servers(),
            "child": described("The object that makes the pods.", json!({
                "type": "object",
                "properties": { "kind": { "type": "string" }, "name": { "type": "string" } },
            })),
            "startedAt": time("When the first rank was started."),
            "endedAt": time("When it was over."),
        },
    })
}

fn described(description: &str, mut schema: Value) -> Value {
    schema["description"] = description.into();
    schema
}

fn count(description: &str) -> Value {
    described(description, json!({ "type": "integer", "format": "int64", "minimum": 0 }))
}

fn rate(description: &str) -> Value {
    described(description, json!({ "type": "number", "format": "double" }))
}

fn time(description: &str) -> Value {
    described(description, json!({ "type": "string", "format": "date-time" }))
}

fn text(description: &str) -> Value {
    described(description, json!({ "type": "string", "maxLength": TEXT_CHARS_MAX }))
}

fn texts(description: &str, max: usize) -> Value {
    let item = json!({ "type": "string", "maxLength": TEXT_CHARS_MAX });
    described(description, json!({ "type": "array", "maxItems": max, "items": item }))
}

/// Conditions as all of Kubernetes has them (`metav1.Condition`).
fn conditions() -> Value {
    described(
        "One of each type.",
        json!({
            "type": "array",
            "maxItems": CONDITIONS_MAX,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                "properties": {
                    "type": { "type": "string", "maxLength": 316 },
                    "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                    "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                    "lastTransitionTime": { "type": "string", "format": "date-time" },
                    "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                    "message": { "type": "string", "maxLength": 32768 },
                },
            },
        }),
    )
}

fn cause() -> Value {
    described(
        "Why it failed, is suspected, or last restarted.",
        json!({
            "type": "object",
            "properties": {
                "code": text("What kind: out_of_memory, exception, worker_lost and so on."),
                "rank": count("The rank that failed first."),
                "worker": count("The worker that it was on."),
                "host": text("Its node."),
                "generation": count("The generation in which it happened."),
                "exit": described("How the rank's process ended.", json!({
                    "type": "object",
                    "properties": {
                        "how": text("code or signal."),
                        "code": { "type": "integer", "format": "int32" },
                        "signal": { "type": "integer", "format": "int32" },
                    },
                })),
                "message": text("What happened."),
                "hint": text("What to do about it."),
                "logTail": texts("The end of the rank's log.", LOG_LINES_MAX),
                "seenUnixMs": count("When it was seen, in milliseconds since 1970."),
            },
        }),
    )
}

fn summary() -> Value {
    let digests = json!({
        "type": "object",
        "maxProperties": EPOCHS_MAX,
        "additionalProperties": { "type": "string", "maxLength": DIGEST_CHARS },
    });
    let reported = json!({
        "type": "object",
        "maxProperties": METRICS_MAX,
        "additionalProperties": { "type": "number", "format": "double" },
    });
    described(
        "The numbers at its end, or so far.",
        json!({
            "type": "object",
            "properties": {
                "steps": count("Steps done by every rank."),
                "epochs": count("Epochs done."),
                "samples": count("Samples consumed."),
                "sampleBytes": count("Sample bytes consumed."),
                "seconds": rate("From the first rank's start to the last one's end."),
                "samplesPerSecond": rate("Samples a second."),
                "bytesPerSecond": rate("Sample bytes a second."),
                "bytesRead": count("Bytes read from the store."),
                "bytesReadByServers": count("Of these, bytes read by data servers."),
                "bytesFromTier": count("Bytes read from the workers' local tiers instead."),
                "bytesExchanged": count("Sample bytes that crossed from one worker to another."),
                "paths": described("Sample bytes by path.", json!({
                    "type": "object",
                    "properties": {
                        "local": count("Out of the worker's own cache."),
                        "quic": count("From another worker over QUIC."),
                        "rdma": count("From another worker by RDMA."),
                    },
                })),
                "epochDigests": described("One hash of what was consumed for each epoch.", digests),
                "orderDigest": text("The same over the whole job."),
                "reported": described("The last value of each metric that the trainer reported.", reported),
                "generations": count("Memberships that ran."),
                "restarts": count("Restarts."),
                "ranks": count("Ranks at the end."),
            },
        }),
    )
}

fn servers() -> Value {
    described(
        "The data servers.",
        json!({
            "type": "array",
            "maxItems": SERVERS_MAX,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["server"],
            "items": {
                "type": "object",
                "required": ["server"],
                "properties": {
                    "server": count("Which data server."),
                    "worker": count("Its number among all workers."),
                    "host": text("Its node."),
                    "pid": count("Its process, where it is one of this machine."),
                    "phase": text("starting, serving, lost or, when the job is over, served."),
                    "message": text("What is wrong with it."),
                },
            },
        }),
    )
}

fn placement() -> Value {
    described(
        "Where the workers are.",
        json!({
            "type": "array",
            "maxItems": PLACES_MAX,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["worker"],
            "items": {
                "type": "object",
                "required": ["worker"],
                "properties": {
                    "worker": count("Which worker."),
                    "host": text("Its node."),
                    "numaNode": count("The NUMA node that its devices and CPUs are expected on."),
                },
            },
        }),
    )
}
