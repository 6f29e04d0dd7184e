//! The rendered objects, whole, and what holds of all of them.

use std::net::SocketAddr;

use k8s_openapi::api::batch::v1::{Job as BatchJob, JobTemplateSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use worker::config::PodJob;
use worker::pod::identity::decode;

use super::*;
use crate::backend::kubernetes::resource::{self, TrainingJob};
use crate::job::source;
use crate::output::yaml;
use crate::rendezvous::authority::{Authority, Seed};

const UID: &str = "0d5e2f0e-7f0b-4b52-9d84-1f6f3f6c1a11";
const PLUGIN: Devices<'_> = Devices::Plugin { gpu: Some("nvidia.com/gpu"), nic: Some("openshift.io/rdma_a") };
const NONE: Devices<'_> = Devices::Plugin { gpu: None, nic: None };
const DRA: Devices<'_> = Devices::Dra {
    gpu: Some(DeviceSource { class: "gpu.nvidia.com", driver: "gpu.nvidia.com" }),
    nic: Some(DeviceSource { class: "dranet", driver: "dra.net" }),
    near: Some("resource.kubernetes.io/pcieRoot"),
};

fn job(spec: Value, name: &str) -> Job {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    resource::job(&TrainingJob { metadata, spec, status: None }).unwrap()
}

fn job_in(file: &str) -> Job {
    let path = format!("{}/src/backend/kubernetes/objects/testdata/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
    let (node, faults) = source::read(&std::fs::read_to_string(path).unwrap());
    assert_eq!(faults, []);
    resource::job(&serde_json::from_value(node.unwrap().to_json()).unwrap()).unwrap()
}

fn render<'a>(job: &'a Job, child: ChildKind, devices: Devices<'a>) -> Render<'a> {
    Render {
        job,
        namespace: "research",
        uid: UID,
        child,
        sidecar_image: "registry.example.org/slipway/worker:0.1.0",
        launcher: SocketAddr::from(([10, 0, 0, 7], 7071)),
        devices,
    }
}

/// Everything but the Secrets.
fn all(render: &Render<'_>) -> Vec<Value> {
    let mut objects = vec![config_map(render).unwrap(), network_policy(render)];
    objects.extend(claim_template(render).unwrap());
    objects.extend(headless_service(render));
    objects.push(child(render).unwrap());
    objects.extend(servers(render));
    objects
}

#[track_caller]
fn same_as_typed<T: Serialize + DeserializeOwned>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), *object, "a field is misspelt");
}

/// Kubernetes' own types know every field: one that they do not know would be gone after a turn through them.
fn check_names(object: &Value) {
    match object["kind"].as_str().unwrap() {
        "ConfigMap" => same_as_typed::<ConfigMap>(object),
        "Job" => same_as_typed::<BatchJob>(object),
        "JobSet" => same_as_typed::<JobTemplateSpec>(&object["spec"]["replicatedJobs"][0]["template"]),
        "NetworkPolicy" => same_as_typed::<NetworkPolicy>(object),
        "ResourceClaimTemplate" => same_as_typed::<ResourceClaimTemplate>(object),
        "Secret" => same_as_typed::<Secret>(object),
        "Service" => same_as_typed::<Service>(object),
        kind => panic!("{kind}"),
    }
}

#[test]
fn jobs_become_objects() {
    let mig = Devices::Plugin { gpu: Some("nvidia.com/mig-1g.10gb"), nic: None };
    for (file, child, devices) in [
        ("plain", ChildKind::Job, NONE),
        ("numa", ChildKind::JobSet, PLUGIN),
        ("pcie", ChildKind::JobSet, DRA),
        ("uneven", ChildKind::Job, DRA),
        ("mig", ChildKind::Job, mig),
        ("volumes", ChildKind::JobSet, NONE),
        ("queue", ChildKind::JobSet, NONE),
        ("root", ChildKind::Job, PLUGIN),
        ("served", ChildKind::JobSet, PLUGIN),
        ("served_plainly", ChildKind::Job, NONE),
    ] {
        let job = job_in(file);
        let objects = all(&render(&job, child, devices));
        objects.iter().for_each(check_names);
        insta::assert_snapshot!(file, yaml::documents(&objects).unwrap());
    }
}

