//! What is done to a whole installation, and what is to be said of it.

use super::{RUNS, UNAVAILABLE};

/// What is found, the exit code, and what is done to the cluster: words for `kubectl`, one line each. Afterwards the lines
/// of the last field undo it; without any, all that the installation and [`crate::planted`] have is put back.
pub(super) type Fault = (&'static [&'static str], i32, &'static [&'static str], &'static [&'static str]);

pub(super) const FAULTS: &[Fault] = &[
    // The control plane.
    (&["kind-missing"], UNAVAILABLE, &["delete crd trainingjobs.slipway.dev"], &[]),
    (
        &["kind-older"],
        RUNS,
        &[
            r#"patch crd trainingjobs.slipway.dev --type=json -p [{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/pod/properties/ttl"}]"#,
        ],
        &[],
    ),
    (
        &["kind-newer"],
        RUNS,
        &[
            r#"patch crd trainingjobs.slipway.dev --type=json -p [{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/moon","value":{"type":"string"}}]"#,
        ],
        // Applying takes away no field that somebody else has set.
        &[
            r#"patch crd trainingjobs.slipway.dev --type=json -p [{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/moon"}]"#,
        ],
    ),
    (&["service-missing"], UNAVAILABLE, &["delete service slipway-rendezvous -n slipway-system"], &[]),
    (&["flow-schema-missing"], RUNS, &["delete flowschema slipway-controller"], &[]),
    (&["admission-policy-missing"], RUNS, &["delete validatingadmissionpolicy slipway-placement-gate"], &[]),
    (&["jobset-missing"], RUNS, &["delete crd jobsets.jobset.x-k8s.io"], &[]),
    (
        &["pod-security"],
        RUNS,
        &["label namespace SPACE pod-security.kubernetes.io/enforce=baseline"],
        &["label namespace SPACE pod-security.kubernetes.io/enforce-"],
    ),
    // Hosts.
    (&["host-closed"], RUNS, &["cordon p1"], &["uncordon p1"]),
    (
        &["host-closed"],
        RUNS,
        // kwok leaves it alone then, and nobody else makes it ready again.
        &[
            "annotate node d2 kwok.x-k8s.io/node-",
            r#"patch node d2 --subresource=status --type=merge -p {"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady"}]}}"#,
        ],
        &[
            "annotate node d2 kwok.x-k8s.io/node=fake",
            r#"patch node d2 --subresource=status --type=merge -p {"status":{"conditions":[{"type":"Ready","status":"True","reason":"Played"}]}}"#,
        ],
    ),
    (
        &["gpus-lost"],
        RUNS,
        &[
            r#"patch node p1 --subresource=status --type=merge -p {"status":{"allocatable":{"nvidia.com/gpu":"3"}}}"#,
        ],
        &[
            r#"patch node p1 --subresource=status --type=merge -p {"status":{"allocatable":{"nvidia.com/gpu":"4"}}}"#,
        ],
    ),
    (
        &["gpu-model-unknown"],
        RUNS,
        &["label node p1 nvidia.com/gpu.product-"],
        &["label node p1 nvidia.com/gpu.product=H100"],
    ),
    (
        &["hugepages-missing"],
        RUNS,
        &[
            r#"patch node d2 --subresource=status --type=merge -p {"status":{"allocatable":{"hugepages-2Mi":"0"}}}"#,
        ],
        &[
            r#"patch node d2 --subresource=status --type=merge -p {"status":{"allocatable":{"hugepages-2Mi":"16Gi"}}}"#,
        ],
    ),
    (
        &["rack-missing"],
        RUNS,
        &["label node p2 fabric.topograph.run/tier-0-"],
        &["label node p2 fabric.topograph.run/tier-0=leaf-1"],
    ),
    // NUMA.
    (&["numa-unknown"], RUNS, &["delete noderesourcetopology p1"], &[]),
    (
        &["kubelet-policy"],
        RUNS,
        &[
            r#"patch noderesourcetopology p1 --type=json -p [{"op":"replace","path":"/attributes/0/value","value":"none"}]"#,
        ],
        &[],
    ),
    (
        &["kubelet-policy"],
        RUNS,
        &[
            r#"patch noderesourcetopology p1 --type=json -p [{"op":"replace","path":"/attributes/0/value","value":"none"}]"#,
            r#"patch noderesourcetopology p2 --type=json -p [{"op":"replace","path":"/attributes/0/value","value":"best-effort"}]"#,
        ],
        &[],
    ),
    (
        &["kubelet-scope"],
        RUNS,
        &[
            r#"patch noderesourcetopology p2 --type=json -p [{"op":"replace","path":"/attributes/1/value","value":"container"}]"#,
        ],
        &[],
    ),
    (
        &["topology-stale"],
        RUNS,
        &[
            r#"patch noderesourcetopology p1 --type=json -p [{"op":"replace","path":"/zones/0/resources/3/capacity","value":"3"}]"#,
        ],
        &[],
    ),
    (
        &["hints-missing"],
        RUNS,
        &[
            r#"patch noderesourcetopology p1 --type=json -p [{"op":"remove","path":"/zones/0/resources/4"},{"op":"remove","path":"/zones/1/resources/4"}]"#,
        ],
        &[],
    ),
    // Devices.
    (&["class-missing"], RUNS, &["delete deviceclass dra.net"], &[]),
    (
        &["driver-without-numa"],
        RUNS,
        &[
            r#"patch resourceslice d1-gpu.nvidia.com --type=json -p [{"op":"remove","path":"/spec/devices/0/attributes/resource.kubernetes.io~1numaNode"}]"#,
        ],
        &[],
    ),
    (
        &["driver-without-root"],
        RUNS,
        &[
            r#"patch resourceslice d1-dra.net --type=json -p [{"op":"remove","path":"/spec/devices/0/attributes/resource.kubernetes.io~1pcieRoot"}]"#,
        ],
        &[],
    ),
    (
        &["slices-incomplete"],
        RUNS,
        &[r#"patch resourceslice d2-dra.net --type=merge -p {"spec":{"pool":{"resourceSliceCount":2}}}"#],
        &[],
    ),
    (
        &["roots-unknown"],
        RUNS,
        &["delete resourceslices --all", "label node d1 d2 nvidia.com/gpu.product-"],
        &["label node d1 d2 nvidia.com/gpu.product=H100", "AGAIN"],
    ),
    (&["sriov-not-synced"], RUNS, &["create -f SRIOV"], &["delete -f SRIOV"]),
    (&["network-missing"], RUNS, &["delete network-attachment-definitions rdma-a -n default"], &[]),
    (&["multus-missing"], RUNS, &["delete crd network-attachment-definitions.k8s.cni.cncf.io"], &[]),
];
