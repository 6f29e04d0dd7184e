//! Checks of what hands out GPUs and NICs (pure): device plugins, drivers, their classes, and networks.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{CLOSE, EVERY, Finding, NUMA, PCIE, Severity, Source, View};
use crate::topology::kubernetes::slices::{self, Device, What};
use crate::topology::kubernetes::sriov;
use crate::topology::kubernetes::unknown::Unknown;
use crate::topology::{DeviceClass, Host, Mechanism};

/// The Pod Security level that is enforced in a namespace.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// The annotation by which a network names the resource of its devices.
const NETWORK_RESOURCE: &str = "/metadata/annotations/k8s.v1.cni.cncf.io~1resourceName";

pub(super) fn examine(view: &View<'_>, findings: &mut Vec<Finding>) {
    let devices = drivers(view, findings);
    hints(view, findings);
    published(&devices, findings);
    classes(view, &devices, findings);
    pairs(view, findings);
    sync(view, findings);
    networks(view, findings);
    pod_security(view, findings);
}

/// The devices of all drivers; pools with missing slices are findings.
fn drivers(view: &View<'_>, findings: &mut Vec<Finding>) -> BTreeMap<String, Vec<Device>> {
    let slices: Vec<&Value> = view.report.slices.known().into_iter().flatten().collect();
    let mut unknown = Unknown::default();
    let devices = slices::read(&slices, &[], &[], &mut unknown);
    for line in unknown.lines() {
        findings.push(Finding::new(
            "slices-incomplete",
            Severity::Warning,
            EVERY,
            line,
            "a pool that is not whole is not used",
            "wait a minute; then look at the driver's log, and restart it",
        ));
    }
    devices
}

/// Devices of plugins that are on no NUMA node, on hosts that have some.
fn hints(view: &View<'_>, findings: &mut Vec<Finding>) {
    let policies = view.report.sriov_policies.known().into_iter().flatten();
    let excluded =
        policies.filter(|policy| policy.pointer("/spec/excludeTopology") == Some(&Value::Bool(true)));
    let excluded: BTreeSet<&str> =
        excluded.filter_map(|policy| policy.pointer("/spec/resourceName")?.as_str()).collect();
    for (name, kind) in view.cluster.devices.iter().filter(|(_, kind)| kind.by == Mechanism::Plugin) {
        let has = |host: &&Host| !host.numa.is_empty() && host.capacity.device(name) > 0;
        let hintless = |host: &Host| {
            host.numa.iter().map(|node| node.capacity.device(name)).sum::<u32>() < host.capacity.device(name)
        };
        let Some((severity, hosts)) = View::some_or_all(view.cluster.hosts.iter().filter(has), hintless)
        else {
            continue;
        };
        let own = name.rsplit_once('/').map_or(name.as_str(), |(_, own)| own);
        let (code, fix) = if excluded.contains(own) {
            (
                "topology-excluded",
                format!("set excludeTopology: false in the SriovNetworkNodePolicy of {own}"),
            )
        } else if kind.class == DeviceClass::Nic {
            (
                "hints-missing",
                "offer VFs by the SR-IOV device plugin: shared RDMA devices have no NUMA hints".to_owned(),
            )
        } else {
            ("hints-missing", "bring the device plugin to a version that gives NUMA hints".to_owned())
        };
        // Another name of the same class may do: only a class without any hinted name keeps jobs from running.
        let others =
            view.cluster.devices.iter().filter(|(other, one)| *other != name && one.class == kind.class);
        let severity = if others.count() > 0 { Severity::Warning } else { severity };
        findings.push(
            Finding::new(
                code,
                severity,
                NUMA,
                format!("the NUMA node of {name} is not known to the kubelet"),
                "it is handed out from anywhere, so that jobs that ask for one NUMA node are not placed there",
                fix,
            )
            .on(hosts),
        );
    }
}

/// What drivers leave out.
fn published(devices: &BTreeMap<String, Vec<Device>>, findings: &mut Vec<Finding>) {
    let lacks_numa: fn(&Device) -> bool = |device| device.numa.is_none();
    let lacks_root: fn(&Device) -> bool = |device| device.root.is_none();
    let table = [
        ("driver-without-numa", "numaNode", NUMA, lacks_numa),
        ("driver-without-root", "pcieRoot", PCIE, lacks_root),
    ];
    for (code, attribute, localities, lacks) in table {
        let mut lacking: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (host, devices) in devices {
            let devices = devices.iter().filter(|device| matches!(device.what, What::Device(_)));
            for device in devices.filter(|device| lacks(device)) {
                lacking.entry(&device.name).or_default().insert(host.clone());
            }
        }
        for (name, hosts) in lacking {
            findings.push(
                Finding::new(
                    code,
                    Severity::Warning,
                    localities,
                    format!("{name} publishes devices without {attribute}"),
                    "no claim can ask for them together with others",
                    format!(
                        "bring the driver to a version that publishes resource.kubernetes.io/{attribute}"
                    ),
                )
                .on(hosts),
            );
        }
    }
}

/// Claims ask for a class, and the class for a driver.
fn classes(view: &View<'_>, devices: &BTreeMap<String, Vec<Device>>, findings: &mut Vec<Finding>) {
    let Source::Known(classes) = &view.report.device_classes else { return };
    let mut expressions = String::new();
    for class in classes {
        let selectors = class.pointer("/spec/selectors").and_then(Value::as_array);
        let cel = selectors
            .into_iter()
            .flatten()
            .filter_map(|selector| selector.pointer("/cel/expression")?.as_str());
        cel.for_each(|expression| expressions.push_str(expression));
    }
    let all = devices.values().flatten().filter(|device| matches!(device.what, What::Device(_)));
    let drivers: BTreeSet<&str> = all.filter_map(|device| device.name.split('/').next()).collect();
    for driver in drivers {
        let quoted = [format!("\"{driver}\""), format!("'{driver}'")];
        if quoted.iter().any(|quoted| expressions.contains(quoted)) {
            continue;
        }
        findings.push(Finding::new(
            "class-missing",
            Severity::Warning,
            EVERY,
            format!("no DeviceClass selects the devices of {driver}"),
            "claims ask for a class: without one nothing of this driver can be had",
            format!("create a DeviceClass with the selector device.driver == \"{driver}\""),
        ));
    }
}