#[test]
fn the_same_job_gives_the_same_bytes() {
    let job = job_in("numa");
    let text = || yaml::documents(&all(&render(&job, ChildKind::JobSet, PLUGIN))).unwrap();
    assert_eq!(text(), text());
}

#[test]
fn partitions_are_chosen_by_their_profile_and_models_by_pattern() {
    let mut job = job_in("mig");
    job.pod.devices = Some(crate::job::spec::pod::DevicesSpec {
        gpu_model: Some("A100 (80*)\"\\".to_owned()),
        ..Default::default()
    });
    let template = claim_template(&render(&job, ChildKind::Job, DRA)).unwrap().unwrap();
    let selectors = &template["spec"]["spec"]["devices"]["requests"][0]["exactly"]["selectors"];
    let attributes = "device.attributes[\"gpu.nvidia.com\"]";
    assert_eq!(
        selectors[0]["cel"]["expression"],
        format!("has({attributes}.profile) && {attributes}.profile == \"1g.10gb\"")
    );
    let model = selectors[1]["cel"]["expression"].as_str().unwrap();
    assert!(model.contains("has(") && model.contains(".matches(\"^A100[- ][(]80.*[)]..$\")"), "{model}");
}

#[test]
fn devices_that_nobody_can_name_are_refused() {
    let job = job_in("numa");
    let error = child(&render(&job, ChildKind::Job, NONE)).unwrap_err();
    assert!(matches!(error, RenderError::NoName { what: "GPUs" }), "{error}");
    let no_nics = Devices::Plugin { gpu: Some("nvidia.com/gpu"), nic: None };
    let error = child(&render(&job, ChildKind::Job, no_nics)).unwrap_err();
    assert!(matches!(error, RenderError::NoName { what: "NICs" }), "{error}");
    let Devices::Dra { gpu, near, .. } = DRA else { unreachable!() };
    let error =
        claim_template(&render(&job, ChildKind::Job, Devices::Dra { gpu, nic: None, near })).unwrap_err();
    assert!(matches!(error, RenderError::NoName { what: "NICs" }), "{error}");
    let mut many = job_in("pcie");
    many.resources.gpus = 40;
    let error = claim_template(&render(&many, ChildKind::Job, DRA)).unwrap_err();
    assert!(matches!(error, RenderError::TooManyDevices { devices: 42, .. }), "{error}");
}

#[test]
fn what_pods_read_says_the_job_and_fits() {
    let mut job = job_in("numa");
    let map = config_map(&render(&job, ChildKind::Job, PLUGIN)).unwrap();
    let said: PodJob = serde_json::from_str(map["data"]["job.json"].as_str().unwrap()).unwrap();
    assert_eq!(said, pod_job(&render(&job, ChildKind::Job, PLUGIN)));
    let data = said.data.unwrap();
    assert_eq!((data.cache_bytes, data.tier.unwrap().bytes), (8 << 30, 200 << 30));
    job.run.env.insert("A".to_owned(), "x".repeat(1 << 20));
    let error = config_map(&render(&job, ChildKind::Job, PLUGIN)).unwrap_err();
    assert!(matches!(error, RenderError::TooLarge { .. }), "{error}");
}

#[test]
fn every_worker_has_an_identity_and_a_secret_holds_them() {
    let job = job_in("plain");
    let render = render(&job, ChildKind::Job, NONE);
    let mut authority = Authority::new(UID, Seed([7; 32])).unwrap();
    let workers = names::IDENTITIES_PER_SECRET + 2;
    let secrets = identity_secrets(&render, &mut authority, workers).unwrap();
    assert_eq!(secrets.len(), 2);
    assert_eq!(
        secrets,
        identity_secrets(&render, &mut authority, workers).unwrap(),
        "identities never change"
    );
    for (secret, count) in secrets.iter().zip([names::IDENTITIES_PER_SECRET, 2]) {
        check_names(secret);
        let typed: Secret = serde_json::from_value(secret.clone()).unwrap();
        let data = typed.data.unwrap();
        assert_eq!(data.len(), usize::try_from(count).unwrap() + 1);
        // The API server keeps at most 1 MiB of data.
        assert!(data.values().map(|value| value.0.len()).sum::<usize>() < 1 << 20);
    }
    let last: Secret = serde_json::from_value(secrets[1].clone()).unwrap();
    let data = last.data.unwrap();
    let worker = worker::units::WorkerId(names::IDENTITIES_PER_SECRET + 1);
    let identity = decode(&data[&worker.to_string()].0, data["ca"].0.clone()).unwrap();
    assert_eq!(identity.key_der, authority.worker(worker).unwrap().key_der);
    assert_eq!(identity.cert_der, authority.worker(worker).unwrap().cert_der);
    let seed = authority_secret(&render, &Seed([7; 32]));
    check_names(&seed);
    let typed: Secret = serde_json::from_value(seed).unwrap();
    assert_eq!(typed.data.unwrap()[SEED_KEY].0, [7; 32]);
}

