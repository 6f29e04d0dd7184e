//! Every object of jobs of many shapes, and each of their pods, in the judgement of the real API server: created for a
//! trial, with unknown fields refused.

use std::ffi::OsStr;

use serde_json::{Value, json};
use tests::kube::played::list;
use tests::kube::{Namespace, Rig};
use tests::program::{Finished, root};

use crate::Story;
use crate::planted;

mod shapes;

use shapes::SHAPES;

pub(crate) const STORIES: &[Story] =
    &[("objects_of_jobs_of_every_shape_are_taken_by_the_api_server", every_shape)];

/// A shape's name, what is changed in a plain job's `spec`, and what must be in what comes of it: for a kind of object
/// (`child` and `jobspec`: whichever the child is), JSON pointers and the values there.
struct Shape {
    name: &'static str,
    spec: fn() -> Value,
    has: fn() -> Value,
}

fn every_shape() {
    let rig = Rig::start(root().join("tests/.cache/kubernetes/objects"));
    planted::plant(&rig);
    plant_more(&rig);
    rig.with_definition();
    let space = rig.namespace("objects");
    space.apply(&list(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer"}}),
    ]));
    let all = |child| SHAPES.iter().filter_map(|shape| wrong(&rig, &space, shape, child)).collect::<Vec<_>>();
    let mut wrong = all("Job");
    rig.with_jobset();
    wrong.extend(all("JobSet"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    space.assert_empty();
    restricted(&rig, &space);
}

/// What single shapes need beside the cluster that lacks nothing.
fn plant_more(rig: &Rig) {
    let partition = |number: u32| {
        let attributes = json!({"type": {"string": "mig"}, "profile": {"string": "1g.10gb"}});
        json!({"name": format!("dev-{number}"), "attributes": attributes})
    };
    let (driver, attributes) = ("device.driver == 'gpu.nvidia.com'", "device.attributes['gpu.nvidia.com']");
    rig.create(&[
        planted::host("m1", &json!({"nvidia.com/mig-1g.10gb": "7"})),
        planted::host("m2", &json!({})),
        planted::class("big-gpus", &format!("{driver} && has({attributes}.productName)")),
        planted::class("mig.nvidia.com", &format!("{driver} && {attributes}.type == 'mig'")),
        planted::slice_of("gpu.nvidia.com", "m2", &(0..4).map(partition).collect()),
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "urgent"}, "value": 10,
        }),
    ]);
}

/// What is wrong with the objects of one shape, as `--dry-run` shows them: they do not say what they are to say, or one of
/// them is refused.
fn wrong(rig: &Rig, space: &Namespace<'_>, shape: &Shape, child: &str) -> Option<String> {
    let objects = rendered(rig, space, shape.name, &(shape.spec)());
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
    let jobspec = if child == "Job" { "/spec" } else { "/spec/replicatedJobs/0/template/spec" };
    let mut wrong = Vec::new();
    for (place, values) in (shape.has)().as_object().unwrap() {
        let object = match place.as_str() {
            "child" => of_kind(child),
            "jobspec" => of_kind(child).and_then(|child| child.pointer(jobspec)),
            kind => of_kind(kind),
        };
        for (path, value) in values.as_object().unwrap() {
            let found = object.and_then(|object| object.pointer(path)).unwrap_or(&Value::Null);
            if found != value {
                wrong.push(format!("{path} of {place} is {found}, not {value}"));
            }
        }
    }
    if of_kind(child).is_none() {
        wrong.push(format!("there is no {child}"));
    }
    let tried = try_create(rig, &objects);
    if tried.code != 0 {
        wrong.push(tried.stderr);
    }
    (!wrong.is_empty())
        .then(|| format!("{} by {child}:\n{}\n{}", shape.name, wrong.join("\n"), list(&objects)))
}

/// What a job of this shape would be made of, and a pod as its child makes them.
fn rendered(rig: &Rig, space: &Namespace<'_>, name: &str, change: &Value) -> Vec<Value> {
    let mut spec = json!({
        "workers": {"count": 2}, "run": {"command": ["train"]}, "pod": {"image": "example/train:1", "folder": "/app"},
    });
    for (key, value) in change.as_object().unwrap() {
        match value.as_object() {
            Some(fields) if key == "pod" => spec[key].as_object_mut().unwrap().extend(fields.clone()),
            _ => spec[key] = value.clone(),
        }
    }
    let job = json!({
        "apiVersion": "slipway.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": spec,
    });
    let user = rig.user();
    let file = user.write("job.json", job.to_string());
    let words = ["job", "submit", file.to_str().unwrap(), "--on", "kubernetes", "--namespace", space.name()];
    let shown = user.run(words.iter().chain(&["--dry-run", "--output", "json"])).code(0).json();
    assert_eq!(shown["reasons"], json!([]), "{name} has room");
    assert_eq!(shown["workers"].as_array().map(Vec::is_empty), Some(false), "{name}: {shown:#}");
    let mut objects = shown["objects"].as_array().unwrap().clone();
    let of_jobset = |object: &Value| object.pointer("/spec/replicatedJobs/0/template/spec/template").cloned();
    let template = objects.iter().find_map(|object| match object["kind"].as_str() {
        Some("Job") => object.pointer("/spec/template").cloned(),
        _ => of_jobset(object),
    });
    let mut pod = template.unwrap();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(format!("{name}-0"));
    pod["metadata"]["namespace"] = json!(space.name());
    objects.push(pod);
    objects
}

/// `kubectl create` for a trial, with unknown and doubled fields refused.
fn try_create(rig: &Rig, objects: &[Value]) -> Finished {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), list(objects)).unwrap();
    let words = ["create", "--dry-run=server", "--validate=strict", "-f"].map(OsStr::new);
    rig.kubectl(words.into_iter().chain([file.path().as_os_str()]))
}

/// The strictest level of pod security takes a job's pods, unless a sidecar locks memory for a NIC.
fn restricted(rig: &Rig, space: &Namespace<'_>) {
    let level = "pod-security.kubernetes.io/enforce=restricted";
    rig.kubectl(["label", "namespace", space.name(), level]).code(0);
    let pod = |name: &str| {
        let shape = SHAPES.iter().find(|shape| shape.name == name).unwrap();
        rendered(rig, space, name, &(shape.spec)()).pop().unwrap()
    };
    try_create(rig, &[pod("plain"), pod("numa-cpus"), pod("huge-pages"), pod("mig-plugin"), pod("spares")])
        .code(0);
    try_create(rig, &[pod("plugins")]).code(1).says("IPC_LOCK").says("restricted");
}