/// One PCIe root: only drivers say where roots are.
fn pairs(view: &View<'_>, findings: &mut Vec<Finding>) {
    if view.cluster.hosts.is_empty() {
        // Said already, or not known.
        return;
    }
    let is_nic = |nic: bool| move |class: &DeviceClass, _| (*class == DeviceClass::Nic) == nic;
    let both = |host: &&Host| view.offers(host, is_nic(false)) && view.offers(host, is_nic(true));
    let hosts: BTreeSet<String> =
        view.cluster.hosts.iter().filter(both).map(|host| host.name.clone()).collect();
    let class = |name: &str| view.cluster.devices.get(name).map(|kind| &kind.class);
    let roots = || view.cluster.hosts.iter().flat_map(|host| &host.numa).flat_map(|node| &node.roots);
    let is_pair = |names: &BTreeMap<String, u32>| {
        names.keys().any(|name| class(name) == Some(&DeviceClass::Nic))
            && names.keys().any(|name| class(name).is_some_and(|class| *class != DeviceClass::Nic))
    };
    if roots().any(|root| is_pair(&root.capacity)) {
        return;
    }
    let error = |code, what: &str, why, fix: &str| Finding::new(code, Severity::Error, PCIE, what, why, fix);
    findings.push(if hosts.is_empty() {
        error(
            "no-pairs",
            "no host has GPUs and NICs",
            "a pair is a GPU and a NIC",
            "install the device plugins or the DRA drivers of GPUs and of SR-IOV virtual functions",
        )
    } else if roots().next().is_none() {
        error(
            "roots-unknown",
            "no ResourceSlice says behind which PCIe root a device is",
            "device plugins do not say it, and what is not known to be a pair is not placed as one",
            "install DRA drivers of GPUs and NICs that publish pcieRoot (dra-driver-nvidia-gpu, dranet, dra-driver-sriov)",
        )
        .on(hosts)
    } else {
        error(
            "roots-apart",
            "no PCIe root has a GPU and a NIC",
            "there are no pairs, as the machines are built or as the drivers publish them",
            "ask for locality: numa",
        )
        .on(hosts)
    });
}

fn sync(view: &View<'_>, findings: &mut Vec<Finding>) {
    let mut hosts = BTreeSet::new();
    let mut faults = BTreeSet::new();
    for state in view.report.sriov_states.known().into_iter().flatten() {
        let name = state.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if let Some(fault) = sriov::read(state).fault {
            hosts.insert(name.to_owned());
            faults.insert(fault);
        }
    }
    let Some(fault) = faults.pop_first() else { return };
    findings.push(
        Finding::new(
            "sriov-not-synced",
            Severity::Warning,
            EVERY,
            fault,
            "NICs are missing there, or are others than the policy says",
            "kubectl get sriovnetworknodestates -A -o yaml, and the log of its sriov-network-config-daemon",
        )
        .on(hosts),
    );
}

/// A VF of a device plugin comes into the pod by a Multus network that names its resource.
fn networks(view: &View<'_>, findings: &mut Vec<Finding>) {
    let pools = view.cluster.devices.iter();
    let pools = pools.filter(|(_, kind)| kind.class == DeviceClass::Nic && kind.by == Mechanism::Plugin);
    let pools: BTreeSet<&str> = pools.map(|(name, _)| name.as_str()).collect();
    if pools.is_empty() {
        return;
    }
    let why = "the NIC is allocated, and its network interface stays on the host";
    match &view.report.networks {
        Source::Refused(_) => {}
        Source::Absent => findings.push(Finding::new(
            "multus-missing",
            Severity::Warning,
            CLOSE,
            "Multus is not installed (no NetworkAttachmentDefinition)",
            why,
            "install Multus, and a NetworkAttachmentDefinition for each pool of VFs",
        )),
        Source::Known(networks) => {
            let named = networks.iter().filter_map(|network| network.pointer(NETWORK_RESOURCE)?.as_str());
            let named: BTreeSet<&str> = named.collect();
            for pool in pools.difference(&named) {
                findings.push(Finding::new(
                    "network-missing",
                    Severity::Warning,
                    CLOSE,
                    format!("no NetworkAttachmentDefinition that you may see is of {pool}"),
                    why,
                    format!("create one with the annotation k8s.v1.cni.cncf.io/resourceName: {pool}"),
                ));
            }
        }
    }
}

fn pod_security(view: &View<'_>, findings: &mut Vec<Finding>) {
    let labels = view.report.namespace_labels.known();
    let Some(level) = labels.and_then(|labels| labels.get(POD_SECURITY)) else { return };
    if level == "privileged" || view.cluster.names(&DeviceClass::Nic).next().is_none() {
        return;
    }
    let namespace = &view.report.namespace;
    findings.push(Finding::new(
        "pod-security",
        Severity::Warning,
        CLOSE,
        format!("namespace {namespace} enforces Pod Security {level}"),
        "a sidecar with NICs locks memory for RDMA, which needs the capability IPC_LOCK, which that level forbids",
        format!("kubectl label namespace {namespace} --overwrite {POD_SECURITY}=privileged, or use a namespace of its own"),
    ));
}