/// A data server's pod finds its own identity by its index, in a Secret that no worker's pod mounts.
#[test]
fn data_servers_have_identities_of_their_own() {
    let job = job_in("served");
    let render = render(&job, ChildKind::JobSet, PLUGIN);
    let mut authority = Authority::new(UID, Seed([7; 32])).unwrap();
    let secrets = identity_secrets(&render, &mut authority, render.pods()).unwrap();
    let names: Vec<_> = secrets.iter().map(|secret| secret["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["served-identities-0", "served-identities-1"]);
    let typed: Secret = serde_json::from_value(secrets[1].clone()).unwrap();
    let data = typed.data.unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["0", "1", "ca"]);
    let identity = decode(&data["1"].0, data["ca"].0.clone()).unwrap();
    // Four workers and a spare come before it.
    assert_eq!(identity.cert_der, authority.worker(worker::units::WorkerId(6)).unwrap().cert_der);
    let text = child(&render).unwrap().to_string();
    assert!(text.contains("served-identities-0") && !text.contains("served-identities-1"));
    let text = servers(&render).unwrap().to_string();
    assert!(text.contains("served-identities-1") && !text.contains("served-identities-0"));
    assert!(!text.contains("tracker"), "a secret of the user's is the ranks' alone");
}

/// Specifications that a cluster takes, in most of their dimensions.
fn specs() -> impl Strategy<Value = Value> {
    let resources = (1..4_u32, 0..3_u32, 0..3_u32, prop::option::of(1..9_u32), any::<bool>(), any::<bool>());
    let pod = (0..3_u32, prop::option::of(1..5_u32), any::<bool>(), any::<bool>(), 0..3_u32, 0..3_usize);
    (resources, pod).prop_map(|((ranks, gpus, nics, cpus, memory, huge), pod)| {
        let (own_nics, own_cpus, own_memory, root, spares, networks) = pod;
        let mut spec = json!({
            "workers": { "count": 3, "spares": spares },
            "run": { "command": ["a"], "ranksPerWorker": ranks },
            "resources": { "gpus": gpus * ranks, "nics": nics },
            "pod": {
                "image": "a:1",
                "volumes": [
                    { "name": "data", "mountPath": "/data", "claim": "a" },
                    { "name": "keys", "mountPath": "/keys", "secret": "b" },
                ],
                "sidecar": { "nics": if nics > 0 { own_nics } else { 0 } },
            },
        });
        if let Some(cpus) = cpus {
            spec["resources"]["cpus"] = json!(cpus * ranks);
        }
        if memory || cpus.is_some() {
            spec["resources"]["memory"] = json!("3Gi");
        }
        if huge {
            spec["resources"]["hugepages"] = json!("4Mi");
        }
        if let Some(cpus) = own_cpus {
            spec["pod"]["sidecar"]["cpus"] = json!(cpus);
        }
        if own_memory {
            spec["pod"]["sidecar"]["memory"] = json!("5Gi");
        }
        if root {
            spec["pod"]["runAsUser"] = json!(0);
        }
        if nics > 0 && networks > 0 {
            spec["pod"]["devices"] = json!({ "networks": vec!["a/b"; networks] });
        }
        spec
    })
}

fn amount(resources: &Value, which: &str, name: &str) -> u64 {
    let text = resources[which][name].as_str().unwrap_or("0");
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().unwrap(),
        None if name == "cpu" => text.parse::<u64>().unwrap() * 1000,
        None => text.parse::<crate::job::units::Bytes>().unwrap().0,
    }
}

