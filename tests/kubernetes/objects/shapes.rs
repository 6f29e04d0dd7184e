//! Jobs of many shapes, in a cluster of device plugins and of drivers.

use serde_json::json;

use super::Shape;

pub(super) const SHAPES: &[Shape] = &[
    Shape {
        name: "plain",
        spec: || json!({}),
        has: || json!({"Pod": {"/spec/schedulingGates/0/name": "slipway.dev/placement", "/spec/resourceClaims": null}}),
    },
    Shape {
        name: "numa-cpus",
        spec: || json!({"resources": {"cpus": 8, "memory": "16Gi", "locality": "numa"}}),
        has: || {
            json!({"Pod": {
                "/spec/containers/0/resources/limits/cpu": "8", "/spec/initContainers/0/resources/limits/cpu": "1",
            }})
        },
    },
    Shape {
        name: "plugins",
        spec: || {
            json!({
                "resources": {"gpus": 2, "nics": 1, "cpus": 8, "memory": "16Gi", "locality": "numa"},
                "pod": {"devices": {"by": "plugin", "networks": ["net/rdma-a", "rdma-b"]}, "sidecar": {"nics": 1}},
            })
        },
        has: || {
            json!({"Pod": {
                "/spec/containers/0/resources/limits/nvidia.com~1gpu": "2",
                "/spec/containers/0/resources/limits/openshift.io~1rdma_a": "1",
                "/spec/initContainers/0/resources/limits/openshift.io~1rdma_a": "1",
                "/spec/initContainers/0/securityContext/capabilities/add": ["IPC_LOCK"],
                "/metadata/annotations/k8s.v1.cni.cncf.io~1networks":
                    r#"[{"name":"rdma-a","namespace":"net"},{"name":"rdma-b"}]"#,
            }})
        },
    },
    Shape {
        name: "mig-plugin",
        spec: || json!({"resources": {"gpus": 3, "gpuMode": "mig-1g.10gb"}, "pod": {"devices": {"by": "plugin"}}}),
        has: || json!({"Pod": {"/spec/containers/0/resources/limits/nvidia.com~1mig-1g.10gb": "3"}}),
    },
    Shape {
        name: "huge-pages",
        spec: || json!({"resources": {"cpus": 4, "memory": "8Gi", "hugepages": "4Gi"}}),
        has: || json!({"Pod": {"/spec/initContainers/0/resources/limits/hugepages-2Mi": "4Gi"}}),
    },
    Shape {
        name: "volumes",
        spec: || {
            json!({"pod": {"checkpoints": "/claim/mine", "volumes": [
                {"name": "a", "mountPath": "/claim", "claim": "checkpoints"},
                {"name": "b", "mountPath": "/data", "claim": "data", "readOnly": true},
                {"name": "c", "mountPath": "/host", "hostPath": "/srv/data"},
                {"name": "d", "mountPath": "/map", "configMap": "settings"},
                {"name": "e", "mountPath": "/secret", "secret": "token"},
                {"name": "f", "mountPath": "/image", "image": "example/data:1", "readOnly": true},
                {"name": "g", "mountPath": "/nfs", "readOnly": true, "nfs": {"server": "192.0.2.1", "path": "/export"}},
            ]}})
        },
        has: || json!({"Pod": {"/spec/volumes/9/image/reference": "example/data:1", "/spec/volumes/10/nfs/readOnly": true}}),
    },
    Shape {
        name: "queued",
        spec: || json!({"queue": {"name": "research", "priority": "overnight"}}),
        has: || {
            json!({"child": {
                "/metadata/labels/kueue.x-k8s.io~1queue-name": "research",
                "/metadata/labels/kueue.x-k8s.io~1priority-class": "overnight", "/spec/suspend": true,
            }})
        },
    },
    Shape {
        name: "spares",
        spec: || {
            json!({
                "workers": {"count": 2, "min": 1, "spares": 1},
                "placement": {"strategy": "spread", "rack": "required", "exclude": ["d2"]},
            })
        },
        has: || json!({"jobspec": {"/completions": 3, "/parallelism": 3}}),
    },
    Shape {
        name: "dra-pcie",
        spec: || {
            json!({
                "resources": {"gpus": 2, "nics": 2, "cpus": 8, "memory": "16Gi", "locality": "pcie"},
                "pod": {"devices": {"by": "dra", "gpuModel": "H100*"}},
            })
        },
        has: || {
            json!({
                "ResourceClaimTemplate": {
                    "/spec/spec/devices/constraints/1/requests": ["gpu1", "nic1"],
                    "/spec/spec/devices/constraints/1/matchAttribute": "resource.kubernetes.io/pcieRoot",
                    "/spec/spec/devices/requests/0/exactly/deviceClassName": "gpu.nvidia.com",
                },
                "Pod": {"/spec/containers/0/resources/claims/0/name": "devices"},
            })
        },
    },
    Shape {
        name: "dra-numa",
        spec: || {
            json!({
                "resources": {"gpus": 2, "nics": 1, "cpus": 8, "memory": "16Gi", "locality": "numa"},
                "pod": {"devices": {"by": "dra"}},
            })
        },
        has: || {
            json!({"ResourceClaimTemplate": {
                "/spec/spec/devices/constraints/0/requests": ["gpu0", "gpu1", "nic0"],
                "/spec/spec/devices/constraints/0/matchAttribute": "resource.kubernetes.io/numaNode",
            }})
        },
    },
    Shape {
        name: "dra-mig",
        spec: || json!({"resources": {"gpus": 2, "gpuMode": "mig-1g.10gb"}, "pod": {"devices": {"by": "dra"}}}),
        has: || {
            json!({"ResourceClaimTemplate": {
                "/spec/spec/devices/requests/1/exactly/deviceClassName": "mig.nvidia.com",
                "/spec/spec/devices/requests/1/exactly/selectors/0/cel/expression":
                    r#"has(device.attributes["gpu.nvidia.com"].profile) && device.attributes["gpu.nvidia.com"].profile == "1g.10gb""#,
            }})
        },
    },
    Shape {
        name: "dra-class",
        spec: || json!({"resources": {"gpus": 1}, "pod": {"devices": {"by": "dra", "gpu": "big-gpus"}}}),
        has: || {
            json!({"ResourceClaimTemplate": {
                "/spec/spec/devices/requests/0/exactly/deviceClassName": "big-gpus",
                "/spec/spec/devices/constraints": null,
            }})
        },
    },
    Shape {
        name: "root",
        spec: || {
            json!({
                "resources": {"gpus": 1, "nics": 1},
                "pod": {"runAsUser": 0, "devices": {"by": "plugin"}, "imagePullPolicy": "Always"},
            })
        },
        has: || json!({"Pod": {"/spec/securityContext/runAsUser": 0, "/spec/securityContext/runAsNonRoot": false}}),
    },
    Shape {
        name: "scheduling",
        spec: || {
            json!({
                "run": {"command": ["train", "--fast"], "env": {"A": "b"}, "ranksPerWorker": 4, "workdir": "/app"},
                "pod": {
                    "serviceAccount": "trainer", "priorityClass": "urgent", "imagePullSecrets": ["registry"],
                    "nodeSelector": {"nvidia.com/gpu.product": "H100"}, "annotations": {"example.com/owner": "me"},
                    "sidecar": {"cpus": 2, "memory": "4Gi"}, "ttl": "72h", "nodeLost": "wait",
                    "tolerations": [
                        {"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute"},
                        {"key": "c", "operator": "Exists", "effect": "PreferNoSchedule"},
                    ],
                },
            })
        },
        has: || {
            json!({"Pod": {
                "/spec/serviceAccountName": "trainer", "/spec/priorityClassName": "urgent",
                "/spec/tolerations/1": {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"},
            }})
        },
    },
];