proptest! {
    #[test]
    fn every_pod_obeys(spec in specs(), by_plugin in any::<bool>(), set in any::<bool>()) {
        let job = job(spec, "any");
        let devices = if by_plugin { PLUGIN } else { DRA };
        let kind = if set { ChildKind::JobSet } else { ChildKind::Job };
        let render = render(&job, kind, devices);
        all(&render).iter().for_each(check_names);
        let template = pod_template(&render).unwrap();
        let pod = &template["spec"];
        let (sidecar, ranks) = (&pod["initContainers"][0], &pod["containers"][0]);
        let containers = [sidecar, ranks];

        // Placement plans with exactly what is asked for.
        let need = need(&job);
        let total = |name: &str| containers.iter().map(|c| amount(&c["resources"], "requests", name)).sum::<u64>();
        prop_assert_eq!(total("cpu"), need.cpus.map_or(need.cpu_millis, |cpus| u64::from(cpus) * 1000));
        prop_assert_eq!(total("memory"), need.memory_bytes);
        prop_assert_eq!(total("hugepages-2Mi"), need.hugepage_bytes);
        if by_plugin {
            prop_assert_eq!(total("nvidia.com/gpu"), u64::from(need.gpus));
            prop_assert_eq!(total("openshift.io/rdma_a"), u64::from(need.nics));
        } else {
            let claims = ranks["resources"]["claims"].is_array();
            prop_assert_eq!(claims, job.resources.gpus + job.resources.nics > 0);
            prop_assert_eq!(pod["resourceClaims"].is_array(), claims);
            prop_assert_eq!(&ranks["resources"]["claims"], &sidecar["resources"]["claims"], "they share devices");
        }

        // Whole CPUs are theirs alone only in the Guaranteed class.
        if job.resources.cpus.is_some() {
            for container in containers {
                let resources = &container["resources"];
                prop_assert_eq!(&resources["requests"], &resources["limits"]);
                prop_assert!(amount(resources, "requests", "cpu") > 0);
                prop_assert_eq!(amount(resources, "requests", "cpu") % 1000, 0);
                prop_assert!(amount(resources, "requests", "memory") > 0);
            }
        }
        // Huge pages and extended resources cannot be overcommitted.
        for container in containers {
            for (name, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
                prop_assert_eq!(limit, &container["resources"]["requests"][name]);
            }
        }

        // No secret where it can be read by more than its owner.
        prop_assert_eq!(&pod["automountServiceAccountToken"], false);
        for container in containers {
            for variable in container["env"].as_array().unwrap() {
                prop_assert!(variable["value"].is_null() && variable["valueFrom"]["fieldRef"].is_object());
            }
            prop_assert_eq!(&container["securityContext"]["capabilities"]["drop"], &json!(["ALL"]));
        }
        let mounts = |container: &Value, name: &str| {
            container["volumeMounts"].as_array().unwrap().iter().filter(|mount| mount["name"] == name).count()
        };
        prop_assert_eq!((mounts(sidecar, "keys"), mounts(ranks, "keys")), (0, 1));
        prop_assert_eq!((mounts(sidecar, "slipway-identity"), mounts(ranks, "slipway-identity")), (2, 0));
        for mount in sidecar["volumeMounts"].as_array().unwrap() {
            prop_assert!(mount["name"] == "slipway" || mount["readOnly"] == true);
        }

        // Privilege is only asked for where a NIC needs memory to be locked.
        let registers = if by_plugin { sidecar["resources"]["limits"]["openshift.io/rdma_a"].is_string() }
            else { job.resources.nics > 0 };
        prop_assert_eq!(&sidecar["securityContext"]["allowPrivilegeEscalation"], registers);
        prop_assert_eq!(sidecar["securityContext"]["capabilities"]["add"].is_array(), registers);
        prop_assert_eq!(&pod["securityContext"]["runAsNonRoot"], job.pod.run_as_user != Some(0));

        // One network for each NIC.
        let wanted = if by_plugin && job.pod.devices.is_some() { need.nics } else { 0 };
        let networks = &template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"];
        let list: Vec<Value> = networks.as_str().map_or_else(Vec::new, |text| serde_json::from_str(text).unwrap());
        prop_assert_eq!(list.len(), usize::try_from(wanted).unwrap());
    }
}
